"""The report of a study, made from run records alone: HTML, Markdown, CSV, figures, a console table.

``autolr-ray report`` writes it again from a ledger. A partial ledger gives a partial report that says what
is missing.
"""

from __future__ import annotations

import csv
import html
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from autolr_ray.compare.figures import write_figures
from autolr_ray.compare.findings import Findings
from autolr_ray.compare.page import render_page
from autolr_ray.compare.values import FailureRow
from autolr_ray.compare.wording import cost, percent, points, seconds, spread
from autolr_ray.files import write_atomically
from autolr_ray.train.record import RunRecord

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
    failures: Sequence[FailureRow] = (),
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
        failures: cells that have no result although they were tried, in any order.

    The same records give the same files, byte for byte.

    Raises:
        ValueError: ``margin`` is negative or not a number.
    """
    findings = Findings(records, margin, baseline_arm, candidate_arm, expected_cells)
    folder = Path(folder)
    figures = write_figures(
        findings.runs, folder / "figures", candidate=findings.candidate, baseline=findings.baseline
    )
    paths = ReportPaths(
        html=folder / "report.html",
        csv=folder / "summary.csv",
        markdown=folder / "summary.md",
        figures=tuple(f.path for f in figures),
    )
    page = render_page(
        findings, study_name=study_name, data_note=data_note, figures=figures, failures=failures
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
    findings = Findings(records, margin, baseline_arm, candidate_arm, expected_cells)
    head = ("batch", "seeds", findings.candidate or "candidate", findings.baseline or "baseline")
    rows = [(*head, "difference, 95% interval", "verdict", "cost per seed", "instead of")]
    for size in findings.batch_sizes:
        c = findings.comparison(size)
        if c is None:
            rows.append((str(size), "0", "-", "-", "-", "no pair yet", "-", "-"))
            continue
        means = (percent(c.candidate_test), percent(c.baseline_test))
        costs = (cost(c.candidate), cost(c.baseline))
        rows.append((str(size), str(len(c.seeds)), *means, points(c.difference), c.verdict.word, *costs))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(text.rjust(w) for text, w in zip(row, widths, strict=True)) for row in rows]
    lines.insert(1, "  ".join("-" * w for w in widths))
    return "\n".join([findings.headline, "", *lines, *(f"note: {note}" for note in findings.notes)])


def _csv(f: Findings) -> str:
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


def _markdown(f: Findings, study: str) -> str:
    def line(*cells: object) -> str:
        return "| " + " | ".join(html.escape(str(c), quote=False).replace("|", "\\|") for c in cells) + " |"

    lines = [f"# {html.escape(study, quote=False)}", "", html.escape(f.headline, quote=False), ""]
    said = {b: f"{f.sentence(b)} {f.tuning_sentence(b)}".rstrip() for b in f.batch_sizes}
    lines += [f"- **Batch {b:,}**: {html.escape(said[b], quote=False)}" for b in f.batch_sizes]
    lines += [
        "",
        line(
            "Batch", "Arm", "Seeds", "Test", "95 % interval", "Validation", "Peak LR", "Runs", "Device time"
        ),
    ]
    lines.append("|---:|:---|---:|---:|:---|---:|:---|---:|---:|")
    for s in f.summaries:
        interval = f"{percent(s.test.low)} to {percent(s.test.high)}" if math.isfinite(s.test.low) else "n/a"
        tail = (percent(s.validation.mean), spread(s.peak_lrs), s.runs_all, seconds(s.seconds_all))
        lines.append(line(f"{s.batch_size:,}", s.arm, s.n_seeds, percent(s.test.mean), interval, *tail))
    lines += ["", *(f"- Note: {html.escape(note, quote=False)}" for note in f.notes)]
    return "\n".join(lines).rstrip() + "\n"
