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
from matplotlib.patches import Patch

from autolr_ray.compare.curves import learning_rates, losses, posterior, tests
from autolr_ray.compare.scene import BASELINE, CANDIDATE, Scene, arm_label, mark, panels, plain
from autolr_ray.compare.statistics import is_grid, tune
from autolr_ray.files import write_atomically
from autolr_ray.train.record import RunRecord

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
    figure = Figure(figsize=(8.5, 4.6), layout="constrained")
    axes = figure.add_subplot()
    sizes, arms = scene.batch_sizes, [a for a in scene.arms if any(s.arm == a for s in summaries)]
    seeds: list[float] = []
    bounds: list[float] = []
    for i, arm in enumerate(arms):
        shift = 0.5 * ((i + 0.5) / len(arms) - 0.5)
        own = [s for s in summaries if s.arm == arm]
        x = [sizes.index(s.batch_size) + shift for s in own]
        y = np.array([100 * s.test.mean for s in own])
        half = np.array([100 * (s.test.high - s.test.mean) for s in own])
        colour = scene.colour(arm)
        axes.plot(x, y, color=colour, lw=1, alpha=0.4, zorder=1)
        axes.errorbar(x, y, half, fmt="o", color=colour, ms=7, lw=2, capsize=4, label=arm_label(scene, arm))
        for place, s in zip(x, own, strict=True):
            values = [100 * r.test_accuracy for r in scene.shown(arm, s.batch_size)]
            axes.plot([place + 0.05] * len(values), values, "_", color=colour, ms=8, mew=1.5, alpha=0.6)
            seeds += [v for v in values if math.isfinite(v)]
        bounds += [v for m, h in zip(y, half, strict=True) for v in (m - h, m + h) if math.isfinite(v)]
    if seeds:
        # Two seeds can give an interval of a hundred points; it may leave the picture, the seeds may not.
        room = max(2.0, 1.5 * (max(seeds) - min(seeds)))
        bottom = max(min([*seeds, *bounds]), min(seeds) - room)
        top = min(max([*seeds, *bounds]), max(seeds) + room)
        pad = 0.06 * (top - bottom) + 0.1
        axes.set_ylim(bottom - pad, min(100.5, top + pad))
    axes.set_xticks(range(len(sizes)), [f"{s:,}" for s in sizes])
    axes.set_xlim(-0.5, len(sizes) - 0.5)
    axes.set_xlabel("batch size (examples per optimizer step)")
    axes.set_ylabel("test accuracy (%)")
    axes.grid(axis="x", visible=False)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.14), ncols=min(3, len(arms)))
    return figure


def cost(scene: Scene) -> Figure | None:
    """Device-seconds per seed of each arm: the reported run, and the tuning it took to find it."""
    summaries = sorted(scene.summaries(), key=lambda s: (s.batch_size, scene.arms.index(s.arm)))
    if not summaries:
        return None
    figure = Figure(
        figsize=(8.5, 1.5 + 0.42 * len(summaries) + 0.2 * len(scene.batch_sizes)), layout="constrained"
    )
    axes = figure.add_subplot()
    places: list[float] = []
    longest = max(s.seconds_per_seed for s in summaries)
    for s in summaries:
        new_size = places and s.batch_size != summaries[len(places) - 1].batch_size
        places.append((places[-1] + (1.5 if new_size else 1.0)) if places else 0.0)
        colour, run = scene.colour(s.arm), s.seconds_reported_per_seed
        axes.barh(places[-1], run, 0.72, color=colour)
        left = s.seconds_per_seed - run
        if s.runs_per_seed > 1:
            axes.barh(places[-1], left, 0.72, left=run, color="white", edgecolor=colour, hatch="////", lw=1)
        runs = "1 run" if s.runs_per_seed == 1 else f"{s.runs_per_seed} runs"
        seconds = f"{s.seconds_per_seed:,.{1 if s.seconds_per_seed < 100 else 0}f}"
        text = f"{runs}, {seconds} s"
        axes.text(s.seconds_per_seed + 0.01 * longest, places[-1], text, va="center", fontsize=10)
    axes.set_yticks(places, [f"{plain(s.arm)}\nbatch {s.batch_size:,}" for s in summaries], fontsize=9)
    axes.set_ylim(max(places) + 0.6, -0.6)
    axes.set_xlim(0, 1.18 * longest)
    axes.set_xlabel("device-seconds for one seed's result")
    axes.grid(axis="y", visible=False)
    handles = [
        Patch(color="#666666", label="the reported run"),
        Patch(
            facecolor="white", edgecolor="#666666", hatch="////", label="tuning: the other runs of the grid"
        ),
    ]
    axes.legend(handles=handles, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
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
                label=f"{plain(baseline)}, warmup {w:.0%}",
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
                label=f"{plain(scene.candidate)}: LR found, each seed",
            )
        )
    return panels(scene, panel, "peak learning rate", "validation accuracy (%)", handles, list(tunings))


_GALLERY: tuple[tuple[Callable[[Scene], Figure | None], str, str], ...] = (
    (
        accuracy,
        "Accuracy by batch size",
        "Mean over seeds with its 95 % interval; the short dashes are single seeds. Of a tuned arm only the "
        "point chosen on validation accuracy is drawn.",
    ),
    (
        cost,
        "What each result cost",
        "Device time that one seed's result takes: the run itself, and the other runs of its grid.",
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
        "The losses that the scheduler had seen, its Gaussian-process posterior when the warmup ended, the "
        "minimum it found and the step at which it switched.",
    ),
    (
        tests,
        "Every test",
        "What each test of each seed weighed, as a share of what ends the warmup; with the paper's rule, of "
        "what counts towards three in a row.",
    ),
)
