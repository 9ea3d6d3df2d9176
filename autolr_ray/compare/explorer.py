"""What the page's explorer draws: the curves of every run, thinned, and its receipts, as one JSON text."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup
from numpy.typing import NDArray

from autolr_ray.compare.curves import running_mean
from autolr_ray.compare.tables import RunKey, key_of
from autolr_ray.compare.wording import number, percent
from autolr_ray.train.record import RunRecord

POINTS = 120


def thin(lr: NDArray[np.float64], loss: NDArray[np.float64], points: int = POINTS) -> NDArray[np.intp]:
    """Ascending indices of about ``points`` values that keep the shape of both curves.

    Kept are the ends, both sides of the LR's top, and of each stretch the lowest and the highest loss and
    the first that is not finite: a spike stays a spike, and a curve that broke off stays broken.
    """
    n = len(loss)
    if n <= points:
        return np.arange(n)
    top = int(np.argmax(lr))
    keep = {0, n - 1, top, min(top + 1, n - 1)}
    edges = np.linspace(0, n, (points - len(keep)) // 2 + 1).astype(int)
    for start, end in itertools.pairwise(edges):
        part = loss[start:end]
        known = np.isfinite(part)
        if known.any():
            keep.add(start + int(np.argmin(np.where(known, part, np.inf))))
            keep.add(start + int(np.argmax(np.where(known, part, -np.inf))))
        if not known.all():
            keep.add(start + int(np.argmin(known)))
    return np.array(sorted(keep))


def explorer_json(
    runs: Sequence[RunRecord], reported: Collection[RunKey], first: Sequence[RunKey] = ()
) -> Markup:
    """All runs as JSON that may stand in a ``script`` element; numbers in three digits.

    ``runs`` holds, in the order given, each run's names, marks and curves (``step`` as differences; a
    loss that is not finite is null), and its receipts as columns whose texts are indices into ``words``.
    ``first`` are the indices of the runs to show at the start.
    """
    words: dict[str, int] = {}
    order = {key_of(r): i for i, r in enumerate(runs)}
    content = {
        "runs": [_run(r, key_of(r) in reported, words) for r in runs],
        "first": [order[key] for key in first if key in order],
    }
    content["words"] = list(words)
    return htmlsafe_json_dumps(content, separators=(",", ":"), allow_nan=False)


def _run(r: RunRecord, reported: bool, words: dict[str, int]) -> dict[str, Any]:
    step = np.array(r.trace.step, dtype=np.int64)
    lr, loss = np.array(r.trace.lr, dtype=np.float64), np.array(r.trace.loss, dtype=np.float64)
    loss[~np.isfinite(loss)] = np.nan
    smooth = running_mean(loss, max(1, len(loss) // 100)) if len(loss) else loss
    kept = thin(lr, loss)
    run: dict[str, Any] = {
        "arm": r.arm, "point": r.point, "batch": r.batch_size, "seed": r.seed, "steps": r.total_steps,
        "peak": number(r.peak_lr), "switch": r.switch_step,
        "back": r.put_backs, "sweep": r.sweep_steps,
        "validation": percent(r.validation_accuracy, 2),
        "test": percent(r.test_accuracy, 2) if reported else "not shown",
        "step": np.diff(step[kept], prepend=0).tolist(),
        "lr": _short(lr[kept]), "loss": _short(loss[kept]), "smooth": _short(smooth[kept]),
    }  # fmt: skip
    if r.receipts:
        run["tests"] = {
            "step": [x.step for x in r.receipts],
            "lr": _short([x.lr for x in r.receipts]),
            "verdict": [words.setdefault(x.verdict, len(words)) for x in r.receipts],
            "reason": [words.setdefault(x.reason, len(words)) for x in r.receipts],
            "strength": _short([x.strength for x in r.receipts]),
            "probability": _short([x.probability for x in r.receipts]),
            "votes": [x.positives for x in r.receipts],
            "lowest": [x.argmin_step for x in r.receipts],
            "lowest_lr": _short([x.argmin_lr for x in r.receipts]),
        }
    return run


def _short(values: Sequence[float] | NDArray[np.float64]) -> list[float | int | None]:
    """Three significant digits; null where there is no number."""
    found: list[float | int | None] = []
    for value in values:
        if not math.isfinite(value):
            found.append(None)
            continue
        short = float(f"{value:.3g}")
        found.append(int(short) if short.is_integer() and abs(short) < 1e6 else short)
    return found
