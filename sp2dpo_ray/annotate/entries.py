"""The lines of the journal about one attempt, and its money.

In: a call, a reply. Out: what goes on record before the request, and after it. Invariant: a result
says all that its intent says, so an intent that has its result can be left out.
"""

from __future__ import annotations

import os
import time
from dataclasses import asdict

from sp2dpo_ray.annotate.journal import Entry
from sp2dpo_ray.core.calls import Call
from sp2dpo_ray.core.costs import Price, text_bytes
from sp2dpo_ray.teachers.base import Reply


def intent_entry(call: Call, attempt: int, worst: float) -> Entry:
    """What is on record before a request; `id` joins it with its result."""
    entry: Entry = {
        "kind": "intent",
        "id": os.urandom(8).hex(),
        "key": call.key,
        "prompt_id": call.prompt_id,
        "teacher": call.teacher,
        "variant": call.variant,
        "attempt": attempt,
        "time": time.time(),
        "prompt_bytes": text_bytes(call.messages),
    }
    return entry | {"worst_usd": worst} if worst else entry


def result_entry(intent: Entry, reply: Reply, *, seconds: float, money: Entry) -> Entry:
    """What is on record of an attempt that ended."""
    entry = {name: value for name, value in intent.items() if name != "worst_usd"}
    entry |= {"kind": "result", "time": time.time(), "seconds": round(seconds, 4), **money}
    for name in ("text", "detail", "request_id", "served_model", "fingerprint", "raw"):
        if (value := getattr(reply, name)) not in (None, ""):
            entry[name] = value
    if reply.usage is not None:
        entry["usage"] = asdict(reply.usage)
    if reply.non_retryable:
        entry["non_retryable"] = True
    return entry | {"outcome": str(reply.outcome)}


def money_of(price: Price | None, reply: Reply, worst: float) -> tuple[Entry, float]:
    """What goes on record of an attempt's money, and what is taken off the budget."""
    if price is None:
        return {}, 0.0
    if reply.usage is not None:
        usd = price.cost(reply.usage)
        return {"usd": usd}, usd
    return ({"possibly_usd": worst}, worst) if reply.maybe_billed else ({}, 0.0)
