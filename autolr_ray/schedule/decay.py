"""How the learning rate falls after the warmup: functions of progress in [0, 1].

A decay is ``decay(progress, start) -> factor``: ``progress`` is the share of all optimizer steps
done, ``start`` the progress at which the decay took over, ``factor`` what the peak learning rate is
multiplied by, 1 at ``start`` and exactly 0 at 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable

Decay = Callable[[float, float], float]


def cosine(progress: float, start: float) -> float:
    """Half a cosine from ``start`` to the end (Loshchilov and Hutter 2017, eq. 5, no restarts).

    >>> [round(cosine(p, 0.5), 3) for p in (0.5, 0.75, 1.0)]
    [1.0, 0.5, 0.0]
    """
    if progress >= 1.0:
        return 0.0
    if progress <= start:
        return 1.0
    return 0.5 * (1.0 + math.cos(math.pi * (progress - start) / (1.0 - start)))


def linear(progress: float, start: float) -> float:
    """A straight line to zero (Defazio et al. 2023, arXiv 2310.07831, section 3).

    >>> [linear(p, 0.5) for p in (0.5, 0.75, 1.0)]
    [1.0, 0.5, 0.0]
    """
    if progress >= 1.0:
        return 0.0
    return 1.0 if progress <= start else (1.0 - progress) / (1.0 - start)


def constant_then_cosine(progress: float, start: float, cosine_fraction: float = 0.2) -> float:
    """Constant, then a cosine over the last ``cosine_fraction`` of all steps (AutoWU, section 3).

    >>> [round(constant_then_cosine(p, 0.3), 3) for p in (0.3, 0.8, 0.9, 1.0)]
    [1.0, 1.0, 0.5, 0.0]
    """
    return cosine(progress, max(start, 1.0 - cosine_fraction))


DECAYS: dict[str, Decay] = {
    "cosine": cosine,
    "linear": linear,
    "constant-then-cosine": constant_then_cosine,
}


def get_decay(decay: str | Decay) -> Decay:
    """The decay of that name, or the function itself; ValueError for an unknown name."""
    if callable(decay):
        return decay
    if decay not in DECAYS:
        raise ValueError(f"decay: unknown {decay!r}; allowed: {', '.join(DECAYS)}, or a function")
    return DECAYS[decay]
