"""The one retry engine: attempts of a call until it is settled or patience ends.

In: a teacher and a call. Out: the last reply. Waiting is full jitter (a uniform draw up to a
doubling bound), never less than the provider's Retry-After. Invariant: `record` sees the intent
before each attempt and the reply after it, before anyone else does.
"""

from __future__ import annotations

from collections.abc import Callable

from tenacity import AsyncRetrying, RetryCallState, retry_if_result, stop_after_attempt
from tenacity.wait import wait_random_exponential

from sp2dpo_ray.config import DecodingSection
from sp2dpo_ray.core.annotation import Outcome
from sp2dpo_ray.core.calls import Call
from sp2dpo_ray.teachers.base import Reply, Teacher

LONGEST_WAIT_S = 120.0
PASSING = frozenset({Outcome.TRANSPORT, Outcome.QUOTA})
Record = Callable[[Call, int, Reply | None], None]


async def ask_until_settled(
    teacher: Teacher, call: Call, decoding: DecodingSection, record: Record
) -> Reply:
    """Ask, and ask again for failures that may pass; record(call, attempt, None) is the intent."""
    jitter = wait_random_exponential(multiplier=decoding.retry_base_s, max=LONGEST_WAIT_S)

    def wait(state: RetryCallState) -> float:
        asked: float | None = state.outcome.result().retry_after_s if state.outcome else None
        return max(jitter(state), min(asked or 0.0, LONGEST_WAIT_S))

    async def attempt() -> Reply:
        number = retrying.statistics.get("attempt_number", 1)
        record(call, number, None)
        reply = await teacher.ask(call)
        record(call, number, reply)
        return reply

    retrying = AsyncRetrying(
        retry=retry_if_result(lambda reply: reply.outcome in PASSING and not reply.hopeless),
        stop=stop_after_attempt(decoding.retries + 1),
        wait=wait,
        retry_error_callback=lambda state: state.outcome.result() if state.outcome else None,
    )
    reply: Reply = await retrying(attempt)
    return reply
