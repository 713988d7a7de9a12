"""What goes to a cluster with a job, by Ray's own packing, and the places that a job may name."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from sp2dpo_ray.cluster.jobs import Job, job_of
from sp2dpo_ray.config import load_config
from sp2dpo_ray.errors import ConfigError
from tests.conftest import REPOSITORY

SECRETS = (
    ".env", ".envrc", ".env.local", "prod.env", ".netrc", ".pypirc", ".dockercfg", ".bash_history",
    ".aws/credentials", ".huggingface/token", ".config/gcloud/application_default.json",
    ".ssh/config", ".git/config", "id_rsa", "id_ecdsa", "id_ed25519.pub", "key.pem", "my.PEM",
    "cert.pfx", "Cert.P12", "tls.key", "service-account.json", "my_Service_Account.json",
    "gcp-key.json", "openai_key.json", "keys.txt", "Keys.yaml", "keys.env", "secrets.yaml",
    "client_secret_1.json", "Token.txt", "token", "auth_token", "hf_token.txt", "hub.token",
    "OPENAI_API_KEY", "openai-api-key.txt", "credentials.json", "kubeconfig.yaml", "passwords.txt",
    "deep/in/it/secrets.yaml", "deep/.env", "venv/a.py", "runs/mine/lambda.json",
)  # fmt: skip
WANTED = (
    "mine.yaml", "pairs.parquet", "requirements.txt", "student/config.json",
    "student/tokenizer.json", "student/tokenizer.model", "student/tokenizer_config.json",
    "student/special_tokens_map.json", "student/added_tokens.json", "student/tokenization_x.py",
    "student/qwen.tiktoken", "student/model.safetensors", "monkeys.csv", "valid_ids.csv",
)  # fmt: skip


def packed(folder: Path, to: Path, job: Job) -> set[str]:
    """What Ray's own packing takes along of the working directory."""
    from ray._private.runtime_env.packaging import create_package

    create_package(str(folder), to, True, excludes=job.runtime_env["excludes"])
    return {name for name in zipfile.ZipFile(to).namelist() if not name.endswith("/")}


def test_secrets_stay_and_the_work_goes_along(demo_config: Path, tmp_path: Path) -> None:
    folder = tmp_path / "work"
    for name in (*SECRETS, *WANTED):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    config = load_config(str(demo_config))
    job = job_of(config, folder / "mine.yaml", "train", (), working_dir=folder)
    assert packed(folder, tmp_path / "work.zip", job) == set(WANTED)
    own = {
        path.relative_to(REPOSITORY).as_posix()
        for name in ("sp2dpo_ray", "configs", "jobs", "cluster", "examples")
        for path in (REPOSITORY / name).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    clone = tmp_path / "clone"
    for name in own:
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        (clone / name).write_text("x")
    assert packed(clone, tmp_path / "clone.zip", job) == own


def test_what_works_on_one_machine_alone_is_refused(demo_config: Path, tmp_path: Path) -> None:
    for override, words in (
        ("run.storage=runs", r"run\.storage: 'runs' is relative"),
        ("annotate.journal=shared/journal", r"annotate\.journal: 'shared/journal' is relative"),
        ("evaluate.journal=judged", r"evaluate\.journal: 'judged' is relative"),
        ("run.storage=~/runs", r"run\.storage: '~/runs' lies in a home, and each node has another"),
        ("annotate.journal=~/j", r"annotate\.journal: '~/j' lies in a home"),
        ("run.mirror=m", r"run\.mirror: 'm' is relative.* --set run\.mirror=/shared/"),
    ):
        store = ("run.storage=s3://bucket/runs",) if "mirror" in override else ()
        config = load_config(str(demo_config), (*store, override))
        with pytest.raises(ConfigError, match=words):
            job_of(config, demo_config, "train", (), working_dir=tmp_path)
    bucket = load_config(str(demo_config), ("annotate.journal=s3://bucket/journal",))
    assert job_of(bucket, demo_config, "train", (), working_dir=tmp_path)
    with pytest.raises(ConfigError, match="must lie in the working directory"):
        job_of(bucket, demo_config, "train", (), working_dir=tmp_path / "elsewhere")


def test_a_job_names_the_place_that_the_cluster_sees(demo_config: Path, tmp_path: Path) -> None:
    folder = job_of(load_config(str(demo_config)), demo_config, "train", (), working_dir=tmp_path)
    assert folder.folder == f"{tmp_path}/runs/test"
    far = load_config(
        str(demo_config), ("run.storage=s3://bucket/runs?region=x",)
    )  # mirror: a home
    told = job_of(far, demo_config, "train", (), working_dir=tmp_path).folder
    assert told == "s3://bucket/runs/test"
