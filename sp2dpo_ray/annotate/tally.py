"""What an annotation stage did so far: counts by teacher, and what must end it.

In: rows as actors, engines and batch jobs send them (`actor.OUTPUT`). Out: counts, notes beside the
bars, errors. Invariant: a call is counted once, however often it was asked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NoReturn

from sp2dpo_ray.core.annotation import Outcome
from sp2dpo_ray.errors import Stopped, TeacherStopped
from sp2dpo_ray.teachers.retry import RETRYABLE

Progress = Callable[[str, int, str], None]  # teacher, calls since, note
ENDS = frozenset({Outcome.BUDGET_STOP, Outcome.AUTH, Outcome.NOT_ATTEMPTED})


def ends_stage(row: dict[str, Any]) -> bool:
    """Whether nothing more can come after this row."""
    return not row["reused"] and Outcome(row["outcome"]) in ENDS


@dataclass(slots=True)
class Tally:
    """Counts of one run of the stage, by teacher.

    given_up: calls that failed in a way that asking again cannot mend; `outcomes` has them too.
    """

    made: Counter[str] = field(default_factory=Counter)
    reused: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    usd: dict[str, float] = field(default_factory=dict)
    outcomes: dict[str, Counter[str]] = field(default_factory=dict)
    given_up: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    def add(self, row: dict[str, Any]) -> None:
        """One row of what an actor sends (`actor.OUTPUT`)."""
        teacher, outcome, calls = row["teacher"], Outcome(row["outcome"]), row["calls"]
        if row["reused"]:
            self.reused[teacher] += calls
        elif outcome is Outcome.SKIPPED:
            self.skipped[teacher] += calls
        else:
            if outcome not in (Outcome.NOT_ATTEMPTED, Outcome.BUDGET_STOP):
                self.made[teacher] += calls
            self.outcomes.setdefault(teacher, Counter())[outcome] += calls
            if row.get("final") and outcome in RETRYABLE:
                self.given_up[teacher] += calls
        self.usd[teacher] = self.usd.get(teacher, 0.0) + row["usd"]

    def take(self, rows: list[dict[str, Any]], progress: Progress) -> None:
        """Count rows and show them; raises Stopped for what must end the stage."""
        self.count(rows, progress)
        for row in filter(ends_stage, rows):
            self.stop_for(row)

    def count(self, rows: list[dict[str, Any]], progress: Progress) -> None:
        """Count rows and show them."""
        for row in rows:
            self.add(row)
            progress(row["teacher"], row["calls"], self.note(row["teacher"]))

    def stop_for(self, row: dict[str, Any]) -> NoReturn:
        """Raise what a row that ends the stage says."""
        if Outcome(row["outcome"]) is Outcome.BUDGET_STOP:
            raise Stopped(
                "budget.usd has no room for another call: calls in flight are counted at the most "
                f"they can cost. {self._go_on('Raise budget.usd')}"
            )
        raise TeacherStopped(
            f"teacher {row['teacher']}: {row['detail']}\n{self._go_on('Mend the cause')}"
        )

    def _go_on(self, mend: str) -> str:
        return (
            f"The answers to {self.made.total():,} calls of this command (${self.total_usd:,.2f}) "
            f"are recorded and will not be asked again. {mend}, then run the same command: it goes "
            "on from here"
        )

    @property
    def failed(self) -> int:
        """Calls that may be answered if they are asked again."""
        failed = sum(count[outcome] for count in self.outcomes.values() for outcome in RETRYABLE)
        return failed - self.given_up.total()

    def replace_failed(self, later: Tally) -> None:
        """Count what a later round made of the calls that had failed."""
        for teacher, outcomes in later.outcomes.items():
            for outcome in RETRYABLE:
                self.outcomes[teacher].pop(outcome, None)
            if self.given_up[teacher]:  # nobody asked for these again
                self.outcomes[teacher][Outcome.TRANSPORT] = self.given_up[teacher]
            self.outcomes[teacher].update(outcomes)
        self.given_up += later.given_up
        for teacher, usd in later.usd.items():
            self.usd[teacher] = self.usd.get(teacher, 0.0) + usd

    def go_on_with(self, later: Tally) -> None:
        """Add a pass over these pairs and further ones, which found on record what this one
        made."""
        self.reused = later.reused - self.made
        self.made += later.made
        self.skipped = later.skipped
        self.given_up += later.given_up
        for teacher, outcomes in later.outcomes.items():
            self.outcomes.setdefault(teacher, Counter()).update(outcomes)
        for teacher, usd in later.usd.items():
            self.usd[teacher] = self.usd.get(teacher, 0.0) + usd
        self.seconds += later.seconds

    @property
    def total_usd(self) -> float:
        return sum(self.usd.values())

    def note(self, teacher: str) -> str:
        """What a person wants to see of one teacher beside the bar."""
        rate = self.made[teacher] / max(self.seconds, 1e-9)
        parts = [f"{rate:,.1f}/s"]
        if self.usd.get(teacher):
            parts.append(f"${self.usd[teacher]:,.2f}")
        if self.reused[teacher] > 0:  # the call before the flood counts against it
            parts.append(f"{self.reused[teacher]:,} on record")
        if self.skipped[teacher]:
            parts.append(f"{self.skipped[teacher]:,} skipped")
        others = {k: v for k, v in self.outcomes.get(teacher, {}).items() if k != Outcome.OK}
        parts += [f"{count:,} {outcome}" for outcome, count in sorted(others.items())]
        return ", ".join(parts)
