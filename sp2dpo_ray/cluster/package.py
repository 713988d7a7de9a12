"""What of the working directory never goes to a cluster with a job.

Out: patterns as of .gitignore, for Ray's packing. Invariant: whoever may read jobs may read their
packages, so names that secrets usually have stay behind, at any depth and in either case; a
tokenizer's files, which such words are part of, go along.
"""

from __future__ import annotations

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
