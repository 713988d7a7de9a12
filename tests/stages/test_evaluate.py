"""Evaluation on a real Ray with a judge on this machine: paid once, replayed, refused, compared."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from sp2dpo_ray.config import load_config
from sp2dpo_ray.config.evaluate import family_of
from sp2dpo_ray.errors import ConfigError, DataError, Sp2dpoError, TeacherStopped
from sp2dpo_ray.run import Run
from sp2dpo_ray.stages import STAGES, TABLES
from tests.evaluate.test_benchmarks import SHARED, here
from tests.judge_server import JudgeServer, judge_server, weighted, worded
from tests.processes import kill_when

pytestmark = pytest.mark.ray
COUNT = 24
GAMED = SHARED / "alpaca_eval" / "df_gamed_estimated.csv"


def write(path: Path, rows: Any) -> Path:
    path.write_text(json.dumps(rows))
    return path


def outputs(name: str, count: int = COUNT, **changes: str) -> list[dict[str, str]]:
    return [
        {"instruction": f"question {i}", "output": changes.get(f"q{i}", f"{name} says {i} " * 9),
         "generator": name}
        for i in range(count)
    ]  # fmt: skip


def gamed(folder: Path, count: int = COUNT) -> Path:
    """A file of difficulties for so many instructions, in the hub's form."""
    lines = ["model,preference,index,std_delta_len,not_gamed_baseline,instruction_difficulty"]
    lines += [f"m,0.5,{i},0.1,True,{(i % 5) / 5 - 0.4}" for i in range(count)]
    path = folder / "df_gamed.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def arena_files(folder: Path) -> dict[str, str]:
    questions = folder / "questions.jsonl"
    questions.write_text("\n".join(json.dumps({"uid": f"u{i}", "prompt": f"question {i}"})
                                   for i in range(COUNT)))  # fmt: skip
    baseline = folder / "baseline.jsonl"
    rows = [
        {"uid": f"u{i}", "messages": [
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": {"answer": f"baseline {i}"}}]}
        for i in range(COUNT)
    ]  # fmt: skip
    baseline.write_text("\n".join(json.dumps(row) for row in rows[::-1]))
    return {"questions": str(questions), "baseline": str(baseline)}


def run_with(demo_config: Path, url: str, section: dict[str, Any]) -> Run:
    """A run that evaluates answers that exist already."""
    judge = {"name": "judge", "provider": "openai", "model": "gpt-4-1106-preview", "base_url": url}
    full = {"base": False, "arms": [], "judge": judge} | section
    text = json.dumps(full)
    return Run(load_config(str(demo_config), (f"evaluate={text}", "decoding.retries=0")))


def alpaca(folder: Path, **models: list[dict[str, str]]) -> dict[str, Any]:
    return {
        "benchmarks": ["alpaca_eval"],
        "alpaca_eval": {"reference": str(write(folder / "reference.json", outputs("reference"))),
                        "gamed": str(gamed(folder))},
        "outputs": {name: {"alpaca_eval": str(write(folder / f"{name}.json", rows))}
                    for name, rows in models.items()},
    }  # fmt: skip


def test_every_judgement_is_asked_once_and_replayed_without_a_call(
    ray_cluster: None, demo_config: Path, tmp_path: Path
) -> None:
    same = outputs("reference")[0]["output"]
    given = alpaca(tmp_path, one=outputs("one", q0=same), two=outputs("two"))
    with judge_server() as server:
        run = run_with(demo_config, server.url, given)
        first = STAGES["evaluate"](run)
        assert len(server.bodies) == first["calls_made"] == 2 * COUNT - 1  # identical: no call
        assert {json.dumps(b["messages"]) for b in server.bodies}.__len__() == 2 * COUNT - 1
        body = server.bodies[0]
        assert (body["temperature"], body["top_logprobs"], body["logprobs"]) == (1.0, 5, True)
        assert body["max_completion_tokens"] == 1
        assert "response_format" not in body
        again = STAGES["evaluate"](run)
        assert (len(server.bodies), again["calls_made"]) == (2 * COUNT - 1, 0)
        assert again["table"] == first["table"]
    # the scores gone, the judge gone: the journal alone gives every figure again
    for path in run.path("eval").glob("*/alpaca_eval/scores/manifest.json"):
        path.unlink()
    replayed = STAGES["evaluate"](Run(run.config, offline=True))
    assert replayed["table"] == first["table"]
    row = next(row for row in first["table"] if row["model"] == "one")
    result = json.loads(run.path("eval", "one", "alpaca_eval", "scores", "result.json").read_text())
    assert result["values"]["question 0"] == 0.5
    assert result["judge"]["served"] == ["gpt-4-1106-preview-served"]
    assert row["figures"]["n_total"] == COUNT
    assert result["pins"]["pins"]["alpaca-eval"]
    assert "sk-" not in json.dumps(result)


def test_a_judgement_that_was_refused_is_on_record_like_any_other(
    ray_cluster: None, demo_config: Path, tmp_path: Path
) -> None:
    """It has no preference and never will: it is neither asked again nor missed offline."""
    given = alpaca(tmp_path, one=outputs("one"))

    def filtered_once(body: dict[str, Any]) -> dict[str, Any]:
        if "question 3" in json.dumps(body["messages"]):
            return {"index": 0, "finish_reason": "content_filter", "logprobs": None,
                    "message": {"role": "assistant", "content": None}}  # fmt: skip
        return weighted(body)

    with judge_server(filtered_once) as server:
        run = run_with(demo_config, server.url, given)
        first = STAGES["evaluate"](run)
        assert first["table"][0]["notes"]["not_answered"] == 1
        manifest = run.path("eval", "one", "alpaca_eval", "scores", "manifest.json")
        made = manifest.stat().st_mtime_ns
        again = STAGES["evaluate"](run)
        assert (again["calls_made"], len(server.bodies)) == (0, COUNT)
        assert manifest.stat().st_mtime_ns == made
    manifest.unlink()
    replayed = STAGES["evaluate"](Run(run.config, offline=True))
    assert replayed["table"] == first["table"]


def test_a_killed_evaluation_repeats_no_recorded_call(
    ray_cluster: None, demo_config: Path, tmp_path: Path
) -> None:
    given = alpaca(tmp_path, one=outputs("one"))
    with judge_server() as server:
        server.delay = 0.15
        judge = {"name": "judge", "provider": "openai", "model": "gpt-4-1106-preview",
                 "base_url": server.url, "limits": {"in_flight": 2}}  # fmt: skip
        text = json.dumps({"base": False, "arms": [], "judge": judge} | given)
        flags = ["--set", f"evaluate={text}"]
        command = ["evaluate", str(demo_config), *flags]
        kill_when(lambda: len(server.bodies) >= 8, command, within_s=90)
        run = Run(load_config(str(demo_config), (f"evaluate={text}",)))
        lines = [json.loads(line[: line.rfind(b',"crc"')] + b"}") for path in
                 run.path("eval", "journal").rglob("*.jsonl")
                 for line in path.read_bytes().splitlines()]  # fmt: skip
        recorded = {line["key"] for line in lines if line["kind"] == "result"}
        assert 3 <= len(recorded) < COUNT
        before = len(server.bodies)
        server.delay = 0.0
        summary = STAGES["evaluate"](run)
        assert summary["calls_made"] == COUNT - len(recorded)
        assert len(server.bodies) == before + COUNT - len(recorded)


@here
@pytest.mark.slow
def test_the_whole_benchmark_equals_the_packages_own_run(
    ray_cluster: None, demo_config: Path, tmp_path: Path
) -> None:
    folder = SHARED / "alpaca_eval"
    section = {
        "benchmarks": ["alpaca_eval"],
        "alpaca_eval": {"reference": str(folder / "reference_outputs.json"), "gamed": str(GAMED)},
        "outputs": {"gemma": {"alpaca_eval": str(folder / "outputs_gemma-7b-it.json")}},
    }
    script = """
import json, os, sys
from pathlib import Path
import alpaca_eval
from alpaca_eval.metrics import glm_winrate
glm_winrate.hf_hub_download = lambda *_, **__: sys.argv[3]
board, _ = alpaca_eval.evaluate(
    model_outputs=json.loads(Path(sys.argv[1]).read_text()),
    reference_outputs=json.loads(Path(sys.argv[2]).read_text()),
    output_path=None, precomputed_leaderboard=None, is_return_instead_of_print=True,
    caching_path=None, metric_kwargs=dict(save_weights_dir=None))
print("RESULT" + json.dumps({k: float(v) for k, v in board.iloc[0].items()
                             if isinstance(v, (int, float)) or hasattr(v, "dtype")}))
"""
    with judge_server() as server:
        summary = STAGES["evaluate"](run_with(demo_config, server.url, section))
        assert len(server.bodies) == summary["calls_made"] == 805
        environment = os.environ | {
            # pragma: allowlist nextline secret
            "OPENAI_API_BASE": server.url, "OPENAI_API_KEY": "none", "OPENAI_MAX_CONCURRENCY": "8",
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", script, str(folder / "outputs_gemma-7b-it.json"),
             str(folder / "reference_outputs.json"), str(GAMED)],
            env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=400,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT"))
    theirs, ours = json.loads(line.removeprefix("RESULT")), summary["table"][0]["figures"]
    for name in ("win_rate", "standard_error", "length_controlled_winrate", "lc_standard_error"):
        assert ours[name] == pytest.approx(theirs[name], abs=1e-9)


def evaluated(run: Run) -> dict[str, Any]:
    return STAGES["evaluate"](run)


@pytest.mark.parametrize("fault", ["no log-probabilities", "refused", "silent"])
def test_a_judge_that_cannot_serve_says_why(
    ray_cluster: None, demo_config: Path, tmp_path: Path, fault: str
) -> None:
    given = alpaca(tmp_path, one=outputs("one"))
    with judge_server() as server:
        expected: tuple[type[Sp2dpoError], str] = (DataError, "carry no log-probabilities")
        run = run_with(demo_config, server.url, given)
        if fault == "no log-probabilities":
            server.answer = worded(lambda draw: "m")
        elif fault == "refused":
            server.status = 401
            expected = (TeacherStopped, "judge judge: ")
        else:  # every second time a token that is neither m nor M: counted, never dropped
            odd = {"token": "I", "logprob": 0.0}
            other = {"logprobs": {"content": [odd | {"top_logprobs": [odd]}]}}
            server.answer = lambda body: weighted(body) | (other if len(server.bodies) % 2 else {})
            row = evaluated(run)["table"][0]
            assert row["notes"]["not_read"] > 3
            assert row["figures"]["n_total"] == COUNT - row["notes"]["not_read"]
            return
        with pytest.raises(expected[0], match=expected[1]):
            evaluated(run)
        if fault == "refused":
            assert len(server.bodies) == 1  # one call, not as many as fit


def test_a_judge_of_the_panels_family_must_be_allowed(
    ray_cluster: None, demo_config: Path, tmp_path: Path
) -> None:
    given = alpaca(tmp_path, one=outputs("one"))
    with judge_server() as server:
        run = run_with(demo_config, server.url, given)
        teacher = {"name": "openai", "provider": "openai", "model": "gpt-5-mini-2025-08-07",
                   "base_url": server.url}  # fmt: skip
        values = run.config.resolved | {"teachers": [*run.config.resolved["teachers"], teacher]}
        with pytest.raises(ConfigError, match=r"is of the family of teachers \['openai'\]"):
            evaluated(Run(run.config.model_validate(values)))
        assert not server.bodies
        values["evaluate"] = values["evaluate"] | {"allow_shared_judge": True}
        summary = evaluated(Run(run.config.model_validate(values)))
        assert summary["shared_judge"] == ["openai"]
        assert "it may prefer students of its own panel" in summary["text"]


@pytest.mark.parametrize(
    ("model", "family"),
    [("gpt-4-1106-preview", "gpt"), ("o3-mini", "gpt"), ("chatgpt-4o-latest", "gpt"),
     ("Qwen/Qwen3-32B", "qwen"), ("qwen-max-2025-01-25", "qwen"), ("gemini-2.0-flash", "gemini"),
     ("claude-x", "claude"), ("4o", "4o"), ("meta-llama/Meta-Llama-3.1-8B-Instruct", "llama"),
     ("mistralai/Mixtral-8x7B-Instruct-v0.1", "mistral"), ("google/gemma-3-4b-it", "gemma")],
)  # fmt: skip
def test_families(model: str, family: str) -> None:
    assert family_of(model) == family


def test_arena_hard_compares_students_item_by_item(
    ray_cluster: None, demo_config: Path, tmp_path: Path
) -> None:
    rows = {name: [{"id": f"u{i}", "turns": [f"{name} {i}"]} for i in range(COUNT)]
            for name in ("good", "poor")}  # fmt: skip
    section = {
        "benchmarks": ["arena_hard"],
        "arena_hard": arena_files(tmp_path),
        "outputs": {name: {"arena_hard": str(write(tmp_path / f"{name}.json", each))}
                    for name, each in rows.items()},
    }  # fmt: skip

    def favour(server: JudgeServer) -> None:
        def answer(body: dict[str, Any]) -> dict[str, Any]:
            text = body["messages"][1]["content"]
            good_first = text.find("good") < text.find("baseline")
            label = ("A>>B" if good_first else "B>>A") if "good" in text else "A=B"
            return worded(lambda _: f"my own answer; so [[{label}]]")(body)

        server.answer = answer

    with judge_server() as server:
        favour(server)
        summary = evaluated(run_with(demo_config, server.url, section))
        assert summary["calls_made"] == 2 * COUNT
    rows_of = {row["model"]: row for row in summary["table"]}
    assert rows_of["good"]["figures"]["win_rate"] == 100
    assert rows_of["good"]["figures"]["share model>>baseline"] == 1
    assert rows_of["poor"]["figures"]["win_rate"] == 50
    assert rows_of["poor"]["verdict"] == "worse"
    assert rows_of["poor"]["gain"]["mean"] == -0.5


def test_mt_bench_is_graded_turn_by_turn(
    ray_cluster: None, demo_config: Path, tmp_path: Path
) -> None:
    """Two calls a question, a grade for each; the plan's upper bound holds."""
    categories = ("writing", "math")
    questions = [
        {"question_id": i, "category": categories[i % 2], "turns": [f"question {i}", "And then?"]}
        for i in range(6)
    ]
    references = [
        {"question_id": i, "choices": [{"turns": [f"truth {i}", "so"]}]} for i in (1, 3, 5)
    ]
    files = {"questions": questions, "references": references}
    rows = [{"id": str(i), "turns": [f"first {i}", f"second {i}"]} for i in range(6)]
    section = {
        "benchmarks": ["mt_bench"],
        "mt_bench": {name: str(write(tmp_path / f"{name}.json", each))
                     for name, each in files.items()},
        "outputs": {"one": {"mt_bench": str(write(tmp_path / "one.json", rows))}},
    }  # fmt: skip

    def grade(body: dict[str, Any]) -> dict[str, Any]:
        text = body["messages"][-1]["content"]
        if "first 4" in text:  # of both turns: the second shows the first, too
            return worded(lambda _: "I would rather not say.")(body)
        number = 4 if "And then?" in text else 9
        return worded(lambda _: f"Good enough. 1 of 2.\n[[{number}]]")(body)

    with judge_server(grade) as server:
        run = run_with(demo_config, server.url, section)
        priced = run.config.resolved["evaluate"]
        priced["judge"]["price"] = {"input": 10, "output": 30, "as_of": "2026-11-01"}
        run = Run(run.config.model_validate(run.config.resolved | {"evaluate": priced}))
        STAGES["prepare"](run)
        planned = STAGES["plan"](run)["judging"]["mt_bench"]
        summary = evaluated(run)
        assert planned["calls"] == len(server.bodies) == summary["calls_made"] == 12
        with_truth = [b for b in server.bodies if "truth" in b["messages"][-1]["content"]]
        assert len(with_truth) == 6
    assert planned["cost_usd"] > summary["cost_usd"] == pytest.approx(12 * (3890 + 30) / 1e6)
    row = summary["table"][0]
    assert (row["figures"]["first_turn"], row["figures"]["second_turn"]) == (9.0, 4.0)
    assert (row["figures"]["score"], row["figures"]["score_math"]) == (6.5, 6.5)
    assert row["notes"] == {"not_answered": 0, "not_read": 2}
    assert row["judge"]["usd"] == summary["cost_usd"]


@pytest.mark.slow
def test_an_arm_goes_all_the_way_to_the_page(
    ray_cluster: None, demo_config: Path, tmp_path: Path
) -> None:
    """Generate, judge on this machine, score, page and the table in the paper's form."""
    count = 12
    section = {
        "benchmarks": ["alpaca_eval"],
        "alpaca_eval": {
            "reference": str(write(tmp_path / "reference.json", outputs("reference", count))),
            "gamed": str(gamed(tmp_path, count)),
        },
    }
    with judge_server() as server:
        section["judge"] = {"name": "judge", "provider": "openai", "model": "gpt-4-1106-preview",
                            "base_url": server.url}  # fmt: skip
        run = Run(load_config(str(demo_config), (
            f"evaluate={json.dumps(section)}", "generate.max_new_tokens=8",
            "sweep.arms=['dpo:0.1', jmamp]", "train.workers=1")))  # fmt: skip
        run.write_lambda()
        for stage in ("prepare", "student", "annotate", "schedule", "reference", "sweep",
                      "generate", "evaluate"):  # fmt: skip
            summary = STAGES[stage](run)
        assert len(server.bodies) <= 3 * count  # equal answers are asked about once
    assert {row["model"] for row in summary["table"]} == {"base", "dpo:0.1", "jmamp"}
    page = STAGES["report"](run)
    html = Path(page["page"]).read_text()
    assert '<h2 id="judged">AlpacaEval 2</h2>' in html
    lines = Path(page["table"]).read_text().splitlines()
    assert lines[0] == "| Meth. | Cfg | LC | WR | held-out accuracy, % | held-out margin, nats |"
    assert [line.split("|")[1:3] for line in lines[2:]] == [
        [" Base ", " \u2013 "], [" DPO ", " β=0.1 "], [" SP2DPO ", " JMAMP "]
    ]  # fmt: skip
    rate = {row["model"]: row["figures"]["length_controlled_winrate"] for row in summary["table"]}
    assert f"{rate['jmamp']:.2f}" in lines[4]
    assert '<h2 id="cost">Cost</h2>' in html
    out = tmp_path / "tables"
    made = TABLES.work([run.folder], out)
    assert made["columns"][0] == "LC"
    gain = rate["jmamp"] - rate["dpo:0.1"]
    assert made["gains"][run.config.run.name]["SP2DPO, JMAMP"] == pytest.approx(gain)
    assert f"{gain:+.2f}" in (out / "gains.svg").read_text()
    with pytest.raises(DataError, match="two runs have one name"):
        TABLES.work([run.folder, run.folder], out)
    with pytest.raises(DataError, match=r"holds no report; run: sp2dpo report"):
        TABLES.work([tmp_path], out)


@pytest.mark.slow
def test_students_answer_and_are_scored_without_a_judge(
    ray_cluster: None, demo_config: Path, tmp_path: Path
) -> None:
    prompts = [
        {"key": 1, "prompt": "Write without a comma.", "kwargs": [{}],
         "instruction_id_list": ["punctuation:no_comma"]},
        {"key": 2, "prompt": "Write in capitals.", "kwargs": [{}],
         "instruction_id_list": ["change_case:english_capital"]},
        {"key": 3, "prompt": "Two things.", "kwargs": [{}, {"num_bullets": 3}],
         "instruction_id_list": ["punctuation:no_comma", "detectable_format:number_bullet_lists"]},
    ]  # fmt: skip
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in prompts))
    section = {"benchmarks": ["ifeval"], "ifeval": {"prompts": str(path)}}
    overrides = (
        f"evaluate={json.dumps(section)}", "generate={max_new_tokens: 12, rows: 2}",
        "sweep.arms=['dpo:0.1']", "train.workers=1",
    )  # fmt: skip
    run = Run(load_config(str(demo_config), overrides))
    for stage in ("prepare", "student", "reference", "train"):
        more = {"arm_name": "dpo:0.1"} if stage == "train" else {}
        STAGES[stage](run, **more)
    made = STAGES["generate"](run)
    assert made["outputs"] == 6
    rows = json.loads(run.path("eval", "dpo-0.1", "ifeval", "outputs", "outputs.json").read_text())
    assert [row["id"] for row in rows] == ["1", "2", "3"]
    assert all(0 < count <= 12 for row in rows for count in row["tokens"])
    assert {end for row in rows for end in row["finish"]} <= {"stop", "length"}
    again = STAGES["generate"](run)
    assert (again["outputs"], again["outputs_reused"]) == (0, 6)
    summary = evaluated(run)
    assert (summary["scored"], summary["calls_made"]) == (2, 0)
    assert {row["model"] for row in summary["table"]} == {"base", "dpo:0.1"}
    # answers that were decoded otherwise are not judged as those that are wanted now
    shorter = run.config.model_validate(run.config.resolved | {
        "generate": run.config.resolved["generate"] | {"max_new_tokens": 6}})  # fmt: skip
    with pytest.raises(DataError, match="no answers are there; run: sp2dpo generate"):
        evaluated(Run(shorter))
    if find_spec("vllm") is None:
        engine = run.config.model_validate(run.config.resolved | {
            "generate": run.config.resolved["generate"] | {"engine": "vllm"}})  # fmt: skip
        with pytest.raises(ConfigError, match=r"vllm is not installed.*pip install 'ray\[llm\]'"):
            STAGES["generate"](Run(engine))
    # batches of another size give the same greedy answers
    other = run.config.model_validate(run.config.resolved | {
        "generate": {"max_new_tokens": 12, "rows": 1},
        "run": run.config.resolved["run"] | {"name": "other"}})  # fmt: skip
    fresh = Run(other)
    for stage in ("prepare", "student"):
        STAGES[stage](fresh)
    STAGES["generate"](Run(other.model_validate(other.resolved | {
        "evaluate": other.resolved["evaluate"] | {"arms": []}})))  # fmt: skip
    one, two = (
        json.loads(each.path("eval", "base", "ifeval", "outputs", "outputs.json").read_text())
        for each in (run, fresh)
    )
    assert [row["turns"] for row in one] == [row["turns"] for row in two]
