"""The page: what it holds, that it does not grow with the data, that hostile text stays text."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sp2dpo_ray.core.schedule.agreement import spearman
from sp2dpo_ray.core.schedule.grid import Panel
from sp2dpo_ray.report.arm_figures import betas_by_arm
from sp2dpo_ray.report.overview import FEWEST_PAIRS, GOOD, LOOK, about, overview
from sp2dpo_ray.report.pieces import PAIRS_A_PIECE
from sp2dpo_ray.report.schedule_figures import BOTH_WAYS, NUMBER, SHARE, teacher_agreement
from tests.browsing import contrast
from tests.core.schedule.test_columns import PANEL, annotations
from tests.report.pages import HOSTILE, page_data, written


def test_the_page_holds_everything_that_it_promises(tmp_path: Path) -> None:
    page = written(page_data(), tmp_path)
    for part in ("Arms side by side", "Training", "The schedule", "Agreement of the teachers",
                 "The data, and what beta follows", "Single pairs", "What ran",
                 "no language model", "not told apart"):  # fmt: skip
        assert part in page
    # nothing from elsewhere: no such link in the body, and a policy against any such load
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", page.partition("<body>")[2])
    assert "default-src 'none'" in page


def pieces_of(folder: Path) -> dict[str, list]:
    """The arguments of each call in `pairs/`, by file."""
    return {
        path.name: json.loads("[" + path.read_text("ascii").partition("(")[2].rstrip()[:-1] + "]")
        for path in sorted((folder / "pairs").iterdir())
    }


def test_every_pair_has_its_texts_and_nine_annotations(tmp_path: Path) -> None:
    data = page_data(pairs=PAIRS_A_PIECE + 8)
    written(data, tmp_path)
    files = pieces_of(tmp_path)
    assert list(files) == ["0000.js", "0001.js", "index.js"]
    (index,) = files["index.js"]
    rows = [row for name in ("0000.js", "0001.js") for row in files[name][1]]
    assert [files[name][0] for name in ("0000.js", "0001.js")] == [0, 1]
    assert len(rows) == len(index["id"]) == PAIRS_A_PIECE + 8
    assert index["id"] == data.schedule["prompt_id"].to_pylist()
    table = data.schedule.to_pylist()
    for row, (prompt, chosen, rejected, calls) in enumerate(rows):
        assert (prompt, chosen, rejected) == (HOSTILE, HOSTILE, HOSTILE)
        assert [call[:2] for call in calls] == [[t, v] for _, _, t, v in PANEL.calls]
        for teacher, variant, category, magnitude, confidence, _, beta in calls:
            assert category == table[row][f"category_{teacher}_{variant}"]
            told = {"magnitude": magnitude, "confidence": confidence, "beta": beta}
            for what, value in told.items():
                assert value == round(table[row][f"{what}_{teacher}_{variant}"], 4)
    listed = [name for name, place in zip(index["id"], index["urgency"], strict=True) if place >= 0]
    assert set(listed) == set(data.listed)
    assert index["overlap"] == [1.0] * len(rows)


def test_calls_that_were_never_made_are_no_numbers(tmp_path: Path) -> None:
    rows = annotations(8)
    for row in rows:
        if (row["teacher"], row["variant"]) == ("gemini", "v3"):
            row |= {"outcome": "skipped", "category": None, "magnitude": None, "confidence": None}
    written(page_data(rows=rows), tmp_path)
    for *_, calls in pieces_of(tmp_path)["0000.js"][1]:
        for teacher, variant, *told in calls:
            assert (told == [None] * 5) == ((teacher, variant) == ("gemini", "v3"))


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    body = written(page_data(), tmp_path).partition("<body>")[2]
    assert "<script>document.title" not in body
    assert "<img" not in body
    assert "<svg onload" not in body
    assert "&lt;script&gt;" in body
    assert "{{ 7 * 7 }}" in body


def test_the_page_itself_does_not_grow_with_the_data(tmp_path: Path) -> None:
    sizes = []
    for count in (50, 800):
        (folder := tmp_path / str(count)).mkdir()
        sizes.append(len(written(page_data(pairs=count), folder)))
    assert sizes[1] < sizes[0] + 20_000


def test_a_run_without_trained_arms_has_a_page(tmp_path: Path) -> None:
    page = written(page_data(arms=[], curves={}, by_category={}), tmp_path)
    assert "No arm has been trained" in page
    assert "not trained yet" in page


def test_arms_without_held_out_pairs_have_their_curves(tmp_path: Path) -> None:
    page = written(page_data(arms=[], by_category={}), tmp_path)
    assert "trained, not scored: no held-out pairs" in page
    for chart in ("curve-loss", "curve-logratio-margins", "betas-by-arm"):
        assert f'id="{chart}"' in page
    assert "No arm has been trained" not in page
    assert 'id="accuracy-by-arm"' not in page


def test_few_held_out_pairs_are_said_to_be_few(tmp_path: Path) -> None:
    assert "too few for a verdict" not in written(page_data(), tmp_path)
    arms = [row | {"pairs": FEWEST_PAIRS - 1} for row in page_data().arms]
    (other := tmp_path / "few").mkdir()
    assert "too few for a verdict" in written(page_data(arms=arms), other)


def test_every_card_leads_to_a_part_that_is_there(tmp_path: Path) -> None:
    """With all that a page can show, and without arms, judges and costs."""
    for name, changes in (
        ("all", {}),
        ("none", {"arms": [], "curves": {}, "by_category": {}, "judged": [], "costs": []}),
    ):
        (folder := tmp_path / name).mkdir()
        page = written(page_data(**changes), folder)
        links = set(re.findall(r'class="card[^"]*" href="#([\w-]+)"', page))
        assert links <= set(re.findall(r'id="([\w-]+)"', page))
        assert ("process" in links) == (name == "none")


def test_the_page_says_what_it_is(tmp_path: Path) -> None:
    config = {
        "run": {"name": "x"},
        "data": {"source": "/home/me/größe.jsonl"},
        "student": {"model": "tiny"},
    }
    page = written(page_data(lambda_record={"lambda_id": "abc", "config": config}), tmp_path)
    assert (
        "8 preference pairs of größe.jsonl, each described by 3 teachers under 3 prompts; "
        "student tiny; 2 trained arms." in page
    )
    assert "Beta is DPO&#39;s temperature" in page or "Beta is DPO's temperature" in page
    assert "&#34;source&#34;: &#34;/home/me/größe.jsonl&#34;" in page  # the configuration
    one = about(config | {"data": {"source": "o/d", "revision": "1"}}, Panel(("a",), ("v1",)), 1, 1)
    assert one == (
        "1 preference pair of o/d, each described by 1 teacher under 1 prompt; student tiny; "
        "1 trained arm."
    )


def test_beta_is_named_as_it_is_on_its_axis() -> None:
    chart = betas_by_arm({"jmamp": [0.03, 0.08, 0.1, 0.2, 0.3]})
    assert '"0.02","0.03","0.05","0.1"' in chart


def test_numbers_in_the_cells_of_a_matrix_can_be_read() -> None:
    data = page_data()
    chart = teacher_agreement(data.schedule, data.panel)
    assert f'"textfont":{{"color":"{NUMBER}"}}' in chart
    for scale in (SHARE, BOTH_WAYS):
        assert min(contrast(colour, NUMBER) for _, colour in scale) >= 4.5


def test_judged_rates_that_cannot_be_told_are_left_open(tmp_path: Path) -> None:
    """Of one student, and then of all: a page, a card and a chart all the same."""
    nothing = {"length_controlled_winrate": None, "win_rate": None, "standard_error": None}
    first, second = page_data().judged
    for name, rows, said in (
        ("one", [first | {"figures": first["figures"] | nothing}, second], "8.50 %"),
        ("all", [row | {"figures": row["figures"] | nothing} for row in (first, second)],
         "too little was judged for a length-controlled win rate"),
    ):  # fmt: skip
        (folder := tmp_path / name).mkdir()
        page = written(page_data(judged=rows), folder)
        assert said in page
        assert "None" not in page[page.index('id="judged"') :].partition("</table>")[0]


def test_pairs_of_a_predictor_are_counted(tmp_path: Path) -> None:
    data = page_data()
    page = written(page_data(figures=data.figures | {"predicted": 3}), tmp_path)
    said = " ".join(page.split())
    assert "For 3 of 8 pairs a predictor answered instead of the teachers" in said


def test_a_mark_follows_from_the_rule_that_its_card_states() -> None:
    data = page_data()

    def marks(arms: list | None = None, **figures: object) -> dict[str, str]:
        cards = overview(
            data.schedule, data.panel, data.figures | figures, 0, arms or [], 0, [], []
        )
        return {card.title: card.mark for card in cards}

    assert marks(excluded=0)["Pairs with a beta"] == GOOD
    assert marks(excluded=1)["Pairs with a beta"] == LOOK  # one of nine
    gain = {"mean": 0.1, "low": -0.01, "high": 0.2}
    arm = {"arm": "jmamp", "verdict": "not told apart", "gain": gain, "pairs": 20}
    base = {"arm": "dpo:0.1", "verdict": "baseline", "gain": None, "pairs": 20}
    assert marks([base, arm])["Best arm"] != GOOD
    clear = arm | {"gain": gain | {"low": 0.01}}
    assert marks([base, clear, arm])["Best arm"] != GOOD  # the best of two by this very figure
    assert marks([base, clear])["Best arm"] == GOOD
    assert marks([base, clear | {"pairs": 19}])["Best arm"] != GOOD


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=3, max_size=30))
def test_rank_correlation_equals_a_slow_reference(points: list[tuple[int, int]]) -> None:
    one, other = (np.array(side, dtype=float) for side in zip(*points, strict=True))

    def ranks(values: np.ndarray) -> list[float]:
        return [(values < v).sum() + ((values == v).sum() + 1) / 2 for v in values]

    a, b = np.array(ranks(one)), np.array(ranks(other))
    value = spearman(one, other)
    if a.std() == 0 or b.std() == 0:
        assert np.isnan(value)
    else:
        assert value == pytest.approx(((a - a.mean()) * (b - b.mean())).mean() / a.std() / b.std())
