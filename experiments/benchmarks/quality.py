"""The bench behind the claim: AutoWarmup against a tuned grid and the untuned rivals, over many cells.

    OMP_NUM_THREADS=1 python experiments/benchmarks/quality.py --json [--results DIR] [--out DIR]
        [--seeds 300 301 302] [--apart SEED TEXT ...] [--tuned FILE] [--only TEXT ...] [--list]
        [--report-only]

A cell is a data set, a network, an optimizer, a batch size and a budget in optimizer steps: short (about
60), middle (about 400) or long (2,000). Every cell is a study of its own in ``--results``, run by the same
code as ``experiments/compare.py``: killed, it goes on where it was, and finished runs are never repeated.
AutoWarmup has its defaults in all of them.

``--out``: where what is finished goes after each cell, and where it is taken up again in a fresh clone:
``ledger.parquet`` with every run, ``quality.jsonl`` with what is printed, ``summary.md`` and
``difference.png``. ``--report-only`` runs nothing. A cell counts when all its runs are there; those that do
not yet are named as open.

``--seeds``: the verdict's must have had no part in any choice; ``BURNT`` lists those that had,
``looked_at`` those whose verdict was known when the rule changed, and the use of either is said in the
output. Cells of short runs get three times as many, from 20 above the first on.
``--apart``, as often as need be: cells whose name holds one of the texts take as many seeds from ``SEED`` on,
as those do whose seeds were looked at before the rule changed for them; the last that names a cell counts.
``--only``: cells whose name holds one of the texts.

``--tuned FILE``: more seeds for the verdict, of AutoWarmup beside the one point of the grid that was chosen
on the seeds of FILE, the ``quality.jsonl`` of another ``--out``. Neither the rest of the grid nor the rivals
are run, and the seeds that count had no part in the choice. Of short runs there are twelve times as many, and
more where the difference varies by several points from seed to seed: 20 or 30 in place of 10, 360 of 120.
``experiments/results/quality_tuned`` is what ``--tuned experiments/results/quality/quality.jsonl --seeds 400
401 ... 409 --apart 600 sgd_nesterov cnn_bn_adamw mlp_adamp_b1024_long mlp_adamw_b4096 resnet18_adamp --apart
800 sgd_nesterov_b128_short mnist1d_cnn_sgd digits_mlp_sgd --apart 2000 digits_vit --out
experiments/results/quality_tuned`` found.

One JSON line a cell that is finished, ``{"cell", "batch_size", "budget", "steps", "difference", "seeds",
"verdict", "arms": {arm: mean test accuracy}, "peak_lrs", "tuned_peak_lr", "cost_share", "run_share", ...}``:
AutoWarmup's part of the baseline's device time, and of its runs, all of the same number of steps, which the
load of the machine leaves alone; then one for each batch size x budget and for each data set, and a last one
over all: the mean difference with its 95% interval over cells and over seeds, mean regret of each untuned arm
to the best arm of each cell, tuned or not, the two shares, and how many runs of AutoWarmup ended at chance
level.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
from collections import defaultdict
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import quality_page

from autolr_ray.compare.cluster import cluster
from autolr_ray.compare.findings import Findings
from autolr_ray.compare.intervals import decide, stratified_interval, t_interval
from autolr_ray.compare.ledger import RunStore, read_ledger, restore_runs, write_ledger
from autolr_ray.compare.publish import publish
from autolr_ray.compare.rows import Rows, rows_of
from autolr_ray.compare.study import Study, load_study
from autolr_ray.compare.sweep import run_sweep
from autolr_ray.files import write_atomically
from autolr_ray.train.record import RunRecord

BURNT = (*range(4), 10, 20, 21, *range(30, 50), *range(53, 70), *range(80, 89), *range(1000, 1200))
"""Seeds that some setting was chosen on, or that a choice was looked at with. In the cells of short runs that
holds for 50 to 52, too: they have others (``Cell.aside``), and MNIST-1D's CNN, whose 70 to 78 were looked at,
has others again."""
LOOKED_AT = (
    *range(50, 53), *range(70, 79), *range(90, 99), *range(100, 103), *range(120, 129), *range(140, 149)
)  # fmt: skip
"""Seeds that nothing was chosen on, but whose verdict was read before the rule was last changed."""
LOOKED_AT_IN = {
    "sgd_nesterov": (
        *range(300, 303), *range(320, 329), *range(340, 349), *range(400, 410), *range(420, 560),
    ),
    "sgd_nesterov_b128_short": range(620, 740),
    "mnist1d_cnn_sgd": range(640, 760),
    "digits_vit": (*range(320, 329), *range(420, 540)),
}  # fmt: skip
"""The same, where it changed for cells whose name holds the text, and for no others."""
MARGIN, CHANCE = 0.005, 0.1
OUT = Path(__file__).resolve().parents[1] / "results" / "quality"
# Beside this script, and so on its path and the workers'.
_NETWORKS = {"resnet18": "quality_tasks:{}_resnet18", "vit": "quality_tasks:{}_vit"}
_OWN_DATA = {"mnist1d": "quality_mnist1d:mnist1d_{}"}
_DATA = {"fashion": "fashion_mnist_subset", "digits": "digits"}
# The peaks that the grid starts from; it grows by itself at its edges.
_PEAKS = {
    "adamw": [1e-3, 3e-3, 1e-2, 3e-2, 1e-1], "adamp": [1e-3, 3e-3, 1e-2, 3e-2, 1e-1],
    "lamb": [3e-3, 1e-2, 3e-2, 1e-1, 3e-1], "sgd_nesterov": [1e-2, 3e-2, 1e-1, 3e-1, 1.0],
}  # fmt: skip


_RIVALS = {
    "fixed_adamw": {
        "optimizer": {"name": "adamw"},
        "schedule": {"kind": "linear_warmup", "peak_lr": 1e-3, "warmup_fraction": 0.05},
    },
    "range_test": {"schedule": {"kind": "lr_range_test"}},
    "prodigy": {
        "optimizer": {"name": "prodigy"},
        "schedule": {"kind": "linear_warmup", "peak_lr": 1.0, "warmup_fraction": 0.0},
    },
    "schedule_free": {
        "optimizer": {"name": "schedule_free_adamw"},
        "schedule": {"kind": "constant", "lr": 2.5e-3},
    },
}
# Times the seeds that cells have anyway, with one point of the grid: of short runs, and where the difference
# varies by four points from seed to seed, or by twelve.
_MORE_SHORT = 4
_MORE_VARYING = {
    "fashion_resnet18_adamp_b1024_short": 2, "fashion_vit_adamw_b1024_short": 3,
    "digits_vit_adamw_b128_short": 12,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One comparison of the bench."""

    data: str
    network: str
    optimizer: str
    batch_size: int
    budget: str
    epochs: int
    repeats: int = 1
    aside: int = 20
    point: str = ""

    @property
    def name(self) -> str:
        """What its study is called."""
        return f"{self.data}_{self.network}_{self.optimizer}_b{self.batch_size}_{self.budget}"

    def study(self, seeds: Sequence[int]) -> dict[str, Any]:
        """The study, as a file would have it; with ``repeats`` its seeds lie ``aside`` above. With a
        ``point`` the grid is that alone, and there are no rivals.
        """
        if self.repeats > 1:
            seeds = [seeds[0] + self.aside + i for i in range(self.repeats * len(seeds))]
        if self.data in _OWN_DATA:
            task = {"task": _OWN_DATA[self.data].format(self.network)}
        elif self.network in _NETWORKS:
            task = {"task": _NETWORKS[self.network].format(self.data)}
        else:
            task = {"task": _DATA[self.data], "model": self.network}
        return {
            "name": self.name, **task, "seeds": list(seeds), "optimizer": {"name": self.optimizer},
            "batches": [{"size": self.batch_size, "epochs": self.epochs}],
            "arms": {
                "auto_warmup": {},
                **({} if self.point else _RIVALS),
                "linear_warmup": {"grid": self._grid()},
            },
            "candidate": "auto_warmup", "baseline": "linear_warmup", "margin": MARGIN,
        }  # fmt: skip

    def _grid(self) -> dict[str, Any]:
        if self.point:
            peak, warmup = (float(part.split("=")[1]) for part in self.point.split())
            return {"peak_lr": [peak], "warmup_fraction": [warmup], "extend": 0}
        return {"peak_lr": _PEAKS[self.optimizer], "warmup_fraction": [0.05, 0.2]}

    def tuned(self, point: str) -> Cell:
        """It with that point of the grid alone, and more seeds where they cost little or vary much."""
        more = _MORE_SHORT if self.repeats > 1 and self.budget == "short" else 1
        return replace(self, point=point, repeats=_MORE_VARYING.get(self.name, more) * self.repeats)


def _cells(data: str, rows: str) -> list[Cell]:
    """Rows of network, optimizer, batch size, budget, epochs and, if need be, repeats and aside."""
    cells = []
    for row in rows.strip().splitlines():
        network, optimizer, size, budget, epochs, *more = row.split()
        seeds: dict[str, Any] = dict(zip(("repeats", "aside"), map(int, more), strict=False))
        cells.append(
            Cell(
                data=data, network=network, optimizer=optimizer, batch_size=int(size), budget=budget,
                epochs=int(epochs), **seeds,
            )
        )  # fmt: skip
    return cells


# Every network, optimizer, batch size and budget several times, in mixed company; what a core can do. Runs of
# a second or two, above all those of digits with its 360 test images, get three times the seeds.
CELLS = [
    *_cells(
        "fashion",
        """
        cnn      adamw        1024 short   6
        cnn_bn   adamw        4096 short  30
        mlp      lamb         4096 short  30
        cnn_bn   sgd_nesterov  128 short   1  3
        mlp      adamp         128 short   1  3
        resnet18 adamp        1024 short   6
        vit      adamw        1024 short   6
        cnn      adamp         128 middle  5
        cnn_bn   lamb          128 middle  5
        cnn_bn   adamw        1024 middle 40
        mlp      sgd_nesterov 1024 middle 40
        mlp      adamw        4096 middle 200
        resnet18 sgd_nesterov  128 middle  5
        vit      adamp         128 middle  5
        mlp      adamw         128 long   24
        cnn      lamb          128 long   24
        cnn_bn   sgd_nesterov  128 long   24
        mlp      adamp        1024 long  200
        """,
    ),
    *_cells(
        "digits",
        """
        cnn_bn   lamb          128 short   6  3
        mlp      adamw        1024 short  60  3
        vit      adamw         128 short   6  3
        cnn      sgd_nesterov  128 middle 40  3
        mlp      lamb         1024 middle 400  3
        resnet18 adamw         128 middle 40
        cnn_bn   adamp         128 long  200
        mlp      sgd_nesterov 1024 long  2000
        """,
    ),
    *_cells(
        "mnist1d",
        """
        mlp      adamw         128 short   2  3
        cnn      sgd_nesterov 1024 short  15  3 40
        cnn_bn   lamb          128 middle 14  3
        mlp      adamp        1024 middle 100  3
        cnn      adamw         128 long   70
        mlp      lamb         1024 long  500
        """,
    ),
]


def looked_at(cell: str) -> set[int]:
    """Seeds that nothing was chosen on, but whose verdict was read before the rule was last changed for the
    cell of that name.
    """
    return {*LOOKED_AT, *(seed for text, seeds in LOOKED_AT_IN.items() if text in cell for seed in seeds)}


def study_of(cell: Cell, seeds: Sequence[int], folder: Path) -> Study:
    """The cell's study, checked as any file is."""
    file = folder / f".{cell.name}.yaml"
    file.write_text(json.dumps(cell.study(seeds)))  # JSON is YAML
    try:
        return load_study(file)
    finally:
        file.unlink()


def runs_of(cell: Cell, study: Study, folder: Path, *, run: bool) -> Rows:
    """The cell's finished runs; what it still lacks is run first if it may be."""
    place = folder / study.name
    if run:
        with redirect_stdout(sys.stderr):  # how far it is; the rows alone are the output
            failures = run_sweep(study, place)
        if failures:
            raise SystemExit(f"quality: {cell.name}: {failures[0].reason}")
        publish(study, place)
    return rows_of(study, RunStore(place / "cells").read_all())


def row(cell: Cell, study: Study, records: Sequence[RunRecord]) -> dict[str, Any]:
    """What the finished runs of a cell say."""
    findings = Findings(records, study.margin, study.baseline, study.candidate, None)
    found = findings.comparison(cell.batch_size)
    assert found is not None
    ours = [r for r in records if r.arm == study.candidate]
    return {
        "cell": cell.name, "data": cell.data, "optimizer": cell.optimizer,
        "batch_size": cell.batch_size, "budget": cell.budget,
        "steps": ours[0].total_steps, "difference": found.difference.mean, "seeds": list(found.seeds),
        "differences": list(found.paired.differences), "verdict": found.verdict.word,
        "interval": [found.paired.interval.low, found.paired.interval.high],
        "arms": {s.arm: s.test.mean for s in findings.summaries},
        "peak_lrs": list(found.candidate.peak_lrs), "tuned_peak_lr": found.baseline.peak_lrs[0],
        "tuned_point": found.baseline.point,
        "cost_share": found.candidate.seconds_per_seed / found.baseline.seconds_per_seed,
        "run_share": len(ours) / sum(r.arm == study.baseline for r in records),
        "failed_runs": sum(not r.test_accuracy > 1.5 * CHANCE for r in ours),
    }  # fmt: skip


def summary(rows: Sequence[dict[str, Any]], name: str) -> dict[str, Any]:
    """Several cells together. The verdict is over seeds: for these cells, as though no others were asked
    about; the interval over cells is for others like them.
    """
    cells = t_interval([r["difference"] for r in rows])
    over_seeds = stratified_interval([r["differences"] for r in rows])
    untuned = set.intersection(*(set(r["arms"]) for r in rows)) - {"linear_warmup"}
    best = [max(r["arms"].values()) for r in rows]
    return {
        "group": name, "cells": len(rows), "seeds": sorted({seed for r in rows for seed in r["seeds"]}),
        "seeds_per_cell": sorted({len(r["seeds"]) for r in rows}),
        "difference": cells.mean, "over_cells": [cells.low, cells.high],
        "over_seeds": [over_seeds.low, over_seeds.high], "verdict": decide(over_seeds, MARGIN).word,
        "better_or_equivalent": over_seeds.low >= -MARGIN,
        "regret": {
            arm: math.fsum(b - r["arms"][arm] for b, r in zip(best, rows, strict=True)) / len(rows)
            for arm in sorted(untuned)
        },
        "cost_share": math.fsum(r["cost_share"] for r in rows) / len(rows),
        "run_share": math.fsum(r["run_share"] for r in rows) / len(rows),
        "failed_runs": sum(r["failed_runs"] for r in rows),
    }  # fmt: skip


def published(file: str) -> dict[str, dict[str, Any]]:
    """By cell the row that this script printed into ``file``, an option's value."""
    if not Path(file).is_file():
        raise argparse.ArgumentTypeError(f"{file} is no file; name the quality.jsonl of an earlier --out")
    rows = map(json.loads, Path(file).read_text().splitlines())
    return {row["cell"]: row for row in rows if "cell" in row}


def bench(
    rows: Sequence[dict[str, Any]],
    open_cells: Sequence[str],
    seeds: Sequence[int],
    *,
    tuned: bool = False,
    apart: Sequence[Sequence[str]] = (),
) -> list[dict[str, Any]]:
    """The lines after the cells': the groups', and the last one; ``tuned``: each grid was one point."""
    groups, sets = defaultdict(list), defaultdict(list)
    for found in rows:
        groups[f"batch {found['batch_size']}, {found['budget']}"].append(found)
        sets[f"on {found['data']}"].append(found)
    lines = [summary(members, name) for name, members in (*sorted(groups.items()), *sorted(sets.items()))]
    used = {seed for found in rows for seed in found["seeds"]}
    known = {found["cell"]: looked_at(found["cell"]) & set(found["seeds"]) for found in rows}
    last = {
        "open": list(open_cells), "base_seeds": list(seeds), "apart": [list(texts) for texts in apart],
        "burnt_seeds": sorted(used & set(BURNT)), "looked_at_seeds": sorted(set().union(*known.values())),
        "looked_at_cells": [name for name, those in known.items() if those], "margin": MARGIN, "tuned": tuned,
        "cpus": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version(),
    }  # fmt: skip
    return [*lines, summary(rows, "all") | last]


def publish_bench(
    rows: Sequence[dict[str, Any]], records: Sequence[RunRecord], lines: Sequence[dict[str, Any]], out: Path
) -> None:
    """Write ``out``'s four files, each whole."""
    out.mkdir(parents=True, exist_ok=True)
    write_ledger(records, out / "ledger.parquet")
    text = "".join(json.dumps(line) + "\n" for line in (*rows, *lines))
    write_atomically(out / "quality.jsonl", text.encode())
    write_atomically(out / "summary.md", quality_page.page(rows, lines).encode())
    write_atomically(out / "difference.png", quality_page.picture(rows))


def restored(out: Path, folder: Path) -> None:
    """Bring the runs of ``out``'s ledger to where their studies look for them."""
    ledger = out / "ledger.parquet"
    by_study = defaultdict(list)
    for record in read_ledger(ledger) if ledger.is_file() else ():
        by_study[record.study].append(record)
    for name, records in by_study.items():
        restore_runs(records, RunStore(folder / name / "cells"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--results", type=Path, default=Path("results/quality"), help="(default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, default=OUT, help="(default: experiments/results/quality)")
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[300, 301, 302], help="(default: %(default)s)"
    )
    parser.add_argument(
        "--apart",
        nargs="+",
        action="append",
        default=[],
        metavar=("SEED", "TEXT"),
        help="other seeds, for cells of these names",
    )
    parser.add_argument("--only", nargs="+", default=[""], help="cells whose name holds one of these")
    parser.add_argument(
        "--tuned", type=published, metavar="FILE", help="one point of the grid a cell, that which FILE names"
    )
    parser.add_argument("--list", action="store_true", help="name the cells and stop")
    parser.add_argument("--report-only", action="store_true", help="run nothing; report what is finished")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    options = parser.parse_args(arguments)
    cells, without = CELLS, []
    if options.tuned is not None:
        earlier = options.tuned
        cells = [cell.tuned(earlier[cell.name]["tuned_point"]) for cell in CELLS if cell.name in earlier]
        without = [cell.name for cell in CELLS if cell.name not in earlier]
    for first, *texts in options.apart:
        if not first.isdecimal():
            parser.error(f"--apart: {first!r} is not allowed; a seed comes first, an integer >= 0")
        if not texts:
            parser.error(f"--apart: {first} alone is not allowed; after it come parts of names of cells")

    def seeds_of(cell: Cell) -> Sequence[int]:
        firsts = [first for first, *texts in options.apart if any(text in cell.name for text in texts)]
        return [int(firsts[-1]) + i for i in range(len(options.seeds))] if firsts else list(options.seeds)

    chosen = [cell for cell in cells if any(text in cell.name for text in options.only)]
    if options.list or not chosen:
        print("\n".join(cell.name for cell in (chosen or cells)))
        return 0 if chosen else 2

    def tell(line: dict[str, Any]) -> None:
        print(json.dumps(line) if options.json else line, flush=True)

    options.results.mkdir(parents=True, exist_ok=True)
    folder = options.results.resolve()
    restored(options.out, folder)
    found: dict[str, dict[str, Any]] = {}
    kept: dict[str, list[RunRecord]] = {}
    lines: list[dict[str, Any]] = []

    def look(cell: Cell, *, run: bool) -> None:
        study = study_of(cell, seeds_of(cell), folder)
        runs = runs_of(cell, study, folder, run=run)
        # Also what this bench does not ask for: other seeds, or AutoWarmup as it was.
        kept[cell.name] = [*runs.records, *runs.others]
        if len(runs.records) == runs.expected:
            found[cell.name] = row(cell, study, runs.records)
            tell(found[cell.name])
        if run:
            conclude()

    def conclude() -> None:
        nonlocal lines
        rows = [found[cell.name] for cell in cells if cell.name in found]
        records = [record for members in kept.values() for record in members]
        missing = [*(cell.name for cell in cells if cell.name not in found), *without]
        lines = bench(rows, missing, options.seeds, tuned=options.tuned is not None, apart=options.apart)
        publish_bench(rows, records, lines, options.out)

    # What is finished already first: a ledger that is written again loses nothing.
    for cell in cells:
        look(cell, run=False)
    if found:
        conclude()
    if not options.report_only and (pending := [cell for cell in chosen if cell.name not in found]):
        with cluster(None, []):
            for cell in pending:
                look(cell, run=True)
    for line in lines:
        tell(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
