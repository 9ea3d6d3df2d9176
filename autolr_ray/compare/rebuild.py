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
from autolr_ray.compare.values import Comparison, FailureRow, Tuning
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
        failures: runs that have failed and have no result.
    """

    study: str
    paths: ReportPaths
    table: str
    findings: Findings
    notes: tuple[str, ...]
    failures: tuple[FailureRow, ...] = ()

    def json(self) -> str:
        """The findings as one JSON object."""
        return findings_json(
            self.study, self.findings, failures=self.failures, notes=self.notes, report=str(self.paths.html)
        )


def findings_json(
    study: str,
    found: Findings,
    *,
    failures: Sequence[FailureRow],
    report: str,
    notes: Sequence[str] = (),
) -> str:
    """What a study has found as one JSON object.

    Args:
        study: its name.
        found: the findings.
        failures: runs that have failed and have no result.
        report: where the page lies.
        notes: what was found wrong with the files.
    """
    return strict_json(
        {
            "study": study,
            "headline": found.headline,
            "candidate": found.candidate,
            "baseline": found.baseline,
            "margin": found.margin,
            "finished": len(found.runs),
            "expected": found.expected_cells,
            "overall": _overall(found),
            "verdicts": [_verdict(found, size) for size in found.batch_sizes],
            "others": [
                {"arm": arm, "batch_size": size, "verdict": c.verdict.word, **_values(c)}
                for (arm, size), c in found.comparisons.items()
                if arm != found.candidate
            ],
            "tunings": [_tuning(tuning) for tuning in found.tunings],
            "failures": [dataclasses.asdict(failure) for failure in failures],
            "summaries": [dataclasses.asdict(summary) for summary in found.summaries],
            "notes": [*notes, *found.notes],
            "report": report,
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
        failures=runs.failures if kept else (),
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


def _overall(found: Findings) -> dict[str, Any] | None:
    """The candidate against the baseline over all batch sizes; None where one has no pair."""
    o = found.overall
    if o is None:
        return None
    return {
        "sentence": found.overall_sentence,
        "verdict": o.verdict.word,
        "seeds": o.seeds,
        "batch_sizes": o.batch_sizes,
        "difference": dataclasses.asdict(o.difference),
    }


def _tuning(tuning: Tuning) -> dict[str, Any]:
    """A grid at one batch size: its points by validation accuracy, the chosen one, where it lies."""
    return {
        "arm": tuning.arm,
        "batch_size": tuning.batch_size,
        "chosen": tuning.chosen.point if tuning.chosen is not None else None,
        "edge": tuning.edge.name.lower(),
        "points": [dataclasses.asdict(point) for point in tuning.points],
    }


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
