"""Another way from gap to beta: a new map, a new damping, and an estimator made of known parts.

You learn: that a map is a function and a row of SHAPES, a damping one of DAMPING, an estimator only
data; which rules each must keep; and how to see what it would do to a schedule before it is used.
Run as: python examples/a_new_mapping.py
In: bundled pairs, a panel of fixed rules asked in this process. Out: figures of the schedule under
each on stdout; no key, no network, no Ray, nothing is written.

An estimator needs no code: the last one below is, in a configuration,
    ensemble: {estimators: [{name: careful, over_teachers: huber, damping: exp, damping_lambda: 6}]}
For the other two, the rows that are set at run time here become rows of the package:

    core/schedule/mapping.py   `smoothstep` in SHAPES, with its parameters, if any, which are
                               fields of BetaMap, and how the data card tells them
    core/schedule/ensemble.py  `square` in DAMPING
    config/schedule.py         both names, in `MappingSection.shape` (parameters are keys beside
                               it) and in `EstimatorSection.damping`
    tests/core/schedule/       test_mapping.py and test_estimators.py: the rules that `check` holds

A row that is not in the package is known to this process alone: `verify` computes every beta again
and refuses a schedule whose map it does not know.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pyarrow as pa

from sp2dpo_ray.config import DecodingSection, TeacherSection
from sp2dpo_ray.core.annotation import read_answer
from sp2dpo_ray.core.calls import calls_of
from sp2dpo_ray.core.pairs import Pair, read_pairs
from sp2dpo_ray.core.prompts import load_prompts
from sp2dpo_ray.core.schedule.build import build_schedule
from sp2dpo_ray.core.schedule.columns import DEFAULT_BETA
from sp2dpo_ray.core.schedule.ensemble import DAMPING, Floats
from sp2dpo_ray.core.schedule.estimators import Estimator
from sp2dpo_ray.core.schedule.grid import Panel
from sp2dpo_ray.core.schedule.mapping import SHAPES, BetaMap, Shape
from sp2dpo_ray.core.schedule.reading import ANNOTATION_SCHEMA
from sp2dpo_ray.core.schedule.recipe import Recipe
from sp2dpo_ray.core.sources import read_source
from sp2dpo_ray.teachers.base import identity
from sp2dpo_ray.teachers.catalogue import make_teacher

PAIRS = Path(__file__).parents[1] / "configs" / "demo" / "pairs.jsonl"
PERSONAS = {"alba": "balanced", "bruno": "strict", "carla": "generous"}
VARIANTS = ("v1", "v2", "v3")


def smoothstep(_: BetaMap, gap: Floats) -> Floats:
    """Flat at both ends, steepest in the middle: 3 g^2 - 2 g^3. The gap is in [0, 1] already."""
    return np.asarray(gap * gap * (3 - 2 * gap))


def square(u: Floats, strength: float) -> Floats:
    """What is left of a gap at a disagreement of u: little is forgiven, much is not."""
    return np.asarray(1 / (1 + (strength * u) ** 2))


SHAPES["smoothstep"] = Shape(smoothstep)
DAMPING["square"] = square


def check(map_: BetaMap) -> None:
    """The invariant of every map: never falls, ends at both ends of the envelope, keeps NaN."""
    beta = map_(np.linspace(0, 1, 10_001))
    assert (np.diff(beta) >= 0).all()
    assert (beta[0], beta[-1]) == (map_.beta_min, map_.beta_max)
    assert np.isnan(map_(np.array([np.nan]))).all()


async def annotations(pairs: list[Pair]) -> pa.Table:
    """What `annotate` would write, asked here one call after another."""
    decoding, rows = DecodingSection(), []
    for name, persona in PERSONAS.items():
        section = TeacherSection(
            name=name, provider="offline", model="rules", options={"persona": persona}
        )
        teacher, who = make_teacher(section, decoding), (identity(section, decoding),)
        for call in (call for p in pairs for call in calls_of(p, who, load_prompts(VARIANTS))):
            answer = read_answer((await teacher.ask(call)).text or "").annotation
            assert answer is not None
            rows.append(
                {
                    "prompt_id": call.prompt_id, "split": "train", "teacher": name,
                    "variant": call.variant, "outcome": "ok", "category": str(answer.category),
                    "magnitude": answer.magnitude, "confidence": answer.confidence,
                }
            )  # fmt: skip
    return pa.Table.from_pylist(rows, schema=ANNOTATION_SCHEMA)


def main() -> None:
    check(BetaMap(shape="smoothstep"))
    assert (np.diff(square(np.linspace(0, 1, 101), 8.0)) < 0).all()

    table = read_source(str(PAIRS), split=None, revision=None)
    said = asyncio.run(annotations([pair for pair in read_pairs(table) if isinstance(pair, Pair)]))
    estimators = (
        Estimator("smooth", mapping=BetaMap(shape="smoothstep")),
        Estimator("squared", damping="square", damping_lambda=8.0),
        Estimator("careful", over_teachers="huber", damping="exp", damping_lambda=6.0),
    )
    made = build_schedule(said, Recipe(Panel(tuple(PERSONAS), VARIANTS), estimators=estimators))
    usual = made.table[DEFAULT_BETA].to_numpy()
    print(f"{len(usual)} pairs; the default: mean {usual.mean():.4f}, std {usual.std():.4f}")
    for row in estimators:
        beta = made.diagnostics[row.column].to_numpy()
        moved = int(np.abs(beta - usual).argmax())
        print(
            f"{row.name}: mean {beta.mean():.4f}, std {beta.std():.4f}; moves most "
            f"{made.table['prompt_id'][moved]}: {usual[moved]:.4f} -> {beta[moved]:.4f}"
        )


if __name__ == "__main__":
    main()
