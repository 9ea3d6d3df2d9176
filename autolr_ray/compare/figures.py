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
from matplotlib.ticker import MaxNLocator, NullFormatter

from autolr_ray.compare.statistics import ArmSummary, arms_of, is_grid, reported_runs, summarise, tune
from autolr_ray.files import write_atomically
from autolr_ray.train.record import RunRecord

# Okabe and Ito's palette, told apart with every common colour blindness and in grey print.
_CANDIDATE, _BASELINE = "#0072B2", "#D55E00"
_OTHERS = ("#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
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


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What all figures share: the runs, and which arm is the candidate and which the baseline."""

    records: Sequence[RunRecord]
    candidate: str | None
    baseline: str | None

    @property
    def batch_sizes(self) -> list[int]:
        """Ascending."""
        return sorted({r.batch_size for r in self.records})

    @property
    def arms(self) -> list[str]:
        """Candidate first, baseline second, the others by name; those that have a run."""
        first = [self.candidate, self.baseline]
        return sorted(arms_of(self.records), key=lambda a: (first.index(a) if a in first else 2, a))

    def colour(self, arm: str) -> str:
        """One colour per arm in every figure."""
        if arm == self.candidate:
            return _CANDIDATE
        if arm == self.baseline:
            return _BASELINE
        rest = [a for a in self.arms if a not in (self.candidate, self.baseline)]
        return _OTHERS[rest.index(arm) % len(_OTHERS)]

    def shown(self, arm: str | None, batch_size: int) -> list[RunRecord]:
        """The arm's reported runs at one batch size, by seed."""
        return [] if arm is None else reported_runs(self.records, arm, batch_size)

    def summaries(self) -> list[ArmSummary]:
        """Every arm at every batch size, where it has a run to report."""
        all_of = (summarise(self.records, arm, size) for arm in self.arms for size in self.batch_sizes)
        return [s for s in all_of if s is not None]


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
        axes.errorbar(x, y, half, fmt="o", color=colour, ms=7, lw=2, capsize=4, label=_arm_label(scene, arm))
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


def learning_rates(scene: Scene) -> Figure | None:
    """LR against step, per batch size: every candidate seed and the baseline's chosen point."""

    def panel(axes: Axes, size: int) -> None:
        for arm in (scene.baseline, scene.candidate):
            for r in scene.shown(arm, size):
                step, lr = np.array(r.trace.step, float), np.array(r.trace.lr, float)
                lr[~(lr > 0)] = np.nan  # the last LR is exactly 0, which a log axis cannot show
                if np.isfinite(lr).any():
                    axes.plot(step, lr, color=scene.colour(r.arm), lw=1.6, alpha=0.75)
                if r.switch_step >= 0 and r.peak_lr > 0:
                    axes.plot(r.switch_step, r.peak_lr, **_mark(scene.colour(r.arm), "o"))
        axes.set_yscale("log")
        peaks = [r.peak_lr for arm in (scene.baseline, scene.candidate) for r in scene.shown(arm, size)]
        finite = [p for p in peaks if math.isfinite(p) and p > 0]
        if finite:  # a decay to zero would stretch the axis without end
            axes.set_ylim(bottom=max(axes.get_ylim()[0], min(finite) / 1000))

    handles = [*_arm_handles(scene), _key("o", "peak LR, where the decay starts")]
    return _panels(scene, panel, "optimizer step", "learning rate", handles)


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
                smooth = _running_mean(loss, max(1, len(loss) // 100))
                axes.plot(step, smooth, color=colour, lw=1.6, alpha=0.85)
                seen = loss[np.isfinite(loss)]
                first += seen[: max(1, len(seen) // 20)].tolist()
                shown += seen.tolist()
                if arm == scene.candidate and r.switch_step >= 0:
                    axes.axvline(r.switch_step, color="#222222", lw=1, ls="--", alpha=0.6)
                    if r.rolled_back_to >= 0:
                        axes.axvspan(r.rolled_back_to, r.switch_step, color=colour, alpha=0.12, lw=0)
        if shown:
            # A loss that blew up leaves the picture at 1.5 times where training began.
            top = min(max(shown), 1.5 * float(np.median(first)))
            bottom = min(shown) if min(shown) > top / 2 else min(0.0, *shown)
            axes.set_ylim(bottom, max(top * 1.05, bottom + 1e-6))

    handles = [
        *_arm_handles(scene),
        Line2D([], [], color="#222222", ls="--", lw=1, label="switch"),
        Patch(color=_CANDIDATE, alpha=0.2, label="steps rolled back"),
    ]
    return _panels(scene, panel, "optimizer step", "training loss", handles)


def posterior(scene: Scene) -> Figure | None:
    """What the scheduler saw when it switched: losses of the warmup and the posterior, first seed."""
    sizes = [
        s for s in scene.batch_sizes if (runs := scene.shown(scene.candidate, s)) and runs[0].posterior.step
    ]
    if not sizes:
        return None

    def panel(axes: Axes, size: int) -> None:
        r = scene.shown(scene.candidate, size)[0]
        colour = scene.colour(r.arm)
        x, mean, sd = (np.array(v, float) for v in (r.posterior.step, r.posterior.mean, r.posterior.sd))
        step, loss = np.array(r.trace.step, float), np.array(r.trace.loss, float)
        seen = (step <= max(x.max(), r.switch_step)) & np.isfinite(loss)
        axes.plot(step[seen], loss[seen], ".", color="#777777", ms=4, alpha=0.8)
        axes.fill_between(x, mean - 2 * sd, mean + 2 * sd, color=colour, alpha=0.2, lw=0)
        axes.plot(x, mean, color=colour, lw=2)
        receipt = r.receipts[-1] if r.receipts else None
        low = (
            receipt.argmin_step
            if receipt
            else float(x[int(np.nanargmin(np.where(np.isfinite(mean), mean, np.inf)))])
        )
        axes.plot(low, np.interp(low, x, mean), **_mark(_BASELINE, "v", 10))
        if r.switch_step >= 0:
            axes.axvline(r.switch_step, color="#222222", lw=1.2, ls="--")
        finite = np.concatenate([loss[seen], (mean - 2 * sd)[np.isfinite(mean - 2 * sd)]])
        if finite.size:
            bottom, top = float(finite.min()), float(np.quantile(finite, 0.99))
            axes.set_ylim(bottom - 0.05 * (top - bottom) - 1e-9, top + 0.1 * (top - bottom) + 1e-9)
        axes.set_title(f"seed {r.seed}: peak LR {r.peak_lr:.2g}", loc="right", fontsize=10, weight="normal")

    handles = [
        Line2D([], [], color="#777777", marker=".", ls="", label="loss of a step"),
        Line2D([], [], color=_CANDIDATE, lw=2, label="posterior mean"),
        Patch(color=_CANDIDATE, alpha=0.2, label="± 2 standard deviations"),
        Line2D([], [], **_mark(_BASELINE, "v", 10), ls="", label="minimum"),
        Line2D([], [], color="#222222", ls="--", label="switch"),
    ]
    return _panels(scene, panel, "optimizer step of the warmup", "training loss", handles, sizes)


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
    axes.set_yticks(places, [f"{_plain(s.arm)}\nbatch {s.batch_size:,}" for s in summaries], fontsize=9)
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
                [p.peak_lr for p in line], y, color=_BASELINE, ls=styles[i % 4], marker="o", ms=4, lw=1.6
            )
            seen += [v for v in y if math.isfinite(v)]
        chosen = tunings[size].chosen
        if chosen is not None:
            best = 100 * chosen.validation.mean
            axes.plot(chosen.peak_lr, best, "o", ms=13, mfc="none", mec=_BASELINE, mew=2)
        runs = [r for r in scene.shown(scene.candidate, size) if r.peak_lr > 0 and math.isfinite(r.peak_lr)]
        for r in runs:
            axes.axvline(r.peak_lr, color=_CANDIDATE, lw=1, alpha=0.5)
            axes.plot(r.peak_lr, 100 * r.validation_accuracy, **_mark(_CANDIDATE, "D", 6))
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
                color=_BASELINE,
                ls=styles[i % 4],
                marker="o",
                ms=4,
                label=f"{_plain(baseline)}, warmup {w:.0%}",
            )
            for i, w in enumerate(warmups)
        ),
        Line2D([], [], marker="o", ms=11, mfc="none", mec=_BASELINE, mew=2, ls="", label="chosen point"),
    ]
    if scene.candidate is not None:
        handles.append(
            Line2D(
                [],
                [],
                **_mark(_CANDIDATE, "D", 6),
                ls="-",
                lw=1,
                label=f"{_plain(scene.candidate)}: LR found, each seed",
            )
        )
    return _panels(scene, panel, "peak learning rate", "validation accuracy (%)", handles, list(tunings))


def _panels(
    scene: Scene,
    draw: Callable[[Axes, int], None],
    x_label: str,
    y_label: str,
    handles: Sequence[Any],
    sizes: Sequence[int] | None = None,
) -> Figure | None:
    """One panel per batch size under one legend."""
    if sizes is None:
        arms = (scene.candidate, scene.baseline)
        sizes = [s for s in scene.batch_sizes if any(scene.shown(a, s) for a in arms)]
    if not sizes:
        return None
    columns = len(sizes) if len(sizes) <= 3 else 2 if len(sizes) == 4 else 3
    rows = math.ceil(len(sizes) / columns)
    figure = Figure(figsize=(max(6.5, 3.7 * columns), 3.3 * rows + 0.7), layout="constrained")
    for i, size in enumerate(sizes):
        axes = figure.add_subplot(rows, columns, i + 1)
        draw(axes, size)
        axes.set_title(f"batch {size:,}", loc="left")
        if axes.get_xscale() == "linear":
            axes.xaxis.set_major_locator(MaxNLocator(5))
        else:
            axes.xaxis.set_minor_formatter(NullFormatter())
        if i % columns == 0:
            axes.set_ylabel(y_label)
        if i + columns >= len(sizes):
            axes.set_xlabel(x_label)
    figure.legend(handles=list(handles), loc="outside upper center", ncols=min(len(handles), columns + 2))
    return figure


def _mark(colour: str, shape: str, size: float = 8) -> dict[str, Any]:
    return {"marker": shape, "ms": size, "color": colour, "mec": "white", "mew": 1.2, "zorder": 5}


def _key(shape: str, label: str) -> Line2D:
    return Line2D([], [], ls="", label=label, **_mark("#444444", shape))


def _arm_label(scene: Scene, arm: str) -> str:
    return f"{_plain(arm)} (tuned)" if is_grid(scene.records, arm) else _plain(arm)


def _plain(name: str) -> str:
    """A user's name as text: a dollar sign would start a formula."""
    return name.replace("$", r"\$")


def _arm_handles(scene: Scene) -> list[Line2D]:
    pair = [a for a in (scene.candidate, scene.baseline) if a is not None]
    return [Line2D([], [], color=scene.colour(a), lw=2, label=_arm_label(scene, a)) for a in pair]


def _running_mean(values: np.ndarray[Any, Any], half: int) -> np.ndarray[Any, Any]:
    """Centred mean over the finite values of a window; NaN where it has none."""
    known = np.isfinite(values)
    kernel = np.ones(2 * half + 1)
    total = np.convolve(np.where(known, values, 0.0), kernel)[half : half + len(values)]
    count = np.convolve(known.astype(float), kernel)[half : half + len(values)]
    # Where the value itself is missing the line breaks: a diverged run must not look finished.
    return np.where(known, total / np.maximum(count, 1.0), np.nan)


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
)
