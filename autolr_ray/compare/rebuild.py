"""A report made again, from a ledger or a results folder, and its findings as plain values."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autolr_ray.compare.findings import Findings
from autolr_ray.compare.folder import ReadingError, Runs, read_runs
from autolr_ray.compare.intervals import check_margin
from autolr_ray.compare.report import DEFAULT_MARGIN, ReportPaths, console_table, write_report
from autolr_ray.compare.values import Comparison
from autolr_ray.plain import strict_json
from autolr_ray.remote import Location
from autolr_ray.train.record import RunRecord


@dataclass(frozen=True, kw_only=True)
class Rebuilt:
    """A written report.

    Attributes:
        study: whose it is.
        paths: its files.
        table: the verdicts as plain text.
        findings: what it says.
        notes: what was found wrong with the files that it was made from.
    """

    study: str
    paths: ReportPaths
    table: str
    findings: Findings
    notes: tuple[str, ...]

    def json(self) -> str:
        """The findings as one JSON object."""
        found = self.findings
        return strict_json(
            {
                "study": self.study,
                "headline": found.headline,
                "candidate": found.candidate,
                "baseline": found.baseline,
                "margin": found.margin,
                "finished": len(found.runs),
                "expected": found.expected_cells,
                "verdicts": [_verdict(found, size) for size in found.batch_sizes],
                "summaries": [dataclasses.asdict(summary) for summary in found.summaries],
                "notes": [*self.notes, *found.notes],
                "report": str(self.paths.html),
            },
            indent=2,
        )


def rebuild(
    path: Location,
    *,
    out: Path | None = None,
    study: str | None = None,
    baseline: str | None = None,
    candidate: str | None = None,
    margin: float | None = None,
) -> Rebuilt:
    """Write the report of the runs at ``path``.

    Args:
        path: a ledger, or a study's results folder.
        out: the report's folder; None: where the runs lie.
        study: which one, where a ledger holds several.
        baseline, candidate, margin: None: as ``study.yaml`` beside the runs says, else the usual.

    Raises:
        ReadingError: there is nothing to read, or a value is not allowed.
    """
    runs = read_runs(path)
    name, records = _of_one_study(runs, study)
    kept = runs.study if runs.study is not None and runs.study.name == name else None
    margin = margin if margin is not None else kept.margin if kept else DEFAULT_MARGIN
    try:
        check_margin(margin)
    except ValueError as error:
        raise ReadingError(str(error)) from error
    arms = {r.arm for r in records} | set(kept.arms if kept else ())
    for role, arm in (("baseline", baseline), ("candidate", candidate)):
        if arm is not None and arm not in arms:
            raise ReadingError(f"{role}: {arm!r} is not allowed; the arms are {', '.join(sorted(arms))}")
    baseline = baseline or (kept.baseline if kept else None)
    candidate = candidate or (kept.candidate if kept else None)
    expected = runs.expected if kept else None
    folder = out.expanduser() if out is not None else runs.folder
    if not isinstance(folder, Path):
        raise ReadingError(f"out: a folder is needed for a report on {folder}")
    common: dict[str, Any] = {
        "margin": margin, "baseline_arm": baseline, "candidate_arm": candidate, "expected_cells": expected,
    }  # fmt: skip
    try:
        paths = write_report(
            records, folder, study_name=name, data_note=kept.note if kept else "",
            failures=runs.failures if kept else (), **common,
        )  # fmt: skip
    except OSError as error:
        raise ReadingError(f"out: {folder} cannot be written to ({error.strerror or error})") from error
    return Rebuilt(
        study=name, paths=paths, table="\n".join([console_table(records, **common), *_said(runs)]),
        findings=Findings(records, margin, baseline, candidate, expected), notes=runs.notes,
    )  # fmt: skip


def _said(runs: Runs) -> list[str]:
    return [f"note: {note}" for note in runs.notes]


def _of_one_study(runs: Runs, study: str | None) -> tuple[str, Sequence[RunRecord]]:
    names = sorted({record.study for record in runs.records})
    if study is None and len(names) > 1:
        raise ReadingError(f"the ledger holds several studies; choose one with --study: {', '.join(names)}")
    if study is not None and study not in names:
        raise ReadingError(f"study: {study!r} is not allowed; here is {', '.join(names) or 'no run'}")
    name = study or (names[0] if names else "") or runs.name
    return name, [record for record in runs.records if study is None or record.study == study]


def _verdict(found: Findings, batch_size: int) -> dict[str, Any]:
    comparison = found.comparison(batch_size)
    common = {"batch_size": batch_size, "sentence": found.sentence(batch_size)}
    if comparison is None:
        return {**common, "verdict": None}
    return {**common, "verdict": comparison.verdict.word, **_values(comparison)}


def _values(comparison: Comparison) -> dict[str, Any]:
    """The numbers of a comparison; the two arms are among the summaries."""
    paired, beat = comparison.paired, comparison.runs_to_beat
    return {
        "seeds": comparison.seeds,
        "candidate_test": comparison.candidate_test,
        "baseline_test": comparison.baseline_test,
        "margin": paired.margin,
        "difference": dataclasses.asdict(paired.interval),
        "student": dataclasses.asdict(paired.student),
        "bootstrap": dataclasses.asdict(paired.bootstrap),
        "runs_to_beat": dataclasses.asdict(beat) if beat is not None else None,
    }
