"""The sections about teachers: who is asked, with which settings, how fast and for how much money.

In: plain values. Out: frozen models. Invariant: no secret can get in here, since the configuration
is published with every run.
"""

from __future__ import annotations

import datetime
import re
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from sp2dpo_ray.config.distill import MixSection
from sp2dpo_ray.config.section import Section, without_credentials
from sp2dpo_ray.core.costs import Price

NAME = r"[a-z][a-z0-9]*"
# providers that send the pairs to somebody else's machine; each needs a key unless it is self-made
RULES = "fixed rules on the text"
WITHOUT_MODEL = {"offline": RULES, "scripted": "answers from a file"}
API_PROVIDERS = frozenset({"openai", "gemini", "dashscope"})
BATCH_PROVIDERS = frozenset({"openai", "gemini"})


SECRET_NAMES = {"api_key", "extra_headers", "headers", "authorization", "extra_query"}
SECRET_QUERY = re.compile(r"[?&](?:api[-_]?key|key|token|sig|secret)=", re.IGNORECASE)


# options that take the place of decoding.max_output_tokens, or ask for several answers
CAPS = frozenset({"maxtokens", "maxcompletiontokens", "maxoutputtokens", "n", "candidatecount"})


def _names(value: Any) -> set[str]:
    """Every key in a nested value, in lower case."""
    if isinstance(value, dict):
        return {str(name).lower() for name in value}.union(*map(_names, value.values()))
    return set().union(*map(_names, value)) if isinstance(value, list | tuple) else set()


class LimitsSection(Section):
    rpm: int | None = Field(None, ge=1)
    """Requests a minute that the account may make; null: find out by slowing down when refused."""
    tpm: int | None = Field(None, ge=1)
    """Tokens a minute, prompt and answer together."""
    in_flight: int = Field(64, ge=1)
    """Requests that may wait for an answer at the same time, over all actors."""


class PriceSection(Section):
    input: float | None = Field(None, ge=0)
    """USD for a million tokens of prompt."""
    output: float | None = Field(None, ge=0)
    """USD for a million tokens of answer, reasoning included."""
    cached_input: float | None = Field(None, ge=0)
    """USD for a million tokens of prompt that the provider had cached; `input` if not given."""
    batch: float = Field(0.5, gt=0, le=1)
    """Share of the price that batch mode costs."""
    as_of: datetime.date | None = None
    """Day on which the price was read; prices change, so one without a date is refused."""

    @model_validator(mode="after")
    def _dated_and_whole(self) -> PriceSection:
        if (self.input is None) != (self.output is None):
            raise ValueError("input and output must be given together")
        if self.input is not None and self.as_of is None:
            raise ValueError("as_of must say when this price was read, as YYYY-MM-DD")
        return self

    @property
    def known(self) -> bool:
        return self.input is not None


class EngineSection(Section):
    """Where a self-hosted model runs; nothing of it changes an answer's key."""

    tensor_parallel: int = Field(1, ge=1)
    """GPUs that share each layer."""
    pipeline_parallel: int = Field(1, ge=1)
    """Groups of GPUs that share the layers."""
    replicas: int = Field(1, ge=1)
    """Copies of the model."""
    rows: int = Field(16, ge=1)
    """Calls that are worked on together; vLLM takes several such lots at once."""
    accelerator: str | None = None
    """Kind of GPU as Ray labels its nodes, say A100 or H100; never A100-80G by itself."""

    @property
    def gpus(self) -> int:
        return self.tensor_parallel * self.pipeline_parallel * self.replicas


class TeacherSection(Section):
    name: Annotated[str, Field(pattern=f"^{NAME}$")]
    """Short name, part of column names: lower-case letters and digits."""
    provider: Literal[
        "openai", "gemini", "dashscope", "vllm", "transformers", "predictor", "offline", "scripted"
    ]
    """`openai`: also any OpenAI-compatible endpoint. `vllm`: a model on this cluster's GPUs.
    `transformers`: a model in the actors' own processes. `predictor`: what `distill` published.
    `offline`: rules on the text, no network. `scripted`: answers from a file, for tests."""
    model: str
    """Model id as the provider knows it; of a predictor its folder."""
    mode: Literal["interactive", "batch"] = "interactive"
    """`batch` hands in files of requests for half the price, answered within a day."""
    base_url: str | None = None
    """Endpoint, where it is not the provider's own."""
    api_key_env: str | None = None
    """Environment variable that holds the key, on the machine that calls."""
    limits: LimitsSection = LimitsSection()
    price: PriceSection = PriceSection()
    engine: EngineSection = EngineSection()
    """Of `vllm`; `rows` of `transformers` too."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Provider-specific options of a request; null drops a default one."""

    @model_validator(mode="after")
    def _no_secret(self) -> TeacherSection:
        # the configuration is published with every run, so a key must not be able to get into it
        if self.base_url and "@" in self.base_url:
            raise ValueError("base_url must hold no credentials; use api_key_env")
        if self.base_url and SECRET_QUERY.search(self.base_url):
            raise ValueError("base_url must hold no key; use api_key_env")
        if secret := SECRET_NAMES & _names(self.options):
            raise ValueError(f"options must not hold {sorted(secret)}; use api_key_env")
        return self

    @model_validator(mode="after")
    def _can_be_asked(self) -> TeacherSection:
        own = self.provider == "openai" and self.base_url is not None
        if self.provider in API_PROVIDERS and self.api_key_env is None and not own:
            raise ValueError(
                f"api_key_env must name the environment variable with the key of {self.name}"
            )
        read = {"vllm": EngineSection.model_fields, "transformers": ("rows",)}
        given = {name for name, value in self.engine if value != getattr(EngineSection(), name)}
        if unread := sorted(given.difference(read.get(self.provider, ()))):
            raise ValueError(f"engine: provider {self.provider} does not read {unread}")
        if self.mode == "batch" and self.provider not in BATCH_PROVIDERS:
            raise ValueError(
                f"mode: batch is there for {sorted(BATCH_PROVIDERS)}, not for {self.provider}"
            )
        return self

    @property
    def rate(self) -> Price | None:
        """What it costs, batch mode's share in it; None where the price is not known."""
        price = self.price
        if price.input is None or price.output is None:
            return None
        share = price.batch if self.mode == "batch" else 1.0
        cached = price.input if price.cached_input is None else price.cached_input
        return Price(price.input * share, price.output * share, cached * share)

    @property
    def cap_options(self) -> list[str]:
        """Options that change how many tokens an answer may have; some SDKs take other spellings
        than their own."""
        return sorted(name for name in self.options if name.replace("_", "").lower() in CAPS)

    @property
    def external(self) -> bool:
        """Whether asking sends the pairs' text over the network to an API."""
        return self.provider in API_PROVIDERS

    @property
    def on_engine(self) -> bool:
        """Whether it is asked through Ray Data's own engine, and not call by call."""
        return self.provider == "vllm"

    @property
    def is_predictor(self) -> bool:
        """Whether it repeats what it learned from other teachers."""
        return self.provider == "predictor"

    @property
    def instead_of_model(self) -> str:
        """What answers where no model does: rules or a script; '' for a model."""
        return WITHOUT_MODEL.get(self.provider, "")


class PromptsSection(Section):
    variants: tuple[Annotated[str, Field(pattern=f"^{NAME}$")], ...] = ("v1", "v2", "v3")
    """Prompt perspectives; each has a text of that name."""
    dir: str | None = None
    """Folder with `user.txt` and `<variant>.txt`, in place of the bundled texts."""


class DecodingSection(Section):
    """The fourteen settings of the paper's Table 6, under one name each."""

    temperature: float = Field(0.1, ge=0)
    """Of the teachers' answers; 0 takes the likeliest token each time."""
    top_p: float = Field(0.8, gt=0, le=1)
    """Tokens are drawn from the likeliest ones that hold this share of the probability."""
    top_k: int | None = Field(None, ge=1)
    """Tokens are drawn from so many likeliest ones; null: from all."""
    max_output_tokens: int = Field(64, ge=1)
    """Most tokens of one answer, reasoning included; a longer one is cut and recorded as
    `truncated`."""
    seed: int | None = 42
    """Sent where a provider takes one; null sends none."""
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    """Makes a token less likely for each time that it stands in the answer; 0: not."""
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    """Makes a token less likely once it stands in the answer; 0: not."""
    repetition_penalty: float = Field(1.0, gt=0)
    """Divides the scores of tokens that stood before; 1: not."""
    n: Literal[1] = 1
    """One answer a call: the ensemble is over prompts and teachers."""
    stop: tuple[str, ...] | None = None
    """Texts that end an answer."""
    timeout_s: float = Field(180, gt=0)
    """Longest time that one attempt may take."""
    retries: int = Field(3, ge=0)
    """Attempts after the first, for failures that may pass; waiting for a quota is none."""
    retry_base_s: float = Field(5, gt=0)
    """Scale of the waiting time, which doubles with each retry and is drawn from [0, scale]."""

    @property
    def of_answers(self) -> dict[str, Any]:
        """The settings that can change an answer, and so its key; the others are the client's."""
        client = {"timeout_s", "retries", "retry_base_s"}
        return self.model_dump(mode="json", exclude=client)


class AnnotateSection(Section):
    actors: int = Field(2, ge=1)
    """Processes that call teachers."""
    pairs_per_batch: int = Field(16, ge=1)
    """Pairs that an actor works on at a time."""
    evaluation: bool = True
    """Annotate the evaluation pairs too, so that results can be told by category."""
    max_failures: int = Field(25, ge=1)
    """Calls in a row that may fail for good on one teacher before the stage stops."""
    rounds: int = Field(3, ge=1)
    """Passes over the pairs: later ones ask again what failed for reasons that may pass."""
    max_pause_s: float = Field(3600, gt=0)
    """Longest pause that a provider may ask for before the stage stops."""
    journal: str | None = None
    """Folder or object store (s3://, gs://) of the journal; `journal/` of the run if not given.
    Runs that name the same one share what was paid for."""
    early_stop: float | None = Field(None, ge=0)
    """Skip calls whose answer cannot move a pair's beta by more than this; null asks them all."""
    redact: bool = False
    """Mask e-mail addresses, phone numbers and keys before text leaves the machine."""
    mix: MixSection | None = None
    """Teachers annotate a share, a predictor that learns from them the rest."""
    poll_s: float = Field(60, gt=0)
    """Time between two looks at a provider's batch jobs."""

    @model_validator(mode="after")
    def _no_secret(self) -> AnnotateSection:
        without_credentials(self.journal or "", "journal")
        return self


class BudgetSection(Section):
    usd: float | None = Field(None, gt=0)
    """Most money that the journal may ever have cost, calls in flight counted at their worst."""
