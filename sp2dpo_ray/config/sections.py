"""The sections of the process configuration, their defaults and their rules.

In: plain values. Out: frozen, fully resolved models. Invariant: an unknown key or a value out of
range is refused, so nothing is ever ignored.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from sp2dpo_ray.config.arm_rules import (
    check_alike,
    check_arm,
    check_betas,
    check_exported,
    check_loss,
)
from sp2dpo_ray.config.distill import DistillSection
from sp2dpo_ray.config.evaluate import EvaluateSection, GenerateSection
from sp2dpo_ray.config.panel import (
    AnnotateSection,
    BudgetSection,
    DecodingSection,
    PromptsSection,
    TeacherSection,
)
from sp2dpo_ray.config.schedule import EnsembleSection, MappingSection
from sp2dpo_ray.config.section import Section, uri_below, without_credentials
from sp2dpo_ray.config.sweep import SweepSection
from sp2dpo_ray.config.training import NOT_THE_RESULT, StudentSection, TrainSection
from sp2dpo_ray.core.arms import Arm
from sp2dpo_ray.core.hashing import sha256_hex
from sp2dpo_ray.core.methods import METHODS
from sp2dpo_ray.core.schedule.columns import ENSEMBLE
from sp2dpo_ray.core.schedule.grid import Panel
from sp2dpo_ray.core.schedule.recipe import Recipe

NOT_THE_PROCESS = frozenset(
    {"run", "cluster", "audit", "export", "distill", "generate", "evaluate"}
)


class RunSection(Section):
    name: Annotated[str, Field(pattern=r"^[\w.-]+$")] = "run"
    """Name of the run; its folder lies in `storage`."""
    storage: str = "runs"
    """Folder that holds the runs, which every machine of the cluster sees; or an object store
    (s3://, gs://; credentials from the environment)."""
    mirror: str = "~/.cache/sp2dpo/runs"
    """Of a run in an object store, the folder that stages work in. Stages that use several machines
    want one that all of them see; `annotate` does not."""

    @field_validator("storage")
    @classmethod
    def _no_secret(cls, value: str) -> str:
        return without_credentials(value, "storage")

    @property
    def uri(self) -> str | None:
        """Where an object store holds the run; None for a folder."""
        return uri_below(self.storage, self.name) if "://" in self.storage else None

    @property
    def folder(self) -> Path:
        """Where stages work."""
        if self.uri is None:
            return Path(self.storage).expanduser().resolve() / self.name
        place = sha256_hex(self.storage)[:12]  # two stores may hold runs of one name
        return Path(self.mirror).expanduser().resolve() / place / self.name


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
    eval_split: str | None = None
    """Split of `eval_source`; that of `source` if not given."""
    eval_revision: str | None = None
    """Commit of `eval_source`; that of `source` if not given."""
    eval_fraction: float = Field(0.05, ge=0, lt=1)
    """Share of the prompts that is never trained on."""
    eval_limit: int | None = Field(None, ge=1)
    """Keep the first so many clean pairs of `eval_source`."""
    external: bool = True
    """Whether the pairs may be sent to somebody else's API; false refuses every API teacher."""


class AuditSection(Section):
    each: int = Field(40, ge=0)
    """Pairs that the audit lists for each reason."""
    sample: int = Field(120, ge=0)
    """Pairs of the fair sample, as many of every category as there are."""
    seed: int = 0
    """Of the fair sample."""


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
    distill: DistillSection = DistillSection()
    mapping: MappingSection = MappingSection()
    ensemble: EnsembleSection = EnsembleSection()
    student: StudentSection = StudentSection()
    train: TrainSection = TrainSection()
    sweep: SweepSection = SweepSection()
    generate: GenerateSection = GenerateSection()
    evaluate: EvaluateSection = EvaluateSection()
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
            ("sweep.seeds", list(self.sweep.seeds)),
        ):
            if len(set(names)) < len(names):
                raise ValueError(f"{where} must differ, got {names}")
        if not variants or not self.sweep.arms:
            raise ValueError("prompts.variants and sweep.arms must not be empty")
        if ENSEMBLE in variants:
            raise ValueError(f"prompts.variants: {ENSEMBLE!r} names the ensemble's columns")
        trained = [("train.arm", self.train.arm), *(("sweep.arms", a) for a in self.sweep.arms)]
        if self.sweep.search is not None:
            trained.append(("sweep.search", "jmamp"))  # its arms are the schedule, otherwise mapped
        for where, arm in (*trained, ("export.arm", self.export.arm)):
            check_arm(where, arm, teachers, variants)
        for where, arm in trained:
            check_loss(where, arm, self.train.loss)
        check_alike(self.sweep.names)
        recipe = self.recipe  # it has rules of its own
        for where, arm in (*trained, ("export.arm", self.export.arm)):
            check_betas(where, arm, recipe)
        check_exported("export.arm", self.export.arm)
        if self.annotate.early_stop is not None and not recipe.mapping.of_gap_alone:
            raise ValueError(
                "annotate.early_stop knows the bounds of maps of the gap alone; leave out "
                "mapping.categories, mapping.gate and the shape quantile, or early_stop"
            )
        return self

    @model_validator(mode="after")
    def _unlike(self) -> Config:
        alike: dict[str, str] = {}
        for teacher in self.teachers:
            asked = sha256_hex([teacher.provider, teacher.model, teacher.options])
            first = alike.setdefault(asked, teacher.name)
            if first != teacher.name:
                raise ValueError(
                    f"teachers.{first} and teachers.{teacher.name}: provider, model and options "
                    "are the same, so one recorded answer serves both, whatever base_url says; let "
                    "model differ (vllm serve --served-model-name), or leave one of them out"
                )
        return self

    @model_validator(mode="after")
    def _frozen_in_four_bits(self) -> Config:
        if self.train.precision == "nf4" and self.student.lora is None:
            raise ValueError(
                "train.precision: nf4 keeps frozen weights; student.lora: null trains them"
            )
        return self

    def train_of(self, arm: Arm) -> TrainSection:
        """`train` with what the arm says of method and seed."""
        own = {"loss": arm.method, "seed": arm.seed}
        return self.train.model_copy(update={k: v for k, v in own.items() if v is not None})

    def training(self, arm: Arm) -> dict[str, Any]:
        """What decides a training besides its betas."""
        lora, train = self.student.lora, self.train_of(arm)
        options = train.model_dump(mode="json", exclude=set(NOT_THE_RESULT))
        # options of other methods are not read, and must train no arm anew
        options["loss_options"] = {k: v for k, v in options["loss_options"].items()
                                   if k == train.loss}  # fmt: skip
        if not (METHODS[train.loss].weighted or arm.selection):
            del options["margin"]
        return {"lora": lora and lora.model_dump(mode="json"), "train": options}

    @property
    def scoring(self) -> dict[str, Any]:
        """What decides a reference log-probability besides pairs and student. The reference is
        computed as the policy is: else every pair would begin with a margin of rounding, or with a
        kernel that was never held against the model's own."""
        train = self.train
        weights, computed_in = train.weights_of(self.student.lora)
        read = ("max_length", "max_prompt_length", "keep_prompt", "keep_end_token")
        return {
            "encoding": {name: getattr(train, name) for name in read},
            "weights": weights,
            "computed_in": computed_in,
            "layout": train.layout,
            "varlen_attention": train.varlen_attention,
            "gpu": train.gpus_per_worker > 0,
        }

    @property
    def panel(self) -> Panel:
        return Panel(tuple(teacher.name for teacher in self.teachers), self.prompts.variants)

    @property
    def without_model(self) -> dict[str, str]:
        """Teachers that are no model, and what they are."""
        return {t.name: t.instead_of_model for t in self.teachers if t.instead_of_model}

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
        for teacher in self.teachers if self.budget.usd is not None else ():
            if teacher.external and teacher.price.output and teacher.cap_options:
                raise ValueError(
                    f"budget.usd counts a call at the most that decoding.max_output_tokens lets it "
                    f"cost; teachers.{teacher.name}.options must not hold {teacher.cap_options}"
                )
        return self

    @property
    def resolved(self) -> dict[str, Any]:
        """Every value, defaults included, as plain JSON."""
        return self.model_dump(mode="json")

    @property
    def lambda_id(self) -> str:
        """SHA-256 of the process: all but where it lies, where it runs, and what is read off it."""
        process = {k: v for k, v in self.resolved.items() if k not in NOT_THE_PROCESS}
        if self.annotate.mix is not None:  # then a predictor decides betas
            process["distill"] = self.distill.of_predictor
        return sha256_hex(process)
