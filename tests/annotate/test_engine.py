"""The self-hosted teacher, as far as a machine without a GPU can tell: its configuration, its
requests, what its rows mean, and a whole annotation with the engine itself replaced."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from pydantic import ValidationError
from ray.util.accelerators import accelerators

from sp2dpo_ray.annotate import engine
from sp2dpo_ray.annotate.batches import Order
from sp2dpo_ray.annotate.client import intent_entry, result_entry
from sp2dpo_ray.annotate.engine import COLUMNS
from sp2dpo_ray.annotate.engine_settings import check_accelerator, engine_config, pinned_template
from sp2dpo_ray.annotate.journal import Journal, Segment
from sp2dpo_ray.annotate.record import read_record
from sp2dpo_ray.annotate.spec import PanelSpec
from sp2dpo_ray.config import DecodingSection, TeacherSection, load_config
from sp2dpo_ray.core.annotation import ANSWER_SCHEMA, Outcome
from sp2dpo_ray.core.pairs import PAIR_FIELDS, Pair
from sp2dpo_ray.core.place import Folder
from sp2dpo_ray.core.prompts import load_prompts
from sp2dpo_ray.core.taxonomy import CATEGORIES
from sp2dpo_ray.errors import ConfigError, TeacherStopped
from sp2dpo_ray.run import Run
from sp2dpo_ray.stages import STAGES
from sp2dpo_ray.teachers.base import Reply
from sp2dpo_ray.teachers.vllm import reply_of, settings_of

CONFIGS = Path(__file__).parents[2] / "configs" / "teachers"
VALID = json.dumps(
    {"semantic_gap_category": "Style", "semantic_gap_magnitude": 0.5, "semantic_gap_confidence": 1}
)
# what Ray labels nodes with by itself; its A100-40G and A100-80G are for labels that people put
RAY_LABELS = {getattr(accelerators, name) for name in dir(accelerators) if name.isupper()} - {
    accelerators.NVIDIA_A100_40G, accelerators.NVIDIA_A100_80G
}  # fmt: skip
needs_ray_llm = pytest.mark.skipif(find_spec("ray.llm") is None, reason="ray.data.llm is missing")


def teacher(**changes: Any) -> TeacherSection:
    values = {"name": "host", "provider": "vllm", "model": "Qwen/Qwen3-32B"}
    return TeacherSection(**values | changes)


def test_every_request_is_held_to_the_schema_in_the_engines_words() -> None:
    section = DecodingSection(top_k=5, stop=("\n\n",), n=1)
    sent = settings_of(teacher(), section).sent
    assert json.loads(sent.pop("structured_outputs")["json"]) == ANSWER_SCHEMA
    assert sent == {"temperature": 0.1, "top_p": 0.8, "top_k": 5, "max_tokens": 64, "seed": 42,
                    "stop": ["\n\n"]}  # fmt: skip
    assert settings_of(teacher(), section).dropped == {}


@pytest.mark.parametrize(
    ("row", "outcome"),
    [
        ({"generated_text": VALID, "num_input_tokens": 9, "num_generated_tokens": 40}, Outcome.OK),
        ({"generated_text": VALID, "num_input_tokens": 9, "num_generated_tokens": 64}, Outcome.OK),
        ({"generated_text": '{"sem', "num_input_tokens": 9, "num_generated_tokens": 64},
         Outcome.TRUNCATED),
        ({"generated_text": '{"sem', "num_input_tokens": 90, "num_generated_tokens": 38},
         Outcome.TRUNCATED),  # max_model_len is full
        ({"__inference_error__": "the prompt exceeds the maximum model length of 128"},
         Outcome.TRUNCATED),
        ({"__inference_error__": "CUDA error"}, Outcome.TRANSPORT),
    ],
)  # fmt: skip
def test_rows_are_replies(row: dict[str, Any], outcome: Outcome) -> None:
    section = teacher(options={"max_model_len": 128, "revision": "abc"})
    reply = reply_of(row, section, DecodingSection())
    assert reply.outcome is outcome
    if outcome is Outcome.OK:
        assert reply.served_model == "Qwen/Qwen3-32B@abc"
        assert reply.usage is not None
        assert reply.usage.prompt_tokens == 9


def test_options_and_engines_that_nobody_reads_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"options\.dtyp.* a vllm teacher takes \["):
        settings_of(teacher(options={"dtyp": "auto"}), DecodingSection())
    with pytest.raises(ValidationError, match=r"provider offline does not read \[.replicas.\]"):
        TeacherSection(name="a", provider="offline", model="rules", engine={"replicas": 2})
    with pytest.raises(ValidationError, match="mode: batch is there for"):
        teacher(mode="batch")


@needs_ray_llm
def test_rays_own_configuration_is_made_of_ours() -> None:
    section = teacher(
        options={"quantization": "awq", "chat_template": {"enable_thinking": False}},
        engine={"tensor_parallel": 2, "replicas": 3, "rows": 16, "accelerator": "H100"},
    )
    made = engine_config(section, "{{ template }}")
    assert made.chat_template_stage.chat_template == "{{ template }}"
    assert section.engine.gpus == 6
    assert (made.concurrency, made.batch_size, made.accelerator_type) == ((3, 3), 16, "H100")
    kwargs = made.engine_kwargs
    assert (kwargs["tensor_parallel_size"], kwargs["quantization"]) == (2, "awq")
    assert kwargs["enable_prefix_caching"] is True
    assert kwargs["trust_remote_code"] is False
    assert "max_model_len" not in kwargs
    assert made.should_continue_on_error is True


def test_a_label_that_no_node_has_is_refused_with_those_that_are_there() -> None:
    present = {"GPU": 4.0, "CPU": 8.0, "accelerator_type:A100": 1.0, "accelerator_type:L4": 1.0}
    sized = teacher(engine={"accelerator": "A100-80G"})
    with pytest.raises(ConfigError, match=r"no node has the label A100-80G.* are \['A100', 'L4'\]"):
        check_accelerator(sized, present)
    check_accelerator(teacher(engine={"accelerator": "A100"}), present)
    check_accelerator(teacher(), {})


def test_the_chat_template_is_that_of_the_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine's revision pins the weights alone: Ray's template stage knows none."""
    transformers = pytest.importorskip("transformers")
    asked: list[tuple[str, dict[str, Any]]] = []

    def from_pretrained(model: str, **options: Any) -> Any:
        asked.append((model, options))
        return SimpleNamespace(chat_template="{{ of the revision }}")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", from_pretrained)
    assert pinned_template(teacher()) is None
    assert pinned_template(teacher(options={"revision": "abc"})) == "{{ of the revision }}"
    assert asked == [("Qwen/Qwen3-32B", {"revision": "abc", "trust_remote_code": False})]


@needs_ray_llm
@pytest.mark.parametrize("name", ["4b", "32b", "72b"])
def test_the_shipped_configurations_are_whole(name: str) -> None:
    config = load_config(str(CONFIGS / f"vllm_{name}.yaml"))
    (host,) = config.teachers
    made = engine_config(host)
    assert made.model_source == host.model
    assert settings_of(host, config.decoding).dropped == {}
    assert not host.external
    assert host.engine.accelerator in (None, *RAY_LABELS)


def test_the_rubric_stands_first_so_that_a_prefix_cache_can_keep_it() -> None:
    """Of two pairs' prompts of one variant, all that is not the pair's own comes before it."""
    prompts = load_prompts(("v1", "v2", "v3"), None)
    pairs = [Pair(f"p{i}", [{"role": "user", "content": f"{i} what?"}], f"{i} yes", f"{i} no")
             for i in range(2)]  # fmt: skip
    for variant in prompts.systems:
        one, two = (prompts.messages(variant, pair) for pair in pairs)
        assert one[0] == two[0]
        assert len(one[0]["content"]) > 0.6 * sum(len(m["content"]) for m in one)


class Fake:
    """What the engine would send for a call, drawn from its messages; every seventh fails once."""

    def __call__(self, batch: pa.Table) -> pa.Table:
        rows = []
        for row in batch.to_pylist():
            digest = hashlib.sha256(json.dumps(row["messages"]).encode()).digest()
            intent = json.loads(row["intent"])
            answer = {
                "semantic_gap_category": str(CATEGORIES[digest[0] % 6]),
                "semantic_gap_magnitude": digest[1] / 255,
                "semantic_gap_confidence": digest[2] / 255,
            }
            failed = digest[3] % 7 == 0 and intent["attempt"] == 1
            rows.append({
                "intent": row["intent"], "generated_text": json.dumps(answer),
                "num_input_tokens": 700, "num_generated_tokens": 40, "time_taken_llm": 0.1,
                "__inference_error__": "engine hiccup" if failed else "",
            })  # fmt: skip
        return pa.Table.from_pylist(rows or [], schema=ROWS)


ROWS = pa.schema(
    [("intent", pa.string()), ("generated_text", pa.string()), ("num_input_tokens", pa.int64()),
     ("num_generated_tokens", pa.int64()), ("time_taken_llm", pa.float64()),
     ("__inference_error__", pa.string())]
)  # fmt: skip


def fake_stage(calls: Any, section: TeacherSection, decoding: DecodingSection) -> Any:
    assert set(COLUMNS) < set(ROWS.names)
    assert settings_of(section, decoding).sent
    return calls.map_batches(Fake().__call__, batch_format="pyarrow")


def hosted(demo_config: Path, *more: str) -> Run:
    teachers = (
        "teachers=[{name: alba, provider: offline, model: rules}, "
        "{name: host, provider: vllm, model: some/model}]"
    )
    return Run(load_config(str(demo_config), (teachers, "annotate.evaluation=false", *more)))


@pytest.mark.ray
def test_a_hosted_teacher_goes_through_journal_and_schedule_like_any_other(
    ray_cluster: None, demo_config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "answered", fake_stage)
    run = hosted(demo_config)
    pairs = STAGES["prepare"](run)["pairs"]
    told = STAGES["annotate"](run)
    assert told["outcomes"] == {"ok": 2 * 3 * pairs}
    assert told["calls_made"] == 2 * 3 * pairs
    table = pq.read_table(run.path("annotations", "annotations.parquet")).to_pylist()
    mine = [row for row in table if row["teacher"] == "host"]
    assert {row["served_model"] for row in mine} == {"some/model"}
    assert {row["prompt_tokens"] for row in mine} == {700}
    assert STAGES["schedule"](run)["pairs"] == pairs
    lines = journal_of(run)
    intents = [line for line in lines if line["kind"] == "intent"]
    results = [line for line in lines if line["kind"] == "result"]
    assert len(intents) == len(results) > 3 * pairs  # some were asked twice
    assert {line["attempt"] for line in results} == {1, 2}
    again = STAGES["plan"](run)
    assert again["calls_recorded"] == again["calls"]
    # the journal alone gives the table again
    before = run.path("annotations", "annotations.parquet").read_bytes()
    run.path("annotations", "manifest.json").unlink()
    replayed = STAGES["annotate"](run)
    assert replayed["calls_made"] == 0
    assert run.path("annotations", "annotations.parquet").read_bytes() == before


@pytest.mark.ray
def test_an_engine_that_fails_for_all_stops_the_stage(
    ray_cluster: None, demo_config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "answered", broken_stage)
    run = hosted(demo_config, "annotate.max_failures=5")
    STAGES["prepare"](run)
    with pytest.raises(TeacherStopped, match=r"5 of 5 calls failed, last: CUDA error"):
        STAGES["annotate"](run)


def broken_stage(calls: Any, section: TeacherSection, decoding: DecodingSection) -> Any:
    return calls.map_batches(_all_fail, batch_format="pyarrow")


def _all_fail(batch: pa.Table) -> pa.Table:
    rows = [{"intent": row["intent"], "__inference_error__": "CUDA error"}
            for row in batch.to_pylist()]  # fmt: skip
    return pa.Table.from_pylist(rows, schema=ROWS)


@pytest.mark.ray
def test_an_engine_that_died_half_way_goes_on_with_what_it_had_not_answered(
    ray_cluster: None, demo_config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = hosted(demo_config)
    pairs = STAGES["prepare"](run)["pairs"]
    monkeypatch.setattr(engine, "answered", dying_stage)
    with pytest.raises(TeacherStopped, match=r"teacher host: .*actor experienced an error"):
        STAGES["annotate"](run)
    first = journal_of(run)
    answered = {line["key"] for line in first if line["kind"] == "result" and is_ok(line)}
    assert 0 < len(answered) < 3 * pairs
    assert sum(line["kind"] == "intent" for line in first) > len(answered)  # some were under way
    assert [line["kind"] for line in first if line["kind"].startswith("job")] == ["job"]  # open
    monkeypatch.setattr(engine, "answered", fake_stage)
    told = STAGES["annotate"](run)
    assert told["outcomes"] == {"ok": 2 * 3 * pairs}
    results = Counter(
        line["key"] for line in journal_of(run) if line["kind"] == "result" and is_ok(line)
    )
    assert len(results) == 3 * pairs
    assert set(results.values()) == {1}  # nothing was answered twice


def dying_stage(calls: Any, section: TeacherSection, decoding: DecodingSection) -> Any:
    return Dying(fake_stage(calls, section, decoding))


class Dying:
    """The engine's actor is gone after its first forty answers."""

    def __init__(self, made: Any) -> None:
        self._made = made

    def iter_batches(self, **how: Any) -> Iterator[pa.Table]:
        yield next(iter(self._made.iter_batches(**how | {"batch_size": 40})))
        raise ray.exceptions.RayActorError


def test_where_every_call_is_on_record_no_engine_is_started(tmp_path: Path) -> None:
    """It would load a large model for no row, and fail on a machine without vLLM."""
    pairs = [Pair(f"p{n}", [{"role": "user", "content": f"{n}?"}], "yes", "no") for n in range(3)]
    file = tmp_path / "pairs.parquet"
    rows = [{"prompt_id": pair.prompt_id, "prompt": pair.prompt, "chosen": pair.chosen,
             "rejected": pair.rejected} for pair in pairs]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows, schema=pa.schema(PAIR_FIELDS)), file)
    place = Folder(tmp_path / "journal")
    spec = PanelSpec((teacher(),), DecodingSection(), load_prompts(("v1",)), place, 1, 25, 10.0)
    intents = [intent_entry(call, 1, 0.0) for call in spec.calls(pairs)]
    reply = Reply(Outcome.OK, text=VALID)

    def write(entries: list[dict[str, Any]]) -> None:
        segment = Segment(place, "host")
        for entry in entries:
            asyncio.run(segment.append(entry))
        segment.close()

    def told() -> list[Any]:
        order = Order(spec, [file], read_record(Journal(place).new_entries()), poll_s=0.01)
        made = engine.Engine(order, lambda *_: pytest.fail("the engine was started"))
        try:
            return list(made.rounds())
        finally:
            made.close()

    for intent in intents:
        write([intent, result_entry(intent, reply, seconds=1.0, money={})])
    ((row,),) = told()
    assert (row["calls"], row["reused"]) == (3, True)
    kinds = {entry["kind"] for entry in Journal(place).new_entries()}
    assert kinds == {"intent", "result"}  # no round was begun


def journal_of(run: Run) -> list[dict[str, Any]]:
    return [json.loads(line[: line.rfind(b',"crc"')] + b"}")
            for path in sorted(run.path("journal", "host").glob("*.jsonl"))
            for line in path.read_bytes().splitlines()]  # fmt: skip


def is_ok(line: dict[str, Any]) -> bool:
    return bool(line["outcome"] == "ok")


@pytest.mark.ray
@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is here")
def test_without_vllm_the_line_that_installs_it_is_told(
    ray_cluster: None, demo_config: Path
) -> None:
    run = hosted(demo_config)
    STAGES["prepare"](run)
    with pytest.raises(ConfigError, match=r"vLLM is not installed; .*: pip install 'ray\[llm\]'"):
        STAGES["annotate"](run)
    found = STAGES["doctor"](run)["teachers"]["host"]
    assert "runs on this cluster" in found["state"]
