"""TRL's DPOTrainer with the beta of each pair, from a folder that `sp2dpo export` wrote.

Run as: python trl_per_pair_beta.py runs/demo/export/jmamp MODEL
TRL multiplies by `self.beta`, which may as well be one number a pair. Reference log-probs must be
computed on the way (`precompute_ref_log_probs=False`, the default).
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from datasets import load_dataset
from trl import DPOConfig, DPOTrainer


class PerPairDPOTrainer(DPOTrainer):
    """A DPOTrainer whose data sets have a column `beta`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        plain = self.data_collator
        self.data_collator = lambda rows: {
            **plain(rows), "beta": torch.tensor([row["beta"] for row in rows])
        }  # fmt: skip

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        self._signature_columns = list({*self._signature_columns, "beta"})  # or it is dropped

    def _compute_loss(self, model: Any, inputs: Any, return_outputs: bool) -> Any:
        self.beta = inputs.pop("beta")
        return super()._compute_loss(model, inputs, return_outputs)


def main(folder: str, model: str) -> None:
    data = load_dataset(folder)
    trainer = PerPairDPOTrainer(
        model=model,
        args=DPOConfig(output_dir="trl-per-pair-beta"),
        train_dataset=data["train"],
        eval_dataset=data["test"],
    )
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    main(*sys.argv[1:3])
