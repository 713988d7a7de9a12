"""What the stages about teachers share: the panel, the calls that are expected, the journal's
place.

In: a `Run`. Out: the values that `annotate`, `plan` and `compact` work on. Invariant: no teacher is
made here, so neither a key nor an SDK is needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from sp2dpo_ray.annotate.spec import PanelSpec
from sp2dpo_ray.annotate.table import Expected
from sp2dpo_ray.annotate.twins import find_twins
from sp2dpo_ray.core.files import EVAL, TRAIN
from sp2dpo_ray.core.place import Folder, Place, find_place
from sp2dpo_ray.core.prompts import load_prompts
from sp2dpo_ray.run import Held, Run, hold


@dataclass(frozen=True, slots=True)
class PanelWork:
    """The whole panel of a run and the files of pairs by split.

    left_out: training pairs that no teacher is asked about.
    """

    spec: PanelSpec
    files: dict[str, Path]
    left_out: frozenset[str] = frozenset()

    @property
    def expected(self) -> Expected:
        spec = self.spec
        return Expected(spec.identities, spec.prompts, spec.redact, spec.early_stop)

    @property
    def pairs(self) -> int:
        """How many teachers are asked about."""
        rows = sum(pq.read_metadata(file).num_rows for file in self.files.values())
        return rows - len(self.left_out)

    @property
    def calls_each(self) -> int:
        """Calls of one teacher."""
        return self.pairs * len(self.spec.prompts.systems)

    @property
    def interactive(self) -> PanelSpec:
        """The teachers that are asked call by call."""
        chosen = (t for t in self.spec.teachers if t.mode == "interactive" and not t.on_engine)
        return replace(self.spec, teachers=tuple(chosen))

    @property
    def engines(self) -> list[PanelSpec]:
        """The teachers that this cluster hosts itself, each alone."""
        chosen = (t for t in self.spec.teachers if t.on_engine)
        return [replace(self.spec, teachers=(teacher,)) for teacher in chosen]

    @property
    def batch(self) -> list[PanelSpec]:
        """The teachers in batch mode, each by itself."""
        chosen = (t for t in self.spec.teachers if t.mode == "batch")
        return [replace(self.spec, teachers=(teacher,)) for teacher in chosen]

    def split_off(self, names: list[str]) -> tuple[PanelWork, PanelWork]:
        """The same with these teachers alone, and with the others alone."""
        these = tuple(t for t in self.spec.teachers if t.name in names)
        others = tuple(t for t in self.spec.teachers if t.name not in names)
        one, two = (replace(self.spec, teachers=teachers) for teachers in (these, others))
        return replace(self, spec=one), replace(self, spec=two)

    def without_twins(self) -> PanelWork:
        """The same, knowing which pairs repeat the texts of others."""
        twins = find_twins(
            list(self.files.values()), redact=self.spec.redact, left_out=self.left_out
        )
        return replace(self, spec=replace(self.spec, twins=twins | self.left_out))

    def only(self, asked: set[str], ids: list[str]) -> PanelWork:
        """The same for so many of the training pairs, whose ids are all of these."""
        left_out = frozenset(name for name in ids if name not in asked)
        return replace(self, left_out=left_out, spec=replace(self.spec, twins=left_out))

    @property
    def settings(self) -> Any:
        """What of the configuration decides the annotations."""
        spec = self.spec
        return {
            "teachers": [[i.name, i.provider, i.model, i.decoding] for i in spec.identities],
            "prompts": spec.prompts.digest,
            "evaluation": EVAL in self.files,
            "redact": spec.redact,
            "early_stop": spec.early_stop and [spec.early_stop[0], asdict(spec.early_stop[1])],
        }


@contextmanager
def journal_held(place: Place) -> Iterator[None]:
    """Hold a journal for one command: what is on record is read once, so that of two commands each
    would pay for what the other has asked since. Of an object store nothing is held."""
    with ExitStack() as stack:
        if isinstance(place, Folder):
            try:
                stack.enter_context(hold(place.root))
            except Held:
                raise Held(
                    f"annotate.journal: another command is working on {place}; wait for it, then "
                    "run the same command: what that one paid for is not asked again"
                ) from None
        yield


def panel_of(run: Run) -> PanelWork:
    """The panel as the configuration has it."""
    config = run.config
    annotate = config.annotate
    # a teacher's requests in flight are shared out among the actors, so more would be too many
    actors = min(annotate.actors, *(teacher.limits.in_flight for teacher in config.teachers))
    economy = None
    if annotate.early_stop is not None:
        economy = (annotate.early_stop, config.mapping.map())
    spec = PanelSpec(
        teachers=config.teachers,
        decoding=config.decoding,
        prompts=load_prompts(config.prompts.variants, config.prompts.dir),
        place=find_place(run.journal_at(annotate.journal, "journal")),
        actors=actors,
        max_failures=annotate.max_failures,
        max_pause_s=annotate.max_pause_s,
        redact=annotate.redact,
        early_stop=economy,
        store=run.store,
    )
    splits = (TRAIN, EVAL) if annotate.evaluation else (TRAIN,)
    return PanelWork(spec, {name: run.pairs_file(name) for name in splits})
