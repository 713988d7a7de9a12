"""What this very configuration has measured on GPUs: tokens, and tokens a second.

In: manifests of a run folder. Out: figures for `cluster-size`. Invariant: what another
configuration, another student or a CPU has made tells nothing here. Tokens count each prompt once.
"""

from __future__ import annotations

import json

from sp2dpo_ray.core.artifact import MANIFEST, Manifest, read_manifest
from sp2dpo_ray.core.files import TRAINING
from sp2dpo_ray.run import Run

# options of `train` that a step's speed hangs on
SPEED = ("max_length", "max_prompt_length", "keep_prompt", "keep_end_token", "precision",
         "strategy", "layout", "tokens_per_batch", "pairs_per_step", "head_mib", "fused_lora",
         "varlen_attention", "optimizer")  # fmt: skip


def reference_of(run: Run) -> Manifest | None:
    """The reference pass of these pairs, this student and these options."""
    wanted = (run.config.scoring, _inputs(run))
    for path in sorted(run.path("reference").glob(f"[0-9a-f]*/{MANIFEST}")):
        manifest = read_manifest(path.parent)
        if manifest and (manifest.settings, manifest.inputs) == wanted:
            return manifest
    return None


def rates_of(run: Run, train_tokens: int) -> dict[str, float]:
    """Tokens a second and GPU by stage; train_tokens: of one epoch over all training pairs."""
    train, rates = run.config.train, {}
    if not train.gpus_per_worker:
        return {}
    made = reference_of(run)
    # it does not tell where it ran, so the whole configuration must be the one that says so
    if made and made.lambda_id == run.config.lambda_id:
        gpus = train.gpus_per_worker * train.least_workers
        rates["reference"] = made.summary["tokens"] / made.summary["seconds"] / gpus
    if arms := _arms(run, train_tokens):
        rates["train"] = min(arms)
    return rates


def _arms(run: Run, train_tokens: int) -> list[float]:
    """Of each arm that was trained so; a training counts tokens as other trainers do, so its pairs
    are what tells how many they are here."""
    lora, train = run.config.student.lora, run.config.train
    options = train.model_dump(mode="json")
    pairs = read_manifest(run.path("pairs"))
    rates = []
    for path in sorted(run.path("train").glob(f"*/{TRAINING}")):
        manifest, how = read_manifest(path.parent), json.loads(path.read_text(encoding="utf-8"))
        if manifest is None or pairs is None or how["device"] == "cpu":
            continue
        alike = (
            all(manifest.settings["train"][name] == options[name] for name in SPEED)
            and manifest.settings["lora"] == (lora and lora.model_dump(mode="json"))
            and {name: manifest.inputs[name] for name in ("prepare", "student")} == _inputs(run)
            and train.least_workers <= how["workers"] <= train.most_workers
        )
        if alike:
            summary = manifest.summary
            seen = train_tokens * summary["pairs"] / pairs.summary["pairs"]
            epochs = manifest.settings["train"]["epochs"]
            gpus = how["workers"] * train.gpus_per_worker
            rates.append(seen * epochs / summary["step_seconds"] / gpus)
    return rates


def _inputs(run: Run) -> dict[str, str]:
    """Digests of the pairs and the student that lie here."""
    found = {
        name: read_manifest(run.path(at)) for name, at in (("prepare", "pairs"), ("student",) * 2)
    }
    return {name: manifest.digest for name, manifest in found.items() if manifest}
