"""Every fenced block of the documentation is run, or held to what would read it."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import REPOSITORY
from tests.docs import blocks
from tests.docs.blocks import (
    BLOCKS,
    LANGUAGES,
    NOT_RUN,
    PROGRAMS,
    Block,
    commands_of,
    is_configuration,
    is_pairs,
    of_language,
    why_not_run,
)
from tests.docs.conftest import Place, inside, sp2dpo

DOCS = REPOSITORY / "docs"
RUN = ("", "bash", "python", "text")  # what needs a finished run
RUN_PAGES = sorted({block.page for block in of_language(*RUN)})
NUMBER = re.compile(r"[-+]?\d[\d,.]*(?:e[-+]?\d+)?")
ARM = re.compile(r"\b(jmamp|random|dpo:#)(?= )")
VERDICT = re.compile(r"\b(baseline|better|worse|not told apart)$")
PATH = re.compile(r"`((?:sp2dpo_ray|configs|docs|tests|benchmarks|cluster|jobs)/[\w./-]+)`")
SYMBOL = re.compile(r"`(sp2dpo_ray/[\w/]+\.py)`((?:, `[\w.]+`)+)")
# types of a column in artifacts.md
KINDS = {
    "text": pa.string(),
    "number": pa.float64(),
    "float32": pa.float32(),
    "integer": pa.int64(),
    "truth value": pa.bool_(),
    "list of turns": pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())])),
    "list of integers": pa.list_(pa.int32()),
    "list of texts": pa.list_(pa.string()),
}


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.place)
def test_blocks_are_of_a_known_kind(block: Block, tmp_path: Path) -> None:
    check(block, tmp_path)


def check(block: Block, tmp_path: Path) -> None:
    """Language and programs are known, a configuration is valid, commands parse."""
    assert block.language in LANGUAGES, f"{block.place}: language {block.language!r}"
    if block.language == "yaml":
        is_configuration(block)
    if block.language == "json":
        is_pairs(block, tmp_path)
    if block.language == "python":
        compile(block.text, block.place, "exec")
    if block.language == "bash":
        for program, *arguments in commands_of(block.text):
            assert program in PROGRAMS, f"{block.place}: program {program!r}"
            PROGRAMS[program](arguments)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(1500)  # the run of the fixture counts to the first of them
@pytest.mark.parametrize("page", RUN_PAGES)
def test_what_a_page_says_works(page: str, place: Place) -> None:
    """Its commands and programs run, in their order, and what it shows is what they say."""
    shown = place.log
    with inside(place.folder):
        for block in of_language(*RUN):
            if block.page != page:
                continue
            if block.language == "bash":
                shown += run_commands(block)
            elif block.language == "python":
                run_program(block)
            elif block.language == "text":
                known = {masked(line) for line in shown.splitlines()}
                for line in filter(None, map(masked, block.text.splitlines())):
                    assert line in known, f"{block.place}: nothing says {line!r}"
            else:
                for name in re.findall(r"\b([a-z]+)/", block.text):
                    assert Path("runs/demo", name).is_dir(), f"{block.place}: no folder {name}/"


def run_commands(block: Block) -> str:
    shown = ""
    for program, *arguments in commands_of(block.text):
        if program == "sp2dpo" and why_not_run(arguments) is None:
            code, said = sp2dpo(*arguments)
            assert code == 0, (
                f"{block.place}: sp2dpo {' '.join(arguments)} ends with {code}\n{said}"
            )
            shown += said
    return shown


def run_program(block: Block) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        exec(compile(block.text, block.place, "exec"), {"__name__": block.place})


def masked(line: str) -> str:
    """A line without what differs from run to run: numbers, arms, verdicts, spaces."""
    text = " ".join(NUMBER.sub("#", line).split())
    return VERDICT.sub("VERDICT", ARM.sub("ARM", text))


WRONG = [
    ("bash", "sp2dpo trian mine.yaml", "no command trian"),
    ("bash", "sp2dpo train mine.yaml --sett train.arm=jmamp", "--sett"),
    ("bash", "sp2dpo train mine.yaml --set train.arms=jmamp", "train.arms: unknown key"),
    ("bash", "sp2dpo submit trian mine.yaml", "trian"),
    ("bash", "make demonstration", "the targets are"),
    ("bash", "python benchmarks/train.py --no-such-option", "no option"),
    ("bash", "pip install 'sp2dpo-ray[everything]'", "everything"),
    ("bash", "ray up", "cluster_config_file"),
    ("bash", "curl somewhere", "program 'curl'"),
    ("yaml", "train: {learning_rat: 0.1}", "learning_rat"),
    ("json", '{"chosen": "a"}', "rejected"),
    ("python", "if:", "invalid syntax"),
    ("ruby", "puts 1", "language 'ruby'"),
]


@pytest.mark.parametrize(("language", "text", "said"), WRONG)
def test_a_wrong_block_is_found(language: str, text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(Exception, match=said):
        check(Block("page.md", 1, language, text + "\n"), tmp_path)


def test_an_open_fence_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "REPOSITORY", tmp_path)
    (tmp_path / "page.md").write_text("```bash\nls\n```\n\n```yaml\na: 1\n")
    with pytest.raises(ValueError, match="3 fences make 1 blocks"):
        blocks.blocks_of(tmp_path / "page.md")


def test_exceptions_are_of_use() -> None:
    """A command that is excused from running stands somewhere."""
    lines = [
        " ".join(arguments)
        for block in of_language("bash")
        for program, *arguments in commands_of(block.text)
        if program == "sp2dpo"
    ]
    for start in NOT_RUN:
        assert any(line.startswith(start) for line in lines), start


@pytest.mark.parametrize("page", sorted({b.page for b in BLOCKS} | {"docs/method.md"}))
def test_files_that_are_named_exist(page: str) -> None:
    text = (REPOSITORY / page).read_text()
    for name in PATH.findall(text):
        assert (REPOSITORY / name).exists(), f"{page}: no file {name}"
    for name, symbols in SYMBOL.findall(text):
        source = (REPOSITORY / name).read_text()
        for symbol in re.findall(r"`([\w.]+)`", symbols):
            assert re.search(rf"\b{symbol.split('.')[-1]}\b", source), f"{page}: {symbol}, {name}"


def tables_of_columns() -> list[tuple[str, dict[str, str]]]:
    """(file, column -> type) of each table in artifacts.md."""
    found = []
    for part in (DOCS / "artifacts.md").read_text().split("\n### ")[1:]:
        head, _, rest = part.partition("\n")
        rows = re.findall(r"^\| `([^`]+)` \| ([^|]+) \|", rest.partition("\n## ")[0], re.MULTILINE)
        found += [(name, dict(rows)) for name in re.findall(r"`([^`]+)`", head)]
    return found


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "columns"), tables_of_columns(), ids=lambda value: str(value)[:40]
)
def test_columns_are_those_that_are_written(
    name: str, columns: dict[str, str], place: Place
) -> None:
    with inside(place.folder):
        if not Path("runs/mine", name.split("/")[0]).exists():
            stage = {"export": ["export"], "verdicts": ["audit", "--import", "filled.csv"]}
            command, *more = stage[name.split("/")[0]]
            assert sp2dpo(command, "mine.yaml", *more)[0] == 0
    pattern = re.sub(r"<\w+>", "*", name.replace("<arm>", "jmamp"))
    (path, *_) = (place.folder / "runs" / "mine").glob(pattern)
    schema = pq.read_schema(path)
    left = dict(columns)
    for field in schema:
        rows = [row for row in columns if fits(row, field.name)]
        if not rows and name.startswith("pairs/"):
            continue  # columns of the source
        assert rows, f"artifacts.md: {name} has a column {field.name}"
        assert field.type == KINDS[columns[rows[0]]], f"{name}: {field.name} is {field.type}"
        left.pop(rows[0], None)
    assert not left, f"artifacts.md: {name} has no {list(left)}"


def fits(row: str, name: str) -> bool:
    """Whether a row of the table speaks of a column; a name that is spelt out goes first."""
    pattern = re.sub(r"\\\{(\w+)\\\}", lambda m: PLACES[m[1]], re.escape(row))
    return bool(re.fullmatch(pattern, name))


PLACES = {"t": "(?:alba|bruno|carla)", "v": "v[123]", "estimator": "[a-z_]+"}
