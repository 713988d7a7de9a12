"""The configuration: what is refused, how overrides work, what names a process."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import get_args

import pytest
import yaml

from sp2dpo_ray.config import Config, load_config
from sp2dpo_ray.config.schedule import MappingSection
from sp2dpo_ray.core.arms import parse_arm
from sp2dpo_ray.core.schedule.mapping import SHAPES
from sp2dpo_ray.errors import ConfigError

REPOSITORY = Path(__file__).parent.parent
MINIMAL = """
data: {source: pairs.parquet}
teachers: [{name: a, provider: offline, model: rules}]
"""


@pytest.fixture
def minimal(tmp_path: Path) -> str:
    path = tmp_path / "c.yaml"
    path.write_text(MINIMAL)
    return str(path)


@pytest.mark.parametrize("path", sorted((REPOSITORY / "configs").rglob("*.yaml")), ids=str)
def test_every_shipped_configuration_loads(path: Path) -> None:
    config = load_config(str(path))
    assert Config.model_validate(config.resolved) == config


@pytest.mark.parametrize("path", sorted((REPOSITORY / "configs/students").glob("*.yaml")), ids=str)
def test_each_student_has_the_papers_twenty_arms(path: Path) -> None:
    """Table 16: three global betas, random, every single call, teacher and prompt, and all."""
    arms = [parse_arm(name) for name in load_config(str(path)).sweep.names]
    kinds = Counter(arm.name.partition("-")[0].partition(":")[0] for arm in arms)
    assert kinds == {"dpo": 3, "random": 1, "sa": 9, "se": 3, "ma": 3, "jmamp": 1}
    assert [arm.constant for arm in arms if arm.constant] == [0.1, 0.3, 0.5]
    assert len({arm.what for arm in arms}) == 20


def test_the_envelope_and_decoding_defaults_are_the_papers(minimal: str) -> None:
    config = load_config(minimal)
    assert (config.mapping.beta_min, config.mapping.beta_max) == (0.03, 0.3)
    decoding = config.decoding
    assert (decoding.temperature, decoding.top_p, decoding.max_output_tokens) == (0.1, 0.8, 64)
    assert (decoding.seed, decoding.timeout_s, decoding.retries) == (42, 180, 3)
    assert (config.student.lora.r, config.student.lora.alpha) == (16, 32)
    assert (config.train.max_length, config.train.max_prompt_length) == (2048, 1536)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trian.epochs=1", "trian: unknown key"),
        ("train.lerning_rate=1", "train.lerning_rate: unknown key"),
        ("teachers.0.limits.rpmm=3", "teachers[0].limits.rpmm: unknown key"),
        ("train.epochs=0", "train.epochs: Input should be greater than or equal to 1, got 0"),
        (
            "train.precision=fp8",
            "train.precision: Input should be 'bf16', 'fp32' or 'nf4', got 'fp8'",
        ),
        (
            "mapping.beta_min=0.5",
            "mapping: the envelope needs 0 < beta_min <= beta_max, got [0.5, 0.3]",
        ),
        ("train.max_prompt_length=4096", "max_prompt_length must be below max_length"),
        ("train.pairs_per_step=2", "workers must not exceed pairs_per_step, got 4 and 2"),
        ("train.workers=[4, 2]", "workers: the least must not exceed the most, got (4, 2)"),
        ("train.workers=[1, 65]", "workers must not exceed pairs_per_step, got (1, 65) and 64"),
        ("train.workers=0", "train.workers"),
        ("train.loss=dop", "train: method 'dop' is unknown; the methods are ['logistic', "),
        (
            "train.loss=simpo",
            "train.arm: jmamp has betas of sums over tokens, train.loss simpo takes",
        ),
        ("train={loss: simpo, arm: 'dpo:0.1/random@1'}", "per token; beta 0.1 is not within"),
        ("train.loss=repo", "repo knows no beta"),
        ("train={loss: hybrid, arm: 'dpo:0.1'}", "hybrid begins with a schedule's betas"),
        ("train.loss_options={cdpo: {eps: 0.1}}", "method cdpo takes no option 'eps'"),
        ("train.loss_options={cdpo: {epsilon: 0.5}}", "epsilon must be at least 0 and below 0.5"),
        ("sweep.arms=['dpo:0.1', 'dpo:0.10']", "'dpo:0.1' and 'dpo:0.10' are the same arm"),
        ("sweep={arms: ['jmamp@1'], seeds: [1]}", "in sweep.seeds or behind the arms"),
        ("sweep.seeds=[1, 1]", "sweep.seeds must differ"),
        ("sweep.arms=[sa-b-v1+hinge]", "arm 'sa-b-v1+hinge' is not of this panel"),
        ("train={strategy: zero2, workers: [1, 2]}", "zero2 needs a fixed number of workers"),
        ("train={strategy: fsdp, precision: nf4}", "fsdp cannot share out weights in 4 bits"),
        ("train={strategy: fsdp, optimizer: paged_adamw_32bit}", "does not know the shares"),
        ("teachers=[]", "teachers: Tuple should have at least 1 item"),
        ("teachers.0.name=A b", "teachers[0].name: String should match pattern"),
        ("teachers.0.provider=acme", "teachers[0].provider: Input should be 'openai'"),
        # pragma: allowlist nextline secret
        ("teachers.0.base_url=https://user:pass@host/v1", "must hold no credentials"),
        ("teachers.0.options.api_key=sk-1", "options must not hold ['api_key']"),
        ("teachers.0.options={http: {Headers: {x: y}}}", "options must not hold ['headers']"),
        ("teachers.0.base_url='https://h/v1?api_key=k'", "base_url must hold no key"),
        ("prompts.variants=[v1, v1]", "prompts.variants must differ"),
        ("prompts.variants=[ens]", "'ens' names the ensemble's columns"),
        ("sweep.arms=[jmamp, jmamp]", "sweep.arms must differ"),
        ("sweep.arms=[dpo]", "sweep.arms: arm 'dpo' is unknown"),
        ("sweep.arms=[sa-b-v1]", "sweep.arms: arm 'sa-b-v1' is not of this panel"),
        ("train.arm=ma-v9", "train.arm: arm 'ma-v9' is not of this panel"),
        # pragma: allowlist nextline secret
        ("run.storage=s3://key:secret@bucket/x", "storage must hold no credentials"),
        ("run.name=../elsewhere", "run.name: String should match pattern"),
        ("data.source=null", "data.source: Input should be a valid string, got None"),
        ("teachers.0.provider=openai", "api_key_env must name the environment variable"),
        ("teachers.0.mode=batch", "mode: batch is there for ['gemini', 'openai'], not for offline"),
        ("teachers.0.price={input: 1, output: 2}", "as_of must say when this price was read"),
        ("teachers.0.price={input: 1, as_of: 2026-01-01}", "must be given together"),
        ("teachers.0.price={input: -1, output: 2, as_of: 2026-01-01}", "greater than or equal"),
        ("teachers.0.limits={rpm: 0}", "teachers[0].limits.rpm: Input should be greater than"),
        ("budget.usd=0", "budget.usd: Input should be greater than 0"),
        ("annotate.early_stop=-1", "annotate.early_stop: Input should be greater than or equal"),
        # pragma: allowlist nextline secret
        ("annotate.journal=s3://key:secret@bucket/x", "journal must hold no credentials"),
        # pragma: allowlist nextline secret
        ("evaluate.journal=s3://key:secret@bucket/x", "journal must hold no credentials"),
        ("annotate.journal='s3://b/x?access_key=k'", "journal must hold no credentials"),
        ("decoding.n=2", "decoding.n: Input should be 1, got 2"),
        ("train.learning_rate=.inf", "train.learning_rate: Input should be a finite number"),
        (
            "train.arm='map:exponent=2'",
            "train.arm: map:exponent=2: arm map: exponent belongs to "
            "the shape power, and the shape is linear",
        ),
        ("sweep.arms=['map:damping_lambda=3']", "damping_lambda without a damping"),
        ("sweep.arms=['map:beta_min=0.5']", "the envelope needs 0 < beta_min <= beta_max"),
        ("sweep.arms=['map:shape=cubic']", "shape must be one of"),
        ("sweep.arms=['map:shape=quantile,quantiles=2.5']", "quantiles must be a whole number"),
        ("sweep.arms=['map:estimator=typo']", "estimator 'typo' is unknown"),
        ("export.arm='jmamp/random:0.5'", "export.arm: jmamp/random:0.5 selects pairs"),
        ("export.arm=jmamp+madpo", "weighs pairs, and a data set holds betas alone"),
        ("export.arm=jmamp+hybrid", "moves betas while it trains"),
        ("export.arm='column:beta_typo'", "will have no column of betas 'beta_typo'"),
    ],
)
def test_broken_rules_are_named_by_their_dotted_key(
    minimal: str, override: str, message: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        load_config(minimal, (override,))
    assert message in str(refused.value)


API = "teachers=[{name: a, provider: gemini, model: m, api_key_env: K%s}]"
PRICED = ", price: {input: 1, output: 2, as_of: 2026-01-01}"


def test_frozen_weights_in_four_bits_are_not_trained(minimal: str) -> None:
    with pytest.raises(ConfigError, match=r"nf4 keeps frozen weights"):
        load_config(minimal, ("train.precision=nf4", "student.lora=null"))
    config = load_config(minimal, ("student.lora=null",))
    assert config.training(parse_arm("jmamp"))["lora"] is None


def test_pairs_that_must_not_leave_refuse_every_api(minimal: str) -> None:
    assert not load_config(minimal, ("data.external=false",)).data.external
    with pytest.raises(ConfigError, match=r"data\.external: false .*a \(gemini\).* are APIs"):
        load_config(minimal, (API % "", "data.external=false"))


def test_a_budget_needs_every_price(minimal: str) -> None:
    with pytest.raises(ConfigError, match=r"budget\.usd needs the prices.*'a'"):
        load_config(minimal, (API % "", "budget.usd=5"))
    assert load_config(minimal, (API % PRICED, "budget.usd=5")).budget.usd == 5
    assert load_config(minimal, ("budget.usd=5",)).budget.usd == 5  # rules cost nothing


@pytest.mark.parametrize(
    "option",
    ["max_completion_tokens: 2048", "max_tokens: 2048", "max_output_tokens: null", "n: 4",
     "candidate_count: 2", "maxOutputTokens: 2048"],
)  # fmt: skip
def test_with_a_budget_no_option_moves_the_cap_of_an_answer(minimal: str, option: str) -> None:
    name = option.partition(":")[0]
    teacher = API % f"{PRICED}, options: {{{option}}}"
    assert load_config(minimal, (teacher,)).teachers[0].options.keys() == {name}
    with pytest.raises(ConfigError, match=rf"teachers\.a\.options must not hold \['{name}'\]"):
        load_config(minimal, (teacher, "budget.usd=5"))
    free = teacher.replace("output: 2", "output: 0")
    assert load_config(minimal, (free, "budget.usd=5")).budget.usd == 5


def test_two_teachers_are_not_the_same_one(minimal: str) -> None:
    """Their calls have the same keys, so the second would only repeat what the first said."""
    one = "{name: a, provider: openai, model: m, base_url: 'http://gpu1/v1'}"
    two = "{name: b, provider: openai, model: m, base_url: 'http://gpu2/v1'}"
    with pytest.raises(ConfigError, match=r"teachers\.a and teachers\.b: .*served-model-name"):
        load_config(minimal, (f"teachers=[{one}, {two}]",))
    other = two.replace("model: m", "model: m2")
    assert len(load_config(minimal, (f"teachers=[{one}, {other}]",)).teachers) == 2
    warmer = two.replace("}", ", options: {reasoning_effort: low}}")
    assert len(load_config(minimal, (f"teachers=[{one}, {warmer}]",)).teachers) == 2


def test_what_the_client_does_is_no_part_of_a_call(minimal: str) -> None:
    """Timeouts and retries change no answer, so they change no key; all else of Table 6 does."""
    one = load_config(minimal).decoding.of_answers
    assert (
        load_config(minimal, ("decoding.timeout_s=5", "decoding.retries=0")).decoding.of_answers
        == one
    )
    assert one.keys() == {
        "temperature", "top_p", "top_k", "max_output_tokens", "seed", "frequency_penalty",
        "presence_penalty", "repetition_penalty", "n", "stop",
    }  # fmt: skip


def test_a_missing_section_is_named(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("run: {name: x}")
    with pytest.raises(ConfigError, match=r"data: must be given\n.*teachers: must be given"):
        load_config(str(tmp_path / "c.yaml"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {epochs: 1}\ndata: {}\ntrain: {seed: 1}", "'train' stands twice(.|\n)*line 3"),
        ("train: {epochs: 1, epochs: 2}", "'epochs' stands twice"),
        ("[1, 2]", "must hold a mapping"),
        ("a: [", "cannot be read as YAML"),
        ("", "mapping"),
    ],
)
def test_files_that_are_no_configuration(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config(str(tmp_path / "c.yaml"))


def test_sections_may_be_merged_from_an_anchor(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(
        MINIMAL + "train: &own {epochs: 2, seed: 1}\nsweep: {arms: [jmamp]}\n"
    )
    again = MINIMAL.replace("{source: pairs.parquet}", "{<<: &x {limit: 3}, source: a, limit: 4}")
    (tmp_path / "d.yaml").write_text(again)
    assert load_config(str(tmp_path / "c.yaml")).train.epochs == 2
    assert load_config(str(tmp_path / "d.yaml")).data.limit == 4  # one's own goes first


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ConfigError, match=r"no configuration file 'nowhere\.yaml'"):
        load_config("nowhere.yaml")


@pytest.mark.parametrize(
    ("override", "message"),
    [("train.epochs", "must have the form"), ("=3", "must have the form"),
     ("data.source.x=1", "is a value, not a section"), ("teachers.7.name=x", "no place in a list"),
     ("teachers.\u00b2.name=x", "no place in a list"),
     ("train.epochs=[", "not a YAML value")],
)  # fmt: skip
def test_overrides_that_make_no_sense(minimal: str, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(minimal, (override,))


def test_overrides_reach_every_depth(minimal: str) -> None:
    config = load_config(
        minimal,
        ("train.epochs=3", "student.lora.r=4", "teachers.0.model=m", "sweep.arms=[random]"),
    )
    assert (config.train.epochs, config.student.lora.r) == (3, 4)
    assert (config.teachers[0].model, config.sweep.arms) == ("m", ("random",))


def test_lambda_names_the_process_and_not_its_place(minimal: str) -> None:
    config = load_config(minimal)
    same = load_config(
        minimal, ("run.name=other", "run.storage=/elsewhere", "cluster.address=auto")
    )
    assert same.lambda_id == config.lambda_id
    for change in ("mapping.beta_max=0.2", "train.seed=1", "teachers.0.options.persona=strict"):
        assert load_config(minimal, (change,)).lambda_id != config.lambda_id
    # a predictor decides betas where it speaks for a share of the pairs, and only there
    mix = "annotate.mix={share: 0.5}"
    for change, decides in (("distill.seed=1", True), ("distill.frontier=[0.5]", False)):
        assert load_config(minimal, (change,)).lambda_id == config.lambda_id
        alone, both = (load_config(minimal, flags).lambda_id for flags in ((mix,), (mix, change)))
        assert (alone != both) == decides
    reordered = yaml.safe_dump(dict(reversed(list(config.resolved.items()))))
    Path(minimal).write_text(reordered)
    assert load_config(minimal).lambda_id == config.lambda_id


def test_every_shape_of_the_table_can_be_configured() -> None:
    shape = MappingSection.model_fields["shape"]
    assert get_args(shape.annotation) == tuple(SHAPES)
    for row in SHAPES.values():
        assert set(row.keys) <= set(MappingSection.model_fields)


def test_where_a_training_runs_is_no_part_of_it(minimal: str) -> None:
    """A checkpoint goes on with other workers, and a finished arm is not trained anew for them."""
    arm = parse_arm("jmamp")
    one, four = (
        load_config(minimal, (f"train.workers={n}", "train.gpus_per_worker=0")).training(arm)
        for n in (1, 4)
    )
    assert one == four
    assert one != load_config(minimal, ("train.epochs=7",)).training(arm)


def test_options_of_other_methods_train_no_arm_anew(minimal: str) -> None:
    def training(name: str, *overrides: str) -> dict[str, object]:
        return load_config(minimal, overrides).training(parse_arm(name))

    options = ("train.loss_options={cdpo: {epsilon: 0.05}}", "train.margin=scores")
    assert training("jmamp", *options) == training("jmamp")
    assert training("jmamp+cdpo", *options) != training("jmamp+cdpo")
    for name in ("jmamp+madpo", "jmamp/dual-margin"):
        assert training(name, options[1]) != training(name)
