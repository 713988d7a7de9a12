"""Provider `predictor`: a distilled predictor in a teacher's chair.

In: a `Call`. Out: the JSON text that the panel it learned from would write. Invariant: the answer
depends on the pair and the predictor's files alone.
"""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa

from sp2dpo_ray.config import DecodingSection, TeacherSection
from sp2dpo_ray.core.annotation import CATEGORY_KEY, CONFIDENCE_KEY, MAGNITUDE_KEY, Outcome
from sp2dpo_ray.core.calls import Call
from sp2dpo_ray.core.pairs import Pair
from sp2dpo_ray.core.taxonomy import CATEGORIES
from sp2dpo_ray.distill.features import Texts
from sp2dpo_ray.distill.predictor import load_predictor
from sp2dpo_ray.errors import ConfigError
from sp2dpo_ray.teachers.base import Reply
from sp2dpo_ray.teachers.settings import Settings
from sp2dpo_ray.teachers.together import Together

MOST_AT_ONCE = 2_000


def texts_of_pairs(pairs: list[Pair]) -> Texts:
    """Texts of values; those of a table come faster from `features.texts_of`."""
    return Texts(
        pa.array(["\n\n".join(turn["content"] for turn in pair.prompt) for pair in pairs]),
        pa.array([pair.chosen for pair in pairs], pa.string()),
        pa.array([pair.rejected for pair in pairs], pa.string()),
    )


class PredictorTeacher:
    settings = Settings()  # nothing is decoded here

    def __init__(self, teacher: TeacherSection, decoding: DecodingSection) -> None:
        if teacher.options:
            raise ConfigError(f"teachers: {teacher.name}: a predictor takes no options")
        self._predictor = load_predictor(Path(teacher.model))
        self._together = Together(self._answer, MOST_AT_ONCE)

    async def ask(self, call: Call) -> Reply:
        return await self._together.ask(call)

    async def close(self) -> None:
        """Nothing to release."""

    def _answer(self, calls: list[Call]) -> list[Reply]:
        found = self._predictor.predict(texts_of_pairs([call.pair for call in calls]), threads=1)
        answers = [
            {
                CATEGORY_KEY: str(CATEGORIES[found.category[row]]),
                MAGNITUDE_KEY: float(found.magnitude[row]),
                CONFIDENCE_KEY: float(found.confidence[row]),
            }
            for row in range(len(calls))
        ]
        name = self._predictor.name
        return [Reply(Outcome.OK, text=json.dumps(row), served_model=name) for row in answers]
