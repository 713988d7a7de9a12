"""Tokens, log-probabilities and losses equal those of TRL's DPOTrainer, with one beta or many."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from sp2dpo_ray.core.methods import options_of
from sp2dpo_ray.core.pairs import Pair
from sp2dpo_ray.modeling.encode import Encoding, encode_pairs
from sp2dpo_ray.modeling.forward import response_logps
from sp2dpo_ray.modeling.layout import collate
from sp2dpo_ray.modeling.student import load_model, load_tokenizer
from sp2dpo_ray.objectives.pair_loss import LOSSES, PairLogps, logistic

BETA = 0.1
# our form: TRL's loss_type
FORMS = {
    "logistic": "sigmoid", "hinge": "hinge", "ipo": "ipo", "robust": "robust",
    "apo_zero": "apo_zero", "apo_down": "apo_down", "dpo_norm": "sigmoid_norm",
}  # fmt: skip


def recipe() -> Any:
    """The example: TRL with a beta for each pair."""
    path = Path(__file__).parents[2] / "examples" / "train_trl_with_our_schedule.py"
    spec = importlib.util.spec_from_file_location("recipe", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_losses_equal_trls(
    tiny_student: Any, demo_rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    from datasets import Dataset
    from trl import DPOConfig

    rows = demo_rows[:12]
    tokenizer = load_tokenizer(tiny_student)
    policy, reference = (load_model(tiny_student, "fp32") for _ in range(2))
    with torch.no_grad():  # a policy that has moved away from its reference
        draw = torch.Generator().manual_seed(0)
        for weight in policy.parameters():
            weight.add_(0.05 * weight.std() * torch.randn(weight.shape, generator=draw))

    pairs = [
        Pair(row["prompt_id"], [{"role": "user", "content": row["prompt"]}], row["chosen"],
             row["rejected"])
        for row in rows
    ]  # fmt: skip
    encoded = encode_pairs(pairs, tokenizer, Encoding(1024, 512))
    batch = collate(encoded, list(range(len(rows))), tokenizer.pad_token_id)
    with torch.no_grad():
        logps = PairLogps(
            *response_logps(policy, batch).view(2, -1),
            *response_logps(reference, batch).view(2, -1),
            *torch.bincount(batch.row_M).view(2, -1),
        )
    ours = logistic(logps.margin, torch.full((len(rows),), BETA))

    data = Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": row["prompt"]}],
                "chosen": [{"role": "assistant", "content": row["chosen"]}],
                "rejected": [{"role": "assistant", "content": row["rejected"]}],
                "beta": BETA,
            }
            for row in rows
        ]
    )
    trainer = recipe().PerPairDPOTrainer(
        model=policy.requires_grad_(True),
        ref_model=reference,
        processing_class=tokenizer,
        train_dataset=data,
        args=DPOConfig(
            output_dir=str(tmp_path), beta=BETA, bf16=False, use_cpu=True, max_length=1024,
            per_device_train_batch_size=len(rows), report_to=[], gradient_checkpointing=False,
        ),
    )  # fmt: skip
    for theirs, mine in zip(trainer.train_dataset, encoded, strict=True):
        assert theirs["prompt_ids"] == mine.prompt.tolist()
        assert theirs["chosen_ids"] == mine.chosen.tolist()
        assert theirs["rejected_ids"] == mine.rejected.tolist()
    inputs = trainer.data_collator(list(trainer.train_dataset))
    with torch.no_grad():
        loss = trainer.compute_loss(trainer.model.eval(), dict(inputs))
    assert abs(logps.margin).max() > 0.1  # the comparison is of something
    assert ours.mean().item() == pytest.approx(loss.item(), abs=2e-6)

    # a schedule, in every form that both sides have
    betas = torch.linspace(0.03, 0.3, len(rows))
    trainer.label_smoothing = 0.1
    for form, theirs in FORMS.items():
        trainer.loss_types = [theirs]
        with torch.no_grad():
            loss = trainer.compute_loss(trainer.model, {**inputs, "beta": betas})
        mine = LOSSES[form](logps, betas, options_of(form, {})).mean().item()
        assert mine == pytest.approx(loss.item(), rel=1e-5, abs=2e-6), form
