"""AlpacaEval 2 by its own package: its prompts, sides, parsing and both win rates.

In: a model's outputs, the reference's, and the judge's completions. Out: the package's annotations
and figures. Invariant: everything that makes a number is the package's own function; ours are the
calls to the judge and what is checked before them.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from typing import Any

import pandas as pd
from huggingface_hub.errors import LocalEntryNotFoundError

from sp2dpo_ray.core.hashing import sha256_file, sha256_hex
from sp2dpo_ray.core.prompts import Message
from sp2dpo_ray.errors import ConfigError, DataError
from sp2dpo_ray.evaluate.items import Row, installed

CONFIG = "weighted_alpaca_eval_gpt4_turbo"
JUDGE_MODEL = "gpt-4-1106-preview"
GAMED = "df_gamed.csv"
# what the package's configuration sends besides the messages
TEMPERATURE, TOP_P, MAX_TOKENS = 1.0, 1.0, 1
OPTIONS = {"logprobs": True, "top_logprobs": 5}
# a completion that the package's parser takes for "no preference"
NO_ANSWER = {"text": "", "logprobs": {"content": [{"top_logprobs": []}]}, "total_tokens": 0}
INJECTIONS = ("<|im_start|>", "<|im_end|>", "{output_1}", "{output_2}", "{instruction}")


def message_key(messages: list[Message]) -> str:
    return sha256_hex(messages)


@dataclass(frozen=True, slots=True)
class Checked:
    """Outputs that belong to the reference's instructions, and what was odd about them."""

    outputs: list[Row]
    empty: int
    injections: int


def check_outputs(outputs: Sequence[Row], reference: Sequence[Row], where: str) -> Checked:
    """One output for every instruction, in the reference's order.

    Raises DataError for missing, repeated or foreign instructions and for outputs that are no text.
    """
    found: dict[str, Row] = {}
    for row in outputs:
        name = str(row.get("instruction"))[:60]
        if not isinstance(row.get("output"), str):
            raise DataError(f"{where}: the output for {name!r} is no text")
        if row["instruction"] in found:
            raise DataError(f"{where}: the instruction {name!r} stands twice")
        found[row["instruction"]] = row
    wanted = [row["instruction"] for row in reference]
    missing = [name for name in wanted if name not in found]
    foreign = set(found) - set(wanted)
    if missing or foreign:
        first = (missing or sorted(foreign))[0][:60]
        raise DataError(
            f"{where}: {len(missing)} of {len(wanted)} instructions have no output, {len(foreign)} "
            f"outputs belong to none; the first is {first!r}"
        )
    rows = [found[name] for name in wanted]
    return Checked(
        rows,
        sum(not row["output"].strip() for row in rows),
        sum(any(mark in row["output"] for mark in INJECTIONS) for row in rows),
    )


def judge_messages(outputs: Sequence[Row], reference: Sequence[Row]) -> dict[str, list[Message]]:
    """What the judge is asked, by key; identical outputs need no call."""
    asked: dict[str, list[Message]] = {}

    def note(messages: list[Message]) -> Row:
        asked[message_key(messages)] = messages
        return NO_ANSWER

    _annotate(outputs, reference, note)
    return asked


def annotations(
    outputs: Sequence[Row], reference: Sequence[Row], completions: Mapping[str, Row]
) -> list[Row]:
    """The package's annotations from the judge's choices (`choices[0]` of each body) by message
    key; a preference of None where the judge gave none. Rows are in the reference's order."""
    return _annotate(
        outputs, reference, lambda messages: completions.get(message_key(messages), NO_ANSWER)
    )


def read_choice(raw: str) -> Row | None:
    """The judge's choice in a raw body, if it has the log-probabilities that the parser reads."""
    try:
        choice: Row = json.loads(raw)["choices"][0]
        if not choice["logprobs"]["content"][0]["top_logprobs"]:
            return None
    except (ValueError, LookupError, TypeError):
        return None
    return choice | {"text": choice["message"].get("content") or "", "total_tokens": 0}


def figures(rows: Sequence[Row], gamed: Path | None) -> dict[str, float | None]:
    """Win rate and length-controlled win rate, in percent, with their standard errors; None where
    too little was judged, or where all lengths differ by the same and nothing can be controlled.

    rows: annotations with `preference`, `output_1`, `output_2`, `generator_1`, `generator_2`; a row
    without a preference stays in, so that every instruction keeps its place. gamed: a local copy of
    the hub's file of instruction difficulties; None lets the package fetch it.
    """
    table = pd.DataFrame(list(rows))
    table["preference"] = table["preference"].astype(float)
    names = ("length_controlled_winrate", "lc_standard_error")
    if (table["output_1"] == table["output_2"]).all():  # the package knows a baseline by its name
        table["generator_2"] = table["generator_1"]
    elif table["preference"].notna().sum() < 2 or _longer_by(table).nunique() < 2:
        return _plain(table) | dict.fromkeys(names)
    with _quiet(), _local_hub(gamed):
        from alpaca_eval import metrics

        try:
            controlled: dict[str, float] = metrics.get_length_controlled_winrate(
                table.copy(), save_weights_dir=None, is_warn_extreme_changes=False
            )
        except LocalEntryNotFoundError as error:  # neither reached nor cached
            raise ConfigError(
                f"the Hugging Face hub did not give {GAMED} of tatsu-lab/alpaca_eval "
                f"({type(error).__name__}); name a local copy in evaluate.alpaca_eval.gamed"
            ) from error
    return _plain(table) | {name: float(controlled[name]) for name in names}


def _plain(table: pd.DataFrame) -> dict[str, float | None]:
    with _quiet():
        from alpaca_eval import metrics

        found: dict[str, float] = metrics.get_winrate(table.to_dict("records"))
    return {name: None if isnan(value) else float(value) for name, value in found.items()}


def _longer_by(table: pd.DataFrame) -> pd.Series:
    """Difference in length of the two outputs, over the rows that were judged."""
    judged = table[table["preference"].notna()]
    return judged["output_1"].str.len() - judged["output_2"].str.len()


def pins(gamed: Path | None) -> dict[str, str]:
    """What the figures depend on besides the outputs: versions, judge prompt, hub file."""
    from importlib.metadata import version

    with _quiet():
        _, single = _annotator()
    template = sha256_hex(single.prompt_template)
    return {
        "alpaca-eval": version("alpaca-eval"),
        "scikit-learn": version("scikit-learn"),
        "annotators_config": CONFIG,
        "judge_prompt": template,
        GAMED: sha256_file(gamed) if gamed else "from the hub",
    }


def _annotate(
    outputs: Sequence[Row], reference: Sequence[Row], complete: Callable[[list[Message]], Row]
) -> list[Row]:
    def completions(prompts: list[str], **_: Any) -> dict[str, list[Row]]:
        chats = [utils.prompt_to_chatml(prompt.strip()) for prompt in prompts]
        return {"completions_all": [complete(chat) for chat in chats]}

    with _quiet():
        from alpaca_eval import utils

        annotator, single = _annotator()
        single.fn_completions = completions
        rows: list[Row] = annotator.annotate_head2head(
            outputs_1=list(reference), outputs_2=list(outputs), chunksize=None
        )
    return rows


def _annotator() -> tuple[Any, Any]:
    from alpaca_eval.annotators import PairwiseAnnotator

    annotator = PairwiseAnnotator(annotators_config=CONFIG, caching_path=None)
    return annotator, annotator.annotators[CONFIG]


@contextmanager
def _quiet() -> Iterator[None]:
    """The package sets the root logger and scikit-learn's configuration for the whole process."""
    root = logging.getLogger()
    level, disabled = root.level, logging.root.manager.disable
    with installed("alpaca_eval"):
        import alpaca_eval  # noqa: F401  (sets the level when it is imported)
        import sklearn

    before = sklearn.get_config()["enable_metadata_routing"]
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        root.setLevel(level)
        sklearn.set_config(enable_metadata_routing=before)


@contextmanager
def _local_hub(gamed: Path | None) -> Iterator[None]:
    """Give the package a local file where it asks the hub."""
    from alpaca_eval.metrics import glm_winrate

    fetch = glm_winrate.hf_hub_download
    if gamed is not None:
        glm_winrate.hf_hub_download = lambda *_, **__: str(gamed)
    try:
        yield
    finally:
        glm_winrate.hf_hub_download = fetch
