"""Eq. 5 and its gradients against float64 closed forms, and Proposition 1 by demonstration."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sp2dpo_ray.core.methods import METHODS, options_of
from sp2dpo_ray.objectives.logps import sum_by_row, token_logps
from sp2dpo_ray.objectives.pair_loss import LOSSES, PairLogps, adapted_betas, logistic
from sp2dpo_ray.objectives.step_methods import STEP_METHODS

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
    loss = logistic(m, tensor(beta))
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
    (slope,) = torch.autograd.grad(logistic(m, tensor(beta)).sum(), m, create_graph=True)
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
    ours = logistic(
        PairLogps(chosen, rejected, ref_chosen, ref_rejected, chosen, rejected).margin,
        torch.full((64,), 0.1, dtype=torch.float64),
    )
    # Rafailov et al. (2023), Eq. 7
    logits = (chosen - rejected) - (ref_chosen - ref_rejected)
    assert torch.equal(ours, -torch.nn.functional.logsigmoid(0.1 * logits))


def test_pairs_do_not_influence_each_other() -> None:
    margin, beta = tensor(-3, 0.5, 40), tensor(0.03, 0.1, 0.3)
    alone = [logistic(margin[i : i + 1], beta[i : i + 1]).item() for i in range(3)]
    assert logistic(margin, beta).tolist() == alone


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


def logps_of(*margins: float, ratio: float = 2.0) -> PairLogps:
    """Pairs with these margins, the chosen ratio being `ratio` and ten and five tokens."""
    margin = tensor(*margins)
    zero, count = torch.zeros_like(margin), torch.ones_like(margin)
    whole = PairLogps(zero + ratio, ratio - margin, zero, zero, 10 * count, 5 * count)
    return replace(whole, counted=whole)


def softplus(z: float) -> float:
    return max(z, 0.0) + math.log1p(math.exp(-abs(z)))


# each form by hand: (margin, chosen ratio, rejected ratio, beta) with epsilon 0.1
BY_HAND: dict[str, Any] = {
    "logistic": lambda h, c, r, b: softplus(-b * h),
    "hinge": lambda h, c, r, b: max(0.0, 1 - b * h),
    "ipo": lambda h, c, r, b: (c / 10 - r / 5 - 1 / (2 * b)) ** 2,
    "ipo_sum": lambda h, c, r, b: (h - 1 / (2 * b)) ** 2,
    "cdpo": lambda h, c, r, b: 0.9 * softplus(-b * h) + 0.1 * softplus(b * h),
    "robust": lambda h, c, r, b: (0.9 * softplus(-b * h) - 0.1 * softplus(b * h)) / 0.8,
    "apo_zero": lambda h, c, r, b: 1 - float(expit(b * c)) + float(expit(b * r)),
    "apo_down": lambda h, c, r, b: float(expit(b * c)) + 1 - float(expit(b * h)),
    "dpo_norm": lambda h, c, r, b: softplus(-b * (c / 10 - r / 5)),
    # the references are 0 here, so that the policy's own log-probabilities are the ratios
    "simpo": lambda h, c, r, b: softplus(-b * (c / 10 - r / 5 - 0.25)),
    "repo": lambda h, c, r, b: max(0.0, 0.4 - (c / 10 - r / 5)),
    "cal_dpo": lambda h, c, r, b: (
        softplus(-h) + 0.5 * ((c - 1 / (2 * b)) ** 2 + (r + 1 / (2 * b)) ** 2)
    ),
    "bpo": lambda h, c, r, b: softplus(-min(b * c, -0.3 * b * r)),
    "hybrid": lambda h, c, r, b: softplus(-b * h),  # on betas that were moved before
    "madpo": lambda h, c, r, b: softplus(-b * h),  # weighted outside of the loss
    "confpo": lambda h, c, r, b: softplus(-b * (c / 10 - r / 5 - 1.0667)),
    "focal": lambda h, c, r, b: float(expit(b * h)) * softplus(-b * h),
}


@pytest.mark.parametrize("name", LOSSES)
@given(st.lists(st.tuples(st.floats(-50, 50), betas), min_size=1, max_size=5), st.floats(-9, 9))
def test_every_form_equals_its_closed_form_pair_by_pair(
    name: str, rows: list[tuple[float, float]], ratio: float
) -> None:
    margin, beta = zip(*rows, strict=True)
    losses = LOSSES[name](logps_of(*margin, ratio=ratio), tensor(*beta), options_of(name, {}))
    expected = [BY_HAND[name](h, ratio, ratio - h, b) for h, b in rows]
    assert losses.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12)


# focal stands still in part, and has a test of its own
@pytest.mark.parametrize("name", [name for name in LOSSES if name != "focal"])
def test_the_gradient_of_every_form(name: str) -> None:
    logps, beta = logps_of(-3.0, 0.5, 8.0), tensor(0.03, 0.1, 0.3)

    def function(chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
        moved = PairLogps(chosen, rejected, logps.ref_chosen, logps.ref_rejected,
                          logps.chosen_tokens, logps.rejected_tokens)  # fmt: skip
        moved = replace(moved, counted=moved)
        return LOSSES[name](moved, beta, options_of(name, {}))

    inputs = (logps.chosen.clone().requires_grad_(), logps.rejected.clone().requires_grad_())
    assert torch.autograd.gradcheck(function, inputs)


def test_robust_dpo_is_unbiased_under_flips() -> None:
    """With labels flipped at rate epsilon its mean is the loss of the clean labels."""
    clean, flipped = logps_of(1.7), logps_of(-1.7)
    beta, epsilon = tensor(0.3), 0.2
    right, wrong = (
        LOSSES["robust"](logps, beta, {"epsilon": epsilon}) for logps in (clean, flipped)
    )
    mean = (1 - epsilon) * right + epsilon * wrong
    assert mean.item() == pytest.approx(LOSSES["logistic"](clean, beta, {}).item(), abs=1e-12)


def test_the_catalogue_and_its_functions_have_the_same_rows() -> None:
    assert {*LOSSES, *STEP_METHODS} == set(METHODS)
    assert {name for name, row in METHODS.items() if row.whole_step} == set(STEP_METHODS)


def test_focal_weights_are_not_differentiated() -> None:
    """Its gradient is that of DPO times the weight: the power stands still."""
    rejected = tensor(-2.0, 0.5, 3.0).requires_grad_()
    zero = torch.zeros(3, dtype=torch.float64)
    logps = PairLogps(zero, rejected, zero, zero, zero + 5, zero + 5)
    beta = tensor(0.1, 0.2, 0.3)
    (focal,) = torch.autograd.grad(
        LOSSES["focal"](logps, beta, {"gamma": 2.0}).sum(), rejected, retain_graph=True
    )
    (plain,) = torch.autograd.grad(logistic(logps.margin, beta).sum(), rejected)
    weight = torch.sigmoid(beta * logps.margin.detach()) ** 2
    assert torch.allclose(focal, weight * plain, atol=1e-15)


@given(st.floats(-100, 100), st.floats(0.03, 0.3), st.floats(-0.99, 0.99))
def test_a_prior_moves_with_the_students_agreement_within_its_envelope(
    margin: float, prior: float, strength: float
) -> None:
    moved = adapted_betas(tensor(margin, grad=True), tensor(prior), strength, (0.03, 0.3))
    assert not moved.requires_grad
    expected = prior * (1 + strength * (2 * float(expit(prior * margin)) - 1))
    assert moved.item() == pytest.approx(min(max(expected, 0.03), 0.3), rel=1e-12)
    assert adapted_betas(tensor(0.0), tensor(prior), strength, (0.03, 0.3)).item() == prior
    assert adapted_betas(tensor(margin), tensor(prior), 0.0, (0.03, 0.3)).item() == prior


def test_confpo_leaves_out_pairs_without_tokens_that_count() -> None:
    logps = logps_of(1.0, 2.0)
    assert logps.counted is not None
    none = replace(logps.counted, rejected_tokens=tensor(0.0, 5.0))
    losses = LOSSES["confpo"](replace(logps, counted=none), tensor(1.5, 1.5), {"gamma": 1.0})
    assert losses[0].item() == 0
    assert losses[1].item() > 0


def test_a_method_without_a_reference_does_not_see_it() -> None:
    chosen, rejected, count = tensor(-20.0), tensor(-12.0), tensor(10.0)
    for name in ("simpo", "repo"):
        losses = {
            LOSSES[name](
                PairLogps(chosen, rejected, tensor(r), tensor(-r), count, count / 2),
                tensor(2.0), options_of(name, {}),
            ).item()
            for r in (-30.0, 0.0, 7.0)
        }  # fmt: skip
        assert len(losses) == 1
