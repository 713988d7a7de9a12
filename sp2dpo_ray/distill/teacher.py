"""Provider `predictor`: a distilled predictor in a teacher's chair.

In: a `Call`. Out: the JSON text that the panel it learned from would write. Invariant: calls that
wait together are answered together, in one pass of the model; the answer depends on the pair alone.
"""

from __future__ import annotations

import asyncio
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
        self._waiting: list[tuple[Pair, asyncio.Future[str]]] = []
        self._work: asyncio.Task[None] | None = None

    async def ask(self, call: Call) -> Reply:
        answer = asyncio.get_running_loop().create_future()
        self._waiting.append((call.pair, answer))
        if self._work is None:
            self._work = asyncio.create_task(self._answer_all())
        return Reply(Outcome.OK, text=await answer, served_model=self._predictor.name)

    async def _answer_all(self) -> None:
        """Until nobody waits; a loop, since calls come in while a batch is worked on."""
        await asyncio.sleep(0)  # the others of this turn
        while self._waiting:
            batch, self._waiting = self._waiting, []
            try:
                texts = await asyncio.to_thread(self._texts, [pair for pair, _ in batch])
            except Exception as error:  # each call has its own record of it
                for _, answer in batch:
                    answer.set_exception(error)
            else:
                for (_, answer), text in zip(batch, texts, strict=True):
                    answer.set_result(text)
        self._work = None

    def _texts(self, pairs: list[Pair]) -> list[str]:
        found = self._predictor.predict(texts_of_pairs(pairs), threads=1)
        return [
            json.dumps(
                {
                    CATEGORY_KEY: str(CATEGORIES[found.category[row]]),
                    MAGNITUDE_KEY: float(found.magnitude[row]),
                    CONFIDENCE_KEY: float(found.confidence[row]),
                }
            )
            for row in range(len(pairs))
        ]

    async def close(self) -> None:
        """Nothing to release."""
