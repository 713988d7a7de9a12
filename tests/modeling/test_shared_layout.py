"""The shared layout equals the plain one: log-probabilities and gradients, every architecture."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sp2dpo_ray.errors import TrainingError
from sp2dpo_ray.modeling.attention import attention, pair_attention
from sp2dpo_ray.modeling.encode import EncodedPair
from sp2dpo_ray.modeling.forward import check_forward, response_logps
from sp2dpo_ray.modeling.head import head_logps
from sp2dpo_ray.modeling.layout import PLAIN, SHARED, collate, plan_batches, row_tokens
from sp2dpo_ray.objectives.logps import token_logps
from tests.modeling.architectures import CONFIGS, VOCABULARY, make_model


def pairs_of(lengths: list[tuple[int, int, int]], seed: int = 0) -> list[EncodedPair]:
    draw = random.Random(seed)

    def tokens(count: int) -> np.ndarray:
        return np.array([draw.randrange(3, VOCABULARY) for _ in range(count)], np.int32)

    return [
        EncodedPair(f"p{i}", tokens(p), tokens(c), tokens(r)) for i, (p, c, r) in enumerate(lengths)
    ]


LENGTHS = [(9, 5, 8), (1, 1, 1), (3, 12, 1), (20, 2, 17), (6, 4, 4)]


def logps_and_gradients(model: Any, pairs: list[EncodedPair], layout: str) -> tuple[Any, Any]:
    weights = [weight.requires_grad_() for weight in model.parameters()]
    with attention(model, layout):
        batch = collate(pairs, list(range(len(pairs))), 0, layout)
        logps = response_logps(model, batch)
        scale = torch.linspace(-1, 1, len(logps), dtype=logps.dtype)
        gradients = torch.autograd.grad((logps * scale).sum(), weights, allow_unused=True)
    return logps.detach(), gradients


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_both_layouts_give_the_same_numbers(
    name: str, dtype: torch.dtype, tolerance: float
) -> None:
    model, pairs = make_model(name, dtype), pairs_of(LENGTHS)
    plain, plain_gradients = logps_and_gradients(model, pairs, PLAIN)
    shared, shared_gradients = logps_and_gradients(model, pairs, SHARED)
    size = plain.abs().max().item()
    assert (shared - plain).abs().max().item() <= tolerance * size
    for one, other in zip(shared_gradients, plain_gradients, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert (one - other).abs().max().item() <= tolerance * max(other.abs().max().item(), 1)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_plain_layout_is_the_models_own_forward_pass(name: str) -> None:
    model, (pair,) = make_model(name), pairs_of([(5, 4, 6)])
    batch = collate([pair], [0], 0)
    ours = response_logps(model, batch)
    for row, response in enumerate((pair.chosen, pair.rejected)):
        logits = model(input_ids=torch.tensor([[*pair.prompt, *response]])).logits[0]
        places = torch.arange(len(response)) + len(pair.prompt) - 1
        expected = torch.log_softmax(logits, -1)[places, response.tolist()].sum()
        assert ours[row].item() == pytest.approx(expected.item(), abs=1e-10)


@pytest.mark.parametrize("name", ["gemma3", "qwen3"])
def test_neither_response_sees_the_other_nor_another_pair(name: str) -> None:
    """Changing one response, or a neighbour, changes no other number by a bit."""
    model, pairs = make_model(name), pairs_of(LENGTHS)
    changed = [*pairs[:3], *pairs_of([(20, 2, 17)], seed=5), pairs[4]]
    changed[0] = replace(pairs[0], chosen=np.full(5, 5, np.int32))
    with attention(model, SHARED), torch.no_grad():
        one, other = (
            response_logps(model, collate(part, list(range(5)), 0, SHARED))
            for part in (pairs, changed)
        )
    same = one == other
    assert same.tolist() == [False, True, True, False, True, True, True, True, False, True]


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9), st.integers(0, 9)), min_size=1,
             max_size=5), st.integers(0, 99),
)  # fmt: skip
def test_any_lengths(lengths: list[tuple[int, int, int]], seed: int) -> None:
    model, pairs = make_model("gemma3"), pairs_of(lengths, seed)
    with torch.no_grad():
        results = []
        for layout in (PLAIN, SHARED):
            with attention(model, layout):
                batch = collate(pairs, list(range(len(pairs))), 0, layout)
                results.append(response_logps(model, batch))
    assert (results[0] - results[1]).abs().max().item() < 1e-10


@given(
    st.lists(st.tuples(*[st.integers(1, 30)] * 3), min_size=1, max_size=12),
    st.integers(10, 200), st.sampled_from([SHARED, PLAIN]),
)  # fmt: skip
def test_batches_hold_every_pair_once_within_the_budget(
    lengths: list[tuple[int, int, int]], budget: int, layout: str
) -> None:
    pairs = pairs_of(lengths)
    batches = plan_batches(pairs, range(len(pairs)), budget, layout)
    assert sorted(i for batch in batches for i in batch) == list(range(len(pairs)))
    for index in batches:
        made = collate(pairs, index, 0, layout)
        assert made.ids_RT.numel() <= budget or len(index) == 1
        if layout == SHARED:
            assert made.ids_RT.numel() == sum(row_tokens(pairs[i], SHARED) for i in index)


def kernel(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, starts_q: torch.Tensor,
    starts_k: torch.Tensor, longest_q: int, longest_k: int, *, scale: float,
    window_size: tuple[int, int], enable_gqa: bool,
) -> torch.Tensor:  # fmt: skip
    """What torch's `varlen_attn` says of itself, a sequence at a time: causal from the last query
    and key backwards, no more than `window_size[0]` keys back."""
    assert starts_q.dtype == starts_k.dtype == torch.int32
    assert window_size[1] == 0
    assert longest_q == starts_q.diff().max()
    assert longest_k == starts_k.diff().max()
    parts = []
    places = zip(pairwise(starts_q.tolist()), pairwise(starts_k.tolist()), strict=True)
    for (a, b), (c, d) in places:
        q, k, v = (x.transpose(0, 1) for x in (query[a:b], key[c:d], value[c:d]))
        back = torch.arange(d - c - (b - a), d - c)[:, None] - torch.arange(d - c)
        seen = (back >= 0) & ((window_size[0] < 0) | (back <= window_size[0]))
        parts.append(
            torch.nn.functional.scaled_dot_product_attention(
                q, k, v, seen, scale=scale, enable_gqa=enable_gqa
            ).transpose(0, 1)
        )
    return torch.cat(parts)


@pytest.mark.parametrize("name", CONFIGS)
def test_one_kernel_for_all_pairs_is_given_the_same_attention(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU a kernel of torch does it; here one that is written after its description."""
    model, pairs = make_model(name), pairs_of([*LENGTHS, (4, 3, 0)])
    expected, gradients = logps_and_gradients(model, pairs, PLAIN)
    monkeypatch.setattr("sp2dpo_ray.modeling.attention.varlen_attn", kernel)
    monkeypatch.setattr("sp2dpo_ray.modeling.attention.kernel_serves", lambda query: True)
    found, ours = logps_and_gradients(model, pairs, SHARED)
    assert (found - expected).abs().max().item() <= 1e-10 * expected.abs().max().item()
    for one, other in zip(ours, gradients, strict=True):
        if one is not None:
            assert (one - other).abs().max().item() <= 1e-10 * max(other.abs().max().item(), 1)


def test_what_an_inference_pass_leaves_behind_serves_training() -> None:
    model, pairs = make_model("llama"), pairs_of([(7, 3, 11)])
    with torch.inference_mode(), attention(model, SHARED):
        before = response_logps(model, collate(pairs, [0], 0, SHARED)).tolist()
    logps, _ = logps_and_gradients(model, pairs, SHARED)
    assert logps.tolist() == before


def test_attention_that_cannot_be_shared_is_refused_by_name() -> None:
    model = make_model("llama")
    with attention(model, SHARED), pytest.raises(TrainingError, match="LlamaAttention is not told"):
        model(input_ids=torch.tensor([[3, 4, 5]]))
    heads = torch.zeros(1, 4, 3, 8)
    with pytest.raises(TrainingError, match="softcap or sinks"):
        pair_attention(model, heads, heads, heads, None, segments=(), softcap=30.0)


def test_a_batch_for_the_other_attention_is_refused() -> None:
    model, pairs = make_model("llama"), pairs_of(LENGTHS)
    with pytest.raises(ValueError, match="the batch does not agree"):
        response_logps(model, collate(pairs, [0], 0, SHARED))


def test_an_architecture_that_attends_in_its_own_way_is_refused() -> None:
    model, pairs = make_model("llama"), pairs_of(LENGTHS)
    plain, shared = (collate(pairs, [0, 3], 0, layout) for layout in (PLAIN, SHARED))
    with attention(model, SHARED):
        check_forward(model, shared, plain)
        wrong = replace(shared.segments[0], chosen=4, rejected=9)  # attends past a boundary
        with pytest.raises(TrainingError, match="this architecture is not supported"):
            check_forward(model, replace(shared, segments=(wrong, *shared.segments[1:])), plain)


# -- the head -------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [1, 97 * 4 * 3, 1 << 30])
@pytest.mark.parametrize("frozen", [True, False])
def test_the_head_in_pieces_is_the_whole_head(budget: int, frozen: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(97, 16, generator=draw, dtype=torch.float64, requires_grad=not frozen)
    hidden = torch.randn(11, 16, generator=draw, dtype=torch.float64, requires_grad=True)
    target = torch.randint(0, 97, (11,), generator=draw)

    def head(h: torch.Tensor) -> torch.Tensor:
        return torch.tanh(h @ weight.T / 30) * 30  # with a softcap, so not linear

    scale = torch.randn(11, generator=draw, dtype=torch.float64)
    whole = token_logps(head(hidden), target)
    pieces = head_logps(head, hidden, target, vocabulary=97, frozen=frozen, budget=budget)
    assert (pieces - whole).abs().max().item() < 1e-12
    wanted = [hidden] if frozen else [hidden, weight]
    for one, other in zip(
        torch.autograd.grad((pieces * scale).sum(), wanted),
        torch.autograd.grad((whole * scale).sum(), wanted), strict=True,
    ):  # fmt: skip
        assert (one - other).abs().max().item() < 1e-12


def test_no_more_logits_than_the_budget_are_ever_there() -> None:
    seen = []

    def head(h: torch.Tensor) -> torch.Tensor:
        seen.append(len(h))
        return h @ torch.ones(4, 50)

    hidden = torch.randn(23, 4, requires_grad=True)
    target = torch.zeros(23, dtype=torch.long)
    head_logps(head, hidden, target, vocabulary=50, frozen=True, budget=50 * 4 * 5).sum().backward()
    assert max(seen) == 5
    assert sum(seen) == 23  # and each once: the way back computes none again
