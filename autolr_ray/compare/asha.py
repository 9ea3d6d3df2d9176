"""ASHA over a grid that has been run: what it would have stopped, found and cost.

A run is decided by its spec, bit for bit, and its record holds every epoch's validation accuracy and time. So
nothing needs to run again: Tune's own scheduler is asked, in the order in which the results would have come
in, which runs it stops. Stopped runs cost what they had used by then.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Sequence
from types import SimpleNamespace

import numpy as np

from autolr_ray.compare.arms import Asha, AshaArm
from autolr_ray.compare.study import Study
from autolr_ray.train.record import ASHA_TUNING, RunRecord


def asha_records(study: Study, records: Sequence[RunRecord]) -> list[RunRecord]:
    """A record for each ASHA arm, batch size and seed whose grid is finished.

    It is that of the run with the highest validation accuracy among those that reached the end, charged with
    the time of all.

    Args:
        study: the study.
        records: its finished runs, labelled; points that were added at the grid's edge belong to the grid.
    """
    made = []
    for name, arm in study.arms.items():
        if isinstance(arm, AshaArm):
            points = len({cell.point for cell in study.cells() if cell.arm == arm.asha.of})
            for batch in study.batches:
                for seed in study.seeds:
                    runs = [
                        r for r in records
                        if (r.arm, r.batch_size, r.seed) == (arm.asha.of, batch.size, seed)
                    ]  # fmt: skip
                    if len(runs) >= points:
                        made.append(_found(runs, name, arm.asha, seed))
    return made


def expected_asha_records(study: Study) -> int:
    """How many :func:`asha_records` makes when everything is finished."""
    arms = sum(isinstance(arm, AshaArm) for arm in study.arms.values())
    return arms * len(study.batches) * len(study.seeds)


def _found(runs: list[RunRecord], arm: str, asha: Asha, seed: int) -> RunRecord:
    epochs = epochs_run(runs, asha, seed)
    cost = math.fsum(_seconds(run, epochs[run.point]) for run in runs)
    finished = [run for run in runs if epochs[run.point] == run.epochs]
    winner = max(finished, key=lambda run: (run.validation_accuracy, -run.peak_lr))
    stopped = len(runs) - len(finished)
    return winner.model_copy(
        update={
            "arm": arm,
            "point": "",
            "device_seconds": cost,
            "tuning_seconds": cost - winner.device_seconds,
            "tuning": f"{ASHA_TUNING} {len(runs)} runs, {stopped} stopped early",
        }
    )


def epochs_run(runs: Iterable[RunRecord], asha: Asha, seed: int) -> dict[str, int]:
    """How many epochs ASHA lets each run (by its point) have; all of them where it is not stopped.

    Runs start in an order drawn from ``seed``, ``asha.at_once`` side by side, each as fast as it was.
    """
    from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler

    waiting = sorted(runs, key=lambda run: run.point)
    np.random.default_rng(seed).shuffle(waiting)
    scheduler = AsyncHyperBandScheduler(
        time_attr="epoch", metric="validation_accuracy", mode="max", max_t=waiting[0].epochs,
        grace_period=min(asha.grace_epochs, waiting[0].epochs), reduction_factor=asha.reduction_factor,
    )  # fmt: skip
    done: dict[str, int] = {}
    # Results still to come: when, the order of starting, which epoch, of which run.
    coming: list[tuple[float, int, int, RunRecord]] = []
    started = 0

    def start(now: float) -> None:
        nonlocal started
        if waiting:
            run = waiting.pop(0)
            scheduler.on_trial_add(None, SimpleNamespace(trial_id=run.point))
            heapq.heappush(coming, (now + run.epoch_rows[0].seconds, started, 0, run))
            started += 1

    for _ in range(asha.at_once):
        start(0.0)
    while coming:
        now, order, epoch, run = heapq.heappop(coming)
        row = run.epoch_rows[epoch]
        result = {"epoch": row.epoch, "validation_accuracy": row.validation_accuracy}
        action = scheduler.on_trial_result(None, SimpleNamespace(trial_id=run.point), result)
        if action == TrialScheduler.STOP or row.epoch == run.epochs:
            done[run.point] = row.epoch
            start(now)
        else:
            wait = run.epoch_rows[epoch + 1].seconds - row.seconds
            heapq.heappush(coming, (now + wait, order, epoch + 1, run))
    return done


def _seconds(run: RunRecord, epochs: int) -> float:
    """Device-seconds of its first ``epochs``; a run to the end is charged all of it."""
    if epochs == run.epochs:
        return run.device_seconds
    return run.epoch_rows[epochs - 1].seconds * run.workers * run.device_share
