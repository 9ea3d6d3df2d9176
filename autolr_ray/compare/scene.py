"""What every figure stands on: the runs, one colour per arm, one panel per batch size."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullFormatter

from autolr_ray.compare.statistics import arms_of, is_grid, reported_runs, summarise
from autolr_ray.compare.values import ArmSummary
from autolr_ray.train.record import RunRecord

# Okabe and Ito's palette, told apart with every common colour blindness and in grey print.
CANDIDATE, BASELINE = "#0072B2", "#D55E00"
_OTHERS = ("#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#6A3D9A", "#8C6D31")
# Beyond the palette a shape tells two arms of one colour apart; the counts have no common divisor.
_SHAPES = ("^", "v", "D", "P", "X", "<", ">", "p", "h", "*")
_LINES = ("--", "-.", ":")


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
        """One colour per arm in every figure; beyond nine arms colours come again."""
        if arm == self.candidate:
            return CANDIDATE
        if arm == self.baseline:
            return BASELINE
        return _OTHERS[self._place(arm) % len(_OTHERS)]

    def shape(self, arm: str) -> str:
        """The arm's marker: with its colour, one of its own for up to 72 arms."""
        if arm in (self.candidate, self.baseline):
            return "o" if arm == self.candidate else "s"
        return _SHAPES[self._place(arm) % len(_SHAPES)]

    def line(self, arm: str) -> str:
        """The arm's line style: solid for candidate and baseline."""
        return "-" if arm in (self.candidate, self.baseline) else _LINES[self._place(arm) % len(_LINES)]

    def _place(self, arm: str) -> int:
        return [a for a in self.arms if a not in (self.candidate, self.baseline)].index(arm)

    def shown(self, arm: str | None, batch_size: int) -> list[RunRecord]:
        """The arm's reported runs at one batch size, by seed."""
        return [] if arm is None else reported_runs(self.records, arm, batch_size)

    def summaries(self) -> list[ArmSummary]:
        """Every arm at every batch size, where it has a run to report."""
        all_of = (summarise(self.records, arm, size) for arm in self.arms for size in self.batch_sizes)
        return [s for s in all_of if s is not None]


def panels(
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
    legend(figure, handles)
    return figure


def mark(colour: str, shape: str, size: float = 8) -> dict[str, Any]:
    return {"marker": shape, "ms": size, "color": colour, "mec": "white", "mew": 1.2, "zorder": 5}


def key(shape: str, label: str) -> Line2D:
    return Line2D([], [], ls="", label=label, **mark("#444444", shape))


def arm_label(scene: Scene, arm: str) -> str:
    return f"{short(arm)} (tuned)" if is_grid(scene.records, arm) else short(arm)


def plain(name: str) -> str:
    """A user's name as text: a dollar sign would start a formula."""
    return name.replace("$", r"\$")


def short(name: str, most: int = 32) -> str:
    """:func:`plain`, a long name without its middle: names that differ mostly do so at an end."""
    half = (most - 1) // 2
    return plain(name if len(name) <= most else f"{name[:half]}…{name[-half:]}")


def legend(figure: Figure, handles: Sequence[Any], most_columns: int = 6) -> None:
    """One legend above all panels, in as many columns as fit the width."""
    longest = max(len(str(h.get_label())) for h in handles)
    columns = int(figure.get_figwidth() / (0.085 * longest + 0.65))
    figure.legend(
        handles=list(handles),
        loc="outside upper center",
        ncols=max(1, min(len(handles), columns, most_columns)),
    )


def arm_handles(scene: Scene) -> list[Line2D]:
    pair = [a for a in (scene.candidate, scene.baseline) if a is not None]
    return [Line2D([], [], color=scene.colour(a), lw=2, label=arm_label(scene, a)) for a in pair]
