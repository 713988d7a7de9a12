"""Write a teacher: the file that a new provider is, and what to try before it joins the package.

You learn: the protocol (`ask` one call, never raise), what a `Reply` carries, where strict reading
says no, and which rows make the class a provider. Run as: python examples/a_new_teacher.py
In: bundled pairs. Out: answers and outcomes on stdout; no key, no network, no Ray.

Ask first whether a class is needed. An endpoint that speaks Chat Completions is `provider: openai`
with `base_url`; labels that exist already are `provider: scripted` with `options.script`. Neither
needs code. For the rest, `LengthTeacher` below becomes `sp2dpo_ray/teachers/lengths.py`, and

    config/panel.py        "lengths" in the names of `TeacherSection.provider`; in API_PROVIDERS if
                           text leaves the machine (then a key and, for a budget, a price are asked
                           for, and `data.external: false` refuses it); in WITHOUT_MODEL if rules
                           answer and no model
    teachers/catalogue.py  PROVIDERS["lengths"] = "sp2dpo_ray.teachers.lengths:LengthTeacher"; in
                           DECODING with a function `settings_of` if requests carry temperature and
                           the like; in EXTRAS if its SDK is in another extra than `annotate`
    tests/teachers/        what `trial` does here; an API also joins PROVIDERS of test_providers.py
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path

from sp2dpo_ray.config import DecodingSection, TeacherSection
from sp2dpo_ray.core.annotation import (
    CATEGORY_KEY,
    CONFIDENCE_KEY,
    MAGNITUDE_KEY,
    Outcome,
    Reading,
    read_answer,
)  # fmt: skip
from sp2dpo_ray.core.calls import Call, calls_of
from sp2dpo_ray.core.pairs import Pair, read_pairs
from sp2dpo_ray.core.prompts import load_prompts
from sp2dpo_ray.core.sources import read_source
from sp2dpo_ray.core.taxonomy import Category
from sp2dpo_ray.errors import ConfigError
from sp2dpo_ray.teachers.base import Reply, Teacher, identity
from sp2dpo_ray.teachers.settings import Settings

PAIRS = Path(__file__).parents[1] / "configs" / "demo" / "pairs.jsonl"


class LengthTeacher:
    """Finds the longer response better, and the gap as large as the lengths differ."""

    settings = Settings()  # nothing is decoded; an API's come from `settings_of`

    def __init__(self, teacher: TeacherSection, decoding: DecodingSection) -> None:
        if unknown := sorted(teacher.options.keys() - {"least"}):  # an option is never ignored
            raise ConfigError(f"teachers: {teacher.name}: unknown options {unknown}")
        self._least = int(teacher.options.get("least", 20))
        self._model = teacher.model

    async def ask(self, call: Call) -> Reply:
        """One request on the wire; the engine around it retries, waits and keeps the journal."""
        chosen, rejected = len(call.pair.chosen), len(call.pair.rejected)
        if chosen + rejected < self._least:
            # whatever goes wrong is an outcome: FILTERED and REFUSAL are final for this pair, QUOTA
            # and TRANSPORT are tried again, AUTH stops the teacher
            return Reply(Outcome.REFUSAL, detail=f"fewer than {self._least} characters")
        share = chosen / (chosen + rejected)
        answer = {
            CATEGORY_KEY: str(Category.HELPFULNESS),
            MAGNITUDE_KEY: round(abs(2 * share - 1), 2),
            CONFIDENCE_KEY: round(share, 2),  # that the order is right
        }
        # an API also brings usage, request_id, raw (the body as it came), retry_after_s
        return Reply(Outcome.OK, text=json.dumps(answer), served_model=f"lengths/{self._model}")

    async def close(self) -> None:
        """Release connections; here there are none."""


def trial(teacher: Teacher, calls: list[Call]) -> list[tuple[Call, Reply, Reading]]:
    """Every call once, read as strictly as `annotate` reads it."""

    async def all_of_them() -> list[tuple[Call, Reply, Reading]]:
        replies = [await teacher.ask(call) for call in calls]
        await teacher.close()
        return [(c, r, read_answer(r.text or "")) for c, r in zip(calls, replies, strict=True)]

    return asyncio.run(all_of_them())


def main() -> None:
    # until the name stands in config/panel.py, another provider's lends the section its shape
    section = TeacherSection(name="len", provider="offline", model="v1", options={"least": 90})
    decoding = DecodingSection()
    table = read_source(str(PAIRS), split=None, revision=None)
    pairs = [pair for pair in read_pairs(table) if isinstance(pair, Pair)]
    pairs.append(Pair("short", [{"role": "user", "content": "Hello"}], "Hi.", "Yes?"))
    who = (identity(section, decoding),)  # what decides the answers, and so the journal's keys
    calls = [call for pair in pairs for call in calls_of(pair, who, load_prompts(("v1", "v2")))]

    found = trial(LengthTeacher(section, decoding), calls)
    assert len({call.key for call in calls}) == len(calls)
    assert all(reading.annotation for _, reply, reading in found if reply.outcome is Outcome.OK)
    again = trial(LengthTeacher(section, decoding), calls)
    assert [reply for _, reply, _ in again] == [reply for _, reply, _ in found]

    print(f"{len(calls)} calls: {dict(Counter(str(reply.outcome) for _, reply, _ in found))}")
    read = [reading.annotation for _, _, reading in found if reading.annotation]
    gaps = [annotation.magnitude * annotation.confidence for annotation in read]
    print(f"effective gap: mean {sum(gaps) / len(gaps):.4f}, largest {max(gaps):.4f}")
    call, reply, _ = found[0]
    print(f"the first, {call.prompt_id}/{call.variant}: {reply.text}")


if __name__ == "__main__":
    main()
