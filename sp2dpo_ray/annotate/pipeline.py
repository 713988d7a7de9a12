"""The annotation pipeline: Ray Data streams the pairs through a pool of panel actors.

In: files of pairs, the panel, what the journal holds. Out: what happened, counted; the answers are
in the journal. Pairs are read, asked about and forgotten block by block, so memory does not grow
with their number. Invariant: a call that the journal holds as settled is not made again.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray.data import ActorPoolStrategy, DataContext

from sp2dpo_ray.annotate.actor import PLACE, PanelActor
from sp2dpo_ray.annotate.journal import Journal
from sp2dpo_ray.annotate.record import Record, read_record
from sp2dpo_ray.annotate.spec import PanelSpec
from sp2dpo_ray.core.annotation import Outcome
from sp2dpo_ray.core.files import PAIRS
from sp2dpo_ray.core.pairs import PAIR_FIELDS
from sp2dpo_ray.core.place import Place
from sp2dpo_ray.errors import Stopped, TeacherStopped
from sp2dpo_ray.teachers.retry import RETRYABLE

ACTOR_CPUS = 0.25  # an actor mostly waits for answers
READER_CPUS = 0.25
LEAST_BATCHES_AT_ONCE = 4  # per actor, so that one slow answer does not hold up the next pairs
BLOCK_BYTES = 8 << 20  # of pairs, read ahead of the actors
Progress = Callable[[str, int, str], None]  # teacher, calls since, note
HALTED = frozenset({Outcome.AUTH, Outcome.NOT_ATTEMPTED})


@dataclass(slots=True)
class Tally:
    """Counts of one run of the stage, by teacher."""

    made: Counter[str] = field(default_factory=Counter)
    reused: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    usd: dict[str, float] = field(default_factory=dict)
    outcomes: dict[str, Counter[str]] = field(default_factory=dict)
    seconds: float = 0.0

    def add(self, row: dict[str, Any]) -> None:
        """One row of what an actor sends (`actor.OUTPUT`)."""
        teacher, outcome, calls = row["teacher"], Outcome(row["outcome"]), row["calls"]
        if row["reused"]:
            self.reused[teacher] += calls
        elif outcome is Outcome.SKIPPED:
            self.skipped[teacher] += calls
        else:
            if outcome not in (Outcome.NOT_ATTEMPTED, Outcome.BUDGET_STOP):
                self.made[teacher] += calls
            self.outcomes.setdefault(teacher, Counter())[outcome] += calls
        self.usd[teacher] = self.usd.get(teacher, 0.0) + row["usd"]

    def take(self, rows: list[dict[str, Any]], progress: Progress) -> None:
        """Count rows and show them; raises Stopped for what must end the stage."""
        for row in rows:
            self.add(row)
            progress(row["teacher"], row["calls"], self.note(row["teacher"]))
        for row in rows:
            if not row["reused"]:
                self._stop_for(row)

    def _stop_for(self, row: dict[str, Any]) -> None:
        outcome = Outcome(row["outcome"])
        if outcome is Outcome.BUDGET_STOP:
            raise Stopped(
                "budget.usd has no room for another call: calls in flight are counted at the most "
                f"they can cost. {self._go_on('Raise budget.usd')}"
            )
        if outcome in HALTED:
            raise TeacherStopped(
                f"teacher {row['teacher']}: {row['detail']}\n{self._go_on('Mend the cause')}"
            )

    def _go_on(self, mend: str) -> str:
        return (
            f"The answers to {self.made.total():,} calls of this command (${self.total_usd:,.2f}) "
            f"are recorded and will not be asked again. {mend}, then run the same command: it goes "
            "on from here"
        )

    @property
    def failed(self) -> int:
        """Calls that may be answered if they are asked again."""
        return sum(count[outcome] for count in self.outcomes.values() for outcome in RETRYABLE)

    def replace_failed(self, later: Tally) -> None:
        """Count what a later round made of the calls that had failed."""
        for teacher, outcomes in later.outcomes.items():
            for outcome in RETRYABLE:
                self.outcomes[teacher].pop(outcome, None)
            self.outcomes[teacher].update(outcomes)
        for teacher, usd in later.usd.items():
            self.usd[teacher] = self.usd.get(teacher, 0.0) + usd

    def go_on_with(self, later: Tally) -> None:
        """Add a pass over these pairs and further ones, which found on record what this one
        made."""
        self.reused = later.reused - self.made
        self.made += later.made
        self.skipped = later.skipped
        for teacher, outcomes in later.outcomes.items():
            self.outcomes.setdefault(teacher, Counter()).update(outcomes)
        for teacher, usd in later.usd.items():
            self.usd[teacher] = self.usd.get(teacher, 0.0) + usd
        self.seconds += later.seconds

    @property
    def total_usd(self) -> float:
        return sum(self.usd.values())

    def note(self, teacher: str) -> str:
        """What a person wants to see of one teacher beside the bar."""
        rate = self.made[teacher] / max(self.seconds, 1e-9)
        parts = [f"{rate:,.1f}/s"]
        if self.usd.get(teacher):
            parts.append(f"${self.usd[teacher]:,.2f}")
        if self.reused[teacher] > 0:  # the call before the flood counts against it
            parts.append(f"{self.reused[teacher]:,} on record")
        if self.skipped[teacher]:
            parts.append(f"{self.skipped[teacher]:,} skipped")
        others = {k: v for k, v in self.outcomes.get(teacher, {}).items() if k != Outcome.OK}
        parts += [f"{count:,} {outcome}" for outcome, count in sorted(others.items())]
        return ", ".join(parts)


def annotate(
    files: list[Path],
    spec: PanelSpec,
    record: Record,
    coordinator: Any,
    journal: Journal,
    *,
    rounds: int,
    pairs_per_batch: int,
    progress: Progress,
    tally: Tally,
) -> None:
    """Ask for every call of the pairs in `files` that is not on record yet.

    rounds: passes over the pairs; one after the first asks again what failed for reasons that may
    pass, as long as others are answered. progress(teacher, calls, note) is told each time that
    calls are done. Raises TeacherStopped when a teacher refuses us or keeps failing, Stopped when
    the budget is used up; what was answered by then is in the journal.
    """
    with _patient_small_blocks():
        for number in range(rounds):
            now = Tally() if number else tally
            show = progress if number == 0 else partial(_only_note, progress)
            start = time.perf_counter()
            for batch in _stream(files, spec, record, coordinator, pairs_per_batch):
                now.seconds = time.perf_counter() - start
                now.take(batch.to_pylist(), show)
            if number:
                tally.replace_failed(now)
            if not now.failed or now.failed == now.made.total():
                return
            ray.get(coordinator.forget.remote())
            record.add(read_record(journal.new_entries(), with_gaps=spec.early_stop is not None))


def _only_note(progress: Progress, teacher: str, calls: int, note: str) -> None:
    progress(teacher, 0, f"again: {note}")


@contextmanager
def _patient_small_blocks() -> Iterator[None]:
    """Settings of Ray Data for this pipeline alone."""
    context = DataContext.get_current()
    before = (context.execution_no_progress_timeout_s, context.target_max_block_size)
    # a quota pause may last longer than Ray Data's patience with a silent pipeline
    context.execution_no_progress_timeout_s = -1
    context.target_max_block_size = BLOCK_BYTES
    try:
        yield
    finally:
        context.execution_no_progress_timeout_s, context.target_max_block_size = before


def _stream(
    files: list[Path], spec: PanelSpec, record: Record, coordinator: Any, pairs_per_batch: int
) -> Any:
    pairs = read_pieces(files, spec.store)
    if pairs is None:
        return []
    calls_at_once = max(t.limits.in_flight for t in spec.teachers) // spec.actors
    at_once = -(-2 * calls_at_once // (pairs_per_batch * len(spec.prompts.systems)))
    at_once = max(LEAST_BATCHES_AT_ONCE, at_once)
    counts = pairs.repartition(target_num_rows_per_block=pairs_per_batch).map_batches(
        PanelActor,
        fn_constructor_args=(spec, ray.put(record.keys), ray.put(record.gaps), coordinator),
        batch_size=pairs_per_batch,
        batch_format="pyarrow",
        num_cpus=ACTOR_CPUS,
        compute=ActorPoolStrategy(
            size=spec.actors,
            max_tasks_in_flight_per_actor=at_once,
            max_concurrent_calls_per_actor=at_once,
            enable_true_multi_threading=True,
        ),
    )
    return counts.iter_batches(batch_size=None, batch_format="pyarrow")


def read_pieces(files: list[Path], store: Place | None) -> Any:
    """The pairs of all files as a data set, each with its place; None where there are none.

    Read by plain tasks, each of which Ray can run again: its own Parquet reader fails with its
    node. store: where they are read, if not in the files themselves, which no other node has.
    """
    pieces, rows = [], 0
    for path in files:
        metadata = pq.read_metadata(path)
        for group in range(metadata.num_row_groups):
            name = str(path) if store is None else f"{PAIRS}/{path.name}"
            pieces.append({"name": name, "group": group, "first": rows})
            rows += metadata.row_group(group).num_rows
    if not pieces:
        return None
    return ray.data.from_items(pieces, override_num_blocks=len(pieces)).map_batches(
        _read_piece,
        fn_args=(store,),
        batch_size=1,
        batch_format="pyarrow",
        num_cpus=READER_CPUS,
    )


def _read_piece(piece: pa.Table, store: Place | None) -> pa.Table:
    """One row group of a file of pairs, each pair with its place among all."""
    (row,) = piece.to_pylist()
    columns = [field.name for field in PAIR_FIELDS]
    source = row["name"] if store is None else store.open(row["name"])
    pairs = pq.ParquetFile(source).read_row_group(row["group"], columns=columns)
    places = pa.array(range(row["first"], row["first"] + pairs.num_rows), pa.int64())
    return pairs.append_column(PLACE, places)
