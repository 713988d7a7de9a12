"""What every section of the configuration is, and what is true of every place that one names.

Invariant: unknown keys are refused, values are fixed after loading, and no place holds a secret.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from sp2dpo_ray.core.place import holds_credentials


class Section(BaseModel):
    """A part of the configuration: unknown keys refused, values fixed after loading."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False
    )


def without_credentials(where: str, name: str) -> str:
    """A path or URI as it is; ValueError where it holds a password or key."""
    if holds_credentials(where):
        raise ValueError(f"{name} must hold no credentials; they come from the environment")
    return where


def uri_below(uri: str, name: str) -> str:
    """A place below another one: its query stays at the end."""
    base, mark, query = uri.partition("?")
    return f"{base.rstrip('/')}/{name}{mark}{query}"
