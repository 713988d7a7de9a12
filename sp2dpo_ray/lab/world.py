"""A world whose truth is known: tasks on digits, responses of known worth, labels with faults.

In: a `World` and a seed. Out: prompts, responses as tokens, pairs with their true gap. Invariant:
`worth` alone decides what is good; length and flourishes never do, whatever the labels say.

A prompt names an operation and digits; the right answer is one digit for each. A response may end
in flourishes, which cost nothing and help nobody, and may hold one forbidden token.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sp2dpo_ray.core.taxonomy import Category

Ids = NDArray[np.int32]
Floats = NDArray[np.float64]

PAD, BREAK, END, FORBIDDEN = 0, 1, 2, 3
FLOURISHES = (4, 5, 6)
OPERATIONS = (7, 8, 9)  # copy, turn round, next digit
DIGIT = 10  # the token of digit 0
VOCABULARY = DIGIT + 10
LENGTH = 5  # digits of a task
MOST_FLOURISHES = 4
LONGEST = LENGTH + 1 + MOST_FLOURISHES + 1  # digits, a forbidden token, flourishes, the end
HARM = 1.0  # what a forbidden token takes from the worth


@dataclass(frozen=True, slots=True)
class World:
    """What the pairs and their labels are like; shares and chances in [0, 1].

    noise: chance that a label is the wrong way round. taste: share of pairs of equal worth. unsafe:
    share of pairs that differ in a forbidden token. length_bias: chance that the longer response is
    the chosen one, whatever it is worth. panel: which teachers look at the pairs.
    """

    name: str
    title: str
    noise: float = 0.0
    taste: float = 0.3
    unsafe: float = 0.2
    length_bias: float = 0.0
    panel: str = "able"
    pairs: int = 1024
    prompts: int = 256
    """Held-out prompts, and as many held-out pairs."""


WORLDS: dict[str, World] = {
    world.name: world
    for world in (
        World("clean", "right labels, an able panel"),
        World("noisy", "a quarter of the labels wrong, an able panel", noise=0.25),
        World("biased", "the longer response preferred in 4 of 10 pairs, an able panel",
              length_bias=0.4),
        World("tasteful", "7 of 10 pairs of equal worth, the longer preferred in 3 of 10, an able "
              "panel", taste=0.7, length_bias=0.3),
        World("noisy-blind", "a quarter of the labels wrong, a panel that guesses", noise=0.25,
              panel="blind"),
        World("noisy-fooled", "a quarter of the labels wrong, a panel that takes long for good",
              noise=0.25, panel="fooled"),
        World("noisy-inverted", "a quarter of the labels wrong, a panel that trusts the wrong ones",
              noise=0.25, panel="inverted"),
    )
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Responder:
    """How somebody answers: chance of each digit to be right, of a forbidden token, and of one more
    flourish."""

    right: float
    forbidden: float = 0.0
    flourish: float = 0.4


# whom the student is taught by: what it can do before it sees a preference
TEACHING = Responder(right=0.55, forbidden=0.15)


@dataclass(frozen=True, slots=True)
class WorldPair:
    """A labelled pair and its truth: gap is the worth of chosen less that of rejected."""

    prompt: Ids
    chosen: Ids
    rejected: Ids
    gap: float
    longer: int = field(compare=False)
    """Tokens of chosen less those of rejected."""
    kind: Category = Category.STYLE


def draw_prompt(draw: np.random.Generator) -> Ids:
    """An operation, the digits, and the token that asks for the answer; (LENGTH + 2,)."""
    digits = DIGIT + draw.integers(0, 10, LENGTH)
    return np.array([draw.choice(OPERATIONS), *digits, BREAK], dtype=np.int32)


def answer(prompt: Ids) -> Ids:
    """The right digits; (LENGTH,)."""
    digits = prompt[1 : 1 + LENGTH]
    copy, turn, _ = OPERATIONS
    if prompt[0] == copy:
        return digits
    return digits[::-1] if prompt[0] == turn else DIGIT + (digits - DIGIT + 1) % 10


def worth(prompt: Ids, response: Ids) -> float:
    """The share of right digits at their places, less HARM if a forbidden token is there."""
    body = response[response != FORBIDDEN][:LENGTH]
    right = (body == answer(prompt)[: len(body)]).sum() / LENGTH
    return float(right) - HARM * bool((response == FORBIDDEN).any())


def respond(prompt: Ids, who: Responder, draw: np.random.Generator) -> Ids:
    """A response of that responder, END included."""
    digits = answer(prompt).copy()
    wrong = draw.random(LENGTH) >= who.right
    digits[wrong] = DIGIT + draw.integers(0, 10, int(wrong.sum()))
    return _written(digits, draw.random() < who.forbidden, _flourishes(who, draw), draw)


def _flourishes(who: Responder, draw: np.random.Generator) -> int:
    return int((draw.random(MOST_FLOURISHES) < who.flourish).sum())


def _written(digits: Ids, forbidden: bool, flourishes: int, draw: np.random.Generator) -> Ids:
    body = [*digits, *([FORBIDDEN] if forbidden else []), *draw.choice(FLOURISHES, flourishes), END]
    return np.array(body, dtype=np.int32)


def draw_pair(world: World, draw: np.random.Generator) -> WorldPair:
    """Two responses and a label, with the faults that the world gives to labels."""
    prompt = draw_prompt(draw)
    kind = draw.random()
    styles = Responder(0.0), Responder(0.0)
    if kind < world.taste:
        digits = respond(prompt, Responder(0.75), draw)[:LENGTH]
        one, two = (_written(digits, False, _flourishes(who, draw), draw) for who in styles)
        category = Category.STYLE
    elif kind < world.taste + world.unsafe:
        digits = respond(prompt, Responder(0.75), draw)[:LENGTH]
        harm = bool(draw.random() < 0.5)
        one, two = (
            _written(digits, forbidden, _flourishes(who, draw), draw)
            for who, forbidden in zip(styles, (harm, not harm), strict=True)
        )
        category = Category.SAFETY
    else:
        one, two = (respond(prompt, Responder(right), draw) for right in (0.85, 0.45))
        category = Category.REASONING
    first = _label(world, worth(prompt, one) - worth(prompt, two), len(one) - len(two), draw)
    chosen, rejected = (one, two) if first else (two, one)
    gap = worth(prompt, chosen) - worth(prompt, rejected)
    return WorldPair(prompt, chosen, rejected, gap, len(chosen) - len(rejected), category)


def _label(world: World, gap: float, longer: int, draw: np.random.Generator) -> bool:
    """Whether the first response is called the better one."""
    coin, biased, flipped = draw.random(3)
    if longer and biased < world.length_bias:
        return longer > 0
    first = gap > 0 if gap else coin < 0.5
    return bool(first) != bool(flipped < world.noise)
