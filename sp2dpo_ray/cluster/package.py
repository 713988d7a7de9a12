"""What a job takes along to a cluster, and places that it finds there.

In: a configuration. Out: patterns as of .gitignore, for Ray's packing of the working directory; an
error for places that only one machine sees. Invariant: whoever may read jobs may read their
packages, so names that secrets usually have stay behind, at any depth and in either case; a
tokenizer's files, which such words are part of, go along.
"""

from __future__ import annotations

from pathlib import Path

from sp2dpo_ray.config import Config
from sp2dpo_ray.errors import ConfigError

USELESS = ("venv", "runs", "__pycache__")
SECRETS = (
    ".?*",  # hidden: .git, .env, .ssh, .aws, .huggingface; "." is the working directory itself
    "*.env", "*.pem", "*.key", "*.p12", "*.pfx", "*.jks", "*.ppk", "id_*",
    "*credentials*", "*secret*", "*password*", "*kubeconfig*",
    "*service-account*", "*service_account*", "*apikey*", "*api_key*", "*api-key*",
    "*-key.json", "*_key.json", "*key.txt", "*keys.txt", "key", "keys", "keys.*",
    "token", "tokens", "token.*", "*.token", "*_token", "*-token", "*_token.*", "*-token.*",
)  # fmt: skip


def in_either_case(pattern: str) -> str:
    return "".join(f"[{c.lower()}{c.upper()}]" if c.isalpha() else c for c in pattern)


EXCLUDED = (*USELESS, *map(in_either_case, SECRETS))


def artifacts_of(config: Config) -> str:
    """Where the run lies, as the cluster sees it; of a URI without its options."""
    uri = config.run.uri
    return str(config.run.folder) if uri is None else uri.partition("?")[0]


def check_places(config: Config) -> None:
    """A job's working directory is thrown away, no other node sees it, and homes differ."""
    for name, where, homes in (
        ("run.storage", config.run.storage, False),
        ("run.mirror", config.run.mirror if config.run.uri else None, True),  # a cache may
        ("annotate.journal", config.annotate.journal, False),
        ("evaluate.journal", config.evaluate.journal, False),
    ):
        if where is None or "://" in where or Path(where).is_absolute():
            continue
        if not where.startswith("~"):
            why = "is relative, and a job's working directory is thrown away"
        elif not homes:
            why = "lies in a home, and each node has another"
        else:
            continue
        raise ConfigError(
            f"{name}: {where!r} {why}; name a folder that every node of the cluster sees: "
            f"--set {name}=/shared/..."
        )
