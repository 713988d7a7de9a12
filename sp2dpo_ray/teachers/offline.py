"""A teacher without a model: deterministic rules on the text, for demos and tests.

In: a `Call`. Out: the JSON text that a teacher would write. It shows how a panel behaves (teachers
and prompts that differ, doubt where the order looks wrong), not what a language model would say;
its provider name `offline` says so wherever it shows. Invariant: the answer is a function of the
pair, the variant and the options, the same on every machine.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from sp2dpo_ray.config import DecodingSection, TeacherSection
from sp2dpo_ray.core.annotation import CATEGORY_KEY, CONFIDENCE_KEY, MAGNITUDE_KEY, Outcome
from sp2dpo_ray.core.calls import Call
from sp2dpo_ray.core.hashing import uniform_draws
from sp2dpo_ray.core.taxonomy import Category
from sp2dpo_ray.errors import ConfigError
from sp2dpo_ray.teachers.base import Reply
from sp2dpo_ray.teachers.settings import Settings
from sp2dpo_ray.teachers.signals import SIGNALS, overlap

# how strong a signal must be before its category is taken over those of lower priority
THRESHOLD: dict[Category, float] = {
    Category.SAFETY: 0.20,
    Category.FACTUALITY: 0.80,
    Category.INSTRUCTION: 0.30,
    Category.REASONING: 0.34,
    Category.HELPFULNESS: 0.25,
}
LIKE = 0.25  # word overlap from which two responses without a clear signal differ in style alone
# typical magnitude of a category; the signal moves it
LEVEL: dict[Category, float] = {
    Category.SAFETY: 0.80,
    Category.FACTUALITY: 0.65,
    Category.INSTRUCTION: 0.60,
    Category.REASONING: 0.55,
    Category.HELPFULNESS: 0.35,
    Category.STYLE: 0.10,
}


@dataclass(frozen=True, slots=True)
class Persona:
    """How a teacher leans: thresholds times `caution`, numbers plus a draw within `noise`."""

    caution: float
    scale: float
    noise: float


PERSONAS: dict[str, Persona] = {
    "balanced": Persona(caution=1.0, scale=1.0, noise=0.05),
    "strict": Persona(caution=0.8, scale=0.9, noise=0.05),
    "generous": Persona(caution=1.15, scale=1.1, noise=0.10),
}


class OfflineTeacher:
    settings = Settings()  # nothing is decoded here

    def __init__(self, teacher: TeacherSection, decoding: DecodingSection) -> None:
        persona = teacher.options.get("persona", "balanced")
        unknown = sorted(teacher.options.keys() - {"persona"})
        if unknown or persona not in PERSONAS:
            raise ConfigError(
                f"teachers: {teacher.name}: the offline teacher takes the option persona, one of "
                f"{sorted(PERSONAS)}; got {teacher.options}"
            )
        self._name = persona
        self._persona = PERSONAS[persona]
        self._model = teacher.model

    async def ask(self, call: Call) -> Reply:
        category, magnitude, confidence = self._judge(call)
        answer = {
            CATEGORY_KEY: str(category),
            MAGNITUDE_KEY: round(magnitude, 2),
            CONFIDENCE_KEY: round(confidence, 2),
        }
        return Reply(Outcome.OK, text=json.dumps(answer), served_model=f"offline/{self._model}")

    async def close(self) -> None:
        """Nothing to release."""

    def _judge(self, call: Call) -> tuple[Category, float, float]:
        texts = (call.pair.prompt_text, call.pair.chosen, call.pair.rejected)
        signals = {category: signal(*texts) for category, signal in SIGNALS.items()}
        likeness = overlap(call.pair.chosen, call.pair.rejected)
        category = next(
            (
                category
                for category, limit in THRESHOLD.items()
                if abs(signals[category]) >= limit * self._persona.caution
            ),
            Category.STYLE if likeness >= LIKE else Category.HELPFULNESS,
        )
        signal = signals[category]
        low, high = self._noise(call)
        magnitude = LEVEL[category] * self._persona.scale * (1 + 0.5 * (abs(signal) - likeness))
        # evidence that the winner is the better one raises confidence, evidence against sinks it
        confidence = 0.6 + 0.35 * signal if signal >= 0 else 0.25 * (1 + signal)
        if call.variant == "v1" and confidence < 0.7:
            confidence = min(confidence, 0.3) if signal <= 0 else confidence - 0.1
        if call.variant == "v2" and category in (Category.HELPFULNESS, Category.STYLE):
            magnitude *= 0.7
        if call.variant == "v3":
            magnitude *= 1.1 - 0.4 * likeness
        return category, _unit(magnitude + low), _unit(confidence + high)

    def _noise(self, call: Call) -> tuple[float, float]:
        purpose = f"offline:{self._name}:{call.variant}"
        identity = f"{call.pair.prompt_text}\0{call.pair.chosen}\0{call.pair.rejected}"
        first = uniform_draws([identity], seed=0, purpose=purpose)[0]
        second = uniform_draws([identity], seed=1, purpose=purpose)[0]
        return (
            self._persona.noise * (2 * float(first) - 1),
            self._persona.noise * (2 * float(second) - 1),
        )


def _unit(value: float) -> float:
    return min(max(value, 0.0), 1.0)
