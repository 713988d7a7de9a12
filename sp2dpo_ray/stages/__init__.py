"""The stages of a run, one file each; they meet only in the run folder.

In: a `Run`. Out: one artifact a stage, and a summary for `--json`. Invariant: running a stage again
does only what is missing.
"""

from __future__ import annotations

import importlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sp2dpo_ray.console import about, say, without_lines
from sp2dpo_ray.errors import ConfigError

if TYPE_CHECKING:  # the table of stages is read for each `--help`
    from sp2dpo_ray.run import Run, Summary

LOG_LEVEL = "RAY_BACKEND_LOG_LEVEL"
OBJECT_STORE_BYTES = 1 << 30  # for a Ray of our own; the default takes a third of the memory


@dataclass(frozen=True, slots=True)
class Stage:
    """A row of the table of stages; `place` is imported when the stage runs, since a machine that
    only annotates has no torch, and one that only trains has no SDK. `extra` brings its packages.
    writes: whether it changes the run folder, and so must be alone in it.
    """

    name: str
    place: str
    needs_ray: bool
    extra: str
    title: str
    writes: bool = True

    def __call__(self, run: Run, **more: Any) -> Summary:
        return self.work(run, **more)

    def work(self, *given: Any, **more: Any) -> Summary:
        """Call the function at `place`; a package that is missing is named with its extra."""
        about(stage=self.name)
        module, _, function = self.place.partition(":")
        try:
            work = getattr(importlib.import_module(module), function)
        except ModuleNotFoundError as error:
            raise missing(error, f"stage {self.name}", self.extra) from error
        summary: Summary = work(*given, **more)
        return summary


STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage("prepare", "sp2dpo_ray.stages.prepare:prepare", False, "",
              "Read, clean and split the pairs."),
        Stage("student", "sp2dpo_ray.stages.student:student", False, "train",
              "Find the student model, or make the tiny one."),
        Stage("annotate", "sp2dpo_ray.stages.annotate:annotate", True, "annotate",
              "Ask the teachers about every pair; what is on record is not asked again."),
        Stage("plan", "sp2dpo_ray.stages.plan:plan", False, "annotate",
              "What annotation would still ask and cost; asks nothing.", writes=False),
        Stage("compact", "sp2dpo_ray.stages.compact:compact", False, "annotate",
              "Merge the journal's many files into one a teacher."),
        Stage("doctor", "sp2dpo_ray.stages.doctor:doctor", False, "annotate",
              "What is here, what is missing, and whether each teacher answers.", writes=False),
        Stage("schedule", "sp2dpo_ray.stages.schedule:schedule", False, "",
              "Turn the annotations into one beta for each pair."),
        Stage("audit", "sp2dpo_ray.stages.audit:audit", False, "",
              "List the pairs most worth a person's look; --import reads the verdicts."),
        Stage("export", "sp2dpo_ray.stages.export:export", False, "",
              "Join the schedule to its pairs as a Hugging Face data set folder."),
        Stage("distill", "sp2dpo_ray.stages.distill:distill", False, "distill",
              "Train a predictor on the annotations, which can annotate in the teachers' place."),
        Stage("reference", "sp2dpo_ray.stages.reference:reference", True, "train",
              "Log-probabilities of the frozen student, once for every arm."),
        Stage("train", "sp2dpo_ray.stages.train:train", True, "train",
              "Train one arm (train.arm) and score it on the held-out pairs."),
        Stage("sweep", "sp2dpo_ray.stages.sweep:sweep", True, "tune",
              "Train every arm of sweep.arms, several at once, and compare them."),
        Stage("generate", "sp2dpo_ray.stages.generate:generate", True, "train",
              "Let every student answer the questions of the benchmarks."),
        Stage("evaluate", "sp2dpo_ray.stages.evaluate:evaluate", True, "evaluate",
              "Judge and score the answers on AlpacaEval 2, MT-Bench, IFEval, Arena-Hard-Auto."),
        Stage("report", "sp2dpo_ray.stages.report:report", False, "report",
              "Write the page that shows the run."),
    )
}  # fmt: skip

WHOLE_RUN = Stage(
    "run", "sp2dpo_ray.stages:run_all", True, "all",
    "All stages in order, every arm of sweep.arms, and the page.",
)  # fmt: skip

LAB = Stage(
    "lab", "sp2dpo_ray.stages.lab:lab", True, "lab",
    "Train every arm in small worlds whose truth is known, and tell where each helps.",
)  # fmt: skip

TABLES = Stage(
    "tables", "sp2dpo_ray.stages.tables:tables", False, "report",
    "Students of several runs side by side, in the form of the paper's tables.",
)  # fmt: skip

CLUSTER_SIZE = Stage(
    "cluster-size", "sp2dpo_ray.stages.cluster_size:cluster_size", False, "annotate",
    "How many nodes of which kind a run wants, for how long and how much money.", writes=False,
)  # fmt: skip

IMPORT = Stage(
    "audit --import", "sp2dpo_ray.stages.audit:import_verdicts", False, "",
    "Agreement of labels and teachers with a person's verdicts.",
)  # fmt: skip


def missing(error: ModuleNotFoundError, what: str, extra: str) -> ConfigError:
    """A package that this machine lacks, with the line that installs it."""
    package = (error.name or "?").partition(".")[0]
    return ConfigError(
        f"{what} needs the package {package}, which is not installed here; "
        f"run: pip install 'sp2dpo-ray[{extra}]'"
    )


def run_all(run: Run) -> Summary:
    """Every stage in order, every arm of `sweep.arms`, the benchmarks if any, and the page.

    The student comes before the teachers: an id that does not exist must cost nothing.
    """
    summaries: dict[str, Any] = {}
    for name in ("prepare", "student", "annotate", "schedule", "reference"):
        summaries[name] = STAGES[name](run)
        say(f"{name}: {brief(summaries[name])}")
    summaries["train"] = {}
    for arm in run.config.sweep.names:
        summaries["train"][arm] = STAGES["train"](run, arm_name=arm)
        say(f"train {arm}: {brief(summaries['train'][arm])}")
    for name in ("generate", "evaluate") if run.config.evaluate.benchmarks else ():
        summaries[name] = STAGES[name](run)
        say(f"{name}: {brief(summaries[name])}")
    summaries["report"] = STAGES["report"](run)
    return summaries


def brief(summary: Summary) -> str:
    """The figures of a summary on one line, nested ones left out."""
    figures = {
        name: f"{value:,.4g}" if isinstance(value, float) else f"{value:,}"
        for name, value in summary.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    text = ", ".join(f"{value} {name}" for name, value in figures.items())
    return f"{text} (already done)" if summary.get("reused") else text


@contextmanager
def ray_session(address: str | None, extra: str = "annotate") -> Iterator[None]:
    """The Ray that stages use: at the address, the cluster of this job, or one of our own. extra:
    what brings Ray where it is missing."""
    # no usage report leaves this machine unless its owner asked for it
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault(LOG_LEVEL, "fatal")
    try:
        import ray
        from ray.data import DataContext
    except ModuleNotFoundError as error:
        raise missing(error, "this stage", extra) from error

    # Ray's own remarks belong into its log files; what a user must know, the stages say
    DataContext.get_current().enable_progress_bars = False
    DataContext.get_current().print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    with redirect_stdout(sys.stderr):  # Ray prints what befalls its nodes on stdout
        yield from _session(ray, address)


def check_shared_folder(run: Run, stage: Stage) -> None:
    """Refuse what would look for files on the wrong machine.

    Nodes of a run in an object store have no folder in common unless `run.mirror` names one; only
    calls to teachers do without.
    """
    import ray

    if run.config.run.uri is None or "mirror" in run.config.run.model_fields_set:
        return
    called = all(t.mode == "interactive" and not t.on_engine for t in run.config.teachers)
    from sp2dpo_ray.room import grows

    nodes = sum(node["Alive"] for node in ray.nodes())
    if (nodes > 1 or grows()) and not (stage.name == "annotate" and called):
        how = f"has {nodes} nodes" if nodes > 1 else "starts nodes when they are asked for"
        raise ConfigError(
            f"run.storage is an object store, and this cluster {how}: stage {stage.name} needs a "
            "folder that all of them see. Name one, run.mirror: /shared/..., or use a cluster of "
            "one machine"
        )


def _session(ray: Any, address: str | None) -> Iterator[None]:
    if ray.is_initialized():  # somebody else's session, not ours to close
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS")
    local = {} if address else {"object_store_memory": OBJECT_STORE_BYTES}
    told_to_end = signal.getsignal(signal.SIGTERM)
    with without_lines(LOG_LEVEL):  # Ray says that it obeys, on every start
        context = ray.init(
            # "local": without it Ray joins whatever cluster somebody started on this machine
            address=address or "local",
            include_dashboard=None if address else False,
            logging_level="ERROR",
            log_to_driver=False,
            **local,
        )
    if threading.current_thread() is threading.main_thread():
        # Ray puts an exit of its own in its place, which would end a command without a word
        signal.signal(signal.SIGTERM, told_to_end)
    if context.dashboard_url:
        say(f"Ray dashboard: http://{context.dashboard_url}")
    try:
        yield
    finally:
        ray.shutdown()
