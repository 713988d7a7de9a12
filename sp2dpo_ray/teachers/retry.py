"""The one retry engine: attempts of a call until it is settled or patience ends.

In: a function that makes one attempt. Out: the last reply. Waiting is full jitter (a uniform draw
up to a doubling bound), never less than the provider asked for. Invariant: a refusal for quota is
no failure: it waits, and does not use up the retries.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from tenacity import AsyncRetrying, RetryCallState, retry_if_result
from tenacity.wait import wait_random_exponential

from sp2dpo_ray.config import DecodingSection
from sp2dpo_ray.core.annotation import Outcome
from sp2dpo_ray.teachers.base import Reply

LONGEST_WAIT_S = 120.0
QUOTA_PATIENCE = 50  # refusals for quota in a row, after which a call is given up
RETRYABLE = frozenset({Outcome.TRANSPORT, Outcome.QUOTA})


async def ask_until_settled(
    attempt: Callable[[int], Awaitable[Reply]],
    decoding: DecodingSection,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> Reply:
    """Ask, and ask again for failures that may pass; attempt(number) is told which one it is.

    sleep: waits between two attempts; whoever stops asking may cut it short.
    """
    failures = refusals = 0
    jitter = wait_random_exponential(multiplier=decoding.retry_base_s, max=LONGEST_WAIT_S)

    def wait(state: RetryCallState) -> float:
        reply: Reply = state.outcome.result()  # type: ignore[union-attr]
        if reply.outcome is Outcome.QUOTA:
            # the limiter spaces the next turn for all; a little jitter keeps callers apart
            return min(jitter(state), decoding.retry_base_s)
        return max(jitter(state), reply.retry_after_s or 0.0)

    def give_up(state: RetryCallState) -> bool:
        return failures > decoding.retries or refusals > QUOTA_PATIENCE

    async def ask() -> Reply:
        nonlocal failures, refusals
        reply = await attempt(failures + refusals + 1)
        refusals += reply.outcome is Outcome.QUOTA
        failures += reply.outcome is not Outcome.QUOTA
        return reply

    retrying = AsyncRetrying(
        retry=retry_if_result(lambda reply: reply.outcome in RETRYABLE and not reply.non_retryable),
        sleep=sleep,
        stop=give_up,
        wait=wait,
        retry_error_callback=lambda state: state.outcome.result() if state.outcome else None,
    )
    reply: Reply = await retrying(ask)
    return reply
