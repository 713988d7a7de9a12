"""The training loop of one worker.

In: a `TrainTask`. Out: adapter, merged model, metrics and held-out margins in the arm's folder.
Invariant: data order is a function of the seed alone, the same for every arm and any number of
workers; a run that was interrupted goes on where its last checkpoint was taken.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

import ray.train
import ray.train.torch
import torch
from ray.train import CheckpointUploadMode

from sp2dpo_ray.core.files import METRICS_LINES
from sp2dpo_ray.modeling.student import (
    DTYPES,
    QUANTIZED,
    load_tokenizer,
    save_student,
    student_to_train,
)
from sp2dpo_ray.train.checkpoint import restore_state, save_state, scratch
from sp2dpo_ray.train.gauges import Gauges
from sp2dpo_ray.train.held_out import interim_scores, places_that_choose, score_held_out
from sp2dpo_ray.train.loss import Loss
from sp2dpo_ray.train.memory import decide
from sp2dpo_ray.train.metrics import MetricsLog, beta_percentiles, means, new_sums
from sp2dpo_ray.train.record import write_record
from sp2dpo_ray.train.step import Computing, Team, Traced, accumulate, pair_logps, reduce_sums
from sp2dpo_ray.train.strategies import Setup, strategy_of
from sp2dpo_ray.train.task import TrainTask, load_pairs_to_score, load_training_pairs
from sp2dpo_ray.train.trackers import open_trackers
from sp2dpo_ray.train.trajectory import Trajectory


def train_worker(config: dict[str, Any]) -> None:
    """Entry of each Ray Train worker; config["task"] is the TrainTask."""
    task: TrainTask = config["task"]
    options = task.options
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device()

    tokenizer = load_tokenizer(task.student)
    pairs = load_training_pairs(task)
    plan = steps_of(
        len(pairs), options.pairs_per_step, options.epochs, None if task.ordered else options.seed
    )
    weights, computed_in = options.weights_of(task.lora)
    model = student_to_train(
        task.student,
        task.lora,
        weights,
        options.layout,
        options.seed,
        options.fused_lora,
        options.varlen_attention,
    )
    model = model if weights == QUANTIZED else model.to(device)
    autocast = DTYPES[computed_in] if computed_in else None
    strategy = strategy_of(options.strategy, model, Setup(options, device, len(plan), autocast))
    how = Computing(tokenizer.pad_token_id, device, options.tokens_per_batch, options.layout)
    loss = Loss(options.loss, options.loss_options.get(options.loss), options.seed, task.envelope)
    team = Team(rank, world, strategy.lockstep)
    place = scratch(task.output, rank)
    done, note = 0, ""
    if checkpoint := ray.train.get_checkpoint():
        done, note = restore_state(checkpoint, strategy, loss)
    moved = Trajectory(task.output, pairs, done) if loss.moves_betas else None
    log = MetricsLog(task.output / METRICS_LINES, done, open_trackers(task)) if rank == 0 else None

    held_out = load_pairs_to_score(task) if task.eval_steps else None
    choosing = places_that_choose(task, held_out) if held_out else []
    gauges = Gauges(task)
    strategy.model.train()
    largest = how.largest(pairs, plan, world)
    memory = decide(
        options.gradient_checkpointing,
        lambda: loss(
            pair_logps(strategy.score, pairs, largest, how), pairs.beta[largest].to(device)
        ),
        strategy.model,
        device,
        share=min(1.0, options.gpus_per_worker or 1.0),
        lockstep=strategy.lockstep,
    )
    if rank == 0:
        write_record(task, tokenizer, pairs, plan, memory, device)
    window, seen, clock = new_sums(device), [], time.perf_counter()
    warned = None
    for step in range(done + 1, len(plan) + 1):
        torch.manual_seed(hash_seed(options.seed, step, rank))  # LoRA dropout
        everyone = plan[step - 1]
        trace: list[Traced] | None = None if moved is None else []
        window += accumulate(
            strategy.score,
            pairs,
            everyone,
            how=how,
            loss=loss,
            step=step,
            team=team,
            backward=strategy.backward,
            trace=trace,
        )
        if moved is None or trace is None:
            seen += pairs.beta[everyone].tolist()
        else:
            seen += moved.add(step, trace, team)
        rate = strategy.learning_rate
        norm = strategy.step()
        saves = step % options.save_steps == 0 or step == len(plan)
        if options.notice_steps and step % options.notice_steps == 0:
            # every worker asks at the same steps: the answer is one for all
            notice = ray.train.get_preemption_info()
            saves |= notice is not None and notice != warned
            warned = notice
        looks = held_out is not None and step % task.eval_steps == 0
        # logged at every checkpoint too, so that a resumed run begins with an empty window
        if saves or looks or step % options.log_steps == 0:
            now = time.perf_counter()
            scores = interim_scores(strategy, held_out, choosing, how, team) if looks else {}
            metrics = {
                "step": step,
                "steps": len(plan),
                **means(reduce_sums(window)),
                **beta_percentiles(torch.tensor(seen)),
                "grad_norm": norm,
                "learning_rate": rate,
                "seconds": now - clock,
                **scores,
                **({"note": note} if note else {}),
            }
            note = ""
            if log:
                log.write(metrics)
                gauges.set(metrics)
            # what was not spent on steps is not the steps' time
            window, seen, clock = new_sums(device), [], time.perf_counter() if looks else now
        if saves:
            _hand_over(save_state(strategy, loss, step, team, place), metrics)
            clock = time.perf_counter()  # the checkpoint's time is not the steps'

    if log:
        log.close()
    if moved and rank == 0:
        moved.close()
    score_held_out(strategy, task, how, team)
    trained = strategy.trained()
    if rank == 0 and not task.probe:
        export = "bf16" if weights == QUANTIZED else options.precision
        save_student(task.student, task.lora, export, trained, tokenizer, task.output)
    with suppress(OSError):  # a checkpoint that is still on its way holds it
        place.rmdir()


def _hand_over(checkpoint: ray.train.Checkpoint | None, metrics: dict[str, Any]) -> None:
    """Give the state to Ray Train, which carries it to storage while training goes on."""
    ray.train.report(
        metrics,
        checkpoint=checkpoint,
        checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
        delete_local_checkpoint_after_upload=True,
    )


def steps_of(num_pairs: int, pairs_per_step: int, epochs: int, seed: int | None) -> list[list[int]]:
    """The pairs of every step: a fresh permutation each epoch, the last step may be smaller.

    seed: None for the pairs' own order in every epoch.
    """
    steps = []
    for epoch in range(epochs):
        order = list(range(num_pairs))
        if seed is not None:
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
