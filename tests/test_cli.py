"""The command line: exit codes, one clear message, nothing half-written."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from sp2dpo_ray import cli
from sp2dpo_ray.cli.init import TEACHERS
from sp2dpo_ray.config import load_config
from sp2dpo_ray.core import artifact
from sp2dpo_ray.core.arms import parse_arm
from sp2dpo_ray.core.artifact import open_artifact
from sp2dpo_ray.stages import STAGES, ray_session
from sp2dpo_ray.teachers.catalogue import settings_of
from tests.conftest import DEMO_PAIRS
from tests.processes import hears_interrupts


def sp2dpo(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sp2dpo_ray", *arguments],
        capture_output=True, text=True, timeout=180, cwd=cwd,
    )  # fmt: skip


def inside(*arguments: str) -> int:
    """The command in this process; its exit code."""
    with pytest.raises(SystemExit) as left:
        cli.main(list(arguments))
    return int(left.value.code or 0)


@pytest.mark.ray
def test_what_ray_prints_leaves_stdout_to_the_answer(
    ray_cluster: None, capsys: pytest.CaptureFixture[str]
) -> None:
    with ray_session(None):
        print("(raylet) a node was lost")
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "a node was lost" in shown.err


def test_help_names_every_stage() -> None:
    shown = sp2dpo("--help")
    assert shown.returncode == 0
    for name in (*STAGES, "run", "version"):
        assert name in shown.stdout
    # the demo's file and pairs are no part of an installed package
    assert "in a clone of the project: sp2dpo run configs/demo.yaml" in " ".join(
        shown.stdout.split()
    )


def test_help_loads_nothing_that_takes_its_time() -> None:
    heavy = ("numpy", "pyarrow", "pydantic", "torch", "ray", "yaml")
    code = f"import sys, sp2dpo_ray.cli; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout


def test_every_command_stands_in_a_panel_of_the_help() -> None:
    from typer.main import get_command

    for name, command in get_command(cli.commands.app).commands.items():
        assert command.rich_help_panel, name
        assert command.help, name


@pytest.mark.parametrize("teachers", [*TEACHERS, "openai,gemini,dashscope"])
def test_init_writes_a_configuration_that_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, teachers: str
) -> None:
    path = tmp_path / "mine.yaml"
    assert inside("init", str(path), "--teachers", teachers, "--name", "a: b #", "--gpus", "4") == 2
    assert not path.exists()  # no name of a folder: nothing is written
    given = ("--teachers", teachers, "--pairs", 'odd "name".jsonl', "--gpus", "4")
    assert inside("init", str(path), *given) == 0
    config = load_config(str(path), ())
    assert (config.run.name, config.data.source) == ("mine", 'odd "name".jsonl')
    assert config.train.workers == 4
    for teacher in config.teachers:
        settings_of(teacher, config.decoding)  # refuses an option that its provider does not take
    assert len(config.teachers) == len(teachers.split(",")) * (3 if teachers == "rules" else 1)
    before = path.read_bytes()
    assert inside("init", str(path), "--teachers", "rules") == 2
    assert path.read_bytes() == before


def at_a_terminal(monkeypatch: pytest.MonkeyPatch, typed: Callable[[str], str]) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys.modules[typer.prompt.__module__], "visible_prompt_func", typed)


def test_init_asks_a_person_and_takes_the_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter(["first", str(DEMO_PAIRS), "rules", "tiny", "0"])
    at_a_terminal(monkeypatch, lambda _: next(answers))
    assert inside("init", str(tmp_path / "x.yaml")) == 0
    config = load_config(str(tmp_path / "x.yaml"), ())
    assert (config.run.name, config.student.model) == ("first", "tiny")
    assert (config.train.gpus_per_worker, config.train.precision) == (0, "fp32")
    assert not list(answers)


def test_init_asks_again_for_what_it_cannot_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = iter(["opnai", " , ", "rules", "two", "-1", "2"])
    at_a_terminal(monkeypatch, lambda _: next(answers))
    given = ("--name", "x", "--pairs", "p.jsonl", "--student", "tiny")
    assert inside("init", str(tmp_path / "x.yaml"), *given) == 0
    assert load_config(str(tmp_path / "x.yaml"), ()).train.workers == 2
    said = capsys.readouterr().err
    assert "'opnai' is none of" in said
    assert "'two' is no whole number" in said
    # what an option has wrong is refused before anything is asked
    for arguments, why in (
        ((str(tmp_path / "y.yaml"), "--teachers", "opnai"), "'opnai' is none of"),
        ((str(tmp_path / "no" / "y.yaml"),), "is no folder; make it"),
    ):
        assert inside("init", *arguments) == 2
        assert why in capsys.readouterr().err


@pytest.mark.parametrize("left", [KeyboardInterrupt, EOFError])
def test_init_that_is_left_at_a_question_is_interrupted(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    left: type[BaseException],
) -> None:
    def leave(prompt: str) -> str:
        raise left

    at_a_terminal(monkeypatch, leave)
    assert inside("init", str(tmp_path / "x.yaml")) == 4
    assert "interrupted" in capsys.readouterr().err
    assert not (tmp_path / "x.yaml").exists()


def test_init_names_the_file_that_it_was_to_write(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.yaml"
    given = ("--teachers", "server,vllm", "--pairs", "größe/対.jsonl", "--gpus", "1")
    assert inside("init", str(path), *given, "--name", "a: b") == 2
    assert capsys.readouterr().err.startswith(f"no terminal to ask at: defaults for student\n"
                                              f"sp2dpo: {path}: run.name")  # fmt: skip
    assert inside("init", str(path), *given) == 0
    assert 'source: "größe/対.jsonl"' in path.read_text(encoding="utf-8")
    assert [teacher.name for teacher in load_config(str(path), ()).teachers] == ["local", "hosted"]


def test_doctor_stops_a_script_while_there_is_something_to_mend(
    demo_config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert inside("doctor", str(demo_config)) == 0
    assert "next: sp2dpo prepare" in capsys.readouterr().err
    assert inside("doctor", str(demo_config), "--set", "data.source=gone.parquet") == 2
    said = capsys.readouterr().err
    assert "1 to mend:\n- data.source: no file or folder 'gone.parquet'" in said
    assert f"then again: sp2dpo doctor {demo_config}" in said
    assert "next:" not in said
    assert inside("doctor", str(demo_config), "--quiet", "--set", "data.source=gone.parquet") == 2
    assert "- data.source: no file or folder 'gone.parquet'" in capsys.readouterr().err


def test_quiet_says_the_summary_alone(demo_config: Path) -> None:
    loud = sp2dpo("prepare", str(demo_config))
    quiet = sp2dpo("schedule", str(demo_config), "--quiet")
    assert "next: sp2dpo plan" in loud.stderr
    assert quiet.returncode != 0
    assert quiet.stderr.startswith("sp2dpo: ")  # an error is heard
    again = sp2dpo("prepare", str(demo_config), "-q")
    assert len(again.stderr.splitlines()) == 1
    assert "28 pairs" in again.stderr
    assert "\x1b[" not in loud.stderr + loud.stdout  # no colours where nobody looks


def test_prepare_prints_its_summary_as_the_last_line(demo_config: Path) -> None:
    done = sp2dpo("prepare", str(demo_config), "--json")
    assert done.returncode == 0
    summary = json.loads(done.stdout.splitlines()[-1])
    assert (summary["rows_in"], summary["pairs"], summary["eval_pairs"]) == (264, 28, 12)
    again = json.loads(sp2dpo("prepare", str(demo_config), "--json").stdout)
    assert again["reused"] is True


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("prepare", "nowhere.yaml"), 2, "no configuration file 'nowhere.yaml'"),
        (("prepare", "{config}", "--set", "trian.epochs=3"), 2, "trian: unknown key"),
        (("prepare", "{config}", "--st", "a=b"), 2, "No such option"),
        (("prepare", "{config}", "--set", "data.source=nowhere.jsonl"), 3, "no file or folder"),
        (("prepare", "{config}", "--set", "data.source={here}/broken.jsonl"), 3,
         "broken.jsonl:2: not valid JSON"),
        (("prepare", "{config}", "--set", "data.source={here}/columns.jsonl"), 3,
         "column 'rejected' is missing"),
        (("schedule", "{config}"), 3, "stage schedule needs annotate"),
        (("report", "{config}"), 3, "stage report needs"),
    ],
)  # fmt: skip
def test_bad_input_is_one_message_with_its_exit_code(
    demo_config: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    here = demo_config.parent
    (here / "broken.jsonl").write_text('{"prompt": "p", "chosen": "a", "rejected": "b"}\n{"pro')
    (here / "columns.jsonl").write_text('{"prompt": "p", "chosen": "a"}')
    filled = [a.format(config=demo_config, here=here) for a in arguments]
    done = sp2dpo(*filled)
    assert done.returncode == code, done.stderr
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_debug_shows_the_traceback(demo_config: Path) -> None:
    done = sp2dpo("prepare", str(demo_config), "--debug", "--set", "data.source=nowhere.jsonl")
    assert done.returncode == 3
    assert "Traceback" in done.stderr


@pytest.mark.slow
def test_a_student_that_does_not_exist_is_refused_before_teachers_are_asked(
    demo_config: Path,
) -> None:
    done = sp2dpo("run", str(demo_config), "--set", "student.model=no/such/student")
    assert done.returncode == 2
    assert "student.model" in done.stderr
    assert not list(demo_config.parent.rglob("journal"))


def test_a_full_disk_is_resumable_and_leaves_no_half_artifact(
    demo_config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = artifact.pq.write_table

    def full(table: Any, path: Path, **options: Any) -> None:
        if Path(path).name == "excluded.parquet":
            Path(path).write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        real(table, path, **options)

    monkeypatch.setattr(artifact.pq, "write_table", full)
    assert inside("prepare", str(demo_config)) == 4
    said = capsys.readouterr().err
    assert "no disk space left" in said
    assert "run the same command again" in " ".join(said.split())
    folder = demo_config.parent / "runs" / "test"
    assert not (folder / "pairs").exists()
    assert not list(folder.glob(".*.partial"))
    monkeypatch.undo()
    assert inside("prepare", str(demo_config)) == 0


def test_an_unexpected_error_is_short_and_points_to_debug(
    demo_config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sp2dpo_ray.stages.prepare.read_source", lambda *a, **k: 1 / 0)
    assert inside("prepare", str(demo_config)) == 1
    said = capsys.readouterr().err
    assert "unexpected ZeroDivisionError" in said
    assert "--debug" in said
    assert "Traceback" not in said


def test_an_altered_artifact_is_noticed_by_the_next_stage(demo_config: Path) -> None:
    assert inside("prepare", str(demo_config)) == 0
    path = demo_config.parent / "runs" / "test" / "pairs" / "train.parquet"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    done = sp2dpo("prepare", str(demo_config))
    assert done.returncode == 3
    assert "altered since it was published" in done.stderr


def test_a_local_folder_is_a_student_like_any_other(
    demo_config: Path, tiny_student: Any, tmp_path: Path
) -> None:
    from sp2dpo_ray.run import Run
    from sp2dpo_ray.stages.student import student_ref

    override = f"student.model={tiny_student.model}"
    assert inside("student", str(demo_config), "--set", override) == 0
    run = Run(load_config(str(demo_config), (override,)))
    assert student_ref(run) == tiny_student
    before = open_artifact(run.path("student")).digest

    # other weights in the same place are another student
    copy = tmp_path / "copy"
    shutil.copytree(tiny_student.model, copy)
    (copy / "config.json").write_text((copy / "config.json").read_text() + "\n")
    assert inside("student", str(demo_config), "--set", f"student.model={copy}") == 0
    assert open_artifact(run.path("student")).digest != before


def test_an_arm_of_another_schedule_is_not_compared(
    demo_config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from sp2dpo_ray.core.artifact import Provenance, publish
    from sp2dpo_ray.run import Run
    from sp2dpo_ray.stages.report import _trained_arms

    run = Run(load_config(str(demo_config)))

    def make(place: str, content: str, inputs: dict[str, str], settings: Any = None) -> str:
        run.path(place).parent.mkdir(parents=True, exist_ok=True)
        with publish(run.path(place), Provenance(place, "k", "l", inputs, settings)) as draft:
            (draft.path / "content").write_text(content)
            draft.summary["arm"] = place
        return open_artifact(run.path(place)).digest

    inputs = {"prepare": make("pairs", "p", {}), "schedule": make("schedule", "s", {})}
    make("train/jmamp", "a", inputs)
    make("train/dpo-0.1", "b", {"prepare": inputs["prepare"]})  # before there was a schedule
    assert list(_trained_arms(run)) == ["jmamp"]
    assert "arm dpo:0.1 is left out" in capsys.readouterr().err
    other = Run(load_config(str(demo_config), ("train.learning_rate=0.5", "train.arm=random")))
    make("train/random", "c", inputs, other.config.training(parse_arm("random")))
    assert list(_trained_arms(other)) == ["jmamp", "random"]
    mixed = Run(load_config(str(demo_config), ("train.arm=random",)))
    assert list(_trained_arms(mixed)) == ["jmamp"]
    said = " ".join(capsys.readouterr().err.split())
    assert "arm random is left out: it was trained with another train.learning_rate" in said
    make("schedule", "another", {})
    assert _trained_arms(run) == {}


@pytest.mark.parametrize(
    ("package", "stage", "extra"),
    [
        ("plotly", "report", "report"),
        ("torch", "student", "train"),
        ("ray", "annotate", "annotate"),
    ],
)
def test_a_stage_without_its_packages_says_what_to_install(
    demo_config: Path, package: str, stage: str, extra: str
) -> None:
    code = (
        f"import sys; sys.modules[{package!r}] = None\n"
        f"from sp2dpo_ray.cli import main; main([{stage!r}, {str(demo_config)!r}])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    said = " ".join(done.stderr.split())
    assert f"needs the package {package}, which is not installed here" in said
    assert f"pip install 'sp2dpo-ray[{extra}]'" in said


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_an_interrupt_is_resumable_and_a_second_command_is_kept_out(
    demo_config: Path, sent: signal.Signals
) -> None:
    """Ray takes SIGTERM for itself and would end the command without a word."""
    slow = [
        "--set", "teachers.0={name: alba, provider: scripted, model: s, options: {latency_s: 0.5, "
        "default: '{}'}, limits: {in_flight: 2}}",
    ]  # fmt: skip
    assert sp2dpo("prepare", str(demo_config), *slow).returncode == 0
    process = subprocess.Popen(
        [sys.executable, "-m", "sp2dpo_ray", "annotate", str(demo_config), *slow],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=hears_interrupts,
    )  # fmt: skip
    journal = demo_config.parent / "runs" / "test" / "journal"
    deadline = time.monotonic() + 90
    while not list(journal.rglob("*.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.1)
    second = sp2dpo("prepare", str(demo_config), *slow)
    assert second.returncode == 4
    assert "another command is working on" in second.stderr
    os.kill(process.pid, sent)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 4, said
    assert "interrupted" in said
    assert "Traceback" not in said
    assert not (journal.parent / "annotations").exists()


def test_lines_for_machines_say_whose_they_are(demo_config: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sp2dpo_ray", "schedule", str(demo_config)],
        capture_output=True, text=True, env=os.environ | {"SP2DPO_LOG": "json"},
    )  # fmt: skip
    assert done.returncode == 3
    (line,) = map(json.loads, done.stderr.splitlines())
    assert line["run"] == "test"
    assert (line["stage"], len(line["lambda_id"])) == ("schedule", 64)
    assert "run: sp2dpo annotate" in line["message"]
    assert line["time"].endswith("+00:00")


def test_a_summary_for_machines_is_no_table(demo_config: Path) -> None:
    assert sp2dpo("prepare", str(demo_config)).returncode == 0
    folder = demo_config.parent / "runs" / "test"
    for command in (("plan", str(demo_config)), ("status", str(folder))):
        done = subprocess.run(
            [sys.executable, "-m", "sp2dpo_ray", *command],
            capture_output=True, text=True, env=os.environ | {"SP2DPO_LOG": "json"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        said = [json.loads(line) for line in done.stderr.splitlines()]
        (told,) = [line["summary"] for line in said if "summary" in line]
        assert told.keys() >= ({"calls_recorded"} if command[0] == "plan" else {"artifacts"})


@pytest.mark.ray
def test_lines_for_machines_are_all_that_a_stage_on_ray_says(demo_config: Path) -> None:
    assert sp2dpo("prepare", str(demo_config)).returncode == 0
    done = subprocess.run(
        [sys.executable, "-m", "sp2dpo_ray", "annotate", str(demo_config),
         "--set", "run.name=test"],
        capture_output=True, text=True, env=os.environ | {"SP2DPO_LOG": "json"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = [json.loads(line)["message"] for line in done.stderr.splitlines()]
    assert said[-1] == f"next: sp2dpo schedule {demo_config} --set run.name=test"
