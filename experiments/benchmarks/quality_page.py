"""What ``quality.py`` found, for people: a page in Markdown and a picture."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# What lies outside is written at the edge.
_RANGE = (-6.0, 4.0)
_COLOURS = {"short": "#4477aa", "middle": "#228833", "long": "#ee6677"}


def page(rows: Sequence[dict[str, Any]], lines: Sequence[dict[str, Any]]) -> str:
    """The groups' table, the untuned arms' regrets, the cells' table; ``lines`` are ``quality.bench``'s."""
    *groups, total = lines
    parts = [
        "# AutoWarmup against the tuned baseline, cell by cell",
        headline(total),
        group_table(groups, cost=not total["tuned"]),
        *([] if total["tuned"] else [regret_table(total)]),
        _cell_table(rows, cost=not total["tuned"]),
    ]
    if total["open"]:
        parts.append(f"Not yet run to the end: {', '.join(total['open'])}.")
    if total["burnt_seeds"]:
        seeds = ", ".join(map(str, total["burnt_seeds"]))
        parts.append(f"Seeds {seeds} had a part in the choice of a setting: these figures are no verdict.")
    if total["looked_at_seeds"]:
        seeds = ", ".join(map(str, total["looked_at_seeds"]))
        parts.append(
            f"Seeds {seeds}: nothing was chosen on them, but in {len(total['looked_at_cells'])} cells a "
            "verdict on them was read before the rule was last changed there."
        )
    return "\n\n".join(parts) + "\n"


def headline(total: dict[str, Any]) -> str:
    """One sentence over all cells."""
    cost = (
        f"{100 * total['run_share']:.0f} % of the runs, {100 * total['cost_share']:.0f} % of the device time"
    )
    if total["tuned"]:
        cost = "the baseline at the point that the grid chose on other seeds"
    fresh = "" if total["burnt_seeds"] or total["looked_at_seeds"] else "fresh "
    cells = f"{total['cells']} of {total['cells'] + len(total['open'])} cells"
    return (
        f"auto_warmup minus tuned linear_warmup, test accuracy, mean of {cells} with "
        f"{' or '.join(map(str, total['seeds_per_cell']))} {fresh}seeds each: "
        f"{_points(total['difference'])} points "
        f"({_interval(total['over_cells'])} over cells, "
        f"{_interval(total['over_seeds'])} over seeds), {_verdict(total)} at a margin of "
        f"{100 * total['margin']:g}; {cost}; "
        f"runs that ended at chance level: {total['failed_runs']}."
    )


def group_table(groups: Sequence[dict[str, Any]], *, cost: bool) -> str:
    """A row for each batch size x budget and for each data set; ``cost``: what it is of the grid's, too."""
    shares = ("run_share", "cost_share") if cost else ()
    return _table(
        (
            "Group", "Cells", "Difference", "95 % over seeds", "Verdict",
            *(("Runs", "Device time") if cost else ()), "At chance",
        ),
        [
            (
                group["group"], str(group["cells"]), _points(group["difference"]),
                _interval(group["over_seeds"]), _verdict(group),
                *(f"{100 * group[share]:.0f} %" for share in shares), str(group["failed_runs"]),
            )
            for group in groups
        ],
    )  # fmt: skip


def _verdict(group: dict[str, Any]) -> str:
    """The word; where it is undecided which of the two, that at least it is not worse by the margin."""
    open_between = group["verdict"] == "undecided" and group["better_or_equivalent"]
    return "better or equivalent" if open_between else str(group["verdict"])


def regret_table(total: dict[str, Any]) -> str:
    """The untuned arms, the least regret first."""
    ranked = sorted(total["regret"].items(), key=lambda item: item[1])
    return _table(
        ("Untuned arm", "Mean regret to the best arm of each cell, points"),
        [(arm, f"{100 * regret:.2f}") for arm, regret in ranked],
    )


def _cell_table(rows: Sequence[dict[str, Any]], *, cost: bool) -> str:
    last = "Device time" if cost else "Seeds"
    return _table(
        ("Cell", "Steps", "Difference", "95 %", "Verdict", "Tuned", "Peak LR", "Tuned peak", last),
        [
            (
                row["cell"], str(row["steps"]), _points(row["difference"]), _interval(row["interval"]),
                row["verdict"], f"{100 * row['arms']['linear_warmup']:.1f} %",
                " to ".join(f"{lr:.2g}" for lr in sorted({min(row["peak_lrs"]), max(row["peak_lrs"])})),
                f"{row['tuned_peak_lr']:g}",
                f"{100 * row['cost_share']:.0f} %" if cost else str(len(row["seeds"])),
            )
            for row in rows
        ],
    )  # fmt: skip


def picture(rows: Sequence[dict[str, Any]]) -> bytes:
    """A PNG: each cell's difference, seed by seed, and the mean with its interval; every arm's as a tick."""
    figure = Figure(figsize=(9.0, 1.2 + 0.32 * len(rows)), layout="constrained", dpi=130)
    axes = figure.add_subplot()
    order = sorted(
        rows, key=lambda row: (list(_COLOURS).index(row["budget"]), row["batch_size"], row["cell"])
    )
    for place, row in enumerate(order):
        colour = _COLOURS[row["budget"]]
        for arm, mean in row["arms"].items():
            if arm not in ("auto_warmup", "linear_warmup"):
                axes.plot(100 * (mean - row["arms"]["linear_warmup"]), place, "|", color="#999999", ms=8)
        axes.plot(
            [100 * d for d in row["differences"]],
            [place] * len(row["differences"]),
            ".",
            color=colour,
            alpha=0.5,
        )
        points = 100 * row["difference"]
        axes.plot(points, place, "o", color=colour, label=row["budget"])
        if not _RANGE[0] < points < _RANGE[1]:
            edge = _RANGE[0] if points < 0 else _RANGE[1]
            axes.annotate(
                f"{points:+.1f}", (edge, place), (18 if points < 0 else -18, 0), textcoords="offset points",
                color=colour, fontsize=9, va="center", ha="left" if points < 0 else "right",
                arrowprops={"arrowstyle": "->", "color": colour},
            )  # fmt: skip
    axes.axvspan(-0.5, 0.5, color="#dddddd", zorder=0, label="margin")
    if any(len(row["arms"]) > 2 for row in rows):
        axes.plot([], [], "|", color="#999999", label="other untuned arms")
    axes.set_yticks(range(len(order)), [row["cell"] for row in order], fontsize=8)
    axes.set_ylim(len(order) - 0.5, -0.5)
    axes.set_xlim(*_RANGE)
    axes.set_xlabel("auto_warmup minus tuned linear_warmup, test accuracy, points (dots: seeds)")
    handles, labels = axes.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    figure.legend(
        unique.values(), unique.keys(), fontsize=8, loc="outside lower center", ncols=5, frameon=False
    )
    axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    aligned = [":---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, aligned, *rows))


def _points(difference: float) -> str:
    return f"{100 * difference:+.2f}"


def _interval(bounds: Sequence[float]) -> str:
    low, high = bounds
    return f"{_points(low)} to {_points(high)}" if math.isfinite(low + high) else "-"
