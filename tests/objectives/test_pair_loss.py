"""Eq. 5 and its gradients against float64 closed forms, and Proposition 1 by demonstration."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sp2dpo_ray.objectives.logps import sum_by_row, token_logps
from sp2dpo_ray.objectives.pair_loss import PairLogps, pair_loss

margins = st.floats(-200, 200)
betas = st.floats(0.01, 1.0)


def expit(z: Any) -> Any:
    """sigmoid in float64, without overflow."""
    return np.exp(-np.logaddexp(0.0, -np.asarray(z, dtype=np.float64)))


def tensor(*values: float, grad: bool = False) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=grad)


@given(margins, betas)
def test_value_and_gradient_equal_the_closed_forms(margin: float, beta: float) -> None:
    m = tensor(margin, grad=True)
    loss = pair_loss(m, tensor(beta))
    # -log sigmoid(z) = log(1 + e^-z), in the form that does not overflow
    z = beta * margin
    expected = max(-z, 0.0) + math.log1p(math.exp(-abs(z)))
    assert loss.item() == pytest.approx(expected, rel=1e-12, abs=1e-300)
    loss.sum().backward()
    assert m.grad is not None
    assert m.grad.item() == pytest.approx(-beta * expit(-z), rel=1e-12, abs=1e-300)  # Eq. 8


@given(st.floats(-20, 20), betas)
def test_curvature_equals_eqs_55_and_56(margin: float, beta: float) -> None:
    m = tensor(margin, grad=True)
    (slope,) = torch.autograd.grad(pair_loss(m, tensor(beta)).sum(), m, create_graph=True)
    g = -slope  # g_i of section D.2
    (first,) = torch.autograd.grad(g.sum(), m, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), m)
    s = expit(beta * margin)
    assert first.item() == pytest.approx(-(beta**2) * s * (1 - s), rel=1e-9, abs=1e-15)
    expected = -(beta**3) * s * (1 - s) * (1 - 2 * s)
    # Eq. 56 prints the other sign; differentiating Eq. 55 gives this one
    assert second.item() == pytest.approx(expected, rel=1e-9, abs=1e-15)


def test_a_constant_beta_is_the_original_loss() -> None:
    draw = np.random.default_rng(0)
    chosen, rejected, ref_chosen, ref_rejected = (
        torch.from_numpy(draw.normal(-80, 30, 64)) for _ in range(4)
    )
    ours = pair_loss(
        PairLogps(chosen, rejected, ref_chosen, ref_rejected).margin,
        torch.full((64,), 0.1, dtype=torch.float64),
    )
    # Rafailov et al. (2023), Eq. 7
    logits = (chosen - rejected) - (ref_chosen - ref_rejected)
    assert torch.equal(ours, -torch.nn.functional.logsigmoid(0.1 * logits))


def test_pairs_do_not_influence_each_other() -> None:
    margin, beta = tensor(-3, 0.5, 40), tensor(0.03, 0.1, 0.3)
    alone = [pair_loss(margin[i : i + 1], beta[i : i + 1]).item() for i in range(3)]
    assert pair_loss(margin, beta).tolist() == alone


def test_no_weights_reproduce_per_pair_betas() -> None:
    """Proposition 1: the weight that matches the gradient at one margin misses at another."""
    beta, constant = 0.3, 0.1
    at = np.array([-10.0, 0.0, 10.0])
    weights = beta * expit(-beta * at) / (constant * expit(-constant * at))  # Eq. 12
    assert np.ptp(weights) > 1
    same = constant * expit(-constant * at) / (constant * expit(-constant * at))
    assert np.ptp(same) == 0


def test_sequence_logps_sum_response_tokens_only() -> None:
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 7, generator=draw, dtype=torch.float64)
    targets = torch.tensor([1, 0, 6, 3, 3])
    rows = torch.tensor([0, 0, 2, 2, 2])
    expected = torch.log_softmax(logits, -1)[range(5), targets]
    tokens = token_logps(logits, targets)
    assert torch.allclose(tokens, expected, atol=1e-14)
    sums = sum_by_row(tokens, rows, 3)
    assert torch.allclose(sums, torch.stack([expected[:2].sum(), expected[2:2].sum(),
                                             expected[2:].sum()]), atol=1e-14)  # fmt: skip
