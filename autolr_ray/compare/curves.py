"""Figures of single runs, a panel per batch size: learning rate, loss, and what made the LR turn."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from autolr_ray.compare.scene import BASELINE, CANDIDATE, Scene, arm_handles, key, mark, panels
from autolr_ray.schedule import look_inside
from autolr_ray.train.record import RunRecord


def learning_rates(scene: Scene) -> Figure | None:
    """LR against step, per batch size: every candidate seed and the baseline's chosen point."""

    def panel(axes: Axes, size: int) -> None:
        for arm in (scene.baseline, scene.candidate):
            for r in scene.shown(arm, size):
                step, lr = np.array(r.trace.step, float), np.array(r.trace.lr, float)
                if r.sweep_steps:
                    axes.axvspan(0, r.sweep_steps, color=scene.colour(r.arm), alpha=0.08, lw=0)
                for at, back in r.put_backs:
                    axes.axvline(at, color="#222222", lw=0.8, ls=":", alpha=0.6)
                    axes.plot(back, _at(r, back), **mark(scene.colour(r.arm), "<", 7))
                lr[~(lr > 0)] = np.nan  # the last LR is exactly 0, which a log axis cannot show
                if np.isfinite(lr).any():
                    axes.plot(step, lr, color=scene.colour(r.arm), lw=1.6, alpha=0.75)
                if r.switch_step >= 0 and r.peak_lr > 0:
                    axes.plot(r.switch_step, r.peak_lr, **mark(scene.colour(r.arm), "o"))
        axes.set_yscale("log")
        peaks = [r.peak_lr for arm in (scene.baseline, scene.candidate) for r in scene.shown(arm, size)]
        finite = [p for p in peaks if math.isfinite(p) and p > 0]
        if finite:  # a decay to zero would stretch the axis without end
            axes.set_ylim(bottom=max(axes.get_ylim()[0], min(finite) / 1000))

    handles = [*arm_handles(scene), key("o", "peak LR, where the decay starts"), *_signs(scene)]
    return panels(scene, panel, "optimizer step", "learning rate", handles)


def _signs(scene: Scene) -> list[Any]:
    """What the marks of sweeps and of weights put back mean, where there are any."""
    runs = [r for size in scene.batch_sizes for r in scene.shown(scene.candidate, size)]
    swept = [Patch(color=CANDIDATE, alpha=0.12, label="sweep, then back")]
    lines = [
        Line2D([], [], color="#222222", ls=":", lw=0.8, label="weights put back"),
        key("<", "to this step"),
    ]
    return [
        *(swept if any(r.sweep_steps for r in runs) else ()),
        *(lines if any(r.put_backs for r in runs) else ()),
    ]


def _at(record: RunRecord, step: int) -> float:
    """The learning rate of a step, from the record's thinned ones."""
    return float(np.interp(step, record.trace.step, record.trace.lr)) if record.trace.step else math.nan


def losses(scene: Scene) -> Figure | None:
    """Training loss against step, per batch size, with switch and rollback of the candidate."""

    def panel(axes: Axes, size: int) -> None:
        first: list[float] = []
        shown: list[float] = []
        for arm in (scene.baseline, scene.candidate):
            for i, r in enumerate(r for r in scene.shown(arm, size) if r.trace.step):
                step, loss = np.array(r.trace.step, float), np.array(r.trace.loss, float)
                loss[~np.isfinite(loss)] = np.nan
                colour = scene.colour(r.arm)
                if i == 0:
                    axes.plot(step, loss, color=colour, lw=0.6, alpha=0.3)
                smooth = running_mean(loss, max(1, len(loss) // 100))
                axes.plot(step, smooth, color=colour, lw=1.6, alpha=0.85)
                seen = loss[np.isfinite(loss)]
                first += seen[: max(1, len(seen) // 20)].tolist()
                shown += seen.tolist()
                if arm == scene.candidate and r.switch_step >= 0:
                    axes.axvline(r.switch_step, color="#222222", lw=1, ls="--", alpha=0.6)
                for at, back in r.put_backs if arm == scene.candidate else ():
                    axes.axvspan(back, at, color=colour, alpha=0.12, lw=0)
        if shown:
            # A loss that blew up leaves the picture at 1.5 times where training began.
            top = min(max(shown), 1.5 * float(np.median(first)))
            bottom = min(shown) if min(shown) > top / 2 else min(0.0, *shown)
            axes.set_ylim(bottom, max(top * 1.05, bottom + 1e-6))

    handles = [
        *arm_handles(scene),
        Line2D([], [], color="#222222", ls="--", lw=1, label="switch"),
        Patch(color=CANDIDATE, alpha=0.2, label="steps rolled back"),
    ]
    return panels(scene, panel, "optimizer step", "training loss", handles)


def posterior(scene: Scene) -> Figure | None:
    """What the scheduler saw when it switched: losses of the warmup and the posterior, first seed."""
    sizes = [
        s for s in scene.batch_sizes if (runs := scene.shown(scene.candidate, s)) and runs[0].posterior.step
    ]
    if not sizes:
        return None

    def panel(axes: Axes, size: int) -> None:
        r = scene.shown(scene.candidate, size)[0]
        x, mean, sd = (np.array(v, float) for v in (r.posterior.step, r.posterior.mean, r.posterior.sd))
        step, loss = np.array(r.trace.step, float), np.array(r.trace.loss, float)
        seen = step <= max(x.max(), r.switch_step)
        look_inside.draw_losses(axes, step[seen], loss[seen])
        known = np.where(np.isfinite(mean), mean, np.inf)
        at_the_switch = [receipt.argmin_step for receipt in r.receipts if receipt.step == r.switch_step]
        low = at_the_switch[-1] if at_the_switch else float(x[int(known.argmin())])
        look_inside.draw_posterior(axes, x, mean, sd, low, colour=scene.colour(r.arm))
        if r.switch_step >= 0:
            axes.axvline(r.switch_step, color="#222222", lw=1.2, ls="--")
        axes.set_title(f"seed {r.seed}: peak LR {r.peak_lr:.2g}", loc="right", fontsize=10, weight="normal")

    handles = [
        Line2D([], [], color="#777777", marker=".", ls="", label="loss of a step"),
        Line2D([], [], color=CANDIDATE, lw=2, label="posterior mean"),
        Patch(color=CANDIDATE, alpha=0.2, label="± 2 standard deviations"),
        Line2D([], [], **mark(BASELINE, "v", 10), ls="", label="minimum"),
        Line2D([], [], color="#222222", ls="--", label="switch"),
    ]
    return panels(scene, panel, "optimizer step of the warmup", "training loss", handles, sizes)


def tests(scene: Scene) -> Figure | None:
    """Every test of every candidate run: what it weighed, as a share of its threshold."""

    def runs(size: int) -> list[RunRecord]:
        return [
            r
            for r in scene.shown(scene.candidate, size)
            if any(math.isfinite(x.strength) for x in r.receipts)
        ]

    sizes = [size for size in scene.batch_sizes if runs(size)]
    if not sizes:
        return None

    def panel(axes: Axes, size: int) -> None:
        for r in runs(size):
            steps, strengths = [x.step for x in r.receipts], [x.strength for x in r.receipts]
            look_inside.draw_tests(axes, steps, strengths, colour=scene.colour(r.arm))

    handles = [
        Line2D([], [], color=CANDIDATE, marker=".", label="a run's tests"),
        Line2D([], [], color=BASELINE, ls=":", label="above it a test is positive"),
    ]
    return panels(scene, panel, "optimizer step of the warmup", "test / threshold", handles, sizes)


def running_mean(values: np.ndarray[Any, Any], half: int) -> np.ndarray[Any, Any]:
    """Centred mean over the finite values of a window; NaN where it has none."""
    known = np.isfinite(values)
    kernel = np.ones(2 * half + 1)
    total = np.convolve(np.where(known, values, 0.0), kernel)[half : half + len(values)]
    count = np.convolve(known.astype(float), kernel)[half : half + len(values)]
    # Where the value itself is missing the line breaks: a diverged run must not look finished.
    return np.where(known, total / np.maximum(count, 1.0), np.nan)
