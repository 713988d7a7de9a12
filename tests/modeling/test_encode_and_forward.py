"""Tokens, batches, the forward pass and the tiny student."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import OPTConfig, OPTForCausalLM

from sp2dpo_ray.config import LoraSection, TinySection, TrainSection
from sp2dpo_ray.core.pairs import PAIR_FIELDS, Pair, pairs_from
from sp2dpo_ray.errors import ConfigError, DataError, TrainingError
from sp2dpo_ray.modeling.encode import EncodedPair, Encoding, encode_pairs
from sp2dpo_ray.modeling.forward import Scorer, check_forward, response_logps, unsure_logps
from sp2dpo_ray.modeling.head import head_logps
from sp2dpo_ray.modeling.layout import collate, plan_batches
from sp2dpo_ray.modeling.student import (
    add_adapter,
    find_student,
    load_model,
    load_tokenizer,
    student_to_train,
)
from sp2dpo_ray.modeling.tiny import make_tiny_student
from sp2dpo_ray.reference.pipeline import ReferenceActor, ReferenceSpec


def pair(prompt: str, chosen: str, rejected: str, name: str = "x") -> Pair:
    return Pair(name, [{"role": "user", "content": prompt}], chosen, rejected)


PAIRS = [
    pair("Why is the sky blue?", "Air scatters blue light.", "It is painted.", "a"),
    pair("Say hi", "Hi there, friend! " * 6, "No", "b"),
    pair("One more \U0001f600", "ok", "\u4f60\u597d " * 9, "c"),
]


@pytest.fixture(scope="module")
def parts(tiny_student: Any) -> tuple[Any, Any]:
    return load_tokenizer(tiny_student), load_model(tiny_student, "fp32").double()


def encode(tokenizer: Any, pairs: list[Pair] = PAIRS, longest: int = 512, prompt: int = 256) -> Any:
    return encode_pairs(pairs, tokenizer, Encoding(longest, prompt))


def test_tokens_are_those_of_the_whole_conversation(parts: tuple[Any, Any]) -> None:
    tokenizer, _ = parts
    for item, encoded in zip(PAIRS, encode(tokenizer), strict=True):
        for response, ids in ((item.chosen, encoded.chosen), (item.rejected, encoded.rejected)):
            turns = [*item.prompt, {"role": "assistant", "content": response}]
            text = tokenizer.apply_chat_template(turns, tokenize=False)
            whole = tokenizer(text, add_special_tokens=False)["input_ids"]
            assert [*encoded.prompt, *ids] == whole
            assert ids.tolist().count(tokenizer.eos_token_id) == 1  # the turn is closed, once
        assert not encoded.truncated


def test_truncation_keeps_the_prompts_end_and_the_responses_start(parts: tuple[Any, Any]) -> None:
    tokenizer, _ = parts
    (full,) = encode(tokenizer, [PAIRS[1]])
    (cut,) = encode(tokenizer, [PAIRS[1]], longest=12, prompt=5)
    assert cut.truncated
    assert cut.prompt.tolist() == full.prompt[-5:].tolist()
    assert cut.chosen.tolist() == full.chosen[:7].tolist()
    assert cut.rejected.tolist() == full.rejected[:7].tolist()


def test_a_tokenizer_without_a_template_is_refused(parts: tuple[Any, Any]) -> None:
    class Bare:
        chat_template = None

    with pytest.raises(ConfigError, match="has no chat template"):
        encode(Bare())


def test_a_template_that_refuses_names_the_pair(tiny_student: Any) -> None:
    tokenizer = load_tokenizer(tiny_student)
    tokenizer.chat_template = "{{ raise_exception('no system role') }}"
    with pytest.raises(DataError, match="pair a: the student's chat template refuses it"):
        encode(tokenizer)


@given(st.lists(st.integers(2, 60), min_size=1, max_size=30), st.integers(10, 400))
def test_batches_hold_every_pair_once_within_the_budget(lengths: list[int], budget: int) -> None:
    encoded = [
        EncodedPair(str(i), *(np.zeros(count, np.int32) for count in (1, n - 1, 1)))
        for i, n in enumerate(lengths)
    ]
    batches = plan_batches(encoded, range(len(encoded)), budget)
    assert sorted(i for batch in batches for i in batch) == list(range(len(encoded)))
    for batch in batches:
        padded = 2 * len(batch) * max(encoded[i].longest_row for i in batch)
        assert padded <= budget or len(batch) == 1


def slow_logps(model: Any, encoded: EncodedPair, response: list[int]) -> float:
    """One row by itself, all logits, a sum over the response: nothing clever."""
    ids = torch.tensor([[*encoded.prompt, *response]])
    logps = torch.log_softmax(model(input_ids=ids).logits[0], dim=-1)
    start = len(encoded.prompt)
    return float(sum(logps[t - 1, ids[0, t]] for t in range(start, ids.shape[1])))


@torch.no_grad()
def test_batched_logps_equal_one_row_at_a_time(parts: tuple[Any, Any]) -> None:
    tokenizer, model = parts
    encoded = encode(tokenizer)
    batch = collate(encoded, [2, 0, 1], tokenizer.pad_token_id)
    chosen, rejected = response_logps(model, batch).view(2, -1).tolist()
    for place, i in enumerate([2, 0, 1]):
        assert chosen[place] == pytest.approx(slow_logps(model, encoded[i], encoded[i].chosen),
                                              abs=1e-10)  # fmt: skip
        assert rejected[place] == pytest.approx(slow_logps(model, encoded[i], encoded[i].rejected),
                                                abs=1e-10)  # fmt: skip
    check_forward(model, batch, batch)


@torch.no_grad()
def test_unsure_tokens_are_those_below_their_responses_mean(parts: tuple[Any, Any]) -> None:
    tokenizer, model = parts
    encoded = encode(tokenizer)
    batch = collate(encoded, [2, 0, 1], tokenizer.pad_token_id)
    whole, few, count = unsure_logps(model, batch)
    assert torch.equal(whole, response_logps(model, batch))
    rows = [encoded[i].chosen for i in (2, 0, 1)] + [encoded[i].rejected for i in (2, 0, 1)]
    for place, response in enumerate(rows):
        prompt = encoded[(2, 0, 1)[place % 3]].prompt
        ids = torch.tensor([[*prompt, *response]])
        logps = torch.log_softmax(model(input_ids=ids).logits[0], dim=-1)
        tokens = torch.stack(
            [logps[t - 1, ids[0, t]] for t in range(len(prompt), ids.shape[1])]
        ).exp()
        below = tokens < tokens.mean()
        assert count[place] == below.sum()
        assert few[place].item() == pytest.approx(tokens[below].log().sum().item(), abs=1e-9)


def test_an_architecture_that_bends_its_logits_is_refused(parts: tuple[Any, Any]) -> None:
    tokenizer, model = parts
    batch = collate(encode(tokenizer), [0], tokenizer.pad_token_id)
    forward = model.forward

    def bent(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        output.logits = output.logits * 0.5
        return output

    model.forward = bent
    try:
        with pytest.raises(TrainingError, match="is not supported"):
            check_forward(model, batch, batch)
    finally:
        model.forward = forward


def test_a_fresh_adapter_changes_nothing_and_only_it_is_trained(tiny_student: Any) -> None:
    tokenizer, model = load_tokenizer(tiny_student), load_model(tiny_student, "fp32")
    batch = collate(encode(tokenizer), [0, 1], tokenizer.pad_token_id)
    before = response_logps(model, batch)
    adapted = add_adapter(model, LoraSection(r=4), seed=3)
    assert torch.equal(response_logps(adapted.eval(), batch), before)
    names = [name for name, weight in adapted.named_parameters() if weight.requires_grad]
    assert names
    assert all("lora_" in name for name in names)
    again = add_adapter(load_model(tiny_student, "fp32"), LoraSection(r=4), seed=3)
    pairs = zip(adapted.parameters(), again.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_a_students_own_dropout_is_off_while_it_trains(tiny_student: Any, tmp_path: Path) -> None:
    """OPT has some in its layers, given to functions there; the reference has none."""
    config = OPTConfig(
        vocab_size=512, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, ffn_dim=64,
        word_embed_proj_dim=32, dropout=0.5, attention_dropout=0.5,
    )  # fmt: skip
    OPTForCausalLM(config).save_pretrained(tmp_path)
    load_tokenizer(tiny_student).save_pretrained(tmp_path)
    student = find_student(str(tmp_path), None)
    model = student_to_train(student, LoraSection(r=2, dropout=0.5, target_modules=("q_proj",)),
                             "fp32", "plain", 0, True)  # fmt: skip
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        assert torch.equal(model.train()(ids).logits, model.eval()(ids).logits)
    assert any(m.p == 0.5 for m in model.modules() if isinstance(m, torch.nn.Dropout))  # LoRA's


def test_a_reference_is_computed_as_the_policy_is(tiny_student: Any) -> None:
    """Weights that train themselves are kept in float32 and compute in bf16: so must the reference,
    or every pair would begin with a margin of rounding."""
    options = TrainSection(precision="bf16")
    weights, computed_in = options.weights_of(None)
    pairs = pa.table(
        [[f"p{i}" for i in range(4)],
         [[{"role": "user", "content": f"Say {i}."}] for i in range(4)],
         [f"A long answer, number {i}. " * 9 for i in range(4)], [f"No {i}." for i in range(4)]],
        schema=pa.schema(PAIR_FIELDS),
    )  # fmt: skip
    spec = ReferenceSpec(tiny_student, Encoding(256, 64), weights, computed_in, 4096, "shared",
                         1 << 26, True, 1, 0.0)  # fmt: skip
    found = ReferenceActor(spec)(pairs)
    policy = student_to_train(tiny_student, None, weights, "shared", 0, True)
    encoded = encode_pairs(pairs_from(pairs), load_tokenizer(tiny_student), Encoding(256, 64))
    (index,) = plan_batches(encoded, range(4), 4096, "shared")
    batch = collate(encoded, index, load_tokenizer(tiny_student).pad_token_id, "shared")
    logps = Scorer(policy, autocast=torch.bfloat16)(batch).view(2, -1)
    assert torch.equal(logps[0].detach(), torch.tensor(found["chosen_logp"].to_pylist())[index])
    plain = Scorer(load_model(tiny_student, "bf16", "shared"))(batch).view(2, -1)
    assert not torch.equal(plain[0], logps[0])  # what all of bf16 would have given


@pytest.mark.parametrize("frozen", [True, False])
def test_a_head_that_nobody_differentiates_keeps_its_budget(frozen: bool) -> None:
    seen = []

    def head(hidden: torch.Tensor) -> torch.Tensor:
        seen.append(len(hidden))
        return hidden @ torch.ones(8, 100)

    with torch.no_grad():
        head_logps(head, torch.randn(500, 8), torch.zeros(500, dtype=torch.long), vocabulary=100,
                   frozen=frozen, budget=50 * 400)  # fmt: skip
    assert (max(seen), sum(seen)) == (50, 500)


def test_unknown_target_modules_are_refused(tiny_student: Any) -> None:
    lora = LoraSection(target_modules=("q_proj", "no_such_proj"))
    with pytest.raises(ConfigError, match=r"\['no_such_proj'\] are not in Qwen3ForCausalLM"):
        add_adapter(load_model(tiny_student, "fp32"), lora, seed=0)


def test_the_tiny_student_is_reproducible_and_learns(tmp_path: Path) -> None:
    options = TinySection(vocabulary=300, layers=1, hidden=32, heads=2, steps=30, batch=4)
    losses = [make_tiny_student(PAIRS, options, tmp_path / name) for name in ("one", "two")]
    one, two = (find_student(str(tmp_path / name), None) for name in ("one", "two"))
    assert one.fingerprint == two.fingerprint
    assert losses[0] == losses[1]
    untaught = make_tiny_student(PAIRS, options.model_copy(update={"steps": 1}), tmp_path / "new")
    assert losses[0] < 0.7 * untaught
    text = "any text: \u4f60 \U0001f600 \x00"
    tokenizer = load_tokenizer(one)
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@pytest.mark.parametrize(
    ("model", "message"),
    [("no/such/path/anywhere", "it is no Hugging Face id"),
     ("some-organisation/no-such-model", "the Hugging Face hub did not give a model")],
)  # fmt: skip
def test_a_student_that_does_not_exist_is_refused(model: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find_student(model, None)


def test_a_machine_without_a_network_gets_the_same_message(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Unreachable(Exception):
        """Clients raise types of their own, which share no base."""

    def fail(*_: Any, **__: Any) -> None:
        raise Unreachable("name or service not known")

    monkeypatch.setattr("sp2dpo_ray.modeling.student.HfApi.model_info", fail)
    with pytest.raises(ConfigError, match=r"did not give a model of that id .*: Unreachable"):
        find_student("some-organisation/no-such-model", None)
    monkeypatch.setattr("sp2dpo_ray.modeling.student.snapshot_download",
                        lambda *_, **__: "/cache/snapshots/0a1b2c")  # fmt: skip
    assert find_student("some-organisation/cached", None).revision == "0a1b2c"


def test_a_folder_without_safetensors_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(ConfigError, match=r"holds no \.safetensors file"):
        find_student(str(tmp_path), None)


def test_what_happens_to_a_pair_is_noted(parts: tuple[Any, Any]) -> None:
    tokenizer, _ = parts
    end = tokenizer.eos_token_id
    long = PAIRS[1]
    (whole,) = encode(tokenizer, [long])
    assert whole.notes == ()
    (cut,) = encode_pairs([long], tokenizer, Encoding(12, 5))
    assert set(cut.notes) >= {"prompt_cut", "chosen_cut", "end_lost"}
    (start,) = encode_pairs([long], tokenizer, Encoding(12, 5, keep_prompt="start"))
    assert start.prompt.tolist() == whole.prompt[:5].tolist()
    (closed,) = encode_pairs([long], tokenizer, Encoding(12, 5, keep_end_token=True))
    assert closed.chosen.tolist() == [*whole.chosen[:6], end]
    assert "end_lost" not in closed.notes
    (same,) = encode(tokenizer, [pair("q", "twice", "twice")])
    assert same.notes == ("alike",)


def test_a_boundary_that_shifts_is_noted(parts: tuple[Any, Any]) -> None:
    tokenizer, _ = parts
    from copy import deepcopy

    merging = deepcopy(tokenizer)  # the prompt alone ends in a token that the whole never has
    merging.chat_template = (
        "{% for m in messages %}{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}!!{% endif %}"
    )
    (shifted,) = encode(merging, [pair("hello", " you", " they")])
    assert "boundary_shifted" in shifted.notes
    merging.chat_template = "{{ messages[-1]['role'] }}{{ messages[-1]['content'] }}"
    with pytest.raises(DataError, match="pair x: its prompt and its responses have no common"):
        encode(merging, [pair("hello", " you", " they")])


def test_a_turn_may_be_closed_by_another_token_than_a_text(parts: tuple[Any, Any]) -> None:
    """As Gemma's does: <end_of_turn> and a line break, where the text's end is <eos>."""
    from copy import deepcopy

    tokenizer = deepcopy(parts[0])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<end_of_turn>"]})
    turn = tokenizer.convert_tokens_to_ids("<end_of_turn>")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}<end_of_turn>\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    (cut,) = encode_pairs([PAIRS[1]], tokenizer, Encoding(12, 5, keep_end_token=True))
    assert cut.chosen[-1] == turn != tokenizer.eos_token_id
