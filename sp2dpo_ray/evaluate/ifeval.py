"""IFEval by the checkers of lm-eval: prompts and instructions, strict and loose.

In: prompts with their instructions, a model's answers. Out: the four accuracies. Invariant: nothing
is downloaded, and the two checkers that draw at random (a letter that is none, a language) draw the
same for the same prompt, wherever it stands.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sp2dpo_ray.evaluate.items import (
    Answers,
    Item,
    Result,
    installed,
    read_lines,
    whole,
)

# our wording of the paper's wrapper for this benchmark (Prompt F.3)
SYSTEM = (
    "Work carefully and briefly. Keep to every rule that the request states, to the letter: words "
    "that must appear appear as written, words that must not appear do not, and a required form "
    "(JSON, number of lines, items or words, letter case) is met exactly. Add nothing that was not "
    "asked for."
)
PUNKT_FILES = ("collocations.tab", "sent_starters.txt", "abbrev_types.txt", "ortho_context.tab")
SEED = 0


def read_items(path: Path) -> list[Item]:
    return [
        Item(
            str(row["key"]),
            (row["prompt"],),
            SYSTEM,
            {"instructions": row["instruction_id_list"], "kwargs": row["kwargs"]},
        )
        for row in read_lines(path)
    ]


def score(items: Sequence[Item], answers: Answers) -> Result:
    """Prompt-level and instruction-level accuracy in percent, strict and loose."""
    whole(items, answers, "ifeval")
    rows = []
    with _checkers() as utils:
        for item in items:
            example = utils.InputExample(
                key=int(item.id) if item.id.isdecimal() else 0,
                instruction_id_list=item.known["instructions"],
                prompt=item.turns[0],
                kwargs=item.known["kwargs"],
            )
            answer = answers[item.id][0]
            found = {}
            for name in ("strict", "loose"):
                random.seed(f"{SEED}:{item.id}")
                check = getattr(utils, f"test_instruction_following_{name}")
                found[name] = list(check(example, answer).follow_instruction_list)
            rows.append({"item": item.id, "instructions": item.known["instructions"], **found})
    figures = {}
    for name in ("strict", "loose"):
        prompts = [all(row[name]) for row in rows]
        single = [each for row in rows for each in row[name]]
        figures[f"prompt_{name}"] = 100 * sum(prompts) / len(prompts)
        figures[f"instruction_{name}"] = 100 * sum(single) / len(single)
    values: dict[str, float | None] = {row["item"]: float(all(row["strict"])) for row in rows}
    empty = sum(not answers[item.id][0].strip() for item in items)
    return Result(figures, values, {"empty": empty}, rows)


@contextmanager
def _checkers() -> Iterator[Any]:
    """lm-eval's checkers, with Punkt's tables from a package instead of a download; the process's
    random state is what it was, afterwards."""
    state = random.getstate()
    with tempfile.TemporaryDirectory(prefix="sp2dpo-punkt-") as root:
        with installed("ifeval"):
            import nltk

            _write_punkt(Path(root))
        nltk.data.path.insert(0, root)
        try:
            with installed("ifeval"):
                from langdetect import DetectorFactory
                from lm_eval.tasks.ifeval import utils

            DetectorFactory.seed = SEED
            yield utils
        finally:
            nltk.data.path.remove(root)
            random.setstate(state)


def _write_punkt(root: Path) -> None:
    import punkt
    from nltk.tabdata import TabEncoder

    folder = root / "tokenizers" / "punkt_tab" / "english"
    folder.mkdir(parents=True)
    tables, encode = punkt.load_model("english"), TabEncoder()
    texts = (
        encode.tups2tab(sorted(tables.collocations)),
        encode.set2txt(sorted(tables.sent_starters)),
        encode.set2txt(sorted(tables.abbrev_types)),
        encode.ivdict2tab(tables.ortho_context),
    )
    for name, text in zip(PUNKT_FILES, texts, strict=True):
        (folder / name).write_text(text, encoding="utf-8")
