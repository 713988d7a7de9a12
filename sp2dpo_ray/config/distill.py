"""The sections of distillation: the predictor, and how it shares annotation with the teachers.

In: plain values. Out: frozen models. Invariant: nothing of the map from gap to beta is here, since
a predictor knows gaps alone.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from sp2dpo_ray.config.section import Section


class EncoderSection(Section):
    model: str
    """Encoder of the hub, or a folder: deberta, modernbert, ...; any with hidden states."""
    revision: str | None = None
    """Commit of an encoder of the hub."""
    max_length: int = Field(512, ge=16)
    """Tokens of a prompt with one response."""
    epochs: int = Field(3, ge=1)
    """Passes over the pairs."""
    learning_rate: float = Field(2e-5, gt=0)
    """Greatest step of the optimiser."""
    pairs_per_step: int = Field(32, ge=1)
    """Pairs of one optimiser step, over all workers."""
    workers: int = Field(1, ge=1)
    """Processes that train together."""
    gpus_per_worker: int = Field(0, ge=0, le=1)
    """0 trains on the CPU."""

    @model_validator(mode="after")
    def _whole(self) -> EncoderSection:
        if self.pairs_per_step < self.workers:
            raise ValueError(
                f"pairs_per_step {self.pairs_per_step} leaves some of {self.workers} workers "
                "without a pair"
            )
        return self


class DistillSection(Section):
    kind: Literal["light", "encoder"] = "light"
    """`light`: hashed words and boosted trees, in seconds. `encoder`: a transformer, on Ray
    Train."""
    encoder: EncoderSection | None = None
    coverage: float = Field(0.9, ge=0.5, lt=1)
    """Share of unseen pairs whose gap lies in the predictor's interval."""
    least_pairs: int = Field(100, ge=40)
    """Annotated pairs without which no predictor is trained."""
    rounds: int = Field(80, ge=1)
    """Boosting rounds of each of the trees."""
    swap: bool = True
    """Learn every pair with its responses exchanged, too: confidence is one less the other."""
    frontier: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = ()
    """Shares of the pairs for which `distill` tells what asking about no more would have cost in
    error: at random, by choice, with and without economy mode. Trains several predictors each."""
    calibrate: float = Field(0.15, gt=0, le=0.4)
    """Share of the pairs that sets the intervals; as much again tests them."""
    seed: int = 0
    """Of the split and the training."""

    @model_validator(mode="after")
    def _whole(self) -> DistillSection:
        if (self.kind == "encoder") != (self.encoder is not None):
            raise ValueError("kind: encoder and the section encoder belong together")
        if self.encoder is not None and self.frontier:
            raise ValueError("frontier trains many predictors, and so only light ones")
        return self

    @property
    def of_predictor(self) -> dict[str, Any]:
        """What decides the predictor itself."""
        return self.model_dump(mode="json", exclude={"frontier"})


class MixSection(Section):
    """Teachers annotate a share of the pairs, the predictor the rest."""

    share: float = Field(gt=0, lt=1)
    """Most of the training pairs that teachers are asked about."""
    rounds: int = Field(3, ge=1, le=20)
    """The share is asked in so many parts; after each the predictor is trained anew."""
    choice: Literal["active", "random"] = "active"
    """How later parts are chosen: widest raw intervals first within each predicted category, or at
    random. The first part is always random: it alone calibrates the intervals."""
    first: float = Field(0.4, gt=0, le=1)
    """Part of the share that the first of several rounds asks about."""
    seed: int = 0
    """Of the pairs that are drawn at random."""
