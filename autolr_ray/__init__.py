"""Learning rates that set themselves during the one run that matters, and the proof, on Ray.

``autolr_ray`` itself has the schedules, which need torch, numpy and scipy only; Ray, torchvision and
timm are imported by the rooms that use them (``autolr_ray.tasks``, ``.train``, ``.compare``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autolr_ray.schedule import AutoWarmup, LinearWarmup, Receipt, Verdict

__version__ = "0.1.0"
__all__ = ["AutoWarmup", "LinearWarmup", "Receipt", "Verdict", "__version__"]


def __getattr__(name: str) -> Any:
    # When asked for, because torch takes seconds: `autolr-ray --help` and shell completion do not need it.
    if name in __all__:
        from autolr_ray import schedule

        return getattr(schedule, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
