"""Figures of what the results cost: device-seconds by arm, and accuracy against them."""

from __future__ import annotations

import math
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator

from autolr_ray.compare.scene import Scene, arm_label, legend, mark, panels, short
from autolr_ray.compare.statistics import best_of_runs, is_grid
from autolr_ray.compare.values import ArmSummary
from autolr_ray.compare.wording import cost as cost_text


def cost(scene: Scene) -> Figure | None:
    """Device-seconds per seed of each arm: what its run costs, and the tuning it took to find it."""
    summaries = sorted(scene.summaries(), key=lambda s: (s.batch_size, scene.arms.index(s.arm)))
    if not summaries:
        return None
    sizes = sorted({s.batch_size for s in summaries})
    figure = Figure(figsize=(8.5, 1.2 + 0.34 * len(summaries) + 0.55 * len(sizes)), layout="constrained")
    axes = figure.add_subplot()
    longest = max(s.seconds_per_seed for s in summaries)
    places: list[float] = []
    place = 0.0
    for size in sizes:
        axes.text(
            0,
            place + 0.55,
            f"batch {size:,}",
            transform=axes.get_yaxis_transform(),
            va="bottom",
            weight="bold",
        )
        for s in (s for s in summaries if s.batch_size == size):
            place += 1.0
            places.append(place)
            _bar(axes, place, s, scene.colour(s.arm), longest)
        place += 1.1
    axes.set_yticks(places, [short(s.arm) for s in summaries], fontsize=10)
    axes.set_ylim(max(places) + 0.6, -0.1)
    axes.set_xlim(0, 1.28 * longest)
    axes.set_xlabel("device-seconds for one seed's result")
    axes.grid(axis="y", visible=False)
    handles = [
        Patch(color="#666666", label="the reported run"),
        Patch(facecolor="white", edgecolor="#666666", hatch="////", label="tuning"),
    ]
    legend(figure, handles)
    return figure


def _bar(axes: Axes, place: float, s: ArmSummary, colour: str, longest: float) -> None:
    run = s.seconds_per_seed - s.tuning_seconds_per_seed
    axes.barh(place, run, 0.72, color=colour)
    if s.tuning_seconds_per_seed > 0:
        axes.barh(
            place,
            s.tuning_seconds_per_seed,
            0.72,
            left=run,
            color="white",
            edgecolor=colour,
            hatch="////",
            lw=1,
        )
    axes.text(s.seconds_per_seed + 0.01 * longest, place, cost_text(s), va="center", fontsize=10)


def accuracy_against_cost(scene: Scene) -> Figure | None:
    """Validation accuracy against device-seconds per seed: a marker per untuned arm, best of k per grid."""
    summaries = scene.summaries()
    at = {s: [x for x in summaries if x.batch_size == s] for s in scene.batch_sizes}
    sizes = [size for size, own in at.items() if any(math.isfinite(s.validation.mean) for s in own)]
    drawn = [a for a in scene.arms if any(s.arm == a for s in summaries)]

    def panel(axes: Axes, size: int) -> None:
        seen: list[float] = []
        # The candidate last, on top.
        for s in sorted(at[size], key=lambda s: -scene.arms.index(s.arm)):
            style = _style(scene, s.arm)
            if is_grid(scene.records, s.arm):
                curve = best_of_runs(scene.records, s.arm, size)
                x, y = [c.device_seconds for c in curve], [100 * c.validation_accuracy for c in curve]
                axes.plot(x, y, ls=scene.line(s.arm), lw=1.6, markevery=[0, -1] if curve else None, **style)
                seen += y
            else:
                x, y = [s.seconds_per_seed], [100 * s.validation.mean]
                axes.plot(x, y, ls="", **style)
                seen += [v for v in y if math.isfinite(v)]
                if len(drawn) <= 5:  # arms of equal cost lie above each other: more would hide the means
                    seeds = [100 * r.validation_accuracy for r in scene.shown(s.arm, size)]
                    axes.plot(x * len(seeds), seeds, "_", color=style["color"], ms=9, mew=1.3, alpha=0.6)
                    seen += [v for v in seeds if math.isfinite(v)]
        axes.set_xscale("log")
        low, high = axes.get_xlim()
        if high < 500 * low:
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 50 * low else (1,)))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        # A grid's single run may lead nowhere; that would flatten the rest.
        bottom, top = max(min(seen), max(seen) - 30), max(seen)
        axes.set_ylim(bottom - 0.06 * (top - bottom) - 0.2, top + 0.08 * (top - bottom) + 0.2)

    handles = [
        Line2D(
            [], [], ls=scene.line(a) if is_grid(scene.records, a) else "", lw=1.6,
            label=f"{arm_label(scene, a)}{', best of k' if is_grid(scene.records, a) else ''}",
            **_style(scene, a),
        )
        for a in drawn
    ]  # fmt: skip
    return panels(
        scene, panel, "device-seconds for one seed's result", "validation accuracy (%)", handles, sizes
    )


def _style(scene: Scene, arm: str) -> dict[str, Any]:
    return {**mark(scene.colour(arm), scene.shape(arm), 8), "mew": 0.8}
