"""The report of a study, made from run records alone: HTML, Markdown, CSV, figures, a console table.

``python -m autolr_ray.compare.report LEDGER.parquet --out DIR`` rebuilds it from a ledger. A partial
ledger gives a partial report that says what is missing.
"""

from __future__ import annotations

import argparse
import base64
import csv
import html
import io
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined, Template

from autolr_ray.compare.figures import write_figures
from autolr_ray.compare.ledger import read_ledger
from autolr_ray.compare.statistics import (
    ArmSummary,
    Comparison,
    Edge,
    Interval,
    Tuning,
    Verdict,
    arms_of,
    check_margin,
    compare,
    default_baseline,
    default_candidate,
    is_grid,
    reported_runs,
    summarise,
    tune,
    without_repeats,
)
from autolr_ray.files import write_atomically
from autolr_ray.train.record import ReceiptRow, RunRecord

DEFAULT_MARGIN = 0.005

_CSV_COLUMNS = (
    *("arm", "batch_size", "point", "seeds", "validation_accuracy", "test_accuracy", "test_low", "test_high"),
    *("peak_lrs", "switch_steps", "runs", "device_seconds_reported", "device_seconds_all"),
    *("difference", "difference_low", "difference_high", "margin", "verdict"),
)


@dataclass(frozen=True, kw_only=True)
class ReportPaths:
    """The files of a written report."""

    html: Path
    csv: Path
    markdown: Path
    figures: tuple[Path, ...]


def write_report(
    records: Sequence[RunRecord],
    folder: Path,
    *,
    study_name: str,
    margin: float = DEFAULT_MARGIN,
    baseline_arm: str | None = None,
    candidate_arm: str | None = None,
    expected_cells: int | None = None,
    data_note: str = "",
) -> ReportPaths:
    """Write ``report.html``, ``summary.md``, ``summary.csv`` and ``figures/*.png`` into ``folder``.

    Args:
        records: finished runs, in any order; any part of a study, or none.
        folder: made if missing; each file is replaced in one move.
        margin: accuracy difference (a fraction, 0.005 = half a point) that counts as none.
        baseline_arm: by default the grid arm with the most points.
        candidate_arm: by default the first arm that is no grid, names beginning with "auto" first.
        expected_cells: how many runs the whole study has, to say how many are missing.
        data_note: a sentence on the data set, shown beside the task's name.

    The same records give the same files, byte for byte.

    Raises:
        ValueError: ``margin`` is negative or not a number.
    """
    findings = _Findings(records, margin, baseline_arm, candidate_arm, expected_cells)
    folder = Path(folder)
    figures = write_figures(
        findings.runs, folder / "figures", candidate=findings.candidate, baseline=findings.baseline
    )
    images = [(f, base64.b64encode(f.path.read_bytes()).decode("ascii")) for f in figures]
    paths = ReportPaths(
        html=folder / "report.html",
        csv=folder / "summary.csv",
        markdown=folder / "summary.md",
        figures=tuple(f.path for f in figures),
    )
    page = _template().render(
        f=findings, study=study_name, data_note=data_note, images=images, Verdict=Verdict
    )
    write_atomically(paths.csv, _csv(findings).encode())
    write_atomically(paths.markdown, _markdown(findings, study_name).encode())
    write_atomically(paths.html, page.encode())
    return paths


def console_table(
    records: Sequence[RunRecord],
    *,
    margin: float = DEFAULT_MARGIN,
    baseline_arm: str | None = None,
    candidate_arm: str | None = None,
    expected_cells: int | None = None,
) -> str:
    """The verdict per batch size as plain text for the end of a run; arguments as in ``write_report``."""
    findings = _Findings(records, margin, baseline_arm, candidate_arm, expected_cells)
    head = ("batch", "seeds", findings.candidate or "candidate", findings.baseline or "baseline")
    rows = [(*head, "difference, 95% interval", "verdict", "cost per seed", "instead of")]
    for size in findings.batch_sizes:
        c = findings.comparison(size)
        if c is None:
            rows.append((str(size), "0", "-", "-", "-", "no pair yet", "-", "-"))
            continue
        means = (percent(c.candidate_test), percent(c.baseline_test))
        costs = (_cost(c.candidate), _cost(c.baseline))
        rows.append((str(size), str(len(c.seeds)), *means, points(c.difference), c.verdict.word, *costs))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(text.rjust(w) for text, w in zip(row, widths, strict=True)) for row in rows]
    lines.insert(1, "  ".join("-" * w for w in widths))
    return "\n".join([findings.headline, "", *lines, *(f"note: {note}" for note in findings.notes)])


class _Findings:
    """Everything that is written down, worked out once. Test accuracies of reported runs only."""

    def __init__(
        self,
        records: Sequence[RunRecord],
        margin: float,
        baseline: str | None,
        candidate: str | None,
        expected_cells: int | None,
    ) -> None:
        check_margin(margin)
        self.runs = without_repeats(records)
        self.repeats = len(records) - len(self.runs)
        self.margin, self.expected_cells = margin, expected_cells
        self.baseline = baseline if baseline is not None else default_baseline(self.runs)
        self.candidate = candidate if candidate is not None else default_candidate(self.runs)
        self.arms = sorted(arms_of(self.runs), key=lambda a: (a != self.candidate, a != self.baseline, a))
        self.batch_sizes = sorted({r.batch_size for r in self.runs})
        at = [(arm, size) for size in self.batch_sizes for arm in self.arms]
        self.summaries: list[ArmSummary] = [s for a, b in at if (s := summarise(self.runs, a, b)) is not None]
        self.tunings: list[Tuning] = [
            t for a, b in at if is_grid(self.runs, a) and (t := tune(self.runs, a, b)).points
        ]
        self.comparisons: dict[tuple[str, int], Comparison] = {}
        for arm, size in at:
            if self.baseline is None or arm == self.baseline:
                continue
            found = compare(self.runs, arm, self.baseline, size, margin=margin)
            if found is not None:
                self.comparisons[arm, size] = found
        self.reported = frozenset(r.cell for a, b in at for r in reported_runs(self.runs, a, b))

    def comparison(self, batch_size: int) -> Comparison | None:
        """The candidate against the baseline."""
        return self.comparisons.get((self.candidate or "", batch_size))

    def sentence(self, batch_size: int) -> str:
        """The verdict at one batch size, with its numbers and what it cost."""
        c = self.comparison(batch_size)
        if c is None:
            lacking = [a for a in (self.candidate, self.baseline) if a and not self._summary(a, batch_size)]
            if lacking:
                return f"No verdict yet: {' and '.join(lacking)} without a run to report."
            return "No verdict yet: no seed that both arms have finished."
        tuned = f"tuned {c.baseline.arm}" if is_grid(self.runs, c.baseline.arm) else c.baseline.arm
        seeds = f"{len(c.seeds)} seed{'s' * (len(c.seeds) != 1)}"
        return (
            f"{c.candidate.arm} {percent(c.candidate_test)} vs {tuned} {percent(c.baseline_test)}: "
            f"{points(c.difference)}, {c.verdict.word} at margin {100 * c.margin:g} ({seeds}); "
            f"cost {_cost(c.candidate)} of device time per seed, instead of {_cost(c.baseline)}."
        )

    @property
    def headline(self) -> str:
        """The study in one sentence."""
        done = (
            f"{len(self.runs)}{f' of {self.expected_cells}' if self.expected_cells is not None else ''} cells"
        )
        if not self.runs:
            return f"No verdict yet: {done} finished."
        found = [c for size in self.batch_sizes if (c := self.comparison(size)) is not None]
        if not found:
            return f"No verdict yet: no batch size has both arms to compare ({done} finished)."
        counts = Counter(c.verdict for c in found)
        said = ", ".join(f"{v.word} at {counts[v]}" for v in Verdict if counts[v])
        ours, theirs = (sum(s.seconds_per_seed for s in side) for side in _sides(found))
        ratio = f"; {100 * ours / theirs:.0f} % of the device time per seed" if 0 < ours < theirs else ""
        noun = "batch size" if len(found) == 1 else "batch sizes"
        return f"{self.candidate} against {self.baseline}: {said} of {len(found)} {noun}{ratio}."

    @property
    def notes(self) -> list[str]:
        """What is missing, and what a careful reader must know."""
        notes = []
        if self.expected_cells is not None and len(self.runs) != self.expected_cells:
            notes.append(f"{len(self.runs)} of {self.expected_cells} cells finished")
        for role, arm in (("baseline", self.baseline), ("candidate", self.candidate)):
            if arm is None:
                notes.append(f"no {role} arm among the finished runs")
            elif arm not in self.arms:
                notes.append(f"{role} arm {arm} has no finished run")
        seeds = {r.seed for r in self.runs}
        for size in self.batch_sizes:
            for arm in self.arms:
                own = {r.seed for r in self.runs if r.arm == arm and r.batch_size == size}
                if not own:
                    notes.append(f"{arm} at batch size {size}: no finished run")
                elif own != seeds:
                    lacking = ", ".join(map(str, sorted(seeds - own)))
                    notes.append(f"{arm} at batch size {size}: seeds {lacking} missing")
        for t in self.tunings:
            where = f"{t.arm} at batch size {t.batch_size}"
            notes += [
                f"{where}: point {p.point} not eligible, {p.ineligible}" for p in t.points if p.ineligible
            ]
            if t.chosen is None:
                notes.append(f"{where}: no point could be chosen")
            elif t.edge is not Edge.INSIDE:
                notes.append(f"{where}: the chosen point has {t.edge.value}")
        if len(seeds) == 1:
            notes.append("one seed only: no interval, and so no verdict but undecided")
        odd = sum(r.cell in self.reported and not math.isfinite(r.test_accuracy) for r in self.runs)
        if odd:
            notes.append(f"{odd} reported runs ended with a test accuracy that is not a number")
        if self.repeats:
            notes.append(
                f"{self.repeats} runs left out: a later run had the same arm, point, batch size and seed"
            )
        notes += [
            f"runs differ in {name}: {', '.join(values)}"
            for name, values in self.surroundings
            if len(values) > 1 and name not in ("optimizer", "schedule")
        ]
        return notes

    @property
    def surroundings(self) -> list[tuple[str, list[str]]]:
        """Task, model, hardware and versions, each with every value that occurs."""
        names = ("task", "model", "optimizer", "schedule", "epochs", "total_steps", "device", "workers")
        seen: dict[str, set[str]] = {n: {str(getattr(r, n)) for r in self.runs} for n in names}
        seen.pop("total_steps")  # differs by batch size, as it must
        for r in self.runs:
            for name, version in r.versions.items():
                seen.setdefault(f"{name} version", set()).add(version)
        return [(name, sorted(values)) for name, values in seen.items() if values]

    @property
    def decisions(self) -> list[tuple[RunRecord, ReceiptRow]]:
        """The receipt behind each reported run's switch: the one of its step, else the last."""
        runs = [r for r in self.runs if r.cell in self.reported and r.receipts]
        return [(r, next((x for x in r.receipts if x.step == r.switch_step), r.receipts[-1])) for r in runs]

    def _summary(self, arm: str, batch_size: int) -> ArmSummary | None:
        return next((s for s in self.summaries if (s.arm, s.batch_size) == (arm, batch_size)), None)


def percent(value: float, digits: int = 1) -> str:
    """A fraction as per cent: ``0.8764`` -> ``"87.6 %"``."""
    return f"{100 * value:.{digits}f} %" if math.isfinite(value) else "n/a"


def points(interval: Interval, digits: int = 1) -> str:
    """A difference of accuracies in points: ``"-0.5 points [-1.2, +0.2]"``."""

    def signed(value: float) -> str:
        # Adding 0.0 turns a rounded -0.0 into +0.0.
        return f"{round(100 * value, digits) + 0.0:+.{digits}f}" if math.isfinite(value) else "n/a"

    return f"{signed(interval.mean)} points [{signed(interval.low)}, {signed(interval.high)}]"


def seconds(value: float) -> str:
    """Device time: one decimal below ten seconds, thousands apart."""
    return (f"{value:,.1f} s" if value < 10 else f"{value:,.0f} s") if math.isfinite(value) else "n/a"


def number(value: float) -> str:
    """A learning rate, loss or probability in three digits."""
    return f"{value:.3g}" if math.isfinite(value) else str(value)


def _cost(summary: ArmSummary) -> str:
    runs = f"{summary.runs_per_seed} run{'s' * (summary.runs_per_seed != 1)}"
    return f"{runs}, {seconds(summary.seconds_per_seed)}"


def _sides(found: Sequence[Comparison]) -> tuple[list[ArmSummary], list[ArmSummary]]:
    return [c.candidate for c in found], [c.baseline for c in found]


def _spread(values: Sequence[float]) -> str:
    """One number where all agree, else the range."""
    low, high = number(min(values)), number(max(values))
    return low if low == high else f"{low} to {high}"


def _template() -> Template:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(percent=percent, points=points, seconds=seconds, number=number, spread=_spread)
    # A real minus sign reads better than a hyphen; names keep theirs, no digit follows a blank there.
    environment.filters["minus"] = lambda text: re.sub(r"(?<=[\s\[])-(?=\d)", "\N{MINUS SIGN}", f" {text}")[
        1:
    ]
    source = files("autolr_ray.compare").joinpath("templates/report.html.j2").read_text(encoding="utf-8")
    return environment.from_string(source)


def _csv(f: _Findings) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(_CSV_COLUMNS)
    for s in f.summaries:
        c = f.comparisons.get((s.arm, s.batch_size))
        versus = (
            [c.difference.mean, c.difference.low, c.difference.high, c.margin, c.verdict.word]
            if c
            else [""] * 5
        )
        lists = (" ".join(map(repr, values)) for values in (s.peak_lrs, s.switch_steps))
        test = (s.test.mean, s.test.low, s.test.high)
        paid = (s.runs_all, s.seconds_reported, s.seconds_all)
        seeds = " ".join(map(str, s.seeds))
        writer.writerow(
            [s.arm, s.batch_size, s.point, seeds, s.validation.mean, *test, *lists, *paid, *versus]
        )
    return out.getvalue()


def _markdown(f: _Findings, study: str) -> str:
    def line(*cells: object) -> str:
        return "| " + " | ".join(html.escape(str(c), quote=False).replace("|", "\\|") for c in cells) + " |"

    lines = [f"# {html.escape(study, quote=False)}", "", html.escape(f.headline, quote=False), ""]
    lines += [f"- **Batch {b:,}**: {html.escape(f.sentence(b), quote=False)}" for b in f.batch_sizes]
    lines += [
        "",
        line(
            "Batch", "Arm", "Seeds", "Test", "95 % interval", "Validation", "Peak LR", "Runs", "Device time"
        ),
    ]
    lines.append("|---:|:---|---:|---:|:---|---:|:---|---:|---:|")
    for s in f.summaries:
        interval = f"{percent(s.test.low)} to {percent(s.test.high)}" if math.isfinite(s.test.low) else "n/a"
        tail = (percent(s.validation.mean), _spread(s.peak_lrs), s.runs_all, seconds(s.seconds_all))
        lines.append(line(f"{s.batch_size:,}", s.arm, s.n_seeds, percent(s.test.mean), interval, *tail))
    lines += ["", *(f"- Note: {html.escape(note, quote=False)}" for note in f.notes)]
    return "\n".join(lines).rstrip() + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Rebuild a report from a ledger; prints the console table and where the report lies."""
    parser = argparse.ArgumentParser(prog="python -m autolr_ray.compare.report", description=main.__doc__)
    parser.add_argument("ledger", type=Path, help="the sweep's ledger, a Parquet file")
    parser.add_argument("--out", type=Path, required=True, help="folder of the report")
    parser.add_argument("--study", help="which study, where the ledger holds several")
    parser.add_argument("--baseline", help="baseline arm (default: the grid arm with the most points)")
    parser.add_argument("--candidate", help="candidate arm (default: the first untuned arm)")
    parser.add_argument(
        "--margin", type=float, default=DEFAULT_MARGIN, help="accuracy difference that counts as none"
    )
    parser.add_argument("--expected-cells", type=int, help="number of runs of the whole study")
    options = parser.parse_args(arguments)
    try:
        records = read_ledger(options.ledger)
        check_margin(options.margin)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    studies = sorted({r.study for r in records})
    if options.study is not None:
        records = [r for r in records if r.study == options.study]
    elif len(studies) > 1:
        parser.error(f"the ledger holds several studies; choose one with --study: {', '.join(studies)}")
    name = options.study or (studies[0] if studies else options.ledger.stem)
    arms = {"baseline_arm": options.baseline, "candidate_arm": options.candidate}
    common = {"margin": options.margin, "expected_cells": options.expected_cells, **arms}
    paths = write_report(records, options.out, study_name=name, **common)
    print(console_table(records, **common))
    print(f"\nreport: {paths.html}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
