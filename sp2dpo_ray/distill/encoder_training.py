"""Training the encoder predictor on Ray Train.

In: texts and targets. Out: an `EncoderModel`. Worker r of n takes the pairs r, r + n, ... of each
step; gradients are averaged by DDP. Invariant: the order of pairs is a function of the seed, the
same for any number of workers.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray.train
import ray.train.torch
import torch
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from sp2dpo_ray.config.distill import EncoderSection
from sp2dpo_ray.core.threads import off_main_thread
from sp2dpo_ray.distill.encoder import (
    EncoderModel,
    Reading,
    check_length,
    device,
    encode,
    known_in,
    new_model,
)
from sp2dpo_ray.distill.targets import Targets
from sp2dpo_ray.distill.texts import Texts
from sp2dpo_ray.errors import ConfigError, TrainingError
from sp2dpo_ray.room import room

WEIGHTS = "weights.safetensors"
CLIP = 1.0


@dataclass(frozen=True, slots=True)
class Lesson:
    """Everything that a worker needs; it travels through Ray's object store."""

    texts: Texts
    targets: Targets
    section: EncoderSection
    coverage: float
    swap: bool
    seed: int
    output: Path


def fit(
    texts: Texts, targets: Targets, section: EncoderSection, *,
    coverage: float, swap: bool, seed: int, scratch: Path,
) -> EncoderModel:  # fmt: skip
    """Train on Ray; scratch: a folder that every node sees. Raises TrainingError, ConfigError where
    the cluster has no room for the workers, or the encoder for so long texts."""
    _check_room(section)
    check_length(section.model, section.revision, section.max_length)
    scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        output = Path(folder)
        lesson = Lesson(texts, targets, section, coverage, swap, seed, output)
        gpu = section.gpus_per_worker > 0
        trainer = TorchTrainer(
            _worker,
            train_loop_config={"lesson": ray.put(lesson)},
            scaling_config=ScalingConfig(
                num_workers=section.workers, use_gpu=gpu,
                resources_per_worker={"CPU": 1.0, **({"GPU": 1.0} if gpu else {})},
            ),
            run_config=RunConfig(name="encoder", storage_path=folder),
        )  # fmt: skip
        try:
            off_main_thread(trainer.fit)
        except TrainingFailedError as error:
            raise TrainingError(f"distill: training the encoder failed: {error}") from error
        model, tokenizer = new_model(section.model, section.revision)
        model.load_state_dict(load_file(output / WEIGHTS))
    model.to(device()).eval()
    return EncoderModel(model, tokenizer, Reading(section.max_length), known_in(texts))


def _check_room(section: EncoderSection) -> None:
    """Refuse what this cluster can never start: Ray would wait without a word."""
    bundle = {"CPU": 1.0, "GPU": float(section.gpus_per_worker)}
    present = room([bundle] * section.workers)
    for kind, each in (("CPU", 1), ("GPU", section.gpus_per_worker)):
        if section.workers * each > present.get(kind, 0):
            raise ConfigError(
                f"distill.encoder.workers: {section.workers} workers need "
                f"{section.workers * each} {kind}s, the Ray cluster has {present.get(kind, 0):g}"
            )


def _worker(config: dict[str, Any]) -> None:
    lesson: Lesson = ray.get(config["lesson"])
    section, context = lesson.section, ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    place = ray.train.torch.get_device()
    torch.manual_seed(lesson.seed)
    plain, tokenizer = new_model(section.model, section.revision)
    torch.manual_seed(lesson.seed + rank)  # of dropout: other pairs, other draws
    # many encoders have a pooler, which nothing here reads
    unread = {"find_unused_parameters": True}
    model = ray.train.torch.prepare_model(plain.to(place), parallel_strategy_kwargs=unread)
    optimizer = torch.optim.AdamW(model.parameters(), section.learning_rate)
    plan = steps_of(len(lesson.texts), section.pairs_per_step, section.epochs, lesson.seed)
    warmup = max(1, len(plan) // 10)
    for step, rows in enumerate(plan):
        for group in optimizer.param_groups:
            rising, falling = (step + 1) / warmup, (len(plan) - step) / len(plan)
            group["lr"] = section.learning_rate * min(rising, falling)
        mine = rows[rank::world]
        texts = lesson.texts.take(mine)
        turned = lesson.swap and step % 2 == 1  # every other step sees its pairs turned round
        if turned:
            texts = Texts(texts.prompt, texts.rejected, texts.chosen)
        batch = encode(tokenizer, texts, Reading(section.max_length))
        told = model({name: value.to(place) for name, value in batch.items()})
        loss = loss_of(told, lesson.targets.take(mine), lesson.coverage, turned=turned)
        optimizer.zero_grad()
        # DDP takes the mean over workers; the last step's shares may differ in size
        (loss * len(mine) * world / len(rows)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
    if rank == 0:
        state = {k: v.detach().cpu().contiguous() for k, v in plain.state_dict().items()}
        save_file(state, lesson.output / WEIGHTS)


def steps_of(pairs: int, each: int, epochs: int, seed: int) -> list[np.ndarray]:
    """The rows of every step: each epoch in an order of its own, a short rest left out."""
    draw = np.random.default_rng(seed)
    each = min(each, pairs)
    return [
        order[start : start + each]
        for order in (draw.permutation(pairs) for _ in range(epochs))
        for start in range(0, pairs - each + 1, each)
    ]


def loss_of(told: dict[str, Tensor], targets: Targets, coverage: float, *, turned: bool) -> Tensor:
    """Proper scores, summed: cross-entropy of soft categories and confidence, squared error of the
    gap, pinball loss of its quantiles."""
    place = told["gaps"].device

    def column(values: np.ndarray) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=place)

    confidence = column(1 - targets.confidence if turned else targets.confidence)
    gap = column(targets.turned_gap if turned else targets.gap)
    middle, low, high = torch.sigmoid(told["gaps"].float()).unbind(-1)
    tail = (1 - coverage) / 2
    return (
        F.cross_entropy(told["category"].float(), column(targets.categories))
        + F.binary_cross_entropy_with_logits(told["confidence"].float(), confidence)
        + 4 * F.mse_loss(middle, gap)
        + 2 * (pinball(low, gap, tail) + pinball(high, gap, 1 - tail))
    )


def pinball(predicted: Tensor, truth: Tensor, quantile: float) -> Tensor:
    """Koenker and Bassett (1978): least where `predicted` is that quantile of `truth`."""
    miss = truth - predicted
    return torch.maximum(quantile * miss, (quantile - 1) * miss).mean()
