"""The annotation pipeline: Ray Data over the pairs, a pool of panel actors, one row a call.

In: pairs, the panel, the journal folder. Out: what happened, counted; the answers are in the
journal. Invariant: a call that the journal holds as settled is not made again.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext

from sp2dpo_ray.annotate.actor import PanelActor, PanelSpec
from sp2dpo_ray.core.annotation import Outcome
from sp2dpo_ray.core.pairs import PAIR_FIELDS
from sp2dpo_ray.errors import Sp2dpoError, TeacherStopped
from sp2dpo_ray.teachers.catalogue import make_teacher

ACTOR_CPUS = 0.25  # an actor mostly waits for answers
BATCHES_AT_ONCE = 4  # per actor, so that one slow answer does not hold up the next pairs
HALTED = frozenset({Outcome.AUTH, Outcome.NOT_ATTEMPTED})


@dataclass(slots=True)
class Tally:
    """Counts of one run of the stage."""

    made: int = 0
    reused: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    failures: dict[str, str] = field(default_factory=dict)  # teacher -> the last failure's words


def check_teachers(spec: PanelSpec) -> None:
    """Make every teacher once where calls are made, before any call is paid.

    Raises ConfigError for a missing key, package or option. Keys lie on the machines that call, so
    asking the driver would be asking the wrong one.
    """
    try:
        ray.get(ray.remote(num_cpus=ACTOR_CPUS)(_make_teachers).remote(spec))
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, Sp2dpoError):
            raise error.cause from None
        raise


def _make_teachers(spec: PanelSpec) -> None:
    for teacher in spec.teachers:
        make_teacher(teacher, spec.decoding)


def annotate(
    pairs: pa.Table,
    spec: PanelSpec,
    *,
    pairs_per_batch: int,
    progress: Callable[[int, str], None],
) -> Tally:
    """Ask for every call of `pairs` that the journal does not hold yet.

    progress(calls, note) is told each time that calls are done. Raises TeacherStopped when a
    teacher refuses us or keeps failing; what was answered by then is in the journal.
    """
    # a quota pause may last longer than Ray Data's patience with a silent pipeline
    DataContext.get_current().execution_no_progress_timeout_s = -1
    data = ray.data.from_arrow(pairs.select([f.name for f in PAIR_FIELDS])).repartition(
        target_num_rows_per_block=pairs_per_batch
    )
    rows = data.map_batches(
        PanelActor,
        fn_constructor_args=(spec,),
        batch_size=pairs_per_batch,
        batch_format="pyarrow",
        num_cpus=ACTOR_CPUS,
        compute=ActorPoolStrategy(
            size=spec.actors,
            max_tasks_in_flight_per_actor=BATCHES_AT_ONCE,
            max_concurrent_calls_per_actor=BATCHES_AT_ONCE,
            enable_true_multi_threading=True,
        ),
    )
    tally, start = Tally(), time.perf_counter()
    for batch in rows.iter_batches(batch_size=None, batch_format="pyarrow"):
        _count(batch, tally)
        tally.seconds = time.perf_counter() - start
        rate = tally.made / max(tally.seconds, 1e-9)
        progress(batch.num_rows, f"{rate:,.0f} calls/s, {tally.reused:,} from the journal")
        stopped = [name for name in tally.failures if tally.failures[name]]
        if stopped and _halted(batch):
            name = stopped[0]
            raise TeacherStopped(
                f"teacher {name}: {tally.failures[name]}\n"
                f"{tally.made:,} calls of this run are recorded and will not be made again. "
                "Mend the cause, then run the same command: it goes on from here"
            )
    return tally


def _halted(batch: pa.Table) -> bool:
    return any(Outcome(outcome) in HALTED for outcome in batch["outcome"].to_pylist())


def _count(batch: pa.Table, tally: Tally) -> None:
    for row in batch.to_pylist():
        outcome = Outcome(row["outcome"])
        if row["reused"]:
            tally.reused += 1
        else:
            tally.made += outcome is not Outcome.NOT_ATTEMPTED
            tally.outcomes[row["outcome"]] += 1
        if outcome in HALTED:
            tally.failures[row["teacher"]] = row["detail"]
