"""What a training was made with, for its manifest: versions, template, data order, how it ran.

In: a task and what the worker found. Out: one file beside the metrics. Invariant: written by the
worker that trained, so that it tells of the node that trained and not of the one that asked.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import ray.train
import torch

from sp2dpo_ray.core.artifact import write_atomically
from sp2dpo_ray.core.files import TRAINING
from sp2dpo_ray.core.hashing import sha256_hex
from sp2dpo_ray.core.versions import versions
from sp2dpo_ray.train.memory import Decision
from sp2dpo_ray.train.task import Pairs, TrainTask


def write_record(
    task: TrainTask,
    tokenizer: Any,
    pairs: Pairs,
    plan: list[list[int]],
    memory: Decision,
    device: torch.device,
) -> None:
    """training.json: equal `data_order` means the same pairs in the same steps."""
    cuda = device.type == "cuda"
    record = {
        "arm": task.arm,
        "student": task.student.model,
        "revision": task.student.revision,
        "fingerprint": task.student.fingerprint,
        "versions": versions(),
        "chat_template": sha256_hex(tokenizer.chat_template),
        "data_order": data_order(pairs, plan),
        "steps": len(plan),
        "strategy": task.options.strategy,
        "workers": ray.train.get_context().get_world_size(),
        "device": torch.cuda.get_device_name(device) if cuda else "cpu",
        "threads": torch.get_num_threads(),
        "gradient_checkpointing": memory.on,
        "activation_bytes": memory.needed,
        "free_bytes": memory.free,
    }
    write_atomically(task.output / TRAINING, json.dumps(record, indent=2, sort_keys=True))


def data_order(pairs: Pairs, plan: list[list[int]]) -> str:
    """SHA-256 over the ids of every step's pairs, steps apart; hexadecimal."""
    digest = hashlib.sha256()
    for step in plan:
        digest.update("\n".join(pairs.encoded[i].prompt_id for i in step).encode() + b"\n\n")
    return digest.hexdigest()
