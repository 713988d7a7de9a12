"""Provider `predictor`: a distilled predictor in a teacher's place.

In: a `Call`. Out: the JSON text that the panel it learned from would write. Invariant: the answer
depends on the pair and the predictor's files alone.
"""

from __future__ import annotations

import json

from sp2dpo_ray.config import DecodingSection, TeacherSection
from sp2dpo_ray.core.annotation import CATEGORY_KEY, CONFIDENCE_KEY, MAGNITUDE_KEY, Outcome
from sp2dpo_ray.core.calls import Call
from sp2dpo_ray.core.taxonomy import CATEGORIES
from sp2dpo_ray.distill.predictor import load_predictor
from sp2dpo_ray.distill.record import folder_of
from sp2dpo_ray.distill.texts import texts_of_pairs
from sp2dpo_ray.errors import ConfigError
from sp2dpo_ray.teachers.base import Reply
from sp2dpo_ray.teachers.micro_batching import MicroBatcher
from sp2dpo_ray.teachers.settings import Settings

MOST_AT_ONCE = 2_000


class PredictorTeacher:
    settings = Settings()  # nothing is decoded here

    def __init__(self, teacher: TeacherSection, decoding: DecodingSection) -> None:
        if teacher.options:
            raise ConfigError(f"teachers: {teacher.name}: a predictor takes no options")
        self._predictor = load_predictor(folder_of(teacher))
        self._batcher = MicroBatcher(self._answer, MOST_AT_ONCE)

    async def ask(self, call: Call) -> Reply:
        return await self._batcher.ask(call)

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
        return [
            Reply(Outcome.OK, text=json.dumps(row), detail=note, served_model=name)
            for row, note in zip(answers, found.notes(), strict=True)
        ]
