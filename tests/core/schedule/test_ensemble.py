"""Eqs. 15 to 18 and 26 to 38 against the paper's case tables, slow references and properties."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sp2dpo_ray.core.schedule import ensemble
from sp2dpo_ray.core.schedule.mapping import BetaMap
from sp2dpo_ray.core.taxonomy import CATEGORIES, CODE, Category, majority_vote

CASES: dict[str, Any] = json.loads((Path(__file__).parent / "paper_cases.json").read_text())
TEACHERS, VARIANTS = ("qwen", "openai", "gemini"), ("v1", "v2", "v3")
# In case 3 the table prints 0.9025 as the median of 0.8550, 0.8100 and 0.9025; Eq. 16 gives 0.8550
CONTRADICTS_EQ_16 = ("instruction", "openai")
# Four decimals: half a unit of the last, ties either way (0.04215 is printed 0.0421).
PRINTED = 0.5e-4 + 1e-12
# The printed means round a second time: safety v2 is 0.26364 and printed 0.2637, which is the mean
# of the printed betas 0.2814, 0.2609 and 0.2487.
PRINTED_MEAN = 0.65e-4

cubes = arrays(np.float64, st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(1, 5)),
               elements=st.floats(0, 1))  # fmt: skip


def cube(case: dict[str, Any], field: str) -> np.ndarray:
    values = {(call["teacher"], call["variant"]): call[field] for call in case["calls"]}
    return np.array([[[values[t, v] for v in VARIANTS] for t in TEACHERS]])


@pytest.mark.parametrize("name", CASES)
def test_case_tables_of_the_paper(name: str) -> None:
    case = CASES[name]
    beta_of = BetaMap()
    gap = ensemble.effective_gap(cube(case, "magnitude"), cube(case, "confidence"))
    assert gap == pytest.approx(cube(case, "gap"), abs=PRINTED)
    assert beta_of(gap) == pytest.approx(cube(case, "beta"), abs=PRINTED)

    gap_ens = ensemble.median_over_prompts(gap)
    beta_ens = beta_of(gap_ens)
    for j, teacher in enumerate(TEACHERS):
        row = next(row for row in case["ens"] if row["teacher"] == teacher)
        printed = (0.8550, 0.2609) if (name, teacher) == CONTRADICTS_EQ_16 else (
            row["gap"], row["beta"])  # fmt: skip
        assert (gap_ens[0, j], beta_ens[0, j]) == pytest.approx(printed, abs=PRINTED)

    for k, variant in enumerate(VARIANTS):
        mean = ensemble.mean_over_teachers(beta_of(gap)[:, :, k])
        assert mean[0] == pytest.approx(case["mean"][variant], abs=PRINTED_MEAN)
    expected = 0.2870 if name == CONTRADICTS_EQ_16[0] else case["mean"]["ens"]
    mean = ensemble.mean_over_teachers(beta_ens)
    assert mean[0] == pytest.approx(expected, abs=PRINTED_MEAN)


@pytest.mark.parametrize("name", CASES)
def test_case_categories_vote_as_printed(name: str) -> None:
    case = CASES[name]
    for row in case["ens"]:
        votes = [call["category"] for call in case["calls"] if call["teacher"] == row["teacher"]]
        winner, _ = majority_vote(np.array([[CODE[Category(vote)] for vote in votes]]))
        assert CATEGORIES[winner[0]] == row["category"]


def test_the_papers_outlier_example() -> None:
    gaps = np.array([[[0.05, 0.06, 0.9]]])
    assert ensemble.median_over_prompts(gaps)[0, 0] == 0.06


def test_table_4_of_the_paper() -> None:
    assert BetaMap()(np.array([0.0, 0.5, 1.0])).tolist() == [0.03, 0.165, 0.3]


def test_ties_go_to_the_higher_priority() -> None:
    votes = np.array([[5, 3, 1], [2, 2, 0], [4, 4, 4], [5, 5, 0]])
    winners, tie = majority_vote(votes)
    assert winners.tolist() == [1, 2, 4, 5]
    assert tie.tolist() == [True, False, False, False]


@given(arrays(np.int64, st.tuples(st.integers(1, 4), st.integers(1, 6)),
              elements=st.integers(0, 5)))  # fmt: skip
def test_votes_equal_a_plain_count(votes: np.ndarray) -> None:
    winners, ties = majority_vote(votes)
    for row, winner, tie in zip(votes.tolist(), winners, ties, strict=True):
        top = max(row.count(code) for code in row)
        best = sorted({code for code in row if row.count(code) == top})
        assert winner == best[0]
        assert tie == (len(best) > 1)


@given(cubes)
def test_arrays_equal_a_slow_reference(gap: np.ndarray) -> None:
    beta_of = BetaMap()
    fast = ensemble.mean_over_teachers(beta_of(ensemble.median_over_prompts(gap)))
    spread = ensemble.prompt_disagreement(gap)
    beta_ens = beta_of(ensemble.median_over_prompts(gap))
    for i, teachers in enumerate(gap.tolist()):
        medians = [statistics.median(variants) for variants in teachers]
        betas = [0.03 + 0.27 * min(max(value, 0), 1) for value in medians]
        assert fast[i] == pytest.approx(statistics.fmean(betas), abs=1e-12)
        for j, (variants, centre) in enumerate(zip(teachers, medians, strict=True)):
            mad = statistics.median(abs(value - centre) for value in variants)
            assert spread[i, j] == pytest.approx(mad, abs=1e-12)
        middle = statistics.median(betas)
        mad = statistics.median(abs(beta - middle) for beta in betas)
        assert ensemble.teacher_mad(beta_ens)[i] == pytest.approx(mad, abs=1e-12)
        std = statistics.pstdev(betas)
        assert ensemble.teacher_std(beta_ens)[i] == pytest.approx(std, abs=1e-12)


@given(cubes, st.randoms(use_true_random=False))
def test_order_of_teachers_and_variants_changes_no_bit(gap: np.ndarray, random: Any) -> None:
    teachers = random.sample(range(gap.shape[1]), gap.shape[1])
    variants = random.sample(range(gap.shape[2]), gap.shape[2])
    beta_of = BetaMap()

    def jmamp(values: np.ndarray) -> np.ndarray:
        return ensemble.mean_over_teachers(beta_of(ensemble.median_over_prompts(values)))

    assert (jmamp(gap[:, teachers][:, :, variants]) == jmamp(gap)).all()


@given(st.lists(st.floats(-2, 3), min_size=2).map(sorted), st.floats(0.001, 1), st.floats(0, 1))
def test_the_map_is_monotone_and_stays_in_its_envelope(
    gaps: list[float], low: float, width: float
) -> None:
    beta_of = BetaMap(beta_min=low, beta_max=low + width)
    betas = beta_of(np.array(gaps))
    assert (np.diff(betas) >= 0).all()
    assert (betas >= low).all()
    assert (betas <= low + width).all()


@pytest.mark.parametrize(("low", "high"), [(0, 0.3), (-0.1, 0.3), (0.4, 0.3)])
def test_an_impossible_envelope_is_refused(low: float, high: float) -> None:
    with pytest.raises(ValueError, match="envelope"):
        BetaMap(beta_min=low, beta_max=high)


@given(arrays(np.float64, (4, 3, 3), elements=st.floats(0, 1)),
       arrays(np.float64, (3, 3), elements=st.floats(0, 1)))  # fmt: skip
def test_a_hostile_pair_moves_itself_alone_and_inside_the_envelope(
    honest: np.ndarray, said: np.ndarray
) -> None:
    """Whatever teachers are talked into: other pairs keep their bits, and one deceived teacher of
    three moves beta by a third of the envelope at most."""

    def beta_of(gap: np.ndarray) -> np.ndarray:
        return ensemble.mean_over_teachers(BetaMap()(ensemble.median_over_prompts(gap)))

    before = beta_of(honest)
    deceived = honest.copy()
    deceived[1] = said  # all nine calls of one pair
    after = beta_of(deceived)
    assert np.array_equal(np.delete(after, 1), np.delete(before, 1))
    assert 0.03 <= after[1] <= 0.3
    one = honest.copy()
    one[1, 0] = said[0]  # one teacher, all its prompts
    assert abs(beta_of(one)[1] - before[1]) <= (0.3 - 0.03) / 3 + 1e-12
    prompt = np.sort(honest[1, 0])
    one[1, 0] = [said[0, 0], *honest[1, 0, 1:]]  # one prompt of one teacher: its median stays
    low, high = BetaMap()(prompt[[0, 2]])  # between its own least and greatest
    assert low <= BetaMap()(ensemble.median_over_prompts(one))[1, 0] <= high
