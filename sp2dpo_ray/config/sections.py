"""The sections of the process configuration, their defaults and their rules.

In: plain values. Out: frozen, fully resolved models. Invariant: an unknown key or a value out of
range is refused, so nothing is ever ignored.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from sp2dpo_ray.config.panel import (
    AnnotateSection,
    BudgetSection,
    DecodingSection,
    PromptsSection,
    Section,
    TeacherSection,
)
from sp2dpo_ray.config.schedule import EnsembleSection, MappingSection
from sp2dpo_ray.core.arms import parse_arm
from sp2dpo_ray.core.hashing import sha256_hex
from sp2dpo_ray.core.schedule.columns import ENSEMBLE
from sp2dpo_ray.core.schedule.grid import Panel
from sp2dpo_ray.core.schedule.recipe import Recipe
from sp2dpo_ray.errors import ConfigError

# what of `train` says where and how safely to compute, not what
NOT_THE_RESULT = frozenset(
    {
        "arm",
        "keep",
        "max_failures",
        "save_steps",
        "log_steps",
        "gradient_checkpointing",
        "trackers",
    }
)
NOT_THE_PROCESS = frozenset({"run", "cluster", "audit", "export"})


class RunSection(Section):
    name: Annotated[str, Field(pattern=r"^[\w.-]+$")] = "run"
    """Name of the run; its folder lies in `storage`."""
    storage: str = "runs"
    """Folder that holds the runs. Every machine of the cluster must see it."""

    @field_validator("storage")
    @classmethod
    def _local(cls, value: str) -> str:
        if "://" in value:
            raise ValueError("must be a folder; object stores cannot hold a run yet")
        return value

    @property
    def folder(self) -> Path:
        return Path(self.storage).expanduser().resolve() / self.name


class DataSection(Section):
    source: str
    """Parquet, JSONL, JSON or CSV file, a folder of one kind, or a Hugging Face data set id."""
    split: str | None = None
    """Split of a Hugging Face data set; `train` if not given."""
    revision: str | None = None
    """Commit of a Hugging Face data set; required for one."""
    limit: int | None = Field(None, ge=1)
    """Keep the first so many clean pairs."""
    eval_source: str | None = None
    """Evaluation pairs of their own; else `eval_fraction` of the prompts is set apart."""
    eval_fraction: float = Field(0.05, ge=0, lt=1)
    """Share of the prompts that is never trained on."""
    eval_limit: int | None = Field(None, ge=1)
    """Keep the first so many clean pairs of `eval_source`."""
    external: bool = True
    """Whether the pairs may be sent to somebody else's API; false refuses every API teacher."""


class LoraSection(Section):
    r: int = Field(16, ge=1)
    alpha: int = Field(32, ge=1)
    dropout: float = Field(0.05, ge=0, lt=1)
    target_modules: tuple[str, ...] = (
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"
    )  # fmt: skip


class TinySection(Section):
    """The built-in student, made from the training pairs where no hub can be reached."""

    vocabulary: int = Field(2048, ge=300)
    layers: int = Field(4, ge=1)
    hidden: int = Field(128, ge=16, multiple_of=16)
    heads: int = Field(4, ge=2, multiple_of=2)
    steps: int = Field(120, ge=0)
    """Steps of supervised training on chosen responses."""
    batch: int = Field(16, ge=1)
    learning_rate: float = Field(3e-3, gt=0)
    seed: int = 0


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
    loss: Literal[
        "logistic", "hinge", "ipo", "ipo_sum", "cdpo", "robust", "apo_zero", "apo_down"
    ] = "logistic"
    """Form of the pair loss; every one takes a beta for each pair."""
    label_noise: float = Field(0.0, ge=0, lt=0.5)
    """Share of flipped labels that `cdpo` and `robust` reckon with."""
    epochs: int = Field(1, ge=1)
    max_length: int = Field(2048, ge=8)
    """Longest prompt with response, in tokens; what is over is cut from the response's end."""
    max_prompt_length: int = Field(1536, ge=4)
    """Longest prompt, in tokens."""
    keep_prompt: Literal["end", "start"] = "end"
    """What is left of a prompt that is too long."""
    keep_end_token: bool = False
    """A response that is cut still ends with the token that closes a turn."""
    learning_rate: float = Field(5e-6, gt=0)
    warmup_ratio: float = Field(0.1, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    pairs_per_step: int = Field(64, ge=1)
    """Pairs of one optimiser step, over all workers."""
    tokens_per_batch: int = Field(8192, ge=8)
    """Most tokens, padding included, that a worker computes at once; 1024 to 2048 on a CPU."""
    layout: Literal["shared", "plain"] = "shared"
    """`shared`: a row holds a prompt once and both responses, many pairs behind each other, no
    padding. `plain`: two padded rows a pair, as other trainers do. Both give the same numbers."""
    head_mib: int = Field(64, ge=1)
    """Most memory that the logits of response tokens may take at once, in MiB."""
    fused_lora: bool = True
    """Compute base layer and adapter together; off: through PEFT's own layers."""
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
    keep: int = Field(3, ge=1)
    """Checkpoints to keep."""
    max_failures: int = Field(0, ge=0)
    """Times that a lost worker is replaced and training goes on from the last checkpoint."""
    log_steps: int = Field(1, ge=1)
    """Steps that a line of metrics is the mean of; each checkpoint ends a line too."""
    trackers: tuple[Literal["wandb", "mlflow"], ...] = ()
    """Where metrics go besides metrics.jsonl and TensorBoard."""
    seed: int = 0

    @model_validator(mode="after")
    def _room_for_a_response(self) -> TrainSection:
        if self.max_prompt_length >= self.max_length:
            raise ValueError(
                "max_prompt_length must be below max_length, got "
                f"{self.max_prompt_length} and {self.max_length}"
            )
        if self.label_noise and self.loss not in ("cdpo", "robust"):
            raise ValueError(f"label_noise is for cdpo and robust; the loss is {self.loss}")
        if self.most_workers > self.pairs_per_step:
            raise ValueError(
                f"workers must not exceed pairs_per_step, got {self.workers} and "
                f"{self.pairs_per_step}"
            )
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

    @property
    def least_workers(self) -> int:
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def most_workers(self) -> int:
        return self.workers if isinstance(self.workers, int) else self.workers[1]


class SweepSection(Section):
    arms: tuple[str, ...] = ("jmamp", "dpo:0.1", "random")
    """Arms that `run` trains and the report compares; the first `dpo:` arm is the baseline."""


class AuditSection(Section):
    each: int = Field(40, ge=0)
    """Pairs that the audit lists for each reason."""
    sample: int = Field(120, ge=0)
    """Pairs of the fair sample, as many of every category as there are."""
    seed: int = 0


class ExportSection(Section):
    arm: str = "jmamp"
    """Whose betas `export` joins to the pairs."""


class ClusterSection(Section):
    address: str | None = None
    """Ray address; null: the cluster of this job, else a Ray of this machine's own."""


class Config(Section):
    """The whole process configuration."""

    run: RunSection = RunSection()
    data: DataSection
    teachers: Annotated[tuple[TeacherSection, ...], Field(min_length=1)]
    prompts: PromptsSection = PromptsSection()
    decoding: DecodingSection = DecodingSection()
    annotate: AnnotateSection = AnnotateSection()
    budget: BudgetSection = BudgetSection()
    mapping: MappingSection = MappingSection()
    ensemble: EnsembleSection = EnsembleSection()
    student: StudentSection = StudentSection()
    train: TrainSection = TrainSection()
    sweep: SweepSection = SweepSection()
    audit: AuditSection = AuditSection()
    export: ExportSection = ExportSection()
    cluster: ClusterSection = ClusterSection()

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        teachers = [teacher.name for teacher in self.teachers]
        variants = list(self.prompts.variants)
        for where, names in (
            ("teachers: names", teachers),
            ("prompts.variants", variants),
            ("sweep.arms", list(self.sweep.arms)),
        ):
            if len(set(names)) < len(names):
                raise ValueError(f"{where} must differ, got {names}")
        if not variants or not self.sweep.arms:
            raise ValueError("prompts.variants and sweep.arms must not be empty")
        if ENSEMBLE in variants:
            raise ValueError(f"prompts.variants: {ENSEMBLE!r} names the ensemble's columns")
        for where, arm in (
            ("train.arm", self.train.arm),
            ("export.arm", self.export.arm),
            *(("sweep.arms", a) for a in self.sweep.arms),
        ):
            self._check_arm(where, arm, teachers, variants)
        recipe = self.recipe  # it has rules of its own
        if self.annotate.early_stop is not None and not recipe.mapping.of_gap_alone:
            raise ValueError(
                "annotate.early_stop knows the bounds of maps of the gap alone; leave out "
                "mapping.categories, mapping.gate and the shape quantile, or early_stop"
            )
        return self

    @model_validator(mode="after")
    def _frozen_in_four_bits(self) -> Config:
        if self.train.precision == "nf4" and self.student.lora is None:
            raise ValueError(
                "train.precision: nf4 keeps frozen weights; student.lora: null trains them"
            )
        return self

    @property
    def training(self) -> dict[str, Any]:
        """What decides a training besides its arm, and must be equal for arms to be compared."""
        lora = self.student.lora
        return {
            "lora": lora and lora.model_dump(mode="json"),
            "train": self.train.model_dump(mode="json", exclude=set(NOT_THE_RESULT)),
        }

    @property
    def panel(self) -> Panel:
        return Panel(tuple(teacher.name for teacher in self.teachers), self.prompts.variants)

    @property
    def recipe(self) -> Recipe:
        """How betas come from annotations."""
        return self.ensemble.recipe(self.panel, self.mapping)

    @model_validator(mode="after")
    def _may_leave(self) -> Config:
        outside = [teacher for teacher in self.teachers if teacher.external]
        if outside and not self.data.external:
            names = [f"{teacher.name} ({teacher.provider})" for teacher in outside]
            raise ValueError(
                "data.external: false keeps these pairs on your own machines, but the teachers "
                f"{names} are APIs; use other teachers, or data.external: true"
            )
        return self

    @model_validator(mode="after")
    def _priced(self) -> Config:
        unknown = [t.name for t in self.teachers if t.external and not t.price.known]
        if self.budget.usd is not None and unknown:
            raise ValueError(
                f"budget.usd needs the prices of all API teachers; teachers {unknown} have none: "
                "price: {input: ..., output: ..., as_of: YYYY-MM-DD}"
            )
        return self

    @staticmethod
    def _check_arm(where: str, name: str, teachers: list[str], variants: list[str]) -> None:
        try:
            parse_arm(name)
        except ConfigError as error:
            raise ValueError(f"{where}: {error}") from None
        parts = name.split("-")
        unknown = {
            "sa": lambda: parts[1] not in teachers or parts[2] not in variants,
            "se": lambda: parts[1] not in teachers,
            "ma": lambda: parts[1] not in variants,
        }.get(parts[0], lambda: False)()
        if unknown:
            raise ValueError(
                f"{where}: arm {name!r} is not of this panel: teachers {teachers}, "
                f"variants {variants}"
            )

    @property
    def resolved(self) -> dict[str, Any]:
        """Every value, defaults included, as plain JSON."""
        return self.model_dump(mode="json")

    @property
    def lambda_id(self) -> str:
        """SHA-256 of the process: all but where it lies, where it runs, and what is read off it."""
        return sha256_hex({k: v for k, v in self.resolved.items() if k not in NOT_THE_PROCESS})
