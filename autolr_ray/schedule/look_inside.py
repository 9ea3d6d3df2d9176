"""Why the learning rate turned, as a picture and as a table. Needs matplotlib, or pandas, when called."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from autolr_ray.schedule.auto_warmup import AutoWarmup

_BLUE, _ORANGE, _GREY = "#0072b2", "#d55e00", "#666666"


def receipts_frame(scheduler: AutoWarmup) -> pd.DataFrame:
    """One row a test: step, lr, verdict, reason, probability, positives, argmin, hyperparameters."""
    import pandas as pd

    columns = (
        "step", "lr", "verdict", "reason", "probability", "positives", "argmin_step", "argmin_lr",
        "rolled_back_to", "outputscale", "noise", "prior_mean",
    )  # fmt: skip
    rows = [[_plain(getattr(receipt, column)) for column in columns] for receipt in scheduler.receipts]
    return pd.DataFrame(rows, columns=list(columns))


def _plain(value: Any) -> Any:
    return value.name.lower() if hasattr(value, "name") else value


def plot(scheduler: AutoWarmup) -> Figure:
    """Losses of the warmup with the posterior of the last test, the learning rate, and every test.

    Three panels over optimizer steps. Draw it into a notebook as it is, or ``.savefig(path)``.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 8), layout="constrained")
    loss_axes, lr_axes, test_axes = figure.subplots(3, 1, sharex=True, height_ratios=(3, 2, 1.5))
    _draw_losses(scheduler, loss_axes)
    _draw_rates(scheduler, lr_axes)
    _draw_tests(scheduler, test_axes)
    for axes in (loss_axes, lr_axes, test_axes):
        axes.grid(alpha=0.25)
        if scheduler.switch_step is not None:
            axes.axvline(scheduler.switch_step, color=_GREY, linestyle="--", linewidth=1)
    test_axes.set_xlabel("optimizer step")
    figure.suptitle(scheduler.receipts[-1].reason if scheduler.receipts else "no test yet", fontsize=10)
    return figure


def _draw_losses(scheduler: AutoWarmup, axes: Any) -> None:
    steps, losses = scheduler.trace.points()
    axes.plot(steps, losses, ".", color=_GREY, markersize=2, label="loss of a step")
    shown = losses[np.isfinite(losses)]
    if scheduler.receipts and np.isfinite(scheduler.receipts[-1].mean).any():
        last = scheduler.receipts[-1]
        grid = np.linspace(0.0, last.step, len(last.mean))
        axes.fill_between(
            grid, last.mean - 2 * last.sd, last.mean + 2 * last.sd, color=_BLUE, alpha=0.25, linewidth=0,
            label="posterior, 2 sd",
        )  # fmt: skip
        axes.plot(grid, last.mean, color=_BLUE, label="posterior mean")
        axes.axvline(last.argmin_step, color=_ORANGE, linewidth=1, label="minimum")
    if len(shown):
        # A blow-up must not flatten the valley that the decision is about.
        start = float(np.median(shown[: max(6, len(shown) // 16)]))
        low = float(shown.min())
        axes.set_ylim(low - 0.1 * abs(start - low), start + 0.5 * abs(start - low) + 1e-12)
    axes.set_ylabel("training loss")
    axes.legend(fontsize=8)


def _draw_rates(scheduler: AutoWarmup, axes: Any) -> None:
    steps = np.arange(scheduler.total_steps)
    known = steps if scheduler.switch_step is not None else steps[: scheduler.last_epoch + 1]
    rates = np.array([scheduler.lr_at(int(step)) for step in known])
    axes.semilogy(known, np.where(rates > 0, rates, np.nan), color=_BLUE)
    axes.set_ylabel("learning rate")


def _draw_tests(scheduler: AutoWarmup, axes: Any) -> None:
    steps = [receipt.step for receipt in scheduler.receipts]
    axes.plot(steps, [receipt.probability for receipt in scheduler.receipts], ".-", color=_BLUE)
    for receipt in scheduler.receipts:
        if receipt.positives:
            axes.plot(receipt.step, receipt.probability, "o", color=_ORANGE, markersize=6)
    axes.set_ylim(-0.05, 1.05)
    axes.set_ylabel("P(passed)")
