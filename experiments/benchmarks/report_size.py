"""How long the report of a large study takes to write, how large it is, and how soon a browser shows it.

    python experiments/benchmarks/report_size.py --json [--repeats 5]

500 made-up cells (4 batch sizes x 5 seeds x an automatic arm with 150 tests a run, a grid of 18 points and
6 rivals), each with a trace of 1000 points. One JSON line:

- ``write_seconds``: ``write_report``, all files; ``page_seconds``: of it, rendering the page.
- ``megabytes``: ``report.html``; ``figures_megabytes`` and ``curves_megabytes`` are parts of it: the PNG
  files inside, and the explorer's data.
- ``load_seconds``: from asking for the page, a file, until its load event in headless Chromium: the median
  of ``repeats`` fresh profiles, with ``slowest``; null where there is no Chromium. ``runs_shown``: rows of
  the run list once it is loaded.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from autolr_ray.compare.figures import FigureFile
from autolr_ray.compare.findings import Findings
from autolr_ray.compare.page import render_page
from autolr_ray.compare.report import write_report
from autolr_ray.train.record import EpochRow, Posterior, ReceiptRow, RunRecord, Trace

POINTS, STEPS, TESTS = 1000, 20_000, 150


def made_up(arm: str, point: str, batch_size: int, seed: int, peak_lr: float) -> RunRecord:
    """One run that looks like a real one: a noisy loss that falls, and a warmup with its tests."""
    rng = np.random.default_rng([len(arm), len(point), batch_size, seed, int(1e6 * peak_lr)])
    automatic = arm == "auto_warmup"
    step = np.linspace(0, STEPS - 1, POINTS).astype(int)
    switch = STEPS // 5 + int(rng.integers(0, STEPS // 20))
    rise = np.minimum(1.0, step / switch)
    decay = 0.5 * (1 + np.cos(np.pi * np.maximum(0.0, (step - switch) / (STEPS - switch))))
    lr = np.where(step < switch, 1e-5 * (peak_lr / 1e-5) ** rise, peak_lr * decay)
    loss = 0.3 + 2.0 * np.exp(-step / (STEPS / 8)) + 0.1 * rng.standard_t(4, size=POINTS)
    accuracy = 0.88 - 0.01 * abs(np.log(peak_lr / 0.02)) + 0.004 * float(rng.normal())
    tested = np.linspace(1, switch, TESTS).astype(int).tolist()
    receipts = [
        ReceiptRow(
            step=s, lr=1e-5 * (peak_lr / 1e-5) ** (s / switch), verdict="passed" if s == switch else "rising",
            reason="the loss has passed its minimum" if s == switch else "the learning rate keeps rising",
            strength=s / switch, probability=float(rng.random()), positives=int(s == switch),
            argmin_step=int(0.9 * s), argmin_lr=0.9 * peak_lr,
        )
        for s in tested
    ]  # fmt: skip
    grid = np.linspace(0, switch, 100)
    posterior = Posterior(step=grid.tolist(), mean=(0.3 + np.exp(-grid)).tolist(), sd=[0.02] * 100)
    return RunRecord(
        cell=f"{arm} {point} {batch_size} {seed}", study="made up", arm=arm, point=point,
        batch_size=batch_size, seed=seed, task="made up", model="none", optimizer="adamw", schedule=arm,
        workers=1, device="CPU", epochs=10, total_steps=STEPS, peak_lr=peak_lr, warmup_fraction=0.2,
        switch_step=switch, verdict="passed" if automatic else "",
        rolled_back_to=switch - 300 if automatic else -1,
        train_loss=float(loss[-1]), validation_accuracy=accuracy + 0.002, test_accuracy=accuracy,
        device_seconds=100.0 + float(rng.random()), startup_seconds=1.0, restarts=0,
        finished_at="2026-01-02T03:04:05+00:00", versions={"autolr_ray": "0.1.0"},
        epoch_rows=[EpochRow(epoch=1, step=1, lr=0.1, train_loss=1.0, validation_accuracy=0.8, seconds=1.0)],
        trace=Trace(step=step.tolist(), lr=lr.tolist(), loss=loss.tolist()),
        receipts=receipts if automatic else [],
        posterior=posterior if automatic else Posterior(step=[], mean=[], sd=[]),
    )  # fmt: skip


def study() -> list[RunRecord]:
    """The 500 cells."""
    records = []
    for size in (64, 256, 1024, 4096):
        for seed in range(5):
            records.append(made_up("auto_warmup", "", size, seed, 0.02))
            for peak in np.geomspace(0.001, 0.3, 6):
                for warmup in (0.05, 0.1, 0.2):
                    name = f"peak_lr={peak:.3g} warmup={warmup:g}"
                    records.append(made_up("linear_warmup", name, size, seed, float(peak)))
            records += [made_up(f"rival_{i}", "", size, seed, 0.01 * (i + 1)) for i in range(6)]
    return records


def time_loading(page: Path, repeats: int) -> dict[str, Any]:
    """The page in headless Chromium, each time in a profile that has seen nothing."""
    names = ("chromium", "chromium-browser", "google-chrome")
    browser = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if browser is None:
        return {"load_seconds": None, "slowest": None, "browser": None, "runs_shown": None}
    from playwright.sync_api import sync_playwright

    seconds = []
    with sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        for _ in range(repeats):
            context = chromium.new_context(viewport={"width": 1280, "height": 900})
            tab = context.new_page()
            began = time.perf_counter()
            tab.goto(page.as_uri(), wait_until="load")
            seconds.append(time.perf_counter() - began)
            shown = tab.locator("#list tbody tr").count()
            context.close()
        version = chromium.version
        chromium.close()
    return {
        "load_seconds": statistics.median(seconds), "slowest": max(seconds), "browser": f"Chromium {version}",
        "runs_shown": shown,
    }  # fmt: skip


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--repeats", type=int, default=5, help="page loads (default: %(default)s)")
    options = parser.parse_args()
    records = study()
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        paths = write_report(records, Path(folder), study_name="made up", expected_cells=len(records))
        write_seconds = time.perf_counter() - began
        findings = Findings(records, 0.005, None, None, None)
        figures = [FigureFile(name=p.stem, path=p, title=p.stem, caption="") for p in paths.figures]
        began = time.perf_counter()
        page = render_page(findings, study_name="made up", figures=figures)
        page_seconds = time.perf_counter() - began
        curves = page[page.index('id="curves">') :].split("</script>")[0]
        found = {
            "name": "report_size", "cells": len(records), "points": POINTS, "write_seconds": write_seconds,
            "page_seconds": page_seconds, "megabytes": paths.html.stat().st_size / 1e6,
            "figures_megabytes": sum(p.stat().st_size for p in paths.figures) * 4 / 3 / 1e6,
            "curves_megabytes": len(curves) / 1e6, **time_loading(paths.html, options.repeats),
            "repeats": options.repeats, "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        }  # fmt: skip
    if options.json:
        print(json.dumps(found))
    else:
        for name, value in found.items():
            print(f"{name}: {value:.4g}" if isinstance(value, float) else f"{name}: {value}")


if __name__ == "__main__":
    main()
