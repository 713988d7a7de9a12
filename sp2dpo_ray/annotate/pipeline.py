"""The annotation pipeline: Ray Data streams the pairs through a pool of panel actors.

In: files of pairs, the panel, what the journal holds. Out: what happened, counted; the answers are
in the journal. Pairs are read, asked about and forgotten block by block, so memory does not grow
with their number. Invariant: a call that the journal holds as settled is not made again.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
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
from sp2dpo_ray.annotate.tally import Progress, Tally, ends_stage
from sp2dpo_ray.core.files import PAIRS
from sp2dpo_ray.core.pairs import PAIR_FIELDS
from sp2dpo_ray.core.place import Place

ACTOR_CPUS = 0.25  # an actor mostly waits for answers
READER_CPUS = 0.25
LEAST_BATCHES_AT_ONCE = 4  # per actor, so that one slow answer does not hold up the next pairs
BLOCK_BYTES = 8 << 20  # of pairs, read ahead of the actors


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
    the budget is used up, after the requests under way have ended; what was answered by then is in
    the journal.
    """
    with _patient_small_blocks():
        for number in range(rounds):
            now = Tally() if number else tally
            show = progress if number == 0 else partial(_only_note, progress)
            start, last = time.perf_counter(), None
            for batch in _stream(files, spec, record, coordinator, pairs_per_batch):
                now.seconds = time.perf_counter() - start
                rows = batch.to_pylist()
                if last is None:
                    last = next(filter(ends_stage, rows), None)
                    deadline = time.perf_counter() + spec.decoding.timeout_s
                else:  # what was under way; the others were not asked
                    rows = [row for row in rows if not ends_stage(row)]
                now.count(rows, show)
                # requests under way are paid for: their answers are waited for, and no others
                if last and (_all_idle(coordinator, spec) or time.perf_counter() > deadline):
                    break
            if last is not None:
                now.stop_for(last)
            if number:
                tally.replace_failed(now)
            if not now.failed or now.failed == now.made.total() - now.given_up.total():
                return
            ray.get(coordinator.forget.remote())
            since = journal.new_entries()
            record.add(read_record(since, with_gaps=spec.early_stop is not None, given_up=True))


def _all_idle(coordinator: Any, spec: PanelSpec) -> bool:
    idle: int = ray.get(coordinator.stop.remote())
    return idle >= spec.actors


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
