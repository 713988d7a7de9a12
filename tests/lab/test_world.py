"""The testbed's world: what is good is what it says, and labels have the faults it says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from sp2dpo_ray.core.schedule.columns import DEFAULT_BETA
from sp2dpo_ray.core.taxonomy import Category
from sp2dpo_ray.errors import ConfigError
from sp2dpo_ray.lab.panel import PANELS, schedule_of
from sp2dpo_ray.lab.world import (
    DIGIT,
    END,
    FLOURISHES,
    FORBIDDEN,
    LONGEST,
    OPERATIONS,
    WORLDS,
    Responder,
    World,
    WorldPair,
    answer,
    draw_pair,
    draw_prompt,
    respond,
    worth,
)
from sp2dpo_ray.stages.lab import plan_of

BREAK = 1


def prompt(operation: int, *digits: int) -> np.ndarray:
    return np.array([OPERATIONS[operation], *(DIGIT + d for d in digits), BREAK], dtype=np.int32)


def drawn(world: World, count: int = 2000) -> list[WorldPair]:
    draw = np.random.default_rng(0)
    return [draw_pair(world, draw) for _ in range(count)]


def test_answers_are_checkable() -> None:
    assert (answer(prompt(0, 3, 1, 4, 1, 5)) - DIGIT).tolist() == [3, 1, 4, 1, 5]
    assert (answer(prompt(1, 3, 1, 4, 1, 5)) - DIGIT).tolist() == [5, 1, 4, 1, 3]
    assert (answer(prompt(2, 3, 9, 4, 1, 5)) - DIGIT).tolist() == [4, 0, 5, 2, 6]


def test_worth_counts_right_digits_and_harm_and_nothing_else() -> None:
    asked = prompt(0, 1, 2, 3, 4, 5)
    right = [DIGIT + d for d in (1, 2, 3, 4, 5)]
    ends = np.array([END])

    def of(*tokens: int) -> float:
        return worth(asked, np.array([*tokens, *ends]))

    assert of(*right) == of(*right, *FLOURISHES) == 1.0
    assert of(*right[:4], DIGIT) == of(*right[:4]) == pytest.approx(0.8)
    assert of(*right, FORBIDDEN) == of(FORBIDDEN, *right) == 0.0
    assert of() == 0.0


def test_responders_answer_as_well_as_they_are_said_to() -> None:
    draw = np.random.default_rng(0)
    worths = []
    for _ in range(3000):
        asked = draw_prompt(draw)
        response = respond(asked, Responder(right=0.6, forbidden=0.1), draw)
        assert response[-1] == END
        assert len(response) <= LONGEST
        worths.append(worth(asked, response))
    # a wrong digit is drawn from all ten, so one in ten is right after all
    assert np.mean(worths) == pytest.approx(0.6 + 0.4 / 10 - 0.1, abs=0.02)


@pytest.mark.parametrize("noise", [0.0, 0.25])
def test_labels_are_wrong_as_often_as_the_world_says(noise: float) -> None:
    pairs = drawn(replace(WORLDS["clean"], noise=noise))
    told = [pair for pair in pairs if pair.gap]
    assert np.mean([pair.gap < 0 for pair in told]) == pytest.approx(noise, abs=0.03)


def test_length_bias_prefers_the_longer_one() -> None:
    pairs = [pair for pair in drawn(replace(WORLDS["clean"], length_bias=1.0)) if pair.longer]
    assert min(pair.longer for pair in pairs) > 0
    fair = [np.sign(pair.longer) for pair in drawn(replace(WORLDS["clean"], unsafe=0.0))]
    assert np.mean(fair) == pytest.approx(0, abs=0.05)


def test_kinds_have_their_shares_and_their_gaps() -> None:
    pairs = drawn(WORLDS["clean"])
    shares = {kind: np.mean([pair.kind is kind for pair in pairs]) for kind in Category}
    assert shares[Category.STYLE] == pytest.approx(0.3, abs=0.03)
    assert shares[Category.SAFETY] == pytest.approx(0.2, abs=0.03)
    assert all(pair.gap == 0 for pair in pairs if pair.kind is Category.STYLE)
    assert all(pair.gap == 1 for pair in pairs if pair.kind is Category.SAFETY)


def betas(panel: str, pairs: list[WorldPair]) -> np.ndarray:
    ids = [f"p{i:04d}" for i in range(len(pairs))]
    table: pa.Table = schedule_of(pairs, panel, ids, seed=0)
    assert table["prompt_id"].to_pylist() == ids
    return table[DEFAULT_BETA].to_numpy()


def test_panels_believe_what_their_rows_say() -> None:
    pairs = drawn(WORLDS["noisy"], 600)
    gap = np.array([pair.gap for pair in pairs])
    longer = np.array([pair.longer for pair in pairs])
    found = {name: betas(name, pairs) for name in PANELS}
    for beta in found.values():
        assert beta.min() >= 0.03
        assert beta.max() <= 0.3
    assert np.corrcoef(found["able"], gap)[0, 1] > 0.7
    assert np.corrcoef(found["inverted"], gap)[0, 1] < -0.7
    assert np.corrcoef(found["fooled"], longer)[0, 1] > 0.7
    assert abs(np.corrcoef(found["blind"], gap)[0, 1]) < 0.15


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"worlds": ("clena",)}, r"worlds \['clena'\] are unknown; there are"),
        ({"arms": ("dpo:0.1", "dpo:0.10")}, "'dpo:0.1' and 'dpo:0.10' are the same arm"),
        ({"arms": ("madpo:0.1",)}, "'madpo:0.1' selects or weighs pairs or counts tokens"),
        ({"arms": ("jmamp/random:0.5",)}, "which the worlds do not know"),
        ({"arms": ("confpo",)}, "or counts tokens"),
        ({"arms": ("jmamp@1",)}, "--seeds says how many"),
        ({"arms": ("jmampp",)}, "is unknown"),
        ({"changes": ("noise=2",)}, "noise must be a share from 0 to 1, got 2"),
        ({"changes": ("noises=0.2",)}, "must be one of"),
        ({"changes": ("taste=0.9",)}, "taste and unsafe are shares of the same pairs"),
        ({"changes": ("panel=wise",)}, "panel 'wise' is unknown; there are"),
        ({"changes": ("pairs=2",)}, "pairs must be a whole number from 8 on"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(
    given: dict[str, tuple[str, ...]], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_of(**{"worlds": (), "arms": (), "seeds": 1, "changes": (), **given})
