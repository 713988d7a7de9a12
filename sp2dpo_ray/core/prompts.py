"""The annotation prompts: three perspectives on one rubric, and the pair in its place.

In: a pair. Out: the messages of one call. The texts are data (`prompt_texts/`, or the folder
`prompts.dir`), named by their hash. Invariant: text of a pair is inserted once and never read as
template, and the code of its markers (`{fence}`) does not occur in it.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from sp2dpo_ray.core.hashing import sha256_hex
from sp2dpo_ray.core.pairs import Pair
from sp2dpo_ray.errors import ConfigError

Message = dict[str, str]

REQUIRED = ("prompt_text", "winning_response_text", "losing_response_text")
PLACEHOLDER = re.compile(r"\{(prompt_text|winning_response_text|losing_response_text|fence)\}")
FENCE_LENGTH = 16


@dataclass(frozen=True, slots=True)
class PromptSet:
    """System texts by variant, and the user template that shows the pair."""

    systems: dict[str, str]
    user: str

    @property
    def digest(self) -> str:
        """The version of these texts: SHA-256 over all of them."""
        return sha256_hex({"systems": self.systems, "user": self.user})

    def messages(self, variant: str, pair: Pair) -> list[Message]:
        """The messages of one call; the shared rubric first, so that a provider can cache it."""
        texts = {
            "prompt_text": pair.prompt_text,
            "winning_response_text": pair.chosen,
            "losing_response_text": pair.rejected,
        }
        values = {**texts, "fence": fence(*texts.values())}
        # one pass over the template: a placeholder inside a pair's text is just text
        user = PLACEHOLDER.sub(lambda match: values[match[1]], self.user)
        return [
            {"role": "system", "content": self.systems[variant]},
            {"role": "user", "content": user},
        ]


def fence(*texts: str) -> str:
    """A code that depends on the texts and occurs in none of them, so no text can close it."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
    code = digest.hexdigest()
    while any(code[:FENCE_LENGTH] in text for text in texts):
        code = hashlib.sha256(code.encode()).hexdigest()
    return code[:FENCE_LENGTH]


def load_prompts(variants: tuple[str, ...], folder: str | None = None) -> PromptSet:
    """`user.txt` and one `<variant>.txt` each, from `folder` or from the package.

    Raises ConfigError for a missing file or a user template without a place for the pair.
    """
    root = Path(folder).expanduser() if folder else resources.files(__package__) / "prompt_texts"
    texts = {}
    for name in (*variants, "user"):
        try:
            texts[name] = (root / f"{name}.txt").read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            raise ConfigError(
                f"prompts: no text for {name!r}: {root} has no file {name}.txt"
            ) from None
    user = texts.pop("user")
    places = PLACEHOLDER.findall(user)
    for name in REQUIRED:
        if places.count(name) != 1:
            raise ConfigError(
                f"prompts: {root}/user.txt must hold {{{name}}} exactly once, "
                f"it holds it {places.count(name)} times"
            )
    return PromptSet(texts, user)
