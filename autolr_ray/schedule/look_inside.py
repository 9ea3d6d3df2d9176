"""Why the learning rate turned, as a picture and as a table. Needs matplotlib, or pandas, when called."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from autolr_ray.schedule.auto_warmup import AutoWarmup
    from autolr_ray.schedule.receipt import Receipt
    from autolr_ray.schedule.smoother import Array

_BLUE, _ORANGE, _GREY = "#0072b2", "#d55e00", "#666666"
_HIGHEST_STRENGTH = 2.0


COLUMNS = (
    "step", "lr", "verdict", "reason", "strength", "probability", "positives", "argmin_step", "argmin_lr",
    "rolled_back_to", "outputscale", "noise", "prior_mean",
)  # fmt: skip


def receipt_row(receipt: Receipt) -> dict[str, Any]:
    """The numbers and words of one receipt, by column."""
    row = {column: getattr(receipt, column) for column in COLUMNS}
    return row | {"verdict": receipt.verdict.name.lower()}


def receipts_frame(scheduler: AutoWarmup) -> pd.DataFrame:
    """One row a test, a column each for what :class:`Receipt` has, but for the posterior."""
    import pandas as pd

    return pd.DataFrame([receipt_row(receipt) for receipt in scheduler.receipts], columns=list(COLUMNS))


def plot(scheduler: AutoWarmup) -> Figure:
    """Losses of the warmup with the posterior of the last test, the learning rate, and every test.

    Three panels over optimizer steps. After a linear warmup's sweep the posterior is that of the losses
    without what swinging costs (``autolr_ray.schedule.swing``), and lies below them by as much. Draw it
    into a notebook as it is, or ``.savefig(path)``.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 8), layout="constrained")
    loss_axes, lr_axes, test_axes = figure.subplots(3, 1, sharex=True, height_ratios=(3, 2, 1.5))
    receipts = scheduler.receipts
    last = scheduler.decision or (receipts[-1] if receipts else None)
    steps, losses = scheduler.trace.points()
    draw_losses(loss_axes, steps, losses)
    if last is not None and np.isfinite(last.mean).any():
        grid = np.linspace(last.start_step, last.step, len(last.mean))
        draw_posterior(loss_axes, grid, last.mean, last.sd, last.argmin_step, colour=_BLUE)
    loss_axes.legend(fontsize=8)
    _draw_rates(scheduler, lr_axes)
    draw_tests(test_axes, [r.step for r in receipts], [r.strength for r in receipts], colour=_BLUE)
    for axes in (loss_axes, lr_axes, test_axes):
        axes.grid(alpha=0.25)
        if scheduler.switch_step is not None:
            axes.axvline(scheduler.switch_step, color=_GREY, linestyle="--", linewidth=1)
    loss_axes.set_ylabel("training loss")
    test_axes.set_ylabel("test / threshold")
    test_axes.set_xlabel("optimizer step")
    figure.suptitle(scheduler.reason, fontsize=10)
    return figure


def draw_losses(axes: Axes, steps: Array, losses: Array) -> None:
    """Losses [n] of a warmup at ``steps`` [n], scaled so that a blow-up does not flatten the valley."""
    axes.plot(steps, losses, ".", color=_GREY, markersize=3, alpha=0.8, label="loss of a step")
    shown = losses[np.isfinite(losses)]
    if len(shown):
        start = float(np.median(shown[: max(6, len(shown) // 16)]))
        low = float(shown.min())
        axes.set_ylim(low - 0.1 * abs(start - low) - 1e-12, start + 0.5 * abs(start - low) + 1e-12)


def draw_posterior(axes: Axes, x: Array, mean: Array, sd: Array, argmin_step: float, *, colour: str) -> None:
    """The smoothed curve [k] at ``x`` [k], two sd's on either side, and its minimum."""
    axes.fill_between(
        x, mean - 2 * sd, mean + 2 * sd, color=colour, alpha=0.22, linewidth=0, label="posterior, ± 2 sd"
    )
    axes.plot(x, mean, color=colour, linewidth=2, label="posterior mean")
    if np.isfinite(mean).any():  # where swinging was taken off it lies below the losses
        axes.set_ylim(bottom=min(axes.get_ylim()[0], float(np.nanmin(mean - 2 * sd))))
    axes.plot(
        argmin_step, np.interp(argmin_step, x, mean), "v", color=_ORANGE, markersize=9, linestyle="",
        markeredgecolor="white", label="minimum",
    )  # fmt: skip


def draw_tests(axes: Axes, steps: Sequence[float], strengths: Sequence[float], *, colour: str) -> None:
    """What each test weighed, as a share of its threshold; above the line a test is positive."""
    # A blow-up weighs without bound: what counts is below, at and just above the line.
    shown = np.clip(np.asarray(strengths, dtype=np.float64), 0.0, _HIGHEST_STRENGTH)
    axes.plot(steps, shown, ".-", color=colour, markersize=4, linewidth=1.2)
    axes.axhline(1.0, color=_ORANGE, linewidth=1, linestyle=":")
    axes.set_ylim(-0.05, _HIGHEST_STRENGTH + 0.05)


def _draw_rates(scheduler: AutoWarmup, axes: Axes) -> None:
    steps = np.arange(scheduler.total_steps)
    known = steps if scheduler.switch_step is not None else steps[: scheduler.last_epoch + 1]
    rates = np.array([scheduler.lr_at(int(step)) for step in known])
    axes.semilogy(known, np.where(rates > 0, rates, np.nan), color=_BLUE)
    axes.set_ylabel("learning rate")
