"""Which pairs the rounds of `annotate.mix` chose, on disk, and which it will ask about.

In: a `Run`, the panel, the training pairs' ids. Out: lists of ids. Invariant: they stand under a
key of all that decides a choice, so other settings begin anew.
"""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq

from sp2dpo_ray.config.distill import MixSection
from sp2dpo_ray.core.artifact import write_atomically
from sp2dpo_ray.core.files import TRAIN
from sp2dpo_ray.core.hashing import sha256_hex
from sp2dpo_ray.distill.choice import at_random
from sp2dpo_ray.run import Run
from sp2dpo_ray.stages.panel import PanelWork, panel_of

STATE = ".mix"
FOLDER, ROUNDS = "mix", "rounds.json"


def key_of(run: Run, panel: PanelWork, ids: list[str]) -> str:
    """Of the configuration that decides the rounds and their predictor."""
    config = run.config
    assert config.annotate.mix is not None
    return sha256_hex(
        [panel.settings, config.annotate.mix.model_dump(mode="json"),
         config.distill.of_predictor, ids]
    )  # fmt: skip


def rounds_on_disk(run: Run, panel: PanelWork, ids: list[str]) -> list[list[str]]:
    """What has been chosen so far."""
    path = _state(run, panel, ids)
    rounds: list[list[str]] = json.loads(path.read_text("utf-8")) if path.exists() else []
    return rounds


def keep_rounds(run: Run, panel: PanelWork, ids: list[str], rounds: list[list[str]]) -> None:
    """Put them on disk, before the first of them is asked about."""
    path = _state(run, panel, ids)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(rounds))


def share_of(mix: MixSection, ids: list[str]) -> int:
    """How many pairs all rounds ask about."""
    return max(1, round(mix.share * len(ids)))


def to_be_asked(run: Run, panel: PanelWork, ids: list[str]) -> set[str]:
    """The pairs of the rounds so far; later rounds' are not known, so as many at random."""
    mix = run.config.annotate.mix
    assert mix is not None
    asked = {name for part in rounds_on_disk(run, panel, ids) for name in part}
    rest = [name for name in ids if name not in asked]
    count = max(0, share_of(mix, ids) - len(asked))
    return asked | {rest[row] for row in at_random(rest, count, mix.seed)}


def panel_to_ask(run: Run) -> PanelWork:
    """The panel for estimates: twins are asked once, and of a mix the pairs that rounds chose."""
    panel = panel_of(run)
    if run.config.annotate.mix is not None:
        ids = pq.read_table(run.pairs_file(TRAIN), columns=["prompt_id"])["prompt_id"].to_pylist()
        panel = panel.only(to_be_asked(run, panel, ids), ids)
    return panel.without_twins()


def first_round(run: Run) -> list[str] | None:
    """The pairs that were drawn at random, where a mix made the annotations; else None."""
    path = run.path(FOLDER, ROUNDS)
    if run.config.annotate.mix is None or not path.exists():
        return None
    first: list[str] = json.loads(path.read_text("utf-8"))[0]
    return first


def _state(run: Run, panel: PanelWork, ids: list[str]) -> Path:
    return run.path(STATE, f"{key_of(run, panel, ids)[:16]}.json")
