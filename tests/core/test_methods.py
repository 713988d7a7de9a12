"""The catalogue: its arms by name, what goes together, and what is refused by name."""

from __future__ import annotations

import pytest

from sp2dpo_ray.core.arms import parse_arm
from sp2dpo_ray.core.methods import MEAN, METHODS, Verified, options_of
from sp2dpo_ray.errors import ConfigError


@pytest.mark.parametrize(
    ("name", "method", "constant", "column"),
    [
        ("simpo", "simpo", 2.0, None),
        ("simpo:2.5", "simpo", 2.5, None),
        ("repo", "repo", 1.0, None),
        ("ipo:0.1", "ipo", 0.1, None),
        ("cal_dpo", "cal_dpo", 0.002, None),
        ("jmamp+hinge", "hinge", None, "beta_annotators_mean_ens"),
        ("se-qwen+robust", "robust", None, "beta_qwen_ens"),
        ("dpo:0.2+cdpo", "cdpo", 0.2, None),
        ("column:beta_careful+focal@3", "focal", None, "beta_careful"),
        ("dpo:0.2", None, 0.2, None),
        ("jmamp+amapo", "amapo", None, "beta_annotators_mean_ens"),
        ("dpo:0.2+madpo/dual-margin:0.3@3", "madpo", 0.2, None),
    ],
)
def test_names(name: str, method: str | None, constant: float | None, column: str | None) -> None:
    arm = parse_arm(name)
    assert (arm.name, arm.method, arm.constant, arm.column) == (name, method, constant, column)
    assert arm.seed == (3 if "@" in name else None)
    assert "/" not in arm.folder
    assert ":" not in arm.folder


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("simpo:0.1", r"simpo multiplies beta with log-ratios per token; beta 0\.1 is not within"),
        ("hinge:5", r"hinge multiplies beta with log-ratios summed over tokens; beta 5 is not"),
        ("dpo:5+hinge", "beta 5 is not within"),
        ("jmamp+simpo:0.1", r"per token; beta 0\.1 is not within"),
        ("jmamp+hinge:2", "only a schedule's betas with a method of log-ratios per token"),
        ("dpo:0.1+hybrid", "hybrid begins with a schedule's betas, and dpo:0.1 has one for all"),
        ("hybrid:0.1", r"begins with a schedule's betas: jmamp\+hybrid"),
        ("geometric:0.1+hybrid", "has bounds of its own"),
        ("jmamp/easiest", "no selection 'easiest'; there are"),
        ("jmamp/random:1.5", "the share must be above 0 and at most 1"),
        ("map:beta_top=1", "must be key=value, each key once"),
        ("map:exponent=2,exponent=3", "each key once"),
        ("geometric:0", "beta must be positive"),
        ("jmamp+repo", "repo knows no beta"),
        ("repo:2", "repo knows no beta; its name is repo"),
        ("hinge", r"which beta\? hinge:0\.1, or a schedule's: jmamp\+hinge"),
        ("jmamp+dpo", "is unknown"),
        ("hinge+ipo", "is unknown"),
        ("jmamp@x", "a seed is a whole number, as in jmamp@1"),
        ("hinge:0", r"beta 0 is not within"),
        ("dpo:0", "beta must be positive"),
    ],
)
def test_what_does_not_go_together_is_refused_by_name(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_arm(name)


def test_equal_arms_are_known_whatever_they_are_called() -> None:
    assert parse_arm("dpo:0.1").what == parse_arm("dpo:0.10").what
    assert parse_arm("dpo:0.1+ipo").what == parse_arm("ipo:0.1").what
    distinct = (
        "jmamp", "jmamp@1", "jmamp+hinge", "jmamp+amapo", "jmamp+amapo:3", "jmamp/random",
        "jmamp/random:0.3", "map:exponent=2", "shuffled", "matched-constant", "dpo:0.1",
    )  # fmt: skip
    assert (
        parse_arm("map:beta_max=0.2,exponent=2").what
        == parse_arm("map:exponent=2,beta_max=0.20").what
    )
    assert len({parse_arm(name).what for name in distinct}) == len(distinct)


def test_options_have_defaults_and_limits() -> None:
    assert options_of("cdpo", {}) == {"epsilon": 0.1}
    assert options_of("simpo", {"gamma": 1.0}) == {"gamma": 1.0}
    for given, message in (({"gamma": -1}, "at least 0"), ({"tau": 1}, "its options: gamma")):
        with pytest.raises(ConfigError, match=message):
            options_of("simpo", given)


def test_every_row_can_be_read_by_whoever_trains_with_it() -> None:
    for name, row in METHODS.items():
        assert row.title, name
        assert row.formula, name
        assert row.source, name
        assert bool(row.flag) is (row.verified in (Verified.SECONDARY, Verified.OURS)), name
        if row.scale == MEAN:
            assert row.beta is not None, name
