"""sp2dpo_ray: per-pair temperature DPO on Ray.

`load_schedule` reads a published schedule; everything else is `sp2dpo --help`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sp2dpo_ray.core.schedule.published import load_schedule

__version__ = "0.1.0"
__all__ = ["__version__", "load_schedule"]


def __getattr__(name: str) -> Any:
    # looked up when asked for: the parts of the package import this file for the version
    if name == "load_schedule":
        from sp2dpo_ray.core.schedule.published import load_schedule

        return load_schedule
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
