"""A teacher that this cluster hosts itself: calls answered by vLLM on GPUs, through Ray Data.

In: files of pairs, what is on record. Out: rows as the actors send them; the answers go to the
journal under the same keys. Invariant: an intent is on record before the engine sees its call, and
the model is loaded once a round, however many pairs there are.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy

from sp2dpo_ray.annotate.batches import CPUS, Order, Row
from sp2dpo_ray.annotate.client import intent_entry, result_entry
from sp2dpo_ray.annotate.engine_settings import check_machine, engine_config, pinned_template
from sp2dpo_ray.annotate.journal import Entry, Journal, Segment
from sp2dpo_ray.annotate.pipeline import read_pieces
from sp2dpo_ray.annotate.record import places_of, read_record
from sp2dpo_ray.annotate.spec import PanelSpec
from sp2dpo_ray.annotate.table import pair_chunks
from sp2dpo_ray.config import DecodingSection, TeacherSection
from sp2dpo_ray.core.annotation import SETTLED, Outcome
from sp2dpo_ray.core.pairs import pairs_from
from sp2dpo_ray.errors import TeacherStopped
from sp2dpo_ray.teachers.vllm import reply_of, settings_of

MOST_FAILED = 0.5  # share of a round's calls; with more something is wrong with all
PAIRS_AT_ONCE = 64
INTENTS = pa.schema(
    [
        ("intent", pa.string()),
        ("messages", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
    ]
)
# without what the stage adds for itself; an error's row has other columns, so names stay Ray's
COLUMNS = ("intent", "generated_text", "num_input_tokens", "num_generated_tokens", "time_taken_llm")
Answered = Callable[[Any, TeacherSection, DecodingSection], Any]


def answered(calls: Any, section: TeacherSection, decoding: DecodingSection) -> Any:
    """A data set of INTENTS with what the engine made of each; the only caller of Ray's API."""
    from ray.data.llm import build_processor

    check_machine(section)
    sampling = settings_of(section, decoding).sent
    processor = build_processor(
        engine_config(section, pinned_template(section)),
        preprocess=lambda row: {**row, "sampling_params": dict(sampling)},
        postprocess=lambda row: {name: row[name] for name in COLUMNS},
    )
    return processor(calls)


class IntentWriter:
    """Map stage: the calls of pairs that are not on record, each noted before it goes on."""

    def __init__(self, spec: PanelSpec, keys: Any, token: str, attempt: int) -> None:
        self._spec, self._keys = spec, ray.get(keys)
        self._token, self._attempt = token, attempt
        self._segment = Segment(spec.place, spec.teachers[0].name)
        self._loop = asyncio.new_event_loop()

    def __call__(self, batch: pa.Table) -> pa.Table:
        calls = self._spec.calls(pairs_from(batch))
        places = places_of([call.key for call in calls], self._keys)
        new = [call for call, place in zip(calls, places, strict=True) if place < 0]
        intents = [intent_entry(call, self._attempt, 0.0) | {"job": self._token} for call in new]
        self._loop.run_until_complete(self._note(intents))
        rows = [
            {"intent": json.dumps(intent), "messages": call.messages}
            for intent, call in zip(intents, new, strict=True)
        ]
        return pa.Table.from_pylist(rows, schema=INTENTS)

    async def _note(self, intents: list[Entry]) -> None:
        await asyncio.gather(*(self._segment.append(intent) for intent in intents))


def start_engine(order: Order) -> Any:
    """Begin to work on an order; yields references to rows, as `start_batches` does."""
    task = ray.remote(num_cpus=CPUS, num_returns="streaming", max_retries=0)(_work)
    return task.remote(order, answered)


def _work(order: Order, stage: Answered) -> Iterator[list[Row]]:
    engine = Engine(order, stage)
    try:
        yield from engine.rounds()
    except (ray.exceptions.RayActorError, ray.exceptions.RayTaskError) as error:
        raise TeacherStopped(
            f"teacher {order.teacher.name}: {str(error).strip().splitlines()[-1]}\nMend the cause, "
            "then run the same command"
        ) from None
    finally:
        engine.close()


class Engine:
    """Asks what is not on record, and again what failed, as often as a call may be retried."""

    def __init__(self, order: Order, stage: Answered) -> None:
        self._order, self._stage = order, stage
        self._section, self._decoding = order.teacher, order.spec.decoding
        self._segment = Segment(order.spec.place, self._section.name)
        self._loop = asyncio.new_event_loop()

    def rounds(self) -> Iterator[list[Row]]:
        """Rows of what is on record, then of what the engine answers."""
        place = self._order.spec.place
        for token in self._order.record.jobs_of(self._section.name):
            self._note("job_done", token)  # a killed command's engine is gone, and its calls free
        record = read_record(Journal(place).new_entries())
        known, calls = self._on_record(record)
        if known:
            yield [self._row(Outcome.OK, known, reused=True)]
        if known == calls:  # a model of many GB would be loaded for no call
            return
        for attempt in range(1, self._decoding.retries + 2):
            failed = yield from self._round(record, attempt)
            if not failed:
                return
            record = read_record(Journal(place).new_entries())

    def _on_record(self, record: Any) -> tuple[int, int]:
        """How many calls are settled, and how many there are."""
        known = calls = 0
        for file in self._order.files:
            for pairs in pair_chunks(file):
                settled = record.settled([call.key for call in self._order.spec.calls(pairs)])
                known, calls = known + sum(settled), calls + len(settled)
        return known, calls

    def _round(self, record: Any, attempt: int) -> Iterator[Any]:
        token, last = os.urandom(12).hex(), attempt == self._decoding.retries + 1
        self._note("job", token)
        made = failed = 0
        for batch in self._answers(record, token, attempt):
            counts: Counter[Outcome] = Counter()
            for row in batch.to_pylist():
                reply = reply_of(row, self._section, self._decoding)
                seconds = max(0.0, row.get("time_taken_llm") or 0.0)
                entry = result_entry(json.loads(row["intent"]), reply, seconds=seconds, money={})
                self._append(entry)
                made += 1
                if reply.outcome not in SETTLED:
                    failed += 1
                    self._stop_if_hopeless(made, failed, reply.detail)
                if last or reply.outcome in SETTLED:
                    counts[reply.outcome] += 1
            if counts:
                yield [self._row(outcome, count) for outcome, count in counts.items()]
        self._note("job_done", token)
        return failed

    def _answers(self, record: Any, token: str, attempt: int) -> Iterator[pa.Table]:
        pairs = read_pieces(self._order.files, self._order.spec.store)
        if pairs is None:
            return
        calls = pairs.map_batches(
            IntentWriter,
            fn_constructor_args=(self._order.spec, ray.put(record.keys), token, attempt),
            batch_size=PAIRS_AT_ONCE,
            batch_format="pyarrow",
            num_cpus=CPUS,
            compute=ActorPoolStrategy(size=1),
        )
        made = self._stage(calls, self._section, self._decoding)
        yield from made.iter_batches(batch_size=None, batch_format="pyarrow")

    def _stop_if_hopeless(self, made: int, failed: int, detail: str) -> None:
        if failed >= self._order.spec.max_failures and failed > MOST_FAILED * made:
            raise TeacherStopped(
                f"teacher {self._section.name}: {failed:,} of {made:,} calls failed, last: "
                f"{detail}\nMend the cause, then run the same command"
            )

    def _note(self, kind: str, token: str) -> None:
        self._append({"kind": kind, "token": token, "teacher": self._section.name, "job": None,
                      "calls": 0, "time": time.time()})  # fmt: skip

    def _append(self, entry: Entry) -> None:
        self._loop.run_until_complete(self._segment.append(entry))

    def _row(self, outcome: Outcome, calls: int, *, reused: bool = False) -> Row:
        return {"teacher": self._section.name, "outcome": str(outcome), "reused": reused,
                "calls": calls, "usd": 0.0, "detail": ""}  # fmt: skip

    def close(self) -> None:
        self._segment.close()
        self._loop.close()
