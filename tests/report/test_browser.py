"""The page in a real browser, from a file: charts, the pair browser, verdicts, keys, themes."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sp2dpo_ray.core.schedule.verdicts import read_verdicts
from tests.browsing import Opened, chromium, contrast
from tests.core.schedule.test_columns import annotations
from tests.report.pages import HOSTILE, page_data, written

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of 230 pairs."""
    made = tmp_path_factory.mktemp("report")
    written(page_data(pairs=230), made)
    return made


@pytest.fixture
def opened(browser: Any, folder: Path) -> Iterator[Opened]:
    page = Opened(browser, folder / "index.html")
    page.until("of 230")
    yield page
    assert page.said == []
    assert page.page.title() != "owned"
    # from this folder alone; blobs are downloads
    assert all(url.startswith((folder.as_uri(), "blob:", "data:")) for url in page.asked)
    page.context.close()


def test_every_chart_is_drawn(opened: Opened) -> None:
    assert opened.charts() == 18
    drawn = opened.page.locator(".plotly-graph-div")
    for i in range(drawn.count()):
        box = drawn.nth(i).bounding_box()
        assert box is not None
        assert box["width"] > 250


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_charts_can_be_read(browser: Any, folder: Path, scheme: str) -> None:
    page = Opened(browser, folder / "index.html", color_scheme=scheme)
    page.until("of 230")
    ground = page.page.evaluate("getComputedStyle(document.body).backgroundColor")
    inks = page.page.evaluate(
        """() => [".xtick text", ".ytick text", ".xtitle", ".ytitle", ".legendtext"].map((name) =>
          [name, [...new Set([...document.querySelectorAll(`.js-plotly-plot ${name}`)]
            .map((text) => getComputedStyle(text).fill))]])"""
    )
    for name, colours in inks:
        assert colours, name
        assert all(contrast(colour, ground) >= 4.5 for colour in colours), (name, colours)
    page.context.close()


def test_filters_leave_the_pairs_that_they_name(opened: Opened, folder: Path) -> None:
    data = page_data(pairs=230)
    table = data.schedule.to_pylist()
    page = opened.page
    page.select_option("#order", "-beta")
    page.select_option("#category", "Safety")
    wanted = [row for row, pair in enumerate(table) if pair["category"] == "Safety"]
    opened.until(f"of {len(wanted)}")
    betas = [round(table[row]["beta_annotators_mean_ens"], 4) for row in opened.found()]
    assert betas == sorted(betas, reverse=True)
    assert set(opened.found()) <= set(wanted)
    page.fill("#beta-low", "0.12")
    high = [row for row in wanted if round(table[row]["beta_annotators_mean_ens"], 4) >= 0.12]
    opened.until(f"of {len(high)}")
    page.click("#filters button[type=reset]")
    opened.until("of 230")
    page.select_option("#list", "conflict")
    listed = sum("conflict" in why.split() for why in data.listed.values())
    opened.until(f"of {listed}")


def test_search_finds_ids_heads_and_whole_texts(opened: Opened) -> None:
    page = opened.page
    wanted = page_data(pairs=230).schedule["prompt_id"].to_pylist()[217]
    page.fill("#search", wanted)
    opened.until("1 to 1 of 1")
    assert opened.found() == [217]
    page.fill("#search", "no such words")
    opened.until("no pair like that")
    page.fill("#search", "onload=alert(1)")
    page.check("#whole")  # the pieces are loaded, one after the other
    opened.until("of 230")


def test_hostile_text_is_shown_and_does_nothing(opened: Opened) -> None:
    opened.page.locator("#found button").first.click()
    text = opened.page.locator("#pair .text").first
    assert text.inner_text() == HOSTILE
    assert opened.page.locator("#pair script, #pair img, #pair svg").count() == 0


def test_verdicts_are_exported_as_import_reads_them(opened: Opened, tmp_path: Path) -> None:
    page = opened.page
    page.select_option("#list", "*")
    opened.until(f"of {len(page_data(pairs=230).listed)}")
    first, second, third = opened.found()[:3]
    ids = page_data(pairs=230).schedule["prompt_id"].to_pylist()
    assert page.locator("#export").is_disabled()
    page.keyboard.press("j")
    page.locator(".judging").wait_for()
    assert page.locator("#panel").count() == 0  # a person's own word comes first
    page.keyboard.press("1")
    page.locator("#panel").wait_for()
    page.fill(".judging input", '=a "quoted", formula')
    page.locator(".judging input").blur()
    page.keyboard.press("j")
    page.locator(f"#found [data-row='{second}'][aria-current]").wait_for()
    page.locator("[data-verdict=rejected]").click()
    page.select_option(".judging select", "Style")
    page.keyboard.press("j")
    page.locator(f"#found [data-row='{third}'][aria-current]").wait_for()
    page.keyboard.press("3")
    page.locator("[data-verdict=tie][aria-pressed=true]").wait_for()
    page.keyboard.press("0")  # taken back
    page.locator("[data-verdict=tie][aria-pressed=false]").wait_for()
    with page.expect_download() as download:
        page.click("#export")
    sheet = tmp_path / "verdicts.csv"
    download.value.save_as(sheet)
    found = [(v.prompt_id, v.verdict, v.category) for v in read_verdicts(sheet)]
    assert found == [(ids[first], "chosen", None), (ids[second], "rejected", "Style")]
    with sheet.open(newline="") as file:
        assert next(csv.DictReader(file))["note"] == '\'=a "quoted", formula'
    page.reload()  # this browser has kept them
    opened.until("of 230")
    assert page.locator("#judged-count").inner_text() == "2 judged"
    page.select_option("#list", "judged")
    opened.until("of 2")


def test_pairs_that_are_not_listed_take_no_verdict(opened: Opened) -> None:
    opened.page.select_option("#order", "beta")
    listed = set(page_data(pairs=230).listed)
    ids = page_data(pairs=230).schedule["prompt_id"].to_pylist()
    row = next(row for row in opened.found() if ids[row] not in listed)
    opened.page.locator(f"#found [data-row='{row}']").click()
    opened.page.locator("#panel").wait_for()
    opened.page.keyboard.press("1")
    assert opened.page.locator(".judging").count() == 0
    assert opened.page.locator("#export").is_disabled()


def test_pages_turn_and_the_search_is_a_key_away(opened: Opened) -> None:
    page = opened.page
    before = opened.found()
    page.keyboard.press("n")
    opened.until("51 to 100 of 230")
    assert not set(before) & set(opened.found())
    page.keyboard.press("p")
    assert opened.found() == before
    page.keyboard.press("/")
    page.keyboard.type("njk1")  # letters are letters there
    assert page.input_value("#search") == "njk1"


def test_another_pair_begins_at_its_top(opened: Opened) -> None:
    page = opened.page
    first, second = opened.found()[:2]
    page.locator(f"#found [data-row='{first}']").click()
    page.locator("#pair .sides").wait_for()
    page.add_style_tag(content="#pair { height: 200px }")
    scrolled = "document.getElementById('pair').scrollTop"
    page.evaluate(scrolled + " = 150")
    page.keyboard.press("d")  # the same pair again: the reader stays where they are
    page.wait_for_function("!document.getElementById('differences').checked")
    assert page.evaluate(scrolled) > 0
    page.locator(f"#found [data-row='{second}']").click()
    page.wait_for_function(scrolled + " === 0")


def test_on_a_narrow_screen_the_opened_pair_comes_into_view(browser: Any, folder: Path) -> None:
    narrow = Opened(browser, folder / "index.html", viewport={"width": 800, "height": 700})
    narrow.until("of 230")
    narrow.page.locator("#found button").first.click()
    narrow.page.locator("#pair .sides").wait_for()
    top = narrow.page.locator("#pair").bounding_box()
    assert top is not None
    assert 0 <= top["y"] < 100
    narrow.context.close()


def test_the_focus_outlives_every_new_rendering(opened: Opened) -> None:
    page = opened.page
    page.select_option("#list", "*")
    opened.until(f"of {len(page_data(pairs=230).listed)}")
    first, second = opened.found()[:2]
    focused = "document.activeElement.matches('{}')"
    page.locator("#found button").first.focus()
    page.keyboard.press("j")  # from the list: it stays there, on the opened pair
    page.locator("#pair .judging").wait_for()
    page.keyboard.press("j")
    page.wait_for_function(focused.format(f'#found [data-row="{second}"]'))
    page.locator(f"#found [data-row='{first}']").focus()
    page.keyboard.press("Enter")
    page.wait_for_function(focused.format("#pair"))  # into the pair
    page.locator("[data-verdict=tie]").focus()
    page.keyboard.press("Enter")
    page.wait_for_function(focused.format("[data-verdict=tie][aria-pressed=true]"))
    page.locator("#differences").focus()
    page.keyboard.press("Space")
    page.wait_for_function(focused.format("#differences:not(:checked)"))


def test_ids_are_found_whatever_their_letters(browser: Any, tmp_path: Path) -> None:
    rows = [row | {"prompt_id": row["prompt_id"].upper()} for row in annotations(8)]
    written(page_data(rows), tmp_path)
    page = Opened(browser, tmp_path / "index.html")
    page.until("of 8")
    for whole in (False, True):
        page.page.set_checked("#whole", whole)
        for text in ("ID-3", "id-3"):
            page.page.fill("#search", "")
            page.until("of 8")
            page.page.fill("#search", text)
            page.until("1 to 1 of 1")
            assert page.found() == [3]
    page.context.close()


def test_a_note_without_a_verdict_is_counted_as_not_exported(opened: Opened) -> None:
    page = opened.page
    page.select_option("#list", "*")
    opened.until(f"of {len(page_data(pairs=230).listed)}")
    for place, verdict in enumerate((None, "1")):
        page.locator("#found button").nth(place).click()
        page.locator("#pair .judging").wait_for()
        if verdict is None:
            page.fill(".judging input", "odd")
            page.locator(".judging input").blur()
            said = "1 with a note or a category but no verdict: not exported"
        else:
            page.locator("[data-verdict=chosen]").click()
            said = "1 judged; 1 more with a note or a category but no verdict: not exported"
        page.locator("#judged-count", has_text=said).wait_for(timeout=5_000)
        assert page.locator("#judged-count").inner_text() == said


def test_on_a_phone_the_parts_of_the_page_cover_nothing(browser: Any, folder: Path) -> None:
    kind = "getComputedStyle(document.querySelector('nav')).position"
    for width, wanted in ((400, "static"), (900, "sticky")):
        page = Opened(browser, folder / "index.html", viewport={"width": width, "height": 700})
        assert page.page.evaluate(kind) == wanted
        page.context.close()


def test_the_reader_chooses_light_or_dark(browser: Any, folder: Path) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    dark = Opened(browser, folder / "index.html", color_scheme="dark")
    light = Opened(browser, folder / "index.html", color_scheme="light")
    grounds = [opened.page.evaluate(ground) for opened in (dark, light)]
    assert grounds[0] != grounds[1]
    dark.page.click("#theme")
    assert dark.page.evaluate(ground) == grounds[1]
    dark.page.reload()
    assert dark.page.evaluate(ground) == grounds[1]
    dark.context.close()
    light.context.close()


def test_a_page_without_its_pairs_says_so(browser: Any, folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "index.html", tmp_path)
    alone = Opened(browser, tmp_path / "index.html")
    alone.page.get_by_text("copy the whole folder").wait_for()
    assert alone.found() == []
    alone.context.close()


DIFFERENCES = [
    ("the cat sat", "the dog sat", ["cat"], ["dog"]),
    ("a b c", "a b c", [], []),
    ("one two", "", ["one two"], []),
    ("b c d e", "a b c d", [" e"], ["a "]),
]


@pytest.mark.parametrize(("one", "other", "only_one", "only_other"), DIFFERENCES)
def test_what_only_one_text_has_is_marked(
    opened: Opened, one: str, other: str, only_one: list[str], only_other: list[str]
) -> None:
    marked = """([one, other]) => {
      const a = sp2dpo.words(one), b = sp2dpo.words(other), both = sp2dpo.common(a, b);
      return [[a, both[0]], [b, both[1]]].map(([tokens, shared]) =>
        [...sp2dpo.marked(tokens, shared).querySelectorAll("mark")].map((m) => m.textContent));
    }"""
    assert opened.page.evaluate(marked, [one, other]) == [only_one, only_other]


def test_what_is_unmarked_is_the_same_in_both(opened: Opened) -> None:
    """The unmarked tokens of both texts are one longest common subsequence."""
    assert opened.page.evaluate(
        """() => {
          let seed = 7;
          const draw = (n) => { seed = (seed * 1103515245 + 12345) % 2147483648; return seed % n; };
          const longest = (a, b) => {
            let row = new Array(b.length + 1).fill(0);
            for (const x of a) {
              const now = [0];
              b.forEach((y, j) => now.push(x === y ? row[j] + 1 : Math.max(row[j + 1], now[j])));
              row = now;
            }
            return row[b.length];
          };
          for (let trial = 0; trial < 300; trial++) {
            const text = () => Array.from({ length: draw(14) }, () => "abc"[draw(3)]);
            const a = text(), b = text(), [inA, inB] = sp2dpo.common(a, b);
            const left = a.filter((_, i) => inA[i]), right = b.filter((_, i) => inB[i]);
            if (left.join("") !== right.join("") || left.length !== longest(a, b)) return [a, b];
          }
          return "all";
        }"""
    ) == "all"  # fmt: skip
