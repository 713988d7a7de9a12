"""Teachers of a world: what they tell of a pair, from its truth and their own faults.

In: pairs with their truth. Out: the schedule that the project makes of such annotations, by the
same functions that make a real one. Invariant: a teacher sees truth only through its row of PANELS.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from sp2dpo_ray.core.annotation import Outcome
from sp2dpo_ray.core.schedule.columns import tables_of
from sp2dpo_ray.core.schedule.grid import OUTCOMES, Grid, Panel
from sp2dpo_ray.core.schedule.recipe import Recipe
from sp2dpo_ray.core.taxonomy import CODE
from sp2dpo_ray.lab.world import MOST_FLOURISHES, Floats, WorldPair

RECIPE = Recipe(Panel(("one", "two", "three"), ("v1", "v2", "v3")))
SURENESS = 5.0  # how fast confidence grows with the gap that a teacher believes in


@dataclass(frozen=True, slots=True)
class Seeing:
    """belief: the gap that a panel believes in, of true gaps and differences in length. teachers,
    calls: standard deviation of each teacher's and each call's own error."""

    belief: Callable[[Floats, Floats, np.random.Generator], Floats]
    teachers: float = 0.2
    calls: float = 0.15


PANELS: dict[str, Seeing] = {
    "able": Seeing(lambda gap, longer, draw: gap),
    "blind": Seeing(lambda gap, longer, draw: draw.uniform(-1, 1, len(gap))),
    "fooled": Seeing(lambda gap, longer, draw: longer / MOST_FLOURISHES),
    "inverted": Seeing(lambda gap, longer, draw: -gap),
}


def schedule_of(pairs: Sequence[WorldPair], panel: str, ids: list[str], seed: int) -> pa.Table:
    """All columns of a schedule for these pairs, diagnostics included; rows in the order of ids."""
    seeing, draw = PANELS[panel], np.random.default_rng([seed, 77])
    shape = (len(pairs), len(RECIPE.panel.teachers), len(RECIPE.panel.variants))
    gap = np.array([pair.gap for pair in pairs])
    longer = np.array([pair.longer for pair in pairs], dtype=np.float64)
    believed = (
        seeing.belief(gap, longer, draw)[:, None, None]
        + draw.normal(0, seeing.teachers, (shape[0], shape[1], 1))
        + draw.normal(0, seeing.calls, shape)
    )
    category = np.array([CODE[pair.kind] for pair in pairs], dtype=np.int8)
    grid = Grid(
        pa.array(ids),
        np.broadcast_to(category[:, None, None], shape),
        np.clip(np.abs(believed), 0, 1),
        1 / (1 + np.exp(-SURENESS * believed)),  # that the label is the right way round
        np.full(shape, OUTCOMES.index(Outcome.OK), dtype=np.int8),
        np.full(shape, -1, dtype=np.int16),
    )
    table, beside = tables_of(grid, RECIPE.fitted(grid))
    for name in beside.column_names[1:]:
        table = table.append_column(name, beside[name])
    return table
