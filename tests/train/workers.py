"""Workers without Ray: a few processes that train one tiny student together over gloo.

A `Job` says what; `train_together` gives back what rank 0 saw of each: the losses and norms of the
steps, and the trained weights.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from sp2dpo_ray.config import LoraSection, TrainSection
from sp2dpo_ray.modeling.student import StudentRef, student_to_train
from sp2dpo_ray.train.loop import hash_seed, steps_of
from sp2dpo_ray.train.loss import Loss
from sp2dpo_ray.train.memory import decide
from sp2dpo_ray.train.metrics import means
from sp2dpo_ray.train.step import Computing, Team, accumulate, pair_logps, reduce_sums
from sp2dpo_ray.train.strategies import Setup, strategy_of
from sp2dpo_ray.train.task import Pairs


@dataclass(frozen=True)
class Job:
    """save_at: after which step the state is saved; restore: begin from the saved state."""

    student: StudentRef
    pairs: Pairs
    options: TrainSection
    lora: LoraSection | None
    folder: Path
    save_at: int = 0
    restore: bool = False
    saved_by: int = 2


def train_together(jobs: dict[str, Job], world: int, folder: Path) -> dict[str, dict[str, Any]]:
    """The results of the jobs, one after the other by the same processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    result = folder / f"result-{world}.pt"
    mp.start_processes(_worker, (world, port, jobs, result), nprocs=world, start_method="spawn")
    found: dict[str, dict[str, Any]] = torch.load(result)
    return found


def _worker(rank: int, world: int, port: int, jobs: dict[str, Job], result: Path) -> None:
    os.environ["LOCAL_RANK"] = str(rank)  # as Ray Train sets it
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world
    )
    found = {name: _train(job, rank, world) for name, job in jobs.items()}
    if rank == 0:
        torch.save(found, result)
    dist.barrier()
    dist.destroy_process_group()


def _train(job: Job, rank: int, world: int) -> dict[str, Any]:
    options, device = job.options, torch.device("cpu")
    model = student_to_train(
        job.student, job.lora, options.precision, options.layout, options.seed, options.fused_lora
    )
    plan = steps_of(len(job.pairs), options.pairs_per_step, options.epochs, options.seed)
    strategy = strategy_of(options.strategy, model, Setup(options, device, len(plan)))
    done = 0
    if job.restore:
        strategy.restore(job.folder / "state", job.saved_by)
        done = job.save_at
    strategy.model.train()
    how = Computing(0, device, options.tokens_per_batch, options.layout)
    loss = Loss(options.loss, seed=options.seed)
    largest = how.largest(job.pairs, plan, world)
    decide(
        options.gradient_checkpointing,
        lambda: loss(pair_logps(strategy.score, job.pairs, largest, how), job.pairs.beta[largest]),
        strategy.model,
        device,
        lockstep=strategy.lockstep,
    )
    losses, norms = [], []
    for step in range(done + 1, len(plan) + 1):
        torch.manual_seed(hash_seed(options.seed, step, rank))
        sums = accumulate(
            strategy.score, job.pairs, plan[step - 1], how=how, loss=loss, step=step,
            team=Team(rank, world, strategy.lockstep), backward=strategy.backward,
        )  # fmt: skip
        norms.append(strategy.step())
        losses.append(means(reduce_sums(sums))["loss"])
        if step == job.save_at and not job.restore:
            # one folder for all stands for what Ray Train puts together
            (job.folder / "state").mkdir(parents=True, exist_ok=True)
            strategy.save(job.folder / "state")
    return {"losses": losses, "norms": norms, "trained": strategy.trained()}
