"""The annotation stage on a real Ray: paid once, whatever is killed; stopped with a reason."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sp2dpo_ray.annotate.journal import Journal
from sp2dpo_ray.annotate.twins import find_twins
from sp2dpo_ray.config import load_config
from sp2dpo_ray.core.annotation import SETTLED
from sp2dpo_ray.core.place import Folder
from sp2dpo_ray.errors import ArtifactError, ConfigError, DataError, TeacherStopped
from sp2dpo_ray.run import Run
from sp2dpo_ray.stages import STAGES
from tests.fault_server import KEY, serve
from tests.processes import kill_tree
from tests.wires import ANSWER

pytestmark = pytest.mark.ray


def run_of(config: Path, *overrides: str) -> Run:
    run = Run(load_config(str(config), overrides))
    run.write_lambda()
    return run


def journal_entries(folder: Path) -> list[dict[str, Any]]:
    """Everything on record in the one run below a folder."""
    (journal,) = folder.rglob("journal")
    return list(Journal(Folder(journal)).new_entries())


def test_a_second_run_asks_nothing(ray_cluster: None, demo_config: Path) -> None:
    run = run_of(demo_config)
    STAGES["prepare"](run)
    first = STAGES["annotate"](run)
    assert (first["calls_made"], first["calls_reused"]) == (240, 0)
    assert first["outcomes"] == {"ok": 240}
    before = (run.path("annotations", "annotations.parquet")).read_bytes()
    assert STAGES["annotate"](run)["calls_made"] == 0

    # without the table the journal still knows everything, and gives the same bytes
    for path in run.path("annotations").iterdir():
        path.unlink()
    again = STAGES["annotate"](run)
    assert (again["calls_made"], again["calls_reused"]) == (0, 240)
    assert run.path("annotations", "annotations.parquet").read_bytes() == before


def test_one_journal_gives_one_schedule_to_the_last_byte(
    ray_cluster: None, demo_config: Path
) -> None:
    run = run_of(demo_config)
    for stage in ("prepare", "annotate", "schedule"):
        STAGES[stage](run)
    elsewhere = run_of(demo_config, "run.name=elsewhere")
    STAGES["prepare"](elsewhere)
    shutil.copytree(run.path("journal"), elsewhere.path("journal"))
    assert STAGES["annotate"](elsewhere)["calls_made"] == 0
    STAGES["schedule"](elsewhere)
    files = sorted(path.name for path in run.path("schedule").iterdir())
    assert {"schedule.parquet", "schedule.csv", "manifest.json"} <= set(files)
    for name in files:
        one, other = run.path("schedule", name), elsewhere.path("schedule", name)
        assert one.read_bytes() == other.read_bytes(), name

    text = run.path("schedule", "schedule.csv").read_text().splitlines()
    assert len(text) == 1 + 28
    table = pq.read_table(run.path("schedule", "schedule.parquet"))
    assert text[0].replace('"', "").split(",") == table.column_names
    last = float(text[1].split(",")[-1])  # the CSV keeps every bit
    assert last == table["beta_random"][0].as_py()


def test_one_more_teacher_pays_only_for_itself(ray_cluster: None, demo_config: Path) -> None:
    run = run_of(demo_config)
    STAGES["prepare"](run)
    STAGES["annotate"](run)
    changed = run_of(demo_config, "teachers.1.options.persona=generous")
    summary = STAGES["annotate"](changed)
    assert (summary["calls_made"], summary["calls_reused"]) == (120, 120)


def test_the_same_texts_under_two_ids_are_asked_once(
    ray_cluster: None, demo_config: Path, tmp_path: Path
) -> None:
    rows = [{"prompt_id": name, "prompt": "p", "chosen": "a", "rejected": "b"} for name in "ab"]
    (tmp_path / "twins.jsonl").write_text("\n".join(map(json.dumps, rows)))
    run = run_of(demo_config, f"data.source={tmp_path}/twins.jsonl", "data.eval_fraction=0")
    STAGES["prepare"](run)
    summary = STAGES["annotate"](run)
    assert (summary["calls_made"], summary["calls_reused"]) == (6, 6)
    assert summary["pairs_complete"] == 2


def test_a_pair_that_nobody_is_asked_about_answers_for_no_other(demo_config: Path) -> None:
    run = run_of(demo_config)
    STAGES["prepare"](run)
    table = pq.read_table(run.pairs_file("train")).slice(0, 2)
    first, second = table["prompt_id"].to_pylist()
    same = pa.concat_tables([table.slice(0, 1), table.slice(0, 1)])
    same = same.set_column(same.column_names.index("prompt_id"), "prompt_id", [[first, second]])
    pq.write_table(same, file := run.path("twins.parquet"))
    assert find_twins([file], redact=False) == {second}
    assert find_twins([file], redact=False, left_out=frozenset({first})) == frozenset()


def test_nonsense_is_recorded_and_refused_by_the_schedule(
    ray_cluster: None, demo_config: Path
) -> None:
    run = run_of(
        demo_config,
        'teachers.0={name: alba, provider: scripted, model: s, options: {default: "?"}}',
    )
    STAGES["prepare"](run)
    summary = STAGES["annotate"](run)
    assert summary["outcomes"] == {"ok": 120, "parse_error": 120}
    assert summary["pairs_complete"] == 0
    with pytest.raises(DataError) as refused:
        STAGES["schedule"](run)
    assert "no pair has a valid annotation from every teacher" in str(refused.value)
    assert "not one JSON object" in str(refused.value)
    assert not run.path("schedule").exists()


def http_teacher(url: str, in_flight: int = 4) -> str:
    return (
        "teachers=[{name: web, provider: openai, model: m, api_key_env: TEST_KEY, "
        f"base_url: '{url}', limits: {{in_flight: {in_flight}}}}}]"
    )


FAST = ("decoding.retry_base_s=0.01", "decoding.timeout_s=5", "data.limit=12")


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_KEY", KEY)


def sp2dpo(*arguments: str) -> subprocess.Popen[str]:
    """The command line in a process and a Ray of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "sp2dpo_ray", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"TEST_KEY": KEY},
        start_new_session=True,
    )


def test_faults_on_the_way_still_end_complete(demo_config: Path) -> None:
    attempts: Counter[str] = Counter()

    def plan(body: dict[str, Any]) -> str | int:
        text = json.dumps(body["messages"])
        attempts[text] += 1
        kind = zlib.crc32(text.encode()) % 5
        return [500, "drop", 429, "garbage", "ok"][kind] if attempts[text] == 1 else "ok"

    with serve(plan) as server:
        overrides = [o for s in (http_teacher(server.url), *FAST) for o in ("--set", s)]
        for stage in ("prepare", "annotate"):
            process = sp2dpo(stage, str(demo_config), "--json", *overrides)
            out, err = process.communicate(timeout=120)
            assert process.returncode == 0, err
    summary = json.loads(out.splitlines()[-1])
    assert summary["outcomes"] == {"ok": 36}
    assert summary["calls_made"] == 36
    assert sum(attempts.values()) > 50  # four in five calls failed at first
    assert KEY not in out + err
    for path in demo_config.parent.rglob("*"):
        if path.is_file():
            assert KEY.encode() not in path.read_bytes(), path


def test_a_refused_key_stops_the_stage_and_the_right_one_goes_on(demo_config: Path) -> None:
    with serve(lambda _: "ok") as server:
        overrides = [o for s in (http_teacher(server.url), *FAST) for o in ("--set", s)]
        assert sp2dpo("prepare", str(demo_config), *overrides).wait(60) == 0
        wrong = subprocess.run(
            [sys.executable, "-m", "sp2dpo_ray", "annotate", str(demo_config), *overrides],
            capture_output=True, text=True, timeout=120,
            env=os.environ | {"TEST_KEY": "canary-wrong-key"},
        )  # fmt: skip
        assert wrong.returncode == 4
        assert "teacher web: AuthenticationError" in wrong.stderr
        assert "One call was tried, none was answered. Look at the key in TEST_KEY" in wrong.stderr
        assert "Traceback" not in wrong.stderr
        assert "canary-wrong-key" not in wrong.stderr
        process = sp2dpo("annotate", str(demo_config), "--json", *overrides)
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert json.loads(out.splitlines()[-1])["outcomes"] == {"ok": 36}


@pytest.mark.slow
def test_a_killed_run_repeats_no_recorded_call(demo_config: Path) -> None:
    """SIGKILL in the middle, then a resume: what was recorded never reaches the server again."""
    asked: Counter[str] = Counter()
    enough, killed = threading.Event(), threading.Event()

    def plan(body: dict[str, Any]) -> str:
        asked[json.dumps(body["messages"])] += 1
        if sum(asked.values()) >= 30:
            enough.set()
        # slow enough for the kill to come in the middle
        time.sleep(0.2 if enough.is_set() and not killed.is_set() else 0.01)
        return "ok"

    with serve(plan) as server:
        overrides = [o for s in (http_teacher(server.url), "data.limit=40") for o in ("--set", s)]
        assert sp2dpo("prepare", str(demo_config), *overrides).wait(60) == 0
        process = sp2dpo("annotate", str(demo_config), *overrides)
        assert enough.wait(90)
        kill_tree(process.pid)
        process.wait()
        killed.set()
        recorded = {
            entry["key"]
            for entry in journal_entries(demo_config.parent)
            if entry["kind"] == "result" and entry["outcome"] in SETTLED
        }
        before = sum(asked.values())
        assert 20 <= len(recorded) < 120

        process = sp2dpo("annotate", str(demo_config), "--json", *overrides)
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        after = sum(asked.values()) - before
    summary = json.loads(out.splitlines()[-1])
    assert summary["outcomes"] == {"ok": 120}
    assert summary["calls_reused"] == len(recorded)
    assert after == 120 - len(recorded)
    intents = Counter(
        e["key"] for e in journal_entries(demo_config.parent) if e["kind"] == "intent"
    )
    assert all(intents[name] == 1 for name in recorded)
    table = pq.read_table(next(demo_config.parent.rglob("annotations.parquet")))
    assert set(table["text"].to_pylist()) == {ANSWER}


def test_a_teacher_that_keeps_failing_opens_the_circuit(
    ray_cluster: None, demo_config: Path
) -> None:
    run = run_of(
        demo_config,
        "teachers=[{name: alba, provider: scripted, model: s}]",
        "decoding.retries=0",
        "annotate.max_failures=3",
        "annotate.actors=1",
    )
    STAGES["prepare"](run)
    with pytest.raises(TeacherStopped, match=r"teacher alba: 3 attempts in a row failed"):
        STAGES["annotate"](run)
    assert not run.path("annotations").exists()


def test_calls_that_failed_are_named_and_tried_again(ray_cluster: None, demo_config: Path) -> None:
    failing = ("teachers=[{name: alba, provider: scripted, model: s}]", "decoding.retries=0",
               "annotate.max_failures=1000", "annotate.rounds=1", "data.limit=4",
               "data.eval_fraction=0")  # fmt: skip
    run = run_of(demo_config, *failing)
    STAGES["prepare"](run)
    summary = STAGES["annotate"](run)
    assert summary["outcomes"] == {"transport": 12}
    assert summary["pairs_incomplete"] == 4
    again = STAGES["annotate"](run)
    assert (again["reused"], again["calls_made"]) == (False, 12)


def test_an_altered_journal_is_refused_before_anything_is_asked(
    ray_cluster: None, demo_config: Path
) -> None:
    run = run_of(demo_config)
    STAGES["prepare"](run)
    segment = run.path("journal", "alba", "old.jsonl")
    segment.parent.mkdir(parents=True)
    segment.write_text('{"kind": "resu\n')
    with pytest.raises(ArtifactError, match=r"old\.jsonl: the line at byte 0 was altered"):
        STAGES["annotate"](run)
    assert len(list(run.path("journal").rglob("*.jsonl"))) == 1


def test_a_missing_key_costs_nothing(ray_cluster: None, demo_config: Path) -> None:
    run = run_of(demo_config, http_teacher("http://127.0.0.1:9").replace("TEST_KEY", "NO_SUCH_KEY"))
    STAGES["prepare"](run)
    with pytest.raises(ConfigError, match="NO_SUCH_KEY"):
        STAGES["annotate"](run)
    assert not list(run.path("journal").rglob("*.jsonl"))
