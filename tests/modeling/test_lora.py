"""The faster LoRA layers against PEFT's own, and the dropout that they draw."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model

from sp2dpo_ray.modeling.lora import _draw, speed_up
from tests.modeling.architectures import make_model

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def adapted(dropout: float = 0.0, dtype: torch.dtype = torch.float64, **options: Any) -> Any:
    """A model with adapters that do something, its gradients reaching every one of them."""
    torch.manual_seed(3)
    config = LoraConfig(r=4, lora_alpha=8, lora_dropout=dropout, target_modules=TARGETS, **options)
    model = get_peft_model(make_model("qwen3", dtype), config, autocast_adapter_dtype=False).train()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.1)
    return model


def run(model: Any, seed: int = 0) -> tuple[torch.Tensor, list[torch.Tensor]]:
    torch.manual_seed(seed)
    ids = torch.arange(3, 63).view(2, 30)
    logits = model(input_ids=ids).logits
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    gradients = torch.autograd.grad(logits.pow(2).mean(), weights)
    return logits.detach(), list(gradients)


def test_without_dropout_it_is_peft() -> None:
    theirs, ours = adapted(), adapted()
    assert speed_up(ours) == 3 * len(TARGETS)
    logits, gradients = run(theirs)
    fast_logits, fast_gradients = run(ours)
    assert (fast_logits - logits).abs().max().item() < 1e-12
    for one, other in zip(fast_gradients, gradients, strict=True):
        assert (one - other).abs().max().item() < 1e-12 * max(1, other.abs().max().item())


def test_switched_off_merged_and_saved_as_before() -> None:
    plain, model = adapted(), adapted()
    speed_up(model)
    ids = torch.arange(3, 33).view(1, 30)
    with torch.no_grad():
        for change in (lambda m: m.eval(), lambda m: m.merge_adapter()):
            change(plain), change(model)
            assert (model(ids).logits == plain(ids).logits).all()
        plain.unmerge_adapter(), model.unmerge_adapter()
        with plain.disable_adapter(), model.disable_adapter():
            assert (model(ids).logits == plain(ids).logits).all()
        merged = model.merge_and_unload()(ids).logits
        assert (merged - plain(ids).logits).abs().max().item() < 1e-10


@pytest.mark.parametrize("options", [{"use_dora": True}, {"lora_bias": True}])
def test_what_it_cannot_serve_stays_with_peft(options: dict[str, Any]) -> None:
    assert speed_up(adapted(**options)) == 0


def test_dropout_is_unbiased_and_seeded() -> None:
    """The mean over many draws is the layer without dropout; equal seeds give equal draws."""
    model = adapted(dropout=0.3)
    speed_up(model)
    one, other = run(model, seed=5), run(model, seed=5)
    assert (one[0] == other[0]).all()
    assert all((a == b).all() for a, b in zip(one[1], other[1], strict=True))
    assert (run(model, seed=6)[0] != one[0]).any()
    layer = model.base_model.model.model.layers[0].mlp.up_proj
    x = torch.randn(3, 32, dtype=torch.float64)
    with torch.enable_grad():
        mean = torch.stack([layer(x).detach() for _ in range(4000)]).mean(dim=0)
        exact = layer.train(False)(x).detach()
    assert (mean - exact).abs().max().item() < 0.05 * exact.abs().max().item()


def test_the_gradient_under_dropout_is_that_of_the_function_drawn() -> None:
    model = adapted(dropout=0.4)
    speed_up(model)
    layer = model.base_model.model.model.layers[1].mlp.down_proj
    x = torch.randn(6, 48, dtype=torch.float64, requires_grad=True)
    weights = (layer.lora_A["default"].weight, layer.lora_B["default"].weight)

    def function(x: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(1)
        with torch.no_grad():
            weights[0].copy_(a), weights[1].copy_(b)
        return layer(x)

    torch.manual_seed(1)
    out = layer(x)
    draw = torch.randn(out.shape, dtype=torch.float64)
    ours = torch.autograd.grad((out * draw).sum(), [x, *weights])
    start = [x.detach().clone(), *(weight.detach().clone() for weight in weights)]
    for which, gradient in enumerate(ours):
        for place in ((0, 0), (1, 2), (2, 3)):
            values = []
            for step in (1e-5, -1e-5):
                moved = [value.clone() for value in start]
                moved[which][place] += step
                values.append((function(*moved) * draw).sum().item())
            assert gradient[place].item() == pytest.approx(
                (values[0] - values[1]) / 2e-5, rel=1e-6, abs=1e-6
            )


@given(st.integers(1, 3000), st.floats(0.001, 0.95), st.integers(0, 2**31))
def test_places_are_in_range_and_each_once(count: int, share: float, seed: int) -> None:
    torch.manual_seed(seed)
    places = _draw(torch.empty(count), share).numpy()
    assert (np.diff(places) > 0).all()
    assert len(places) == 0 or (places[0] >= 0 and places[-1] < count)


@pytest.mark.parametrize("share", [0.05, 0.5])
def test_places_are_independent_draws(share: float) -> None:
    torch.manual_seed(0)
    count = 400_000
    marks = np.zeros(count)
    marks[_draw(torch.empty(count), share).numpy()] = 1
    deviation = (share * (1 - share) / count) ** 0.5
    assert abs(marks.mean() - share) < 5 * deviation
    for lag in (1, 2, 7, 64):  # no memory
        together = (marks[:-lag] * marks[lag:]).mean()
        assert abs(together - share**2) < 5 * (share**2 * (1 - share**2) / count) ** 0.5 * 2
    blocks = marks.reshape(-1, 100).sum(axis=1)  # binomial counts
    assert blocks.var() == pytest.approx(100 * share * (1 - share), rel=0.1)


def test_a_measurement_drops_what_the_training_pass_drops() -> None:
    """Methods that measure a step first must see the network that is trained in it."""
    model = adapted(dropout=0.5)
    speed_up(model)
    trained, _ = run(model)
    torch.manual_seed(0)
    with torch.no_grad():
        measured = model(input_ids=torch.arange(3, 63).view(2, 30)).logits
    assert torch.equal(measured, trained)
