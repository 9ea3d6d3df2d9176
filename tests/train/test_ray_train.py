"""The loop as workers of a ``TorchTrainer``: the same results as in a plain process, and real kills."""

import math
import os
import signal
import struct
import threading
import time
from pathlib import Path

import pytest
import ray
import train_helpers as helpers
from ray.train import UserCallback
from tensorboardX.proto import event_pb2
from train_helpers import result, spec_of

from autolr_ray.train import RunRecord
from autolr_ray.train.single import train
from autolr_ray.train.trainer import RunRequest, build_trainer, run_in_process
from autolr_ray.train.watch import settings

EPOCH = helpers.STEPS_PER_EPOCH


@pytest.fixture(scope="module")
def watch(ray_tmp, tmp_path_factory):
    """Ray, alone, and the folder in which its workers write what they see (``train_helpers.WATCH``)."""
    folder = tmp_path_factory.mktemp("watch")
    with pytest.MonkeyPatch.context() as patch:
        # Read by every process of this Ray: the user's tasks, and a controller that polls often.
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        patch.setenv(helpers.WATCH, str(folder))
        patch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")
        ray.init(
            address="local",  # never one that happens to run here
            num_cpus=2,
            include_dashboard=False,
            object_store_memory=100_000_000,
            _temp_dir=str(ray_tmp),
            log_to_driver=False,
            logging_level="WARNING",
        )
        try:
            yield folder
        finally:
            ray.shutdown()


def request_of(folder, spec, **labels):
    return RunRequest(
        spec=spec, runs_dir=folder / "runs", record_dir=folder / "records", log_dir=folder / "logs", **labels
    )


class Seen:
    """A finished run: its record, the trainer's result, and each rank's learning rates, life by life."""

    def __init__(self, request, fitted, folder):
        self.request, self.fitted = request, fitted
        path = request.record_dir / f"{request.spec.cell}.json"
        self.record = RunRecord.model_validate_json(path.read_text())
        self.rates = {}
        for file in sorted(folder.glob("rates-*"), key=lambda file: file.stat().st_mtime):
            rates = [float(line) for line in file.read_text().splitlines()]
            self.rates.setdefault(int(file.name.split("-")[1]), []).append(rates)
            file.unlink()


@pytest.fixture(scope="module")
def fit(watch, tmp_path_factory):
    """``fit(spec)``: a run on Ray, done once; with ``kill=(rank, step)`` that worker killed once there."""
    done = {}

    def get(spec, kill=None):
        if (spec, kill) in done:
            return done[spec, kill]
        request = request_of(tmp_path_factory.mktemp("ray"), spec, study="fast", arm="auto", point="p=1 w=2")
        stop = threading.Event()
        killer = None
        if kill is not None:
            (watch / "kill").write_text("{} {}".format(*kill))
            killer = threading.Thread(target=kill_once, args=(watch, kill[1] // EPOCH, stop))
            killer.start()
        try:
            fitted = build_trainer(request, callbacks=[Reported(watch)]).fit()
        finally:
            stop.set()
            if killer is not None:
                killer.join()
            for name in ("kill", "pid", "reported"):
                (watch / name).unlink(missing_ok=True)
        assert fitted.error is None
        done[spec, kill] = Seen(request, fitted, watch)
        return done[spec, kill]

    return get


class Reported(UserCallback):
    """Writes, in the controller, the epochs whose checkpoint it has taken in: from those a run resumes."""

    def __init__(self, folder):
        self.file = folder / "reported"

    def after_report(self, run_context, metrics, checkpoint):
        with self.file.open("a") as file:
            file.write(f"{metrics[0]['epoch']}\n")


def kill_once(watch, epochs_done, stop):
    """SIGKILL to the one process that has written its id and waits for it, once its epochs are safe."""
    while not stop.is_set():
        reported = watch / "reported"
        safe = reported.exists() and str(epochs_done) in reported.read_text().split()
        if safe and (watch / "pid").exists():
            (watch / "kill").unlink()  # first: the worker's next life must not wait
            os.kill(int((watch / "pid").read_text()), signal.SIGKILL)
            (watch / "pid").unlink()
            return
        time.sleep(0.05)


@pytest.fixture(scope="module")
def in_process(tmp_path_factory):
    """The same run without Ray, of a task that is not watched."""

    def get(spec):
        rows = []
        request = request_of(tmp_path_factory.mktemp("alone"), spec)
        record = run_in_process(request, on_report=rows.append)
        assert rows == record.epoch_rows
        return record

    return get


def numbers(record):
    """What was computed, without names."""
    labels = dict.fromkeys(("cell", "study", "arm", "point"), "")
    return result(record.model_copy(update=labels))


ONE, TWO = spec_of("ray_mlp"), spec_of("ray_simple", workers=2)


def test_one_worker_does_what_a_plain_process_does(fit, in_process):
    seen, alone = fit(ONE), in_process(spec_of())
    assert numbers(seen.record) == numbers(alone)
    assert seen.rates == {0: [alone.trace.lr]}


def test_the_record_and_the_report(fit):
    seen = fit(ONE)
    record = seen.record
    assert (record.study, record.arm, record.point) == ("fast", "auto", "p=1 w=2")
    assert (record.cell, record.workers, record.restarts) == (ONE.cell, 1, 0)
    assert record.verdict == "passed"
    assert record.startup_seconds > 0
    assert record.device_seconds >= record.epoch_rows[-1].seconds
    assert seen.fitted.metrics == record.epoch_rows[-1].model_dump()
    assert Path(seen.fitted.path) == seen.request.runs_dir / f"auto-p-1_w-2-b8-s0-{ONE.cell}"
    assert [file.name for file in seen.request.record_dir.iterdir()] == [f"{ONE.cell}.json"]


def events_in(folder):
    """(tag, step, value) of the scalars in the event files of ``folder``, files in the order of writing."""
    found = []
    for path in sorted(folder.glob("events*"), key=lambda path: path.stat().st_mtime):
        content, place = path.read_bytes(), 0
        while place < len(content):
            (length,) = struct.unpack_from("<Q", content, place)  # then a checksum, the event, a checksum
            event = event_pb2.Event.FromString(content[place + 12 : place + 12 + length])
            found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
            place += length + 16
    return found


def test_tensorboard_shows_epochs_steps_and_settings(fit):
    seen = fit(ONE)
    folder = seen.request.log_dir / seen.request.name
    scalars = {(tag, step): value for tag, step, value in events_in(folder)}
    for row in seen.record.epoch_rows:
        for name in ("train_loss", "validation_accuracy", "lr"):
            assert scalars[f"epoch/{name}", row.step] == pytest.approx(getattr(row, name), rel=1e-6)
    for step, lr in enumerate(seen.record.trace.lr):
        assert scalars["step/lr", step] == pytest.approx(lr, rel=1e-6)
    results = {tag: value for tag, _, value in events_in(folder)}
    assert results["result/test_accuracy"] == pytest.approx(seen.record.test_accuracy)
    assert "_hparams_/session_start_info" in results
    assert "_hparams_/experiment" not in results  # it would rule over the columns of other runs
    assert settings(seen.request.spec)["schedule.kind"] == "auto_warmup"


def test_who_waits_for_two_workers_is_told_each_epoch_and_the_turn(watch, tmp_path):
    """What ``autolr-ray train --workers 2`` prints, though the epochs end in other processes."""
    said = []
    record = train(request_of(tmp_path, TWO), say=said.append)
    epochs = [line for line in said if line.startswith("epoch ")]
    assert [line.split("  ")[0] for line in epochs] == [f"epoch {n}/{TWO.epochs}" for n in range(1, 9)]
    (turn,) = (line for line in said if "turned" in line)
    assert f"after step {record.switch_step}, down from {record.peak_lr:.3g}: the loss has passed" in turn
    assert not (tmp_path / "runs" / request_of(tmp_path, TWO).name).exists()
    for file in watch.glob("rates-*"):
        file.unlink()


def test_rows_that_share_a_checkpoint_are_told_with_it_in_their_order(watch, tmp_path):
    """200 epochs of one step: each second is saved."""
    spec, said = spec_of("ray_simple", workers=2, batch_size=200, epochs=200), []
    record = train(request_of(tmp_path, spec), say=said.append)
    epochs = [line for line in said if line.startswith("epoch ")]
    assert [line.split("  train")[0].split()[-1] for line in epochs] == [f"{n}/200" for n in range(1, 201)]
    turn = next(number for number, line in enumerate(said) if "turned" in line)
    assert f"after step {record.switch_step}" in said[turn]
    assert int(said[turn - 1].split("/")[0].split()[-1]) == 2 * math.ceil(record.switch_step / 2)
    for file in watch.glob("rates-*"):
        file.unlink()


def test_two_workers_do_what_one_does(fit, in_process):
    seen, alone = fit(TWO), in_process(spec_of("simple"))
    record = seen.record
    assert (record.workers, record.restarts) == (2, 0)
    assert (record.switch_step, record.rolled_back_to) == (alone.switch_step, alone.rolled_back_to)
    assert record.verdict == alone.verdict == "passed"
    assert record.trace.lr == pytest.approx(alone.trace.lr, rel=1e-6)
    assert record.trace.loss == pytest.approx(alone.trace.loss, rel=1e-5)
    assert record.test_accuracy == alone.test_accuracy
    assert record.device_seconds >= 2 * record.epoch_rows[-1].seconds


def test_both_ranks_have_the_same_learning_rates(fit):
    seen = fit(TWO)
    assert sorted(seen.rates) == [0, 1]
    assert seen.rates[0] == seen.rates[1] == [seen.record.trace.lr]


@pytest.mark.parametrize(
    ("spec", "rank", "epochs_done"), [(ONE, 0, 2), (TWO, 1, 1)], ids=["one-worker", "two-workers"]
)
def test_a_killed_worker_changes_nothing(spec, rank, epochs_done, fit):
    undisturbed = fit(spec).record
    killed_at = epochs_done * EPOCH + 10
    seen = fit(spec, kill=(rank, killed_at))
    # Two lives; the second began with the epoch that the first did not finish.
    first, second = seen.rates[rank]
    assert first == undisturbed.trace.lr[:killed_at]
    assert len(second) == (spec.epochs - epochs_done) * EPOCH
    assert seen.record.restarts == 1
    assert result(seen.record) == result(undisturbed)
    assert second == undisturbed.trace.lr[epochs_done * EPOCH :]
