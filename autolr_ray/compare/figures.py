"""The report's figures, drawn from run records alone and written as PNG files.

Every function returns a figure, or None where the records hold nothing to draw. Test accuracy appears
in one figure only, and there only of reported runs; the grid is drawn in validation accuracy.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from autolr_ray.compare.cost_figures import accuracy_against_cost, cost
from autolr_ray.compare.curves import learning_rates, losses, posterior, tests
from autolr_ray.compare.scene import BASELINE, CANDIDATE, Scene, arm_label, legend, mark, panels, short
from autolr_ray.compare.statistics import is_grid, tune
from autolr_ray.files import write_atomically
from autolr_ray.train.record import RunRecord

# An arm that far below the best, in points of accuracy, is named at the foot of the picture.
_FAR_POINTS = 20.0
_STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "figure.dpi": 130,
    "savefig.dpi": 130,
    "hatch.linewidth": 0.6,
}


@dataclass(frozen=True, kw_only=True)
class FigureFile:
    """A written figure and the words that go with it."""

    name: str
    path: Path
    title: str
    caption: str


def write_figures(
    records: Sequence[RunRecord], folder: Path, *, candidate: str | None, baseline: str | None
) -> list[FigureFile]:
    """Draw every figure the records allow into ``folder`` (made if missing), in the report's order."""
    scene = Scene(records=records, candidate=candidate, baseline=baseline)
    files = []
    for draw, title, caption in _GALLERY:
        name = draw.__name__
        with rc_context(_STYLE):
            figure = draw(scene)
            if figure is None:
                continue
            buffer = io.BytesIO()
            # No software version in the file: the same ledger gives the same bytes.
            FigureCanvasAgg(figure)
            figure.savefig(buffer, format="png", metadata={"Software": None})
        path = Path(folder) / f"{name}.png"
        write_atomically(path, buffer.getvalue())
        files.append(FigureFile(name=name, path=path, title=title, caption=caption))
    return files


def accuracy(scene: Scene) -> Figure | None:
    """Test accuracy by batch size: mean, 95% interval and seeds of every arm."""
    summaries = scene.summaries()
    if not summaries:
        return None
    figure = Figure(figsize=(8.5, 5.0), layout="constrained")
    axes = figure.add_subplot()
    sizes, arms = scene.batch_sizes, [a for a in scene.arms if any(s.arm == a for s in summaries)]
    seeds: list[float] = []
    bounds: list[tuple[float, float]] = []
    means: list[tuple[float, float, str]] = []
    wide = min(1.0, 4 / len(arms))
    for i, arm in enumerate(arms):
        shift = min(0.84, 0.17 * len(arms)) * ((i + 0.5) / len(arms) - 0.5)
        own = [s for s in summaries if s.arm == arm]
        x = [sizes.index(s.batch_size) + shift for s in own]
        y = np.array([100 * s.test.mean for s in own])
        low = np.array([100 * (s.test.mean - s.test.low) for s in own])
        high = np.array([100 * (s.test.high - s.test.mean) for s in own])
        colour = scene.colour(arm)
        if wide == 1.0:  # more lines would cross all the other arms' intervals
            axes.plot(x, y, color=colour, ls=scene.line(arm), lw=1, alpha=0.4, zorder=1)
        shape, label = scene.shape(arm), arm_label(scene, arm)
        axes.errorbar(
            x, y, np.stack([low, high]), fmt=shape, color=colour, ms=7, lw=2, capsize=wide * 5, label=label
        )
        for place, s in zip(x, own, strict=True):
            values = [100 * r.test_accuracy for r in scene.shown(arm, s.batch_size)]
            axes.plot(
                [place + 0.05 * wide] * len(values),
                values,
                "_",
                color=colour,
                ms=8 * wide,
                mew=1.5,
                alpha=0.6,
            )
            seeds += [v for v in values if math.isfinite(v)]
        ends_of = zip((*y, *y), (*(y - low), *(y + high)), strict=True)
        bounds += [(mean, end) for mean, end in ends_of if math.isfinite(end)]
        means += [(place, mean, colour) for place, mean in zip(x, y, strict=True) if math.isfinite(mean)]
    if seeds:
        # Two seeds can give an interval of a hundred points; it may leave the picture, the seeds may not,
        # unless an arm failed: then the others would be a line at the top.
        near = [v for v in seeds if v >= max(seeds) - _FAR_POINTS]
        ends = [*near, *(bound for mean, bound in bounds if mean >= min(near))]
        room = max(2.0, 1.5 * (max(near) - min(near)))
        bottom, top = max(min(ends), min(near) - room), min(max(ends), max(near) + room)
        pad = 0.06 * (top - bottom) + 0.1
        axes.set_ylim(bottom - pad, min(100.5, top + pad))
        for place, mean, colour in means:
            if mean < bottom - pad:
                at: Any = {"xytext": (0, 9), "textcoords": "offset points", "ha": "center", "fontsize": 8}
                axes.plot(place, bottom - 0.5 * pad, **mark(colour, "v", 7))
                axes.annotate(f"{mean:.0f} %", (place, bottom - 0.5 * pad), color=colour, **at)
    axes.set_xticks(range(len(sizes)), [f"{s:,}" for s in sizes])
    axes.set_xlim(-0.5, len(sizes) - 0.5)
    for i in range(1, len(sizes), 2):
        axes.axvspan(i - 0.5, i + 0.5, color="#f3f3f3", zorder=0)
    axes.set_xlabel("batch size (examples per optimizer step)")
    axes.set_ylabel("test accuracy (%)")
    axes.grid(axis="x", visible=False)
    legend(figure, axes.get_legend_handles_labels()[0])
    return figure


def grid(scene: Scene) -> Figure | None:
    """The baseline's validation accuracy against peak LR, and the LRs the candidate found by itself."""
    baseline = scene.baseline
    if baseline is None or not is_grid(scene.records, baseline):
        return None
    tunings = {s: t for s in scene.batch_sizes if (t := tune(scene.records, baseline, s)).points}
    styles = ("-", "--", ":", "-.")
    warmups = sorted({p.warmup_fraction for t in tunings.values() for p in t.points})

    def panel(axes: Axes, size: int) -> None:
        seen: list[float] = []
        for i, warmup in enumerate(warmups):
            line = [p for p in tunings[size].points if p.warmup_fraction == warmup and p.peak_lr > 0]
            y = [100 * p.validation.mean for p in line]
            axes.plot(
                [p.peak_lr for p in line], y, color=BASELINE, ls=styles[i % 4], marker="o", ms=4, lw=1.6
            )
            seen += [v for v in y if math.isfinite(v)]
        chosen = tunings[size].chosen
        if chosen is not None:
            best = 100 * chosen.validation.mean
            axes.plot(chosen.peak_lr, best, "o", ms=13, mfc="none", mec=BASELINE, mew=2)
        runs = [r for r in scene.shown(scene.candidate, size) if r.peak_lr > 0 and math.isfinite(r.peak_lr)]
        for r in runs:
            axes.axvline(r.peak_lr, color=CANDIDATE, lw=1, alpha=0.5)
            axes.plot(r.peak_lr, 100 * r.validation_accuracy, **mark(CANDIDATE, "D", 6))
            seen += [100 * r.validation_accuracy] if math.isfinite(r.validation_accuracy) else []
        axes.set_xscale("log")
        if seen:
            # A diverged point would flatten the part where the choice is made.
            bottom, top = max(min(seen), max(seen) - 20), max(seen)
            axes.set_ylim(bottom - 0.05 * (top - bottom) - 0.3, top + 0.12 * (top - bottom) + 0.3)

    handles = [
        *(
            Line2D(
                [],
                [],
                color=BASELINE,
                ls=styles[i % 4],
                marker="o",
                ms=4,
                label=f"{short(baseline)}, warmup {w:.0%}",
            )
            for i, w in enumerate(warmups)
        ),
        Line2D([], [], marker="o", ms=11, mfc="none", mec=BASELINE, mew=2, ls="", label="chosen point"),
    ]
    if scene.candidate is not None:
        handles.append(
            Line2D(
                [],
                [],
                **mark(CANDIDATE, "D", 6),
                ls="-",
                lw=1,
                label=f"{short(scene.candidate)}: LR found, each seed",
            )
        )
    return panels(scene, panel, "peak learning rate", "validation accuracy (%)", handles, list(tunings))


_GALLERY: tuple[tuple[Callable[[Scene], Figure | None], str, str], ...] = (
    (
        accuracy,
        "Accuracy by batch size",
        "Mean over seeds with its 95 % interval; the short dashes are single seeds. Of a tuned arm only the "
        "point chosen on validation accuracy is drawn. A triangle at the foot, with its mean: more than 20 "
        "points below the best.",
    ),
    (
        cost,
        "What each result cost",
        "Device time that one seed's result takes. Hatched: what went into finding a learning rate, such as "
        "the other runs of a grid, a range test, runs that were stopped.",
    ),
    (
        accuracy_against_cost,
        "Accuracy against total cost",
        "Validation accuracy, as a tuned arm's choice sees it: test accuracy is read for the winner alone. A "
        "marker for each arm without a grid, mean over seeds (short dashes: single seeds, where there are at "
        "most five arms); for a grid the expected best of k runs drawn at random, from k = 1 to all of it.",
    ),
    (
        grid,
        "Where the found LR falls in the grid",
        "Mean validation accuracy of the baseline's points; a vertical line and diamond for the LR that "
        "each untuned run found. Points more than 20 points below the best lie under the frame.",
    ),
    (
        learning_rates,
        "Learning rates",
        "All seeds of the untuned arm against the baseline's chosen point.",
    ),
    (
        losses,
        "Training loss",
        "Running means, one line per seed, over the thin raw loss of the first. A line that breaks off had "
        "a loss that was not finite; losses above 1.5 times the start leave the frame. Shaded: the steps "
        "that the rollback undid.",
    ),
    (
        posterior,
        "Why the LR turned",
        "The losses that the scheduler had seen, its Gaussian-process posterior when the warmup ended (after "
        "a sweep, that of the losses without what the weights' swinging costs), the minimum it found and the "
        "step at which it switched.",
    ),
    (
        tests,
        "Every test",
        "What each test of each seed weighed, as a share of what ends the warmup; with the paper's rule, of "
        "what counts towards three in a row.",
    ),
)
