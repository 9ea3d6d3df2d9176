"""What a study's runs say so far: every number and sentence of its report, before any layout."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from autolr_ray.compare.intervals import FEWEST_SEEDS, check_margin
from autolr_ray.compare.statistics import (
    arms_of,
    compare,
    compare_overall,
    default_baseline,
    default_candidate,
    is_grid,
    reported_runs,
    summarise,
    tune,
    without_repeats,
)
from autolr_ray.compare.values import ArmSummary, Comparison, Edge, Overall, Tuning, Verdict
from autolr_ray.compare.wording import PROTOCOL, paid, percent, points, runs_needed
from autolr_ray.train.record import ReceiptRow, RunRecord

_WHAT_FOLLOWS = {
    "device": "; their times cannot be compared, and no two kinds round alike: one study, one kind of device"
}


class Findings:
    """Everything that is written down, worked out once. Test accuracies of reported runs only."""

    protocol = PROTOCOL

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
        # Two arms may share a run, and with it its cell: what it stands for tells their records apart.
        self._reported = frozenset(_key(r) for a, b in at for r in reported_runs(self.runs, a, b))
        found_all = [c for size in self.batch_sizes if (c := self.comparison(size)) is not None]
        whole = len(found_all) == len(self.batch_sizes)
        self.overall: Overall | None = compare_overall(found_all) if whole else None

    def is_reported(self, record: RunRecord) -> bool:
        """Whether a run's test accuracy may be shown: an untuned arm's, or one of the chosen point."""
        return _key(record) in self._reported

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
            f"cost {paid(c.candidate)} of device time per seed, instead of {paid(c.baseline)}."
        )

    def tuning_sentence(self, batch_size: int) -> str:
        """How many runs the baseline's grid needs to beat one of the candidate; "" where it has none."""
        c = self.comparison(batch_size)
        if c is None or c.runs_to_beat is None:
            return ""
        r = c.runs_to_beat
        return (
            f"The {c.baseline.arm} grid of {r.points} needs {runs_needed(r)} until the best is expected to "
            f"beat one {c.candidate.arm} run in validation accuracy."
        )

    @property
    def overall_sentence(self) -> str:
        """The mean difference over all batch sizes and its verdict; "" where a batch size has no pair, or
        there is but one.
        """
        o = self.overall
        if o is None:
            return ""
        seeds = f"{len(o.seeds)} seed{'s' * (len(o.seeds) != 1)}"
        return (
            f"Mean over the {len(o.batch_sizes)} batch sizes: {points(o.difference)}, {o.verdict.word} at "
            f"margin {100 * o.margin:g} ({seeds})."
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
        fewer, more = (sum(s.runs_per_seed for s in side) for side in _sides(found))
        # Seconds depend on what else the machine did; runs do not.
        runs = f" ({fewer} run{'s' * (fewer != 1)} instead of {more})"
        ratio = (
            f"; {100 * ours / theirs:.0f} % of the device time per seed{runs}" if 0 < ours < theirs else ""
        )
        noun = "batch size" if len(found) == 1 else "batch sizes"
        o = self.overall
        mean = f"; over all {points(o.difference)}, {o.verdict.word}" if o is not None else ""
        return f"{self.candidate} against {self.baseline}: {said} of {len(found)} {noun}{mean}{ratio}."

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
        if 0 < len(seeds) < FEWEST_SEEDS:
            notes.append(f"{len(seeds)} of the {FEWEST_SEEDS} seeds that a verdict takes: so undecided")
        odd = sum(self.is_reported(r) and not math.isfinite(r.test_accuracy) for r in self.runs)
        if odd:
            notes.append(f"{odd} reported runs ended with a test accuracy that is not a number")
        if self.repeats:
            notes.append(
                f"{self.repeats} runs left out: a later run had the same arm, point, batch size and seed"
            )
        notes += [
            f"runs differ in {name}: {', '.join(values)}{_WHAT_FOLLOWS.get(name, '')}"
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
    def decisions(self) -> list[tuple[RunRecord, ReceiptRow, int]]:
        """Of each reported run the receipts that moved something, with the step whose weights were put back.

        That of a sweep, which set the scale; those that let the learning rate rise beyond it; that of the
        switch (the one of its step, else the last); any other that put weights back. -1: none were, or it is
        not known.
        """
        found = []
        for r in (r for r in self.runs if self.is_reported(r) and r.receipts):
            backs = dict(r.put_backs)
            moving = {r.sweep_steps, *r.rises, *backs}
            switch = next((x for x in r.receipts if x.step == r.switch_step), r.receipts[-1])
            found += [(r, x, backs.get(x.step, -1)) for x in r.receipts if x is switch or x.step in moving]
        return found

    def _summary(self, arm: str, batch_size: int) -> ArmSummary | None:
        return next((s for s in self.summaries if (s.arm, s.batch_size) == (arm, batch_size)), None)


def _sides(found: Sequence[Comparison]) -> tuple[list[ArmSummary], list[ArmSummary]]:
    return [c.candidate for c in found], [c.baseline for c in found]


def _key(r: RunRecord) -> tuple[str, str, int, int]:
    return r.arm, r.point, r.batch_size, r.seed
