"""The commands around the schedule as a person types them: messages, exit codes, JSON."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from sp2dpo_ray import cli
from sp2dpo_ray.run import Run

Make = Callable[..., Run]


def sp2dpo(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    """Exit code, stdout, stderr with line breaks as spaces."""
    with pytest.raises(SystemExit) as left:
        cli.main([str(argument) for argument in arguments])
    shown = capsys.readouterr()
    return int(left.value.code or 0), shown.out, " ".join(shown.err.split())


def test_a_schedule_from_the_command_line_to_the_verdicts(
    annotated: Make, demo_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = annotated()
    code, out, _ = sp2dpo(capsys, "schedule", demo_config, "--json")
    assert code == 0
    assert json.loads(out)["pairs"] == 28
    code, out, err = sp2dpo(capsys, "verify", run.folder)
    assert (code, out) == (0, "")
    assert "nothing is wrong" in err
    code, out, _ = sp2dpo(capsys, "verify", run.path("schedule"), "--json")
    assert len(json.loads(out.splitlines()[-1])["checks"]) == 5

    other = run.path("schedule").rename(tmp_path / "first")
    code, _, _ = sp2dpo(capsys, "schedule", demo_config, "--set", "mapping.beta_max=0.2")
    code, _, err = sp2dpo(capsys, "schedule", "--diff", other, run.folder)
    assert code == 0
    assert "28 pairs in both, 0 only in the first" in err
    assert "recipe.mapping.beta_max: 0.3 -> 0.2" in err
    code, out, _ = sp2dpo(capsys, "schedule", "--diff", other, run.folder, "--json")
    assert json.loads(out)["beta"]["changed"] > 0

    settings = ("--set", "mapping.beta_max=0.2", "--set", "audit.each=3", "--set", "audit.sample=9")
    code, out, _ = sp2dpo(capsys, "audit", demo_config, *settings, "--json")
    sheet = Path(json.loads(out)["sheet"])
    with sheet.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    filled = tmp_path / "filled.csv"
    filled.write_text(
        "prompt_id;verdict\n" + "\n".join(f"{row['prompt_id']};chosen" for row in rows)
    )
    code, _, err = sp2dpo(capsys, "audit", demo_config, *settings, "--import", filled)
    assert code == 0
    assert "labels that people find right: 100%" in err
    assert "ensemble: {teacher_weights: {alba: " in err
    code, _, err = sp2dpo(capsys, "export", demo_config, *settings)
    assert "28 pairs, 12 eval_pairs" in err
    assert (run.path("export", "jmamp", "README.md")).is_file()
    code, out, err = sp2dpo(capsys, "checklist", run.folder)
    assert code == 0
    assert "[x] the schedule of betas" in err
    assert "[ ] raw outputs with failures and timeouts missing: no journal" in err
    assert sp2dpo(capsys, "verify", run.folder)[0] == 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("schedule",), 2, "takes a configuration file, or --diff A B"),
        (("schedule", "{config}", "--diff", "a", "b"), 2, "or --diff A B"),
        (("schedule", "--diff", "a", "b"), 3, "a: no finished artifact here"),
        (("verify", "nowhere"), 3, "nowhere: no finished artifact here"),
        (("checklist", "nowhere"), 3, "nowhere: no run folder"),
        (("audit", "{config}", "--import", "nowhere.csv"), 2, "nowhere.csv: no such file"),
        (
            ("export", "{config}", "--set", "export.arm=best"),
            2,
            "export.arm: arm 'best' is unknown",
        ),
        (("export", "{config}"), 3, "stage export needs prepare"),
    ],
)
def test_what_is_wrong_is_one_message(
    demo_config: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], code: int,
    message: str,
) -> None:  # fmt: skip
    filled = [argument.format(config=demo_config) for argument in arguments]
    found, _, err = sp2dpo(capsys, *filled)
    assert (found, message in err) == (code, True), err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("mapping.shape=cubic", "mapping.shape: Input should be 'linear', 'power'"),
        ("mapping.exponent=2", "mapping: ['exponent'] belongs to shape power, this one is linear"),
        ("mapping.categories={Taste: {beta_max: 1}}", "mapping.categories.Taste"),
        ("mapping.gate={low: 0.5, high: 0.2}", "mapping: the gate needs 0 <= low <= high <= 1"),
        ("mapping.categories={Style: {beta_max: 0.01}}", "the envelope of Style needs"),
        ("ensemble.over_teachers=huber", "ensemble.over_teachers: Input should be 'mean'"),
        ("ensemble.estimators=[best]", "estimators ['best'] are unknown; the table has"),
        ("ensemble.estimators=[pooled, pooled]", "estimators: names must differ"),
        ("ensemble.estimators=[{name: random}]", "the names ['random'] are taken"),
        ("ensemble.estimators=[{name: x, trim: 0.3}]", "trim is given, but nothing here reads it"),
        ("ensemble.teacher_weights={alba: 1}", "must give ['alba', 'bruno'] a weight each"),
        ("ensemble.teacher_weights={alba: 0, bruno: 0}", "one above 0 at least"),
        ("annotate.early_stop=0.01", None),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(
    demo_config: Path, capsys: pytest.CaptureFixture[str], override: str, message: str | None
) -> None:
    settings = ["--set", override]
    if message is None:  # economy mode knows maps of the gap alone
        settings += ["--set", "mapping.gate={low: 0.1, high: 0.2}"]
        message = "annotate.early_stop knows the bounds of maps of the gap alone"
    code, _, err = sp2dpo(capsys, "schedule", demo_config, *settings)
    assert (code, message in err) == (2, True), err
