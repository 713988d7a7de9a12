"""The testbed as a command: every arm in worlds whose truth is known.

In: names of worlds and arms, a number of seeds, changes to the worlds. Out: a folder with the
table, the figure, and one file a trial. Invariant: the folder says all that it was made with, and a
second call runs only what is missing.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, fields, replace
from pathlib import Path

import yaml

from sp2dpo_ray.console import say
from sp2dpo_ray.core.arms import parse_arm
from sp2dpo_ray.core.artifact import write_atomically
from sp2dpo_ray.core.methods import METHODS
from sp2dpo_ray.errors import ConfigError
from sp2dpo_ray.lab.figure import draw
from sp2dpo_ray.lab.launch import Plan, run_trials
from sp2dpo_ray.lab.panel import PANELS
from sp2dpo_ray.lab.table import Row, markdown, rows_of
from sp2dpo_ray.lab.world import WORLDS, World
from sp2dpo_ray.run import Summary

ARMS = (
    "dpo:0.01", "dpo:0.03", "dpo:0.1", "dpo:0.3", "jmamp", "jmamp+hybrid", "matched-constant",
    "shuffled", "random", "geometric:0.3", "cdpo:0.1",
)  # fmt: skip
SEEDS = 8
TRIALS, TABLE, TEXT, FIGURE = "trials", "table.json", "table.md", "figure.svg"


def lab(
    folder: Path,
    worlds: tuple[str, ...] = (),
    arms: tuple[str, ...] = (),
    seeds: int = SEEDS,
    changes: tuple[str, ...] = (),
) -> Summary:
    """Run the testbed; names that are not given mean all of them."""
    start = time.perf_counter()
    plan = plan_of(worlds, arms, seeds, changes)
    rows = rows_of(run_trials(plan, folder / TRIALS))
    titles = {world.name: world.title for world in plan.worlds}
    text = markdown(rows, titles)
    write_atomically(folder / TEXT, text)
    table = {"worlds": [asdict(world) for world in plan.worlds], "rows": [asdict(r) for r in rows]}
    write_atomically(folder / TABLE, json.dumps(table, indent=2) + "\n")
    if any(row.gain for row in rows):
        draw(rows, titles, folder / FIGURE)
    for row in rows:
        if row.gain:
            say(f"lab {row.world}: {_sentence(row)}")
    return {
        "folder": str(folder),
        "trials": len(plan.worlds) * len(plan.seeds),
        "arms": len(plan.arms),
        "rows": table["rows"],
        "seconds": time.perf_counter() - start,
    }


def plan_of(
    worlds: tuple[str, ...], arms: tuple[str, ...], seeds: int, changes: tuple[str, ...]
) -> Plan:
    """The plan; ConfigError for a name or a value that does not exist."""
    unknown = [name for name in worlds if name not in WORLDS]
    if unknown:
        raise ConfigError(f"lab: worlds {unknown} are unknown; there are {list(WORLDS)}")
    names = arms or ARMS
    alike: dict[object, str] = {}
    for name in names:
        arm = parse_arm(name)
        if arm.seed is not None:
            raise ConfigError(f"lab: arm {name!r} names a seed; --seeds says how many there are")
        row = METHODS[arm.method] if arm.method else None
        if arm.selection or (row and (row.weighted or row.tokens)):
            raise ConfigError(
                f"lab: arm {name!r} selects or weighs pairs or counts tokens, which the worlds do "
                "not know; sweep trains it on pairs of your own"
            )
        if alike.setdefault(arm.what, name) != name or names.count(name) > 1:
            raise ConfigError(f"lab: {alike[arm.what]!r} and {name!r} are the same arm")
    new = dict(_change(text) for text in changes)
    chosen = tuple(replace(WORLDS[name], **new) for name in worlds or WORLDS)
    for world in chosen:
        _check(world)
    return Plan(chosen, tuple(range(seeds)), tuple(names))


def _change(text: str) -> tuple[str, object]:
    name, given, value = text.partition("=")
    known = [field.name for field in fields(World) if field.name not in ("name", "title")]
    if not given or name not in known:
        raise ConfigError(f"lab: --set {text!r}: must be one of {known}, as in noise=0.4")
    return name, yaml.safe_load(value)


def _check(world: World) -> None:
    for name in ("noise", "taste", "unsafe", "length_bias"):
        value = getattr(world, name)
        if not (isinstance(value, int | float) and 0 <= value <= 1):
            raise ConfigError(f"lab: {name} must be a share from 0 to 1, got {value!r}")
    if world.taste + world.unsafe > 1:
        raise ConfigError(
            f"lab: taste and unsafe are shares of the same pairs; {world.taste:g} and "
            f"{world.unsafe:g} are more than 1"
        )
    if world.panel not in PANELS:
        raise ConfigError(f"lab: panel {world.panel!r} is unknown; there are {list(PANELS)}")
    for name in ("pairs", "prompts"):
        if not (isinstance(getattr(world, name), int) and getattr(world, name) >= 8):
            raise ConfigError(f"lab: {name} must be a whole number from 8 on")


def _sentence(row: Row) -> str:
    assert row.gain is not None
    gain, low, high = (100 * value for value in (row.gain.mean, row.gain.low, row.gain.high))
    return f"{row.arm} {row.verdict}, {gain:+.1f} points ({low:+.1f} to {high:+.1f})"
