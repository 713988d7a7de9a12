"""Train with TRL's DPOTrainer and a schedule of ours: one beta for each pair.

You learn: what `export` writes, that it is what `load_schedule` reads, and the three small changes
that give TRL a beta for each pair. Run as: python examples/train_trl_with_our_schedule.py [FOLDER]
In: 32 of the bundled pairs, a panel of fixed rules, a very small student made on the spot. Out: two
trainings of a few steps, one with the schedule's betas and one with their mean for every pair; the
losses of both on stdout. It shows that the betas arrive; so small a student shows nothing more.
Needs: sp2dpo-ray[annotate,train,hub] and trl 1.16; no key, no network.

With a run of your own only the class and `trainer_of` are of use: give them
`load_dataset("runs/mine/export/jmamp")`, which has the split `test` too, and the id of your model.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here is on the hub
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")

import torch
from datasets import Dataset, load_dataset
from transformers import PrinterCallback
from trl import DPOConfig, DPOTrainer

from sp2dpo_ray import load_schedule

PAIRS = Path(__file__).parents[1] / "configs" / "demo" / "pairs.jsonl"
CONFIG = """
run: {{name: trl, storage: {folder}/runs}}
data: {{source: {pairs}, limit: 32, eval_fraction: 0}}
teachers:
  - {{name: alba, provider: offline, model: rules, options: {{persona: balanced}}}}
  - {{name: bruno, provider: offline, model: rules, options: {{persona: strict}}}}
student:
  model: tiny
  tiny: {{vocabulary: 512, layers: 2, hidden: 32, heads: 2, steps: 4, batch: 4}}
"""


class PerPairDPOTrainer(DPOTrainer):
    """A DPOTrainer whose data sets have a column `beta`.

    TRL's loss multiplies by `self.beta`, which may as well be one number a pair. Reference
    log-probs must be computed on the way (`precompute_ref_log_probs=False`, the default).
    """

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


def sp2dpo(stage: str, config: Path) -> dict[str, Any]:
    """One stage; its summary is the last line of stdout, its progress goes to stderr."""
    command = [sys.executable, "-m", "sp2dpo_ray", stage, str(config), "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    summary: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return summary


def trainer_of(model: str, pairs: Dataset, out: Path) -> PerPairDPOTrainer:
    """Settings for a CPU and seconds; on a GPU take your own."""
    trainer = PerPairDPOTrainer(
        model=model, train_dataset=pairs, eval_dataset=pairs,
        args=DPOConfig(
            output_dir=str(out), max_length=512, max_steps=4, learning_rate=1e-3, seed=0,
            per_device_train_batch_size=8, bf16=False, use_cpu=True, report_to=[],
            save_strategy="no", logging_strategy="no", disable_tqdm=True,
        ),
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)  # it prints every figure that there is
    return trainer


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "trl.yaml"
    config.write_text(CONFIG.format(folder=folder.resolve(), pairs=PAIRS), encoding="utf-8")
    for stage in ("prepare", "student", "annotate", "schedule"):
        sp2dpo(stage, config)
    model = str(folder / "runs" / "trl" / "student" / "model")
    exported = sp2dpo("export", config)["folder"]

    # the exported column is the schedule's own
    pairs = load_dataset(exported, split="train")
    schedule = load_schedule(folder / "runs" / "trl", ["beta_annotators_mean_ens"])
    betas = dict(zip(*(schedule[name].to_pylist() for name in schedule.column_names), strict=True))
    assert [betas[prompt_id] for prompt_id in pairs["prompt_id"]] == list(pairs["beta"])
    mean = sum(betas.values()) / len(betas)
    print(f"{len(betas)} pairs, beta {min(betas.values()):.4f} to {max(betas.values()):.4f}")

    constant = pairs.map(lambda row: {"beta": mean})
    for name, part in (("schedule", pairs), ("constant", constant)):
        trainer = trainer_of(model, part, folder / "out" / name)
        before = trainer.evaluate()["eval_loss"]  # log 2: the student is its own reference
        trainer.train()
        print(f"{name}: loss {before:.6f} -> {trainer.evaluate()['eval_loss']:.6f}")
        trainer.save_model()


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="sp2dpo-trl-")))
