"""The reference pass on Ray Data: every pair through the frozen student once.

In: pairs, the student, the encoding. Out: one row a pair (REFERENCE_SCHEMA): log-probabilities and
the tokens that they are of, in the order of the ids.
Invariant: nothing of the arm (beta, learning rate, output folder) reaches this stage, so every arm
of a sweep can read one store.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch

from sp2dpo_ray.core.pairs import PAIR_FIELDS, pairs_from
from sp2dpo_ray.modeling.encode import EncodedPair, Encoding, encode_pairs
from sp2dpo_ray.modeling.forward import Scorer, check_forward
from sp2dpo_ray.modeling.layout import PLAIN, collate, plan_batches
from sp2dpo_ray.modeling.student import (
    DTYPES,
    QUANTIZED,
    StudentRef,
    load_model,
    load_tokenizer,
)
from sp2dpo_ray.reference.parts import Parts, through_actors

PAIRS_PER_BLOCK = 64
REFERENCE_SCHEMA = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("chosen_logp", pa.float32()),
        ("rejected_logp", pa.float32()),
        ("prompt", pa.list_(pa.int32())),
        ("chosen", pa.list_(pa.int32())),
        ("rejected", pa.list_(pa.int32())),
        ("notes", pa.list_(pa.string())),
    ]
)


@dataclass(frozen=True, slots=True)
class ReferenceSpec:
    """What decides a reference log-probability, and the resources to compute it with.

    weights: the type that they are kept in. computed_in: that of matrix products, where it is
    another; as the policy has them.
    """

    student: StudentRef
    encoding: Encoding
    weights: str
    computed_in: str | None
    tokens_per_batch: int
    layout: str
    head_bytes: int
    varlen: bool
    actors: int
    gpus_per_actor: float


def _load(spec: ReferenceSpec, device: torch.device) -> Any:
    model = load_model(spec.student, spec.weights, spec.layout, varlen=spec.varlen)
    return model if spec.weights == QUANTIZED else model.to(device)


class ReferenceActor:
    """Callable class for `map_batches`: holds the student, scores blocks of pairs."""

    def __init__(self, spec: ReferenceSpec) -> None:
        self._spec = spec
        self._device = torch.device("cuda" if spec.gpus_per_actor else "cpu")
        self._tokenizer = load_tokenizer(spec.student)
        self._model = _load(spec, self._device)
        self._autocast = DTYPES[spec.computed_in] if spec.computed_in else None
        self._score = Scorer(self._model, spec.head_bytes, self._autocast)
        self._checked = False

    @torch.inference_mode()
    def __call__(self, block: pa.Table) -> pa.Table:
        spec = self._spec
        encoded = encode_pairs(pairs_from(block), self._tokenizer, spec.encoding)
        logps = torch.empty(2, len(encoded))
        order = range(len(encoded))
        for index in plan_batches(encoded, order, spec.tokens_per_batch, spec.layout):
            if not self._checked:
                # over many tokens what two kernels round differently goes out
                self._check(encoded, [max(index, key=lambda i: encoded[i].shorter_response)])
            batch = collate(encoded, index, self._tokenizer.pad_token_id, spec.layout)
            found = self._score(batch.to(self._device))
            logps[:, index] = found.view(2, -1).float().cpu()
        return pa.table(
            [
                pa.array([pair.prompt_id for pair in encoded]),
                pa.array(logps[0].numpy()),
                pa.array(logps[1].numpy()),
                *(
                    pa.array([getattr(pair, name) for pair in encoded], pa.list_(pa.int32()))
                    for name in ("prompt", "chosen", "rejected")
                ),
                pa.array([list(pair.notes) for pair in encoded], pa.list_(pa.string())),
            ],
            schema=REFERENCE_SCHEMA,
        )

    def _check(self, encoded: list[EncodedPair], index: list[int]) -> None:
        ours, plain = (
            collate(encoded, index, self._tokenizer.pad_token_id, layout).to(self._device)
            for layout in (self._spec.layout, PLAIN)
        )
        with torch.autocast(self._device.type, self._autocast, bool(self._autocast)):
            check_forward(self._model, ours, plain)
        self._checked = True


def reference_logps(
    pairs: pa.Table, spec: ReferenceSpec, parts: Parts, *, progress: Callable[[int, str], None]
) -> pa.Table:
    """Log-probabilities of both responses of every pair under the frozen student.

    parts: what an interrupted pass left, and where finished blocks are kept. progress(pairs, note)
    is told as blocks are done.
    """
    done = parts.read()
    known = set().union(*(block["prompt_id"].to_pylist() for block in done))
    if known:
        progress(len(known), "from before the interruption")
    # a block is done or not: cut as in the pass before, it holds the same pairs and batches, and
    # so the same numbers to the bit
    open_blocks = [
        block for block in _blocks(pairs) if not known.issuperset(block["prompt_id"].to_pylist())
    ]
    done += through_actors(
        open_blocks, ReferenceActor, spec, parts,
        actors=spec.actors, gpus_per_actor=spec.gpus_per_actor, progress=progress,
    )  # fmt: skip
    return pa.concat_tables(done).sort_by("prompt_id").combine_chunks()


def _blocks(pairs: pa.Table) -> list[pa.Table]:
    """Blocks of like length: less padding, and blocks of like cost."""
    size = pc.add(pc.utf8_length(pairs["chosen"]), pc.utf8_length(pairs["rejected"]))
    order = pc.sort_indices(
        pa.table({"size": size, "prompt_id": pairs["prompt_id"]}),
        sort_keys=[("size", "descending"), ("prompt_id", "ascending")],
    )
    ranked = pairs.select([field.name for field in PAIR_FIELDS]).take(order)
    return [ranked.slice(i, PAIRS_PER_BLOCK) for i in range(0, len(ranked), PAIRS_PER_BLOCK)]
