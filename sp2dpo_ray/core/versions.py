"""Versions of this package and of those that decide results, for manifests and `doctor`."""

from __future__ import annotations

import platform
from importlib import metadata

from sp2dpo_ray import __version__

RECORDED = (
    "numpy", "pyarrow", "ray", "torch", "transformers", "tokenizers", "peft", "deepspeed",
    "openai", "google-genai", "dashscope",
)  # fmt: skip


def version_of(package: str) -> str | None:
    """The installed version; None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def package_versions() -> dict[str, str]:
    """What of RECORDED is installed."""
    return {name: version for name in RECORDED if (version := version_of(name))}


def versions() -> dict[str, str]:
    """Python, this package, and what of RECORDED is installed."""
    return {
        "python": platform.python_version(), "sp2dpo-ray": __version__, **package_versions()
    }  # fmt: skip
