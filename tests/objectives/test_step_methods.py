"""Losses with terms of a whole step, against their formulas and the traps of other code."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sp2dpo_ray.core.methods import options_of
from sp2dpo_ray.objectives.pair_loss import PairLogps
from sp2dpo_ray.objectives.step_methods import STEP_METHODS, Memory, recall, step_loss
from sp2dpo_ray.train.loss import Loss

gaps = st.lists(st.floats(-5, 5), min_size=2, max_size=12)


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def constant(beta: float, count: int) -> torch.Tensor:
    return torch.full((count,), beta, dtype=torch.float64)


@given(gaps)
def test_amapos_margins_by_hand(values: list[float]) -> None:
    measured = tensor(*values)
    mean, sd = float(measured.mean()), max(float(measured.std()), 1e-12)
    found = Loss("amapo").terms(measured, constant(2.0, len(values)), step=1)
    for value, shift in zip(values, found.shift.tolist(), strict=True):
        expected = 2.0 * math.exp((mean - value) / sd * mean) if value < mean else 0.0
        assert shift == pytest.approx(expected, rel=1e-9, abs=1e-12)


@given(gaps)
def test_alpha_dpos_margins_by_hand(values: list[float]) -> None:
    measured = tensor(*values)
    sd = max(float(measured.std()), 1e-12)
    found = Loss("alpha_dpo").terms(measured, constant(2.5, len(values)), step=1)
    z = (measured - measured.mean()) / sd
    assert torch.allclose(found.shift, 2.5 * (0.2 * z + 0.6), atol=1e-9)


@given(gaps)
def test_gamma_pos_margins_have_a_fixed_mean_and_follow_the_gap(values: list[float]) -> None:
    found = Loss("gamma_po").terms(tensor(*values), constant(10.0, len(values)), step=1).shift
    assert float(found.mean()) == pytest.approx(10.0 * 0.4, rel=1e-9)
    order = sorted(range(len(values)), key=lambda i: values[i])
    ranked = found[order].tolist()
    assert all(a <= b + 1e-9 for a, b in pairwise(ranked))


def test_gamma_pos_margins_minimise_their_objective() -> None:
    """(1/N) sum -log s(R - gamma) + tau KL, gamma = N gamma0 p: no neighbour on the simplex is
    lower once the steps have converged."""
    measured, tau, base = tensor(-0.5, 0.1, 0.9, 0.3), 3.0, 1.2
    found = Loss("gamma_po", {"tau": tau, "gamma": 0.4}).terms(measured, constant(3.0, 4), 1).shift

    def objective(p: torch.Tensor) -> float:
        reward = 3.0 * measured
        loss = -torch.nn.functional.logsigmoid(reward - 4 * base * p).mean()
        return float(loss + tau * (p * torch.log(4 * p)).sum())

    share = found / found.sum()
    best = objective(share)
    draw = torch.Generator().manual_seed(0)
    for _ in range(200):
        step = 0.02 * torch.randn(4, generator=draw, dtype=torch.float64)
        near = (share + step - step.mean()).clamp(min=1e-6)
        assert objective(near / near.sum()) >= best - 1e-4


def test_beta_dpo_leaves_out_outliers_and_scales_beta() -> None:
    measured = torch.cat([tensor(40.0), torch.linspace(-1, 1, 39, dtype=torch.float64)])
    left = 0
    for step in range(20):
        found = Loss("beta_dpo", {"rho": 0.2, "a": 0.6}, seed=1).terms(
            measured, constant(0.1, 40), step
        )
        kept = found.weight > 0
        assert int(kept.sum()) == 32
        assert float(found.weight.sum()) == pytest.approx(40)  # a mean over those that are kept
        mean = float(measured.mean())
        expected = max(0.1 * (1 + 0.6 * (float(measured[kept].mean()) - mean)), 1e-3)
        assert found.beta.unique().tolist() == pytest.approx([expected], rel=1e-12)
        left += not bool(kept[0])
    assert left == 20  # six deviations away
    assert float(Loss("beta_dpo", {"rho": 0.0, "a": 0.0}).terms(
        measured, constant(0.1, 40), 1).weight.min()) == 1.0  # fmt: skip


def test_beta_dpos_draw_is_of_the_seed_and_the_step() -> None:
    measured = torch.linspace(-1, 1, 30, dtype=torch.float64)

    def kept(seed: int, step: int) -> list[float]:
        return Loss("beta_dpo", seed=seed).terms(measured, constant(0.1, 30), step).weight.tolist()

    assert kept(0, 3) == kept(0, 3)
    assert kept(0, 3) != kept(0, 4)
    assert kept(0, 3) != kept(1, 3)


def test_what_is_remembered_begins_with_the_first_step_and_runs_on() -> None:
    method = STEP_METHODS["alpha_dpo"]
    first = recall(method, None, tensor(1.0, 3.0))
    assert first == Memory(2.0, pytest.approx(math.sqrt(2)))
    second = recall(method, first, tensor(4.0, 8.0))
    assert second.mean == pytest.approx(0.9 * 2 + 0.1 * 6)
    assert second.deviation == pytest.approx(0.9 * math.sqrt(2) + 0.1 * math.sqrt(8))
    assert recall(STEP_METHODS["amapo"], first, tensor(4.0, 8.0)).mean == 6.0
    assert recall(method, None, tensor(1.0)).deviation == 1.0


@pytest.mark.parametrize("name", STEP_METHODS)
def test_a_restored_loss_goes_on_as_if_nothing_had_happened(name: str) -> None:
    steps = torch.randn(6, 10, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    beta = constant(1.0, 10)
    whole = Loss(name, seed=5)
    expected = [whole.terms(row, beta, step) for step, row in enumerate(steps)]
    half = Loss(name, seed=5)
    for step, row in enumerate(steps[:3]):
        half.terms(row, beta, step)
    resumed = Loss(name, seed=5)
    resumed.restore(half.state())
    for step in range(3, 6):
        found = resumed.terms(steps[step], beta, step)
        assert torch.equal(found.shift, expected[step].shift)
        assert torch.equal(found.weight, expected[step].weight)
        assert torch.equal(found.beta, expected[step].beta)


@pytest.mark.parametrize("name", STEP_METHODS)
def test_terms_are_constants_to_the_gradient(name: str) -> None:
    """d loss / d theta is -w b s(-(b H - m)) dH: terms are not differentiated, and a pair that is
    left out has no gradient at all."""
    count = 20
    draw = torch.Generator().manual_seed(0)
    chosen, rejected = torch.randn(2, count, generator=draw, dtype=torch.float64) * 3
    chosen.requires_grad_()
    zero, tokens = torch.zeros(count, dtype=torch.float64), constant(4.0, count)
    logps = PairLogps(chosen, rejected, zero, zero, tokens, tokens)
    method, loss = STEP_METHODS[name], Loss(name, seed=2)
    measured = method.measure(logps).detach()
    terms = loss.terms(measured, constant(1.0, count), step=1)
    (found,) = torch.autograd.grad(loss(logps, constant(1.0, count), terms).sum(), chosen)
    gap = method.gap(logps).detach()
    slope = -terms.weight * terms.beta * torch.sigmoid(-(terms.beta * gap - terms.shift))
    per_nat = 1.0 if name == "beta_dpo" else 0.25  # means over four tokens
    assert torch.allclose(found, slope * per_nat, atol=1e-14)
    assert bool((found[terms.weight == 0] == 0).all())
    assert bool((terms.weight == 0).any()) is (name == "beta_dpo")


def test_with_terms_of_nothing_it_is_dpo() -> None:
    logps = PairLogps(tensor(-3.0), tensor(-5.0), tensor(-4.0), tensor(-4.0), tensor(3), tensor(5))
    found = Loss("beta_dpo", {"rho": 0, "a": 0})
    terms = found.terms(logps.margin, tensor(0.3), 1)
    plain = Loss("logistic")(logps, tensor(0.3))
    assert step_loss(STEP_METHODS["beta_dpo"], logps, terms).item() == plain.item()
    assert options_of("beta_dpo", {}) == {"rho": 0.2, "a": 0.6}
