"""Values as people and as other programs read them."""

from __future__ import annotations

import json
import math
from typing import Any


def clock(seconds: float | None) -> str:
    """Seconds as people read them.

    >>> clock(None), clock(42.3), clock(312), clock(7500)
    ('?', '42 s', '5 min 12 s', '2 h 05 min')
    """
    if seconds is None:
        return "?"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def strict_json(value: Any, *, indent: int | None = None) -> str:
    """Plain values as JSON that every reader takes: NaN and infinities, which JSON lacks, become null.

    >>> strict_json({"lr": 0.1, "losses": (2.5, float("nan"))})
    '{"lr": 0.1, "losses": [2.5, null]}'
    """
    return json.dumps(_finite(value), indent=indent, ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
