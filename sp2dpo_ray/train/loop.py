"""The training loop of one worker.

In: a `TrainTask`. Out: adapter, merged model, metrics and held-out margins in the arm's folder.
Invariant: data order is a function of the seed alone, the same for every arm and any number of
workers; a run that was interrupted goes on where its last checkpoint was taken.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from transformers import get_cosine_schedule_with_warmup

from sp2dpo_ray.config import TrainSection
from sp2dpo_ray.core.files import HELD_OUT, METRICS_LINES
from sp2dpo_ray.modeling.student import add_adapter, load_model, load_tokenizer, trainable
from sp2dpo_ray.train.checkpoint import restore_state, saved_state
from sp2dpo_ray.train.memory import decide
from sp2dpo_ray.train.metrics import MetricsLog, beta_percentiles, means, new_sums
from sp2dpo_ray.train.step import (
    Computing,
    accumulate,
    loss_form,
    pair_logps,
    reduce_gradients,
    reduce_sums,
)
from sp2dpo_ray.train.task import (
    Pairs,
    TrainTask,
    load_eval_pairs,
    load_training_pairs,
)


def train_worker(config: dict[str, Any]) -> None:
    """Entry of each Ray Train worker; config["task"] is the TrainTask."""
    task: TrainTask = config["task"]
    options = task.options
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device()

    tokenizer = load_tokenizer(task.student)
    pairs = load_training_pairs(task)
    model = load_model(task.student, options.precision, options.layout).to(device)
    model = add_adapter(model, task.lora, seed=options.seed, fused=options.fused_lora)
    how = computing(options, tokenizer, device)
    loss_of = loss_form(options.loss, options.label_noise)
    parameters = trainable(model)
    optimizer = torch.optim.AdamW(
        parameters, lr=options.learning_rate, weight_decay=options.weight_decay
    )
    plan = steps_of(len(pairs), options.pairs_per_step, options.epochs, options.seed)
    scheduler = get_cosine_schedule_with_warmup(
        optimizer, round(options.warmup_ratio * len(plan)), len(plan)
    )
    done, note = 0, ""
    if checkpoint := ray.train.get_checkpoint():
        done, note = restore_state(checkpoint, model, optimizer, scheduler)
    log = MetricsLog(task.output / METRICS_LINES, done) if rank == 0 else None

    model.train()
    largest = how.batches(pairs, range(len(pairs)))[0]
    decide(
        options.gradient_checkpointing,
        lambda: loss_of(pair_logps(model, pairs, largest, how), pairs.beta[largest].to(device)),
        model,
        device,
    )
    window, seen, clock = new_sums(device), [], time.perf_counter()
    for step in range(done + 1, len(plan) + 1):
        torch.manual_seed(hash_seed(options.seed, step, rank))  # LoRA dropout
        everyone = plan[step - 1]
        window += accumulate(
            model,
            pairs,
            everyone[rank::world],
            global_pairs=len(everyone),
            how=how,
            loss_of=loss_of,
        )
        seen += everyone
        reduce_gradients(parameters)
        norm = torch.nn.utils.clip_grad_norm_(
            parameters, options.max_grad_norm, error_if_nonfinite=True
        )
        rate = scheduler.get_last_lr()[0]
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        saves = step % options.save_steps == 0 or step == len(plan)
        # logged at every checkpoint too, so that a resumed run begins with an empty window
        if saves or step % options.log_steps == 0:
            now = time.perf_counter()
            metrics = {
                "step": step,
                "steps": len(plan),
                **means(reduce_sums(window)),
                **beta_percentiles(pairs.beta[seen]),
                "grad_norm": float(norm),
                "learning_rate": rate,
                "seconds": now - clock,
                **({"note": note} if note else {}),
            }
            note = ""
            if log:
                log.write(metrics)
            window, seen, clock = new_sums(device), [], now
        if saves:
            state = saved_state(model, optimizer, scheduler, step) if rank == 0 else _none()
            with state as checkpoint:
                ray.train.report(metrics, checkpoint=checkpoint)
            clock = time.perf_counter()  # the checkpoint's time is not the steps'

    if log:
        log.close()
    _score_held_out(model, task, how, rank, world)
    if rank == 0:
        _export(model, tokenizer, task.output)


def computing(options: TrainSection, tokenizer: Any, device: torch.device) -> Computing:
    """How the options ask for batches to be computed."""
    return Computing(
        tokenizer.pad_token_id,
        device,
        options.tokens_per_batch,
        options.layout,
        options.head_mib << 20,
    )


def steps_of(num_pairs: int, pairs_per_step: int, epochs: int, seed: int) -> list[list[int]]:
    """The pairs of every step: a fresh permutation each epoch, the last step may be smaller."""
    steps = []
    for epoch in range(epochs):
        generator = torch.Generator().manual_seed(hash_seed(seed, epoch, 0))
        order = torch.randperm(num_pairs, generator=generator).tolist()
        steps += [order[i : i + pairs_per_step] for i in range(0, num_pairs, pairs_per_step)]
    return steps


def hash_seed(*parts: int) -> int:
    """A seed for torch from several integers, without the collisions of a sum."""
    state = 0
    for part in parts:
        state = (state * 1_000_003 + part + 1) % (2**63 - 1)
    return state


@contextlib.contextmanager
def _none() -> Iterator[None]:
    yield None


@torch.no_grad()
def _score_held_out(model: Any, task: TrainTask, how: Computing, rank: int, world: int) -> None:
    """The log-ratio margin of every held-out pair, in nats, into one table."""
    model.eval()
    pairs = load_eval_pairs(task)
    rows = _margins(model, pairs, list(range(len(pairs)))[rank::world], how)
    gathered: list[Any] = [rows]
    if world > 1:
        gathered = [None] * world
        dist.all_gather_object(gathered, rows)
    if rank == 0:
        together = sorted(row for part in gathered for row in part)
        columns = list(zip(*together, strict=True)) or [(), (), ()]
        names = ("prompt_id", "margin", "reference_margin")
        kinds = (pa.string(), pa.float64(), pa.float64())
        arrays = [pa.array(column, kind) for column, kind in zip(columns, kinds, strict=True)]
        pq.write_table(pa.table(arrays, names=list(names)), task.output / HELD_OUT)


def _margins(
    model: Any, pairs: Pairs, mine: list[int], how: Computing
) -> list[tuple[str, float, float]]:
    rows = []
    for index in how.batches(pairs, mine):
        logps = pair_logps(model, pairs, index, how)
        reference = (logps.ref_chosen - logps.ref_rejected).tolist()
        ids = [pairs.encoded[i].prompt_id for i in index]
        rows += list(zip(ids, logps.margin.tolist(), reference, strict=True))
    return rows


def _export(model: Any, tokenizer: Any, output: Path) -> None:
    """The adapter by itself, and the student with the adapter merged in."""
    for name in ("adapter", "merged"):
        shutil.rmtree(output / name, ignore_errors=True)
    # False: the vocabulary is untouched, and asking the hub about it would need a network
    model.save_pretrained(output / "adapter", save_embedding_layers=False)
    model.merge_and_unload().save_pretrained(output / "merged")
    tokenizer.save_pretrained(output / "merged")
