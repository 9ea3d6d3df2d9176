"""ASHA over a grid that has been run: what it stops is what Tune stops, and everything is paid for."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import ray
from ray import tune
from synthetic import run

from autolr_ray.compare.arms import Asha
from autolr_ray.compare.asha import asha_records, epochs_run, expected_asha_records
from autolr_ray.compare.study import Study
from autolr_ray.train.record import EpochRow, RunRecord

EPOCHS = 9
# Final validation accuracies by peak LR: one clear best, one that begins well and ends badly.
CURVES = {
    0.001: [0.20 + 0.02 * e for e in range(EPOCHS)],
    0.003: [0.30 + 0.03 * e for e in range(EPOCHS)],
    0.01: [0.35 + 0.05 * e for e in range(EPOCHS)],
    0.03: [0.60 + 0.00 * e for e in range(EPOCHS)],
    0.1: [0.10] * EPOCHS,
    0.3: [0.11] * EPOCHS,
}
STUDY = {
    "name": "halving",
    "task": "fashion_mnist_subset",
    "seeds": [0, 1],
    "batches": [{"size": 64, "epochs": EPOCHS}],
    "arms": {
        "auto": {},
        "tuned": {"grid": {"peak_lr": list(CURVES), "extend": 0}},
        "halved": {"asha": {"of": "tuned", "at_once": 1, "reduction_factor": 3}},
    },
    "candidate": "auto",
    "baseline": "tuned",
}


def record(study: Study, cell_index: int) -> RunRecord:
    cell = [c for c in study.cells() if c.arm == "tuned"][cell_index]
    peak = cell.spec.schedule.peak_lr
    rows = [
        EpochRow(epoch=e + 1, step=e, lr=peak, train_loss=1.0, validation_accuracy=a, seconds=2.0 * (e + 1))
        for e, a in enumerate(CURVES[peak])
    ]
    return run("tuned", cell.point, 64, cell.spec.seed, peak, 0.05).model_copy(
        update={
            "cell": cell.spec.cell, "epochs": EPOCHS, "epoch_rows": rows, "workers": 2,
            "validation_accuracy": rows[-1].validation_accuracy, "device_seconds": 40.0,
        }
    )  # fmt: skip


@pytest.fixture
def study() -> Study:
    return Study.model_validate(STUDY)


@pytest.fixture
def runs(study: Study) -> list[RunRecord]:
    return [record(study, i) for i in range(2 * len(CURVES))]


def test_the_winner_is_charged_with_all_runs(study: Study, runs: list[RunRecord]) -> None:
    made = asha_records(study, runs)
    assert [(r.arm, r.point, r.seed) for r in made] == [("halved", "", 0), ("halved", "", 1)]
    assert expected_asha_records(study) == 2
    for found in made:
        mine = [r for r in runs if r.seed == found.seed]
        epochs = epochs_run(mine, study.arms["halved"].asha, found.seed)
        # The time of an epoch is that of each worker; a run to the end costs what its record says.
        paid = sum(40.0 if n == EPOCHS else 2 * 2.0 * n for n in epochs.values())
        assert found.device_seconds == pytest.approx(paid)
        assert found.tuning_seconds == pytest.approx(paid - 40.0)
        stopped = sum(n < EPOCHS for n in epochs.values())
        assert stopped >= 1
        assert found.tuning == f"ASHA over {len(CURVES)} runs, {stopped} stopped early"
        ended = [r for r in mine if epochs[r.point] == EPOCHS]
        assert found.validation_accuracy == max(r.validation_accuracy for r in ended)
        assert found.cell in {r.cell for r in ended}


def test_nothing_is_found_before_the_grid_is_finished(study: Study, runs: list[RunRecord]) -> None:
    unfinished = [r for r in runs if not (r.seed == 1 and r.peak_lr == 0.1)]
    assert [r.seed for r in asha_records(study, unfinished)] == [0]
    assert asha_records(study, []) == []


def test_with_every_run_at_once_and_no_halving_all_run_to_the_end(runs: list[RunRecord]) -> None:
    mine = [r for r in runs if r.seed == 0]
    epochs = epochs_run(mine, Asha(of="tuned", grace_epochs=EPOCHS, at_once=6), 0)
    assert set(epochs.values()) == {EPOCHS}


def test_what_is_stopped_is_what_tune_stops(runs: list[RunRecord], ray_tmp: Path) -> None:
    """The same curves in a real Tune experiment, one trial after the other in the same order."""
    asha = Asha(of="tuned", at_once=1, reduction_factor=2)
    mine = {r.point: r for r in runs if r.seed == 1}
    ours = epochs_run(mine.values(), asha, 1)
    curves = {point: [row.validation_accuracy for row in r.epoch_rows] for point, r in mine.items()}

    def trial(config: dict) -> None:
        for epoch, accuracy in enumerate(curves[config["point"]]):
            tune.report({"epoch": epoch + 1, "validation_accuracy": accuracy})

    order = list(ours)  # filled as runs end: one after the other, in the order of their start
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, _temp_dir=str(ray_tmp / "asha"))
    try:
        results = tune.Tuner(
            trial,
            param_space={"point": tune.grid_search(order)},
            tune_config=tune.TuneConfig(
                max_concurrent_trials=1, reuse_actors=True,
                scheduler=tune.schedulers.AsyncHyperBandScheduler(
                    time_attr="epoch", metric="validation_accuracy", mode="max", max_t=EPOCHS,
                    grace_period=1, reduction_factor=2,
                ),
            ),
            run_config=tune.RunConfig(storage_path=str(ray_tmp / "asha-results"), verbose=0),
        ).fit()  # fmt: skip
        tunes = {result.config["point"]: result.metrics["epoch"] for result in results}
    finally:
        ray.shutdown()
    assert tunes == ours
    assert min(ours.values()) < EPOCHS
    assert not math.isnan(sum(ours.values()))
