"""What a panel is asked, and how: everything that an actor needs, and nothing secret.

In: sections of the configuration. Out: a frozen value that travels to the nodes. Invariant: it
holds no key; keys come from the environment of the machine that calls.
"""

from __future__ import annotations

from dataclasses import dataclass

from sp2dpo_ray.config import DecodingSection, TeacherSection
from sp2dpo_ray.core.calls import Call, TeacherIdentity, calls_of
from sp2dpo_ray.core.pairs import Pair
from sp2dpo_ray.core.place import Place
from sp2dpo_ray.core.prompts import PromptSet
from sp2dpo_ray.core.schedule.mapping import BetaMap
from sp2dpo_ray.teachers.base import identity


@dataclass(frozen=True, slots=True)
class PanelSpec:
    """The panel of a stage.

    twins: ids of pairs whose texts stand under an earlier id too; one call serves both.
    early_stop: tolerance of the economy mode and the map that it is measured with, or None. store:
    the object store that holds the run, where nodes read the pairs; None for a shared folder.
    """

    teachers: tuple[TeacherSection, ...]
    decoding: DecodingSection
    prompts: PromptSet
    place: Place
    actors: int
    max_failures: int
    max_pause_s: float
    redact: bool = False
    twins: frozenset[str] = frozenset()
    early_stop: tuple[float, BetaMap] | None = None
    store: Place | None = None

    @property
    def identities(self) -> tuple[TeacherIdentity, ...]:
        return tuple(identity(teacher, self.decoding) for teacher in self.teachers)

    def calls(self, pairs: list[Pair]) -> list[Call]:
        """Every call about these pairs, twins left out: pair by pair, teacher by teacher."""
        identities = self.identities
        return [
            call
            for pair in pairs
            if pair.prompt_id not in self.twins
            for call in calls_of(pair, identities, self.prompts, redact=self.redact)
        ]
