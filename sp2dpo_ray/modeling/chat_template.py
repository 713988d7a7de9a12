"""The chat template of one revision of a model.

In: a model of the hub, a commit. Out: its template's text. Invariant: no code comes with it.
"""

from __future__ import annotations

from transformers import AutoTokenizer


def template_of(model: str, revision: str) -> str | None:
    """None where the tokenizer has no template."""
    tokenizer = AutoTokenizer.from_pretrained(model, revision=revision, trust_remote_code=False)
    template: str | None = tokenizer.chat_template
    return template
