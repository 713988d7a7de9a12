"""The limit of one account, shared by all actors: starts of requests, evenly spaced.

In: wishes for a number of starts. Out: leases: so many starts, the first after a delay, the others
an interval apart. Delays instead of clock times, since machines' clocks differ. Invariant: leases
do not overlap, so all actors together start no faster than the account may, whatever their number.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from math import inf
from typing import Any

import ray

from sp2dpo_ray.config import TeacherSection
from sp2dpo_ray.core.hashing import sha256_hex

SHARE = 0.98  # of the limit: requests arrive with some jitter, and a refused one is lost time
LEASE_S = 0.25  # seconds of starts in a lease: few messages, yet a slow-down is felt at once
MOST_AT_ONCE = 64  # starts in a lease where nothing limits
SLOWER = 0.97  # factor of the rate that got through, when the provider refuses
FASTER = 1.1  # factor a second, always: a refusal in thirty, whatever its reason, is outgrown
FASTER_UNKNOWN = 1.03  # the same where no limit is told, and growing too far is refused
CALM_S = 1.0  # refusals within this time count as one: they were all sent at the old rate
LONGEST_CALM_S = 300.0  # growth over a longer time would be no number any more
LEAST_SHARE = 1 / 8  # of a known limit; a provider may refuse for reasons other than our rate
LEAST = 2.0  # starts a second where no limit is known
RESTART_PAUSE_S = 2.0  # what was leased before a restart is unknown; let it run out
NAMESPACE = "sp2dpo"


@dataclass(frozen=True, slots=True)
class Lease:
    """`count` starts: the first in `delay_s`, each next one `interval_s` later."""

    count: int
    delay_s: float
    interval_s: float


class Pace:
    """The arithmetic of the limiter; the clock is handed in.

    rpm, tpm: limits of the account, None where unknown: then it starts without one, and learns from
    the first refusal what rate was being granted.
    """

    def __init__(self, rpm: int | None, tpm: int | None, now: float, *, restarted: bool = False):
        self._ceiling = rpm / 60 * SHARE if rpm else inf
        self._tokens_per_s = tpm / 60 * SHARE if tpm else inf
        self._rate = self._ceiling
        self._least = self._ceiling * LEAST_SHARE if rpm else LEAST
        self._free_at = now + RESTART_PAUSE_S if restarted else now
        self._faster = FASTER if rpm else FASTER_UNKNOWN
        self._slowed_at = -inf
        self._seen_at = now
        self._granted: deque[tuple[float, int]] = deque()

    @property
    def rate(self) -> float:
        """Starts a second at present, before tokens are counted."""
        return self._rate

    def lease(self, wanted: int, tokens_each: float, now: float) -> Lease:
        """The next starts for one actor; `tokens_each` is what a call is likely to use."""
        self._recover(now)
        rate = min(self._rate, self._tokens_per_s / max(tokens_each, 1.0))
        count = min(wanted, MOST_AT_ONCE if rate == inf else max(1, int(rate * LEASE_S)))
        start = max(now, self._free_at)
        self._free_at = start + count / rate
        self._granted.append((now, count))
        while self._granted[0][0] < now - 2 * CALM_S:
            self._granted.popleft()
        return Lease(count, start - now, 1 / rate)

    def refused(self, pause_s: float | None, now: float) -> None:
        """The provider answered 429: slow down, and pause for what it asked."""
        self._recover(now)
        self._granted.append((now, -1))
        if now - self._slowed_at >= CALM_S:
            # what got through lately, a little less of it; pauses do the rest
            span = 2 * CALM_S if self._rate == inf else max(now - self._granted[0][0], LEASE_S)
            seen = sum(count for _, count in self._granted) / span
            self._rate = max(min(self._rate, seen) * SLOWER, self._least)
            self._slowed_at = now
        if pause_s:
            self._free_at = max(self._free_at, now + pause_s)

    def _recover(self, now: float) -> None:
        calm_s = min(now - self._seen_at, LONGEST_CALM_S)
        self._rate = min(self._rate * self._faster**calm_s, self._ceiling)
        self._seen_at = now


class Limiter:
    """A `Pace` behind a name; a Ray actor makes it one for all."""

    def __init__(self, rpm: int | None, tpm: int | None, replaces: bool) -> None:
        restarted = replaces or ray.get_runtime_context().was_current_actor_reconstructed
        self._pace = Pace(rpm, tpm, time.monotonic(), restarted=restarted)

    def lease(self, wanted: int, tokens_each: float) -> Lease:
        return self._pace.lease(wanted, tokens_each, time.monotonic())

    def refused(self, pause_s: float | None) -> None:
        self._pace.refused(pause_s, time.monotonic())


def limiter_of(teacher: TeacherSection, *, replaces: bool = False) -> Any | None:
    """The limiter of a teacher's account, made by whoever comes first; None where none is needed.

    An account is an endpoint, a key and a model: providers limit each model by itself. The actor
    lives as long as the process that made it; `replaces` says that it follows a lost one.
    """
    limits = teacher.limits
    if not teacher.external and limits.rpm is None and limits.tpm is None:
        return None
    account = [teacher.provider, teacher.base_url, teacher.api_key_env, teacher.model]
    name = f"limiter-{sha256_hex([account, limits.rpm, limits.tpm])[:16]}"
    return (
        ray.remote(Limiter)
        .options(
            name=name,
            namespace=NAMESPACE,
            get_if_exists=True,
            num_cpus=0,
            max_restarts=-1,
            max_task_retries=-1,
        )
        .remote(limits.rpm, limits.tpm, replaces)
    )
