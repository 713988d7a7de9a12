"""The sections of student and training.

In: plain values. Out: frozen models. Invariant: options that do not go together are refused here,
before a worker starts.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt, model_validator

from sp2dpo_ray.config.section import Section
from sp2dpo_ray.core.methods import METHODS, options_of
from sp2dpo_ray.errors import ConfigError

# what of `train` says where and how safely to compute, not what
NOT_THE_RESULT = frozenset(
    {
        "arm",
        "workers",
        "gpus_per_worker",
        "keep",
        "max_failures",
        "save_steps",
        "notice_steps",
        "log_steps",
        "eval_steps",
        "gradient_checkpointing",
        "trackers",
    }
)


class LoraSection(Section):
    r: int = Field(16, ge=1)
    """Rank of the adapters."""
    alpha: int = Field(32, ge=1)
    """Scale of the adapters: what they add is multiplied by alpha / r."""
    dropout: float = Field(0.05, ge=0, lt=1)
    """Share of an adapter's inputs that is dropped in training."""
    target_modules: tuple[str, ...] = (
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"
    )  # fmt: skip
    """Names of the linear layers that get an adapter."""


class TinySection(Section):
    """The built-in student, made from the training pairs where no hub can be reached."""

    vocabulary: int = Field(2048, ge=300)
    """Most tokens of its tokenizer."""
    layers: int = Field(4, ge=1)
    """Transformer layers."""
    hidden: int = Field(128, ge=16, multiple_of=16)
    """Width of the hidden states."""
    heads: int = Field(4, ge=2, multiple_of=2)
    """Attention heads."""
    steps: int = Field(120, ge=0)
    """Steps of supervised training on chosen responses."""
    batch: int = Field(16, ge=1)
    """Responses of a step."""
    learning_rate: float = Field(3e-3, gt=0)
    """Greatest step of its optimiser."""
    seed: int = 0
    """Of weights and batches."""


class StudentSection(Section):
    model: str = "tiny"
    """Hugging Face id or folder of a causal language model with safetensors weights; `tiny` makes
    a small one from the training pairs."""
    revision: str | None = None
    """Commit of a Hugging Face model."""
    lora: LoraSection | None = LoraSection()
    """Adapters; null trains every weight."""
    tiny: TinySection = TinySection()


class TrainSection(Section):
    arm: str = "jmamp"
    """What the stage `train` trains; `run` trains every arm of `sweep.arms`."""
    loss: str = "logistic"
    """Loss of arms that name no method of the catalogue; every one takes a beta for each pair."""
    loss_options: dict[str, dict[str, float]] = Field(default_factory=dict)
    """Options of methods, by method: {cdpo: {epsilon: 0.05}}."""
    margin: Literal["panel", "scores"] = "panel"
    """What MADPO and the selections take for a reward model's margin: the panel's gap, or the
    columns score_chosen less score_rejected of the data."""
    epochs: int = Field(1, ge=1)
    """Passes over the pairs."""
    max_length: int = Field(2048, ge=8)
    """Longest prompt with response, in tokens; what is over is cut from the response's end."""
    max_prompt_length: int = Field(1536, ge=4)
    """Longest prompt, in tokens."""
    keep_prompt: Literal["end", "start"] = "end"
    """What is left of a prompt that is too long."""
    keep_end_token: bool = False
    """A response that is cut still ends with the token that closes a turn."""
    learning_rate: float = Field(5e-6, gt=0)
    """Greatest step of the optimiser; after the warmup it falls as a cosine to 0."""
    warmup_ratio: float = Field(0.1, ge=0, lt=1)
    """Share of the steps in which the learning rate rises."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Longer gradients are cut to this norm."""
    pairs_per_step: int = Field(64, ge=1)
    """Pairs of one optimiser step, over all workers."""
    tokens_per_batch: int = Field(8192, ge=8)
    """Most tokens, padding included, that a worker computes at once; 1024 to 2048 on a CPU."""
    layout: Literal["shared", "plain"] = "shared"
    """`shared`: a row holds a prompt once and both responses, many pairs behind each other, no
    padding. `plain`: two padded rows a pair, as other trainers do. Both give the same numbers."""
    head_mib: int = Field(64, ge=1)
    """Memory of one float32 copy of the logits that are computed at once, in MiB; about three such
    copies are in use."""
    fused_lora: bool = True
    """Compute base layer and adapter together where both are fp32; off: through PEFT's layers."""
    varlen_attention: bool = True
    """On a CUDA GPU in bf16, one attention kernel for all pairs of a row; off: each by itself."""
    gradient_checkpointing: Literal["auto", "on", "off"] = "auto"
    """Compute activations again on the way back; `auto` measures the first batch and decides."""
    precision: Literal["bf16", "fp32", "nf4"] = "bf16"
    """nf4: the frozen weights in 4 bits (QLoRA), products in bf16; needs a CUDA GPU."""
    optimizer: Literal["adamw", "paged_adamw_32bit"] = "adamw"
    """The paged one is of bitsandbytes: its states move to the host when a GPU is full."""
    workers: PositiveInt | tuple[PositiveInt, PositiveInt] = 4
    """How many; [least, most] lets Ray take what the cluster has, and change it on the way."""
    gpus_per_worker: float = Field(1, ge=0)
    """0 trains on the CPU."""
    strategy: Literal["ddp", "zero2", "zero3", "fsdp"] = "ddp"
    """ddp: the whole student on each worker. zero2, zero3: DeepSpeed shares out gradients and
    optimiser states, zero3 weights too. fsdp: PyTorch shares out all of them."""
    save_steps: int = Field(250, ge=1)
    """Steps between two checkpoints."""
    notice_steps: int = Field(10, ge=0)
    """Every so many steps the workers ask whether one of their nodes is about to be taken away, as
    spot instances are, and then save at once; 0: never."""
    keep: int = Field(3, ge=1)
    """Checkpoints to keep."""
    max_failures: int = Field(0, ge=0)
    """Times that a lost worker is replaced and training goes on from the last checkpoint."""
    eval_steps: int | None = Field(None, ge=1)
    """Score the tuning half of the held-out pairs every so many steps; null: at the end alone."""
    log_steps: int = Field(1, ge=1)
    """Steps that a line of metrics is the mean of; each checkpoint ends a line too."""
    trackers: tuple[Literal["wandb", "mlflow"], ...] = ()
    """Where metrics go besides metrics.jsonl and TensorBoard."""
    seed: int = 0
    """Of order, dropout and adapters; an arm `...@1` has its own."""

    @model_validator(mode="after")
    def _room_for_a_response(self) -> TrainSection:
        if self.max_prompt_length >= self.max_length:
            raise ValueError(
                "max_prompt_length must be below max_length, got "
                f"{self.max_prompt_length} and {self.max_length}"
            )
        if self.most_workers > self.pairs_per_step:
            raise ValueError(
                f"workers must not exceed pairs_per_step, got {self.workers} and "
                f"{self.pairs_per_step}"
            )
        return self

    @model_validator(mode="after")
    def _of_the_catalogue(self) -> TrainSection:
        for name in (self.loss, *self.loss_options):
            if name not in METHODS:
                raise ValueError(f"method {name!r} is unknown; the methods are {list(METHODS)}")
        for name, given in self.loss_options.items():
            try:
                options_of(name, given)
            except ConfigError as error:
                raise ValueError(f"loss_options: {error}") from None
        return self

    @model_validator(mode="after")
    def _together(self) -> TrainSection:
        """Options that do not go together."""
        if self.least_workers > self.most_workers:
            raise ValueError(f"workers: the least must not exceed the most, got {self.workers}")
        if self.strategy != "ddp" and isinstance(self.workers, tuple):
            raise ValueError(
                f"strategy {self.strategy} needs a fixed number of workers, got {self.workers}"
            )
        if self.strategy in ("zero3", "fsdp") and self.precision == "nf4":
            raise ValueError(
                f"strategy {self.strategy} cannot share out weights in 4 bits; use ddp or zero2"
            )
        if self.optimizer == "paged_adamw_32bit" and self.strategy == "fsdp":
            raise ValueError("optimizer paged_adamw_32bit does not know the shares of fsdp")
        return self

    def weights_of(self, lora: LoraSection | None) -> tuple[str, str | None]:
        """The type that weights are kept in, and the one that they compute in where it is another.

        bf16 has no digits left for the small updates of weights that are trained themselves: they
        are kept in float32 and compute in bf16. DeepSpeed keeps such a copy by itself.
        """
        if lora is None and self.precision == "bf16" and self.strategy in ("ddp", "fsdp"):
            return "fp32", "bf16"
        return self.precision, None

    @property
    def least_workers(self) -> int:
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def most_workers(self) -> int:
        return self.workers if isinstance(self.workers, int) else self.workers[1]
