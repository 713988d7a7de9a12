"""Rules about the arms that a configuration names.

In: names of arms, and what of the configuration they must fit. Out: nothing. Invariant: an arm that
could not be trained, or only with betas of another scale, is refused before anything is paid.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from sp2dpo_ray.config.training import TrainSection
from sp2dpo_ray.core.arms import parse_arm
from sp2dpo_ray.core.methods import METHODS
from sp2dpo_ray.core.schedule.columns import reserved_columns
from sp2dpo_ray.core.schedule.recipe import Recipe
from sp2dpo_ray.errors import ConfigError


def check_arm(where: str, name: str, teachers: Sequence[str], variants: Sequence[str]) -> None:
    """ValueError for a name that is no arm, or one of another panel."""
    try:
        parse_arm(name)
    except ConfigError as error:
        raise ValueError(f"{where}: {error}") from None
    parts = re.split(r"[@+/]", name)[0].split("-")
    unknown = {
        "sa": lambda: parts[1] not in teachers or parts[2] not in variants,
        "se": lambda: parts[1] not in teachers,
        "ma": lambda: parts[1] not in variants,
    }.get(parts[0], lambda: False)()
    if unknown:
        raise ValueError(
            f"{where}: arm {name!r} is not of this panel: teachers {teachers}, variants {variants}"
        )


def check_betas(where: str, name: str, recipe: Recipe) -> None:
    """ValueError for an arm whose map or column this recipe does not give."""
    arm = parse_arm(name)
    try:
        arm.bounds(recipe)
    except ConfigError as error:
        raise ValueError(f"{where}: {name}: {error}") from None
    columns = reserved_columns(recipe.panel) | {row.column for row in recipe.estimators}
    if arm.column is not None and arm.column not in columns:
        raise ValueError(
            f"{where}: {name}: the schedule will have no column of betas {arm.column!r}; it has "
            f"{sorted(columns)}"
        )


def check_exported(where: str, name: str) -> None:
    """ValueError for an arm that is more than betas: another trainer could not know the rest."""
    arm = parse_arm(name)
    row = METHODS[arm.method or TrainSection.model_fields["loss"].default]
    for what, there in (
        ("selects pairs", arm.selection is not None),
        ("weighs pairs", row.weighted),
        ("moves betas while it trains", row.prior),
    ):
        if there:
            raise ValueError(
                f"{where}: {name} {what}, and a data set holds betas alone; name the arm without it"
            )


def check_loss(where: str, name: str, loss: str) -> None:
    """An arm that names no method is held to what it would be if it named `train.loss`."""
    if parse_arm(name).method or loss == TrainSection.model_fields["loss"].default:
        return
    named = re.sub(r"^[^@/]+", rf"\g<0>+{loss}", name)
    try:
        arm = parse_arm(named)
    except ConfigError as error:
        raise ValueError(f"{where}: {name} under train.loss {loss}: {error}") from None
    if arm.mean is not None:
        raise ValueError(
            f"{where}: {name} has betas of sums over tokens, train.loss {loss} takes means; name "
            f"the arm {named}, which brings them to its scale"
        )


def check_alike(names: Iterable[str]) -> None:
    """ValueError for two names of one arm: it would be trained twice."""
    seen: dict[Any, str] = {}
    for name in names:
        other = seen.setdefault(parse_arm(name).what, name)
        if other != name:
            raise ValueError(f"sweep.arms: {other!r} and {name!r} are the same arm")
