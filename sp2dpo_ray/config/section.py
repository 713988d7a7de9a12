"""What every section of the configuration is.

Invariant: unknown keys are refused, values are fixed after loading.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A part of the configuration: unknown keys refused, values fixed after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())
