"""Strategies `zero2` and `zero3`: DeepSpeed shares out optimiser states and gradients, and with
`zero3` the weights too.

In: batches of all workers, equally many. Out: the same updates as one worker's. Invariant: a
checkpoint is for the number of workers that wrote it, since each wrote its share.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.utils import safe_get_full_fp32_param
from torch import Tensor

from sp2dpo_ray.errors import TrainingError
from sp2dpo_ray.modeling.forward import Scorer
from sp2dpo_ray.modeling.layout import Batch
from sp2dpo_ray.modeling.student import trainable
from sp2dpo_ray.train.strategies.base import Setup, make_optimizer, make_scheduler

TAG = "zero"
SHM_OP = "deepspeed_shm_comm"


class Zero:
    """DeepSpeed's engine around the student; `stage` is 2 or 3."""

    lockstep = True
    stage: int

    def __init__(self, model: Any, setup: Setup) -> None:
        logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
        if setup.device.type == "cpu":  # gloo serves; the op would be compiled at every first start
            deepspeed.ops.__compatible_ops__[SHM_OP] = False
        parameters = trainable(model)
        optimizer = make_optimizer(parameters, setup)
        self.model = model
        self._scheduler = make_scheduler(optimizer, setup)
        self._engine, *_ = deepspeed.initialize(
            model=Scorer(model, setup.options.head_mib << 20, unsure=setup.unsure),
            model_parameters=parameters,
            optimizer=optimizer,
            lr_scheduler=self._scheduler,
            config=self._config(setup, next(model.parameters()).dtype),
            dist_init_required=False,
        )

    def _config(self, setup: Setup, dtype: torch.dtype) -> dict[str, Any]:
        return {
            # batches are cut by tokens: what one holds is the loop's affair
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": setup.options.max_grad_norm,
            "bf16": {"enabled": dtype == torch.bfloat16},
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "zero_optimization": {
                "stage": self.stage,
                "overlap_comm": setup.device.type == "cuda",
                "contiguous_gradients": True,
            },
        }

    def score(self, batch: Batch) -> Tensor:
        logps: Tensor = self._engine(batch)
        return logps

    def backward(self, loss: Tensor, last: bool) -> None:
        self._engine.set_gradient_accumulation_boundary(last)
        # DeepSpeed takes the mean over workers, our loss is a share of the sum
        self._engine.backward(loss * dist.get_world_size(), scale_wrt_gas=False)
        if not last:
            self._engine.step()  # counts the batch, and updates nothing

    def step(self) -> float:
        self._engine.step()
        norm = float(self._engine.get_global_grad_norm())
        if not torch.isfinite(torch.tensor(norm)):
            raise TrainingError(
                f"the gradient's norm is {norm}; lower train.learning_rate, or look at the pairs"
            )
        return norm

    @property
    def learning_rate(self) -> float:
        return float(self._scheduler.get_last_lr()[0])

    def save(self, folder: Path) -> None:
        self._engine.save_checkpoint(str(folder), tag=TAG, exclude_frozen_parameters=True)

    def restore(self, folder: Path, world: int) -> None:
        if world != dist.get_world_size():
            raise TrainingError(
                f"the checkpoint in {folder} is of {world} workers, and train.strategy zero2 and "
                f"zero3 go on with as many; there are {dist.get_world_size()}. Set train.workers: "
                f"{world}, or remove the checkpoints to begin again"
            )
        self._engine.load_checkpoint(str(folder), tag=TAG, load_module_strict=False)

    def trained(self) -> dict[str, Tensor]:
        found = {}
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                whole = safe_get_full_fp32_param(parameter)  # all workers bring their share
                if dist.get_rank() == 0:
                    found[name] = whole.detach().cpu().contiguous()
        return found


class Zero2(Zero):
    stage = 2


class Zero3(Zero):
    stage = 3
