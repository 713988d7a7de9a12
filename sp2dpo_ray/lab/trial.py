"""One world with one seed: a student is taught, then trained by every arm, and measured.

In: a world, a seed, names of arms. Out: what each arm's student is worth on held-out prompts.
Invariant: within a trial arms share student, pairs, order, prompts and random draws, and differ in
their betas or their loss alone; held-out prompts are the same for every seed.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from sp2dpo_ray.config import TrainSection
from sp2dpo_ray.core.arms import parse_arm
from sp2dpo_ray.evaluate.compare import accuracy_of
from sp2dpo_ray.lab.learner import HOW, encoded, sample, scored
from sp2dpo_ray.lab.panel import RECIPE, schedule_of
from sp2dpo_ray.lab.world import FORBIDDEN, Floats, Ids, World, draw_pair, draw_prompt, worth
from sp2dpo_ray.modeling.forward import Scorer
from sp2dpo_ray.train.loop import steps_of
from sp2dpo_ray.train.loss import Loss
from sp2dpo_ray.train.step import accumulate
from sp2dpo_ray.train.strategies.base import Setup, Updates
from sp2dpo_ray.train.task import Pairs

COPIES = 4  # samples for each held-out prompt
PROMPTS_SEED = 1234
TRAINING = TrainSection(
    learning_rate=5e-4, epochs=2, pairs_per_step=64, warmup_ratio=0.1, precision="fp32", workers=1
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Means:
    """Figures of an arm that are told as means: worth of a response, share of responses with a
    forbidden token, tokens of a response, accuracy on held-out pairs by their labels and by the
    truth where there is one, beta, seconds."""

    worth: float
    forbidden: float
    length: float
    labelled: float
    true: float
    mean_beta: float
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured(Means):
    """What an arm's student is worth on M held-out prompts.

    won_M: chance that a response is worth more than one of the student before training, ties half.
    outcome_MC, longer_MC: sample by sample against the earlier student's sample of the same number:
    1, 0.5 or 0, and how many tokens longer.
    """

    won_M: Floats
    outcome_MC: Floats
    longer_MC: Floats

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Measured:
        return cls(**{k: np.array(v) if isinstance(v, list) else v for k, v in content.items()})

    @property
    def json(self) -> dict[str, Any]:
        return {
            name: value.tolist() if isinstance(value, np.ndarray) else value
            for name, value in asdict(self).items()
        }


@dataclass(frozen=True, slots=True)
class Answers:
    """Samples of a student for M prompts with their worth, their length and what they hold."""

    worth_MC: Floats
    length_MC: Floats
    forbidden: float

    @classmethod
    def of(cls, prompts: Sequence[Ids], samples: list[list[Ids]]) -> Answers:
        worths = [[worth(p, r) for r in row] for p, row in zip(prompts, samples, strict=True)]
        lengths = [[float(len(response)) for response in row] for row in samples]
        held = [(response == FORBIDDEN).any() for row in samples for response in row]
        return cls(np.array(worths), np.array(lengths), float(np.mean(held)))


def run_trial(student: Any, world: World, seed: int, arms: Sequence[str]) -> dict[str, Measured]:
    """What each arm makes of the student, measured. Deterministic on one machine."""
    draw = np.random.default_rng([seed, 2])
    pairs = [draw_pair(world, draw) for _ in range(world.pairs)]
    held_out = [draw_pair(world, draw) for _ in range(world.prompts)]
    ids = [f"pair-{number:05d}" for number in range(len(pairs))]
    schedule = schedule_of(pairs, world.panel, ids, seed)
    to_train = encoded(student, pairs, ids)
    to_score = encoded(student, held_out, [f"held-out-{n}" for n in range(len(held_out))])
    gap = np.array([pair.gap for pair in held_out])
    asked = np.random.default_rng(PROMPTS_SEED)
    prompts = [draw_prompt(asked) for _ in range(world.prompts)]
    before = Answers.of(prompts, sample(student, prompts, COPIES, seed))

    found = {}
    for name in arms:
        start, arm = time.perf_counter(), parse_arm(name)
        beta = torch.from_numpy(arm.betas(schedule, RECIPE, ids)).float()
        loss = Loss(arm.method or "logistic", seed=seed, envelope=RECIPE.mapping.envelope)
        model = copy.deepcopy(student)
        _train(model, replace(to_train, beta=beta), loss, seed)
        after = Answers.of(prompts, sample(model, prompts, COPIES, seed + 1))
        logps = scored(model, to_score).double()
        margin = (logps[0] - logps[1]) - (to_score.ref_chosen - to_score.ref_rejected)
        right = accuracy_of(margin.numpy())
        truly = np.where(gap > 0, right, 1 - right)[gap != 0]
        found[name] = Measured(
            won_M=_won(after.worth_MC[:, :, None] - before.worth_MC[:, None, :]).mean(axis=(1, 2)),
            outcome_MC=_won(after.worth_MC - before.worth_MC),
            longer_MC=after.length_MC - before.length_MC,
            worth=float(after.worth_MC.mean()),
            forbidden=after.forbidden,
            length=float(after.length_MC.mean()),
            labelled=float(right.mean()),
            true=float(truly.mean()),
            mean_beta=float(beta.mean()),
            seconds=time.perf_counter() - start,
        )
    return found


def _train(model: Any, pairs: Pairs, loss: Loss, seed: int) -> None:
    options = TRAINING
    plan = steps_of(len(pairs), options.pairs_per_step, options.epochs, seed)
    updates = Updates(list(model.parameters()), Setup(options, HOW.device, len(plan)))
    scorer = Scorer(model.train())
    for step, everyone in enumerate(plan, start=1):
        accumulate(scorer, pairs, everyone, how=HOW, loss=loss, step=step)
        updates.apply()
    model.eval()


def _won(difference: Floats) -> Floats:
    return np.where(difference == 0, 0.5, (difference > 0).astype(np.float64))
