"""The loop in a plain process: what it computes, what it leaves behind, and runs that are cut off."""

import contextlib
import errno
import itertools
import json
import math
import os
import subprocess
import sys
import textwrap
from importlib.metadata import version
from types import SimpleNamespace

import pytest
import torch
import train_helpers as helpers
from torch.nn import functional as F
from train_helpers import (
    AUTO,
    LINEAR,
    PAPER,
    STEPS_PER_EPOCH,
    SWEPT,
    Cut,
    SpyContext,
    assert_same,
    result,
    spec_of,
)

from autolr_ray.schedule import LinearWarmup
from autolr_ray.train import LocalContext, RunRecord, loop, run
from autolr_ray.train.batches import TrainBatches
from autolr_ray.train.checkpoints import CheckpointFolder, load_state, save_state
from autolr_ray.train.loop import TrainingRun
from autolr_ray.train.record import write_record

SCHEDULES = {"swept": SWEPT, "robust": AUTO, "paper": PAPER, "linear": LINEAR}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Undisturbed runs, each done once: ``whole(spec)`` gives record and last state."""
    done = {}

    def get(spec):
        if spec not in done:
            done[spec] = helpers.train(spec, tmp_path_factory.mktemp("whole"))
        return done[spec]

    return get


# --- what it computes ---


def test_it_is_plain_training(tmp_path):
    spec = spec_of("simple", schedule=LINEAR, seed=5)
    record, state = helpers.train(spec, tmp_path)

    torch.manual_seed(5)
    model = helpers.simple_network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0, weight_decay=0.01)
    total = STEPS_PER_EPOCH * spec.epochs
    schedule = LinearWarmup(optimizer, total, peak_lr=LINEAR["peak_lr"], warmup_fraction=0.1)
    batches = TrainBatches(helpers.examples("train"), spec, 0, torch.device("cpu"))
    losses, rates = [], []
    for epoch in range(spec.epochs):
        for [(inputs, targets)] in batches.epoch(epoch):
            loss = F.cross_entropy(model(helpers.scale64(inputs)), targets)
            optimizer.zero_grad()
            loss.backward()
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step(loss)
            losses.append(loss.item())

    assert_same(state["model"], dict(model.state_dict()))
    assert record.trace.step == list(range(total))
    assert record.trace.lr == rates
    assert record.trace.loss == pytest.approx(losses, rel=1e-6)
    for part, found in (("validation", record.validation_accuracy), ("test", record.test_accuracy)):
        data = helpers.examples(part)
        right = (model(helpers.scale64(data.inputs)).argmax(1) == data.targets).sum().item()
        assert found == pytest.approx(right / len(data), abs=1e-12)


@pytest.mark.parametrize("rule", SCHEDULES)
def test_the_same_seed_gives_the_same_run(rule, whole, tmp_path):
    spec = spec_of(schedule=SCHEDULES[rule])
    record, state = whole(spec)
    torch.manual_seed(123)
    again, state_again = helpers.train(spec, tmp_path)
    assert result(again) == result(record)
    assert_same(state_again, state)


def test_another_seed_gives_another_run(whole):
    record, state = whole(spec_of())
    other, other_state = whole(spec_of(seed=1))
    assert other.cell != record.cell
    assert other.trace.loss[0] != record.trace.loss[0]
    assert not torch.equal(other_state["model"]["0.weight"], state["model"]["0.weight"])


def test_arms_with_a_seed_start_from_the_same_weights_and_batches(whole):
    auto, _ = whole(spec_of())
    linear, _ = whole(spec_of(schedule=LINEAR))
    assert auto.trace.loss[0] == linear.trace.loss[0]


@pytest.mark.parametrize("rule", SCHEDULES)
def test_accumulation_changes_nothing(rule, whole):
    record, state = whole(spec_of("simple", schedule=SCHEDULES[rule]))
    split, split_state = whole(spec_of("simple", schedule=SCHEDULES[rule], accumulation_steps=4))
    assert (split.switch_step, split.rolled_back_to) == (record.switch_step, record.rolled_back_to)
    assert split.trace.loss == pytest.approx(record.trace.loss, rel=1e-5)
    torch.testing.assert_close(split_state["model"], state["model"], rtol=1e-5, atol=1e-6)


def test_augmentation_is_drawn_for_each_step_anew_and_again_the_same(monkeypatch, tmp_path):
    seen = []

    def jitter(inputs, generator):
        seen.append(helpers.jitter(inputs, generator) - inputs.to(torch.int64))
        return inputs

    task = helpers.Task(
        name="watched", data=helpers.tensors, model=helpers.network, transform=helpers.scale, augment=jitter
    )
    monkeypatch.setattr(helpers, "watched_task", task, raising=False)
    spec = spec_of("watched_task", epochs=2, accumulation_steps=2, schedule=LINEAR)
    helpers.train(spec, tmp_path / "1")
    first, seen[:] = list(seen), []
    helpers.train(spec, tmp_path / "2")
    assert len(first) == len(seen) == 2 * 2 * STEPS_PER_EPOCH  # training batches alone
    assert all(torch.equal(a, b) for a, b in zip(first, seen, strict=True))
    assert not any(torch.equal(a, b) for a, b in itertools.pairwise(first))


def test_data_sets_and_loaders_change_nothing(whole):
    record, state = whole(spec_of(epochs=2))
    for loader_workers in (0, 2):
        loaded, loaded_state = whole(spec_of("mlp_files", epochs=2, loader_workers=loader_workers))
        assert_same(loaded_state["model"], state["model"])
        assert loaded.trace == record.trace
        assert loaded.test_accuracy == record.test_accuracy


def test_random_examples_do_not_depend_on_the_number_of_loaders(whole):
    # loader_workers is no part of the cell: equal cells have equal results.
    alone, _ = whole(spec_of("mlp_shaken", epochs=2, schedule=LINEAR))
    loaded, _ = whole(spec_of("mlp_shaken", epochs=2, schedule=LINEAR, loader_workers=2))
    assert alone.cell == loaded.cell
    assert result(alone) == result(loaded)


# --- what it leaves behind ---


def test_the_record_of_a_run_that_turned(whole, tmp_path):
    spec = spec_of(model=None, seed=0)
    context = SpyContext(tmp_path)
    record = run(spec, context, study="fast", arm="auto", point="p=1")
    assert (record.study, record.arm, record.point) == ("fast", "auto", "p=1")
    assert (record.cell, record.batch_size, record.seed, record.workers) == (spec.cell, 8, 0, 1)
    assert (record.task, record.model, record.optimizer) == ("mlp", "", "adamw")
    assert (record.schedule, record.epochs, record.total_steps) == ("auto_warmup", 8, 200)
    assert record.device.startswith("CPU")
    assert record.versions["torch"] == version("torch")
    assert record.restarts == 0

    assert record.verdict == "passed"
    assert 0 < record.rolled_back_to < record.switch_step < 160
    assert record.warmup_fraction == record.switch_step / 200
    last = record.receipts[-1]
    assert (last.verdict, last.step, last.argmin_lr) == ("passed", record.switch_step, record.peak_lr)
    assert last.reason.startswith("the loss has passed its minimum")
    assert all(receipt.verdict == "rising" for receipt in record.receipts[:-1])
    rates = record.trace.lr
    assert rates[record.switch_step] == pytest.approx(record.peak_lr)
    assert rates[: record.switch_step] == sorted(rates[: record.switch_step])
    assert rates[record.switch_step :] == sorted(rates[record.switch_step :], reverse=True)

    posterior = record.posterior
    assert len(posterior.step) == len(posterior.mean) == len(posterior.sd) > 10
    assert (posterior.step[0], posterior.step[-1]) == (0, record.switch_step)
    assert all(sd > 0 for sd in posterior.sd)
    lowest = posterior.step[posterior.mean.index(min(posterior.mean))]
    assert lowest == pytest.approx(last.argmin_step, abs=record.switch_step / 60)

    rows = record.epoch_rows
    assert [row.epoch for row in rows] == list(range(1, 9))
    assert [row.step for row in rows] == list(range(25, 201, 25))
    for number, row in enumerate(rows):
        losses = record.trace.loss[25 * number : 25 * number + 25]
        assert row.train_loss == pytest.approx(sum(losses) / 25)
        assert row.lr == rates[row.step - 1]
    assert (record.train_loss, record.validation_accuracy) == (
        rows[-1].train_loss,
        rows[-1].validation_accuracy,
    )
    assert json.loads((tmp_path / "records" / f"{spec.cell}.json").read_text())["cell"] == spec.cell
    assert not list((tmp_path / "run").iterdir())


def test_the_record_of_the_baseline(whole):
    record, _ = whole(spec_of(schedule=LINEAR))
    assert (record.schedule, record.peak_lr, record.switch_step) == ("linear_warmup", 0.02, 20)
    assert (record.verdict, record.rolled_back_to, record.warmup_fraction) == ("", -1, 0.1)
    assert record.receipts == []
    assert record.posterior.step == record.posterior.mean == record.posterior.sd == []
    assert max(record.trace.lr) == 0.02


def test_the_record_without_rollback(whole):
    record, _ = whole(spec_of(schedule=AUTO | {"rollback": False}))
    assert (record.verdict, record.rolled_back_to) == ("passed", -1)


def test_a_long_trace_is_thinned_evenly(whole):
    spec = spec_of("simple", batch_size=2, epochs=12, schedule=LINEAR, optimizer={"name": "sgd_nesterov"})
    trace = whole(spec)[0].trace
    assert len(trace.step) == len(trace.lr) == len(trace.loss) == 1000
    assert (trace.step[0], trace.step[-1]) == (0, 1199)
    assert {b - a for a, b in itertools.pairwise(trace.step)} == {1, 2}
    # In the warmup of 120 steps, step t runs at peak_lr (t + 1) / 120.
    assert trace.lr[:100] == pytest.approx([0.02 * (step + 1) / 120 for step in trace.step[:100]])


def test_a_record_of_a_run_that_diverged_can_be_read_again(tmp_path):
    spec = spec_of(
        "simple", epochs=2, optimizer={"name": "sgd_nesterov"}, schedule=LINEAR | {"peak_lr": 1e30}
    )
    record, _ = helpers.train(spec, tmp_path)
    assert not math.isfinite(record.train_loss)
    text = (tmp_path / "records" / f"{record.cell}.json").read_text()
    assert result(RunRecord.model_validate_json(text)) == result(record)


class Clock:
    """Stands still, but for what is added."""

    def __init__(self, monkeypatch):
        self.now = 1_000.0
        fake = SimpleNamespace(time=lambda: self.now, perf_counter=lambda: self.now)
        monkeypatch.setattr(loop, "time", fake)

    def passes(self, seconds):
        self.now += seconds


def test_seconds_are_those_of_all_lives_times_workers(monkeypatch, tmp_path):
    clock = Clock(monkeypatch)
    # As one of two workers, whose other is not there.
    monkeypatch.setattr(loop.dist, "all_reduce", lambda values: values.mul_(2))
    monkeypatch.setattr(loop.dist, "broadcast", lambda values, src: None)
    monkeypatch.setattr(SpyContext, "world_size", 2)
    lives = []

    def cut(epoch, when):
        if when == "before":
            return
        clock.passes(10)
        if epoch == 3 and not lives:
            lives.append(1)
            raise Cut

    spec = spec_of("simple", workers=2, epochs=4, schedule=LINEAR)
    launched_at = clock.now - 7
    with pytest.raises(Cut):
        run(spec, SpyContext(tmp_path, cut), launched_at=launched_at)
    clock.passes(1_000)  # between two lives nothing is paid
    record = run(spec, SpyContext(tmp_path, cut), launched_at=launched_at)
    # The first life's third epoch was saved at 20 s; the fourth epoch adds 10 s when it has been reported.
    assert [row.seconds for row in record.epoch_rows] == [0, 10, 20, 20]
    assert record.device_seconds == 2 * 30
    assert record.startup_seconds == 7
    assert record.restarts == 1


def test_the_test_part_is_read_once(tmp_path):
    helpers.READS.clear()
    spec = spec_of("mlp_files", epochs=3)
    helpers.train_with_cuts(spec, tmp_path, "after")
    reads = {part: [helpers.READS[part, i] for i in range(n)] for part, n in helpers.SIZES.items()}
    assert set(reads["test"]) == {1}
    assert set(reads["validation"]) == {3}
    assert set(reads["train"]) == {3}


def test_the_test_part_is_not_read_before_the_end(tmp_path):
    helpers.READS.clear()

    def cut(epoch, when):
        if epoch == 3 and when == "after":
            raise Cut

    with pytest.raises(Cut):
        run(spec_of("mlp_files", epochs=3), SpyContext(tmp_path, cut))
    assert {part for part, _ in helpers.READS} == {"train", "validation"}


# --- runs that are cut off ---


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("optimizer", helpers.SCHEDULED)
@pytest.mark.parametrize("rule", SCHEDULES)
def test_cut_off_in_every_epoch(rule, optimizer, when, whole, tmp_path):
    spec = spec_of(schedule=SCHEDULES[rule], optimizer={"name": optimizer})
    record, state = whole(spec)
    cut, cut_state = helpers.train_with_cuts(spec, tmp_path, when)
    assert result(cut) == result(record)
    assert_same(cut_state, state)
    # Before its first save a run leaves nothing that could be taken up.
    assert cut.restarts == (spec.epochs if when == "after" else spec.epochs - 1)


@pytest.mark.parametrize(
    ("epoch", "when"), [(1, "after"), (3, "before"), (3, "after"), (4, "after"), (8, "after")]
)
def test_cut_off_once(epoch, when, whole, tmp_path):
    spec = spec_of()
    record, state = whole(spec)
    assert record.rolled_back_to > 0
    cut, cut_state = helpers.train_with_cuts(spec, tmp_path, when, range(epoch, epoch + 1))
    assert result(cut) == result(record)
    assert_same(cut_state, state)


@pytest.mark.parametrize("when", ["before", "after"])
def test_cut_off_with_random_examples(when, whole, tmp_path):
    spec = spec_of("mlp_shaken", epochs=3, schedule=LINEAR)
    record, _ = whole(spec)
    cut, _ = helpers.train_with_cuts(spec, tmp_path, when)
    assert result(cut) == result(record)


def test_rows_are_published_after_their_state_is_safe(tmp_path):
    published = []

    def on_report(row):
        published.append(row.epoch)
        assert CheckpointFolder(tmp_path / "run").newest()["step"] == row.step

    context = LocalContext(
        tmp_path / "run", tmp_path / "records", device=torch.device("cpu"), on_report=on_report
    )
    run(spec_of(epochs=3), context)
    assert published == [1, 2, 3]


# 300 epochs of one step: three share a checkpoint, a hundredth of the run.
SHORT_EPOCHS = {"batch_size": 200, "epochs": 300, "schedule": SWEPT}


@pytest.mark.parametrize(
    ("batch_size", "epochs", "together"),
    [
        (8, 2000, 1),
        (200, 199, 1),
        (200, 200, 2),
        (200, 300, 3),
        (100, 1000, 8),
        (20, 200, 2),
        (200, 5000, 16),
    ],
)
def test_epochs_of_few_steps_share_a_checkpoint(batch_size, epochs, together, tmp_path):
    """As many as make sixteen steps, but no more than a hundredth of the run."""
    context = SpyContext(tmp_path)
    training = TrainingRun(spec_of(batch_size=batch_size, epochs=epochs), context, elastic=False)
    saves = [epoch + 1 for epoch in range(epochs) if training.saves_after(epoch)]
    assert saves == sorted({*range(together, epochs + 1, together), epochs})


@pytest.fixture(scope="module")
def short_epochs(tmp_path_factory):
    return helpers.train(spec_of(**SHORT_EPOCHS), tmp_path_factory.mktemp("short_epochs"))


def test_rows_of_epochs_that_share_a_checkpoint_are_published_with_it(short_epochs, tmp_path):
    events = []
    context = LocalContext(
        tmp_path / "run", tmp_path, device=torch.device("cpu"),
        on_report=lambda row: events.append(row.epoch),
        on_turn=lambda turn: events.append(("turn", turn.step)),
    )  # fmt: skip
    saved, save = [], context.checkpoints.save

    def spy(state, step):
        saved.append((step, [event for event in events if isinstance(event, int)]))
        return save(state, step)

    context.checkpoints.save = spy
    record = run(spec_of(**SHORT_EPOCHS), context)
    assert [step for step, _ in saved] == list(range(3, 301, 3))
    assert all(not published or published[-1] < step for step, published in saved)
    assert [event for event in events if isinstance(event, int)] == list(range(1, 301))
    # The turn comes after the rows up to the checkpoint that it lies before.
    turn = events.index(("turn", record.switch_step))
    assert events[turn - 1] == 3 * math.ceil(record.switch_step / 3)
    assert result(record) == result(short_epochs[0])


@pytest.mark.parametrize("when", ["before", "after"])
def test_cut_off_where_epochs_share_a_checkpoint(when, short_epochs, tmp_path):
    spec = spec_of(**SHORT_EPOCHS)
    record, state = helpers.train_with_cuts(spec, tmp_path, when, range(3, 301, 27))
    assert result(record) == result(short_epochs[0])
    assert_same(state, short_epochs[1])


@pytest.mark.parametrize("every", [1, 2])
def test_a_row_that_waits_is_published_with_a_checkpoint_inside_an_epoch(every, tmp_path):
    """Of two steps each, two share a checkpoint, and one lies inside each."""
    rows = []
    context = LocalContext(tmp_path / "run", tmp_path, on_report=lambda row: rows.append(row.epoch))
    run(spec_of(batch_size=100, epochs=200, checkpoint_every=every), context)
    assert rows == list(range(1, 201))


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    def cut(epoch, when):
        raise Cut

    first, second = spec_of(schedule=LINEAR), spec_of(schedule=LINEAR, seed=1)
    with pytest.raises(Cut):
        run(first, SpyContext(tmp_path, lambda epoch, when: cut(epoch, when) if when == "after" else None))
    with pytest.raises(ValueError, match=f"checkpoint: .* run {first.cell}, this is {second.cell}"):
        run(second, SpyContext(tmp_path))


def test_a_context_of_another_size_is_refused(tmp_path):
    with pytest.raises(ValueError, match="workers: 2 were asked for, 1 are running"):
        run(spec_of(workers=2), SpyContext(tmp_path))


def test_too_little_data_is_refused(tmp_path):
    with pytest.raises(ValueError, match="batch_size: 256 is not allowed; the training part has 200"):
        run(spec_of(batch_size=256), SpyContext(tmp_path))


# --- a disk that is full ---


@contextlib.contextmanager
def full_disk(call):
    """Neither fsync nor replace, as asked, finds room."""

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, call, full)
        yield


FAILING = pytest.mark.parametrize("call", ["fsync", "replace"])


@FAILING
def test_a_checkpoint_is_written_whole_or_not_at_all(call, tmp_path):
    path = tmp_path / "new folder" / "checkpoint.pt"
    save_state({"epoch": 1, "weights": torch.ones(3)}, path)
    with full_disk(call), pytest.raises(OSError, match="No space left"):
        save_state({"epoch": 2, "weights": torch.zeros(3)}, path)
    assert [file.name for file in path.parent.iterdir()] == ["checkpoint.pt"]
    assert load_state(path)["epoch"] == 1
    save_state({"epoch": 3}, path)
    assert load_state(path) == {"epoch": 3}


@FAILING
def test_a_record_is_written_whole_or_not_at_all(call, tmp_path, whole):
    record, _ = whole(spec_of(schedule=LINEAR))
    path = tmp_path / "cells" / f"{record.cell}.json"
    path.parent.mkdir()
    path.write_bytes(b"half a rec")
    with full_disk(call), pytest.raises(OSError, match="No space left"):
        write_record(record, tmp_path / "cells")
    assert path.read_bytes() == b"half a rec"
    assert [file.name for file in path.parent.iterdir()] == [f"{record.cell}.json"]
    assert write_record(record, tmp_path / "cells") == path
    assert RunRecord.model_validate_json(path.read_bytes()).cell == record.cell


def test_the_first_record_of_a_cell_stays(tmp_path, whole):
    record, _ = whole(spec_of(schedule=LINEAR))
    path = write_record(record, tmp_path / "cells")
    before = path.read_bytes()
    write_record(record.model_copy(update={"restarts": 9}), tmp_path / "cells")
    assert path.read_bytes() == before


@FAILING
def test_a_run_goes_on_when_the_disk_has_room_again(call, tmp_path, whole):
    spec = spec_of()
    with contextlib.ExitStack() as stack:

        def cut(epoch, when):
            if (epoch, when) == (4, "before"):
                stack.enter_context(full_disk(call))

        with pytest.raises(
            OSError, match=r"checkpoint: .*-000000100.pt cannot be written \(No space left.*-000000075.pt"
        ):
            run(spec, SpyContext(tmp_path, cut))
    kept = sorted(file.name for file in (tmp_path / "run").iterdir())
    assert kept == ["checkpoint-000000050.pt", "checkpoint-000000075.pt"]
    record, _ = helpers.train(spec, tmp_path)
    assert result(record) == result(whole(spec)[0])


# --- a user's own task ---

OWN = """
    import torch
    from torch import nn
    from torch.nn import functional as F
    from autolr_ray.tasks import Splits, Task, TensorData

    x = torch.linspace(-1, 1, 96)[:, None]
    data = TensorData(inputs=x, targets=torch.sin(3 * x))

    def close(outputs, targets):
        return (outputs - targets).abs().squeeze(1) < 0.5   # bool

    task = Task(
        name="sine", data=lambda folder: Splits(train=data, validation=data, test=data),
        model=lambda: nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 1)),
        loss=F.mse_loss, correct=close,
    )

    def make():
        return task
"""


@pytest.mark.parametrize("attribute", ["task", "make"])
def test_a_users_own_task_trains(attribute, monkeypatch, tmp_path):
    (tmp_path / "sine_of_a_user.py").write_text(textwrap.dedent(OWN))
    monkeypatch.syspath_prepend(tmp_path)
    spec = spec_of(schedule=LINEAR).model_copy(update={"task": f"sine_of_a_user:{attribute}"})
    record, _ = helpers.train(spec, tmp_path)
    assert record.task == "sine"
    assert record.train_loss < 0.5 * record.epoch_rows[0].train_loss
    assert record.test_accuracy > 0.7


def test_a_model_with_a_users_own_task_is_refused(tmp_path):
    with pytest.raises(ValueError, match="model: 'cnn' is not allowed"):
        run(spec_of(model="cnn"), SpyContext(tmp_path))


# --- two processes, without Ray ---

# Name: the spec, and whether it is also cut off in every epoch.
TWO = {
    "batchnorm": (spec_of(workers=2), True),
    "simple": (spec_of("simple", workers=2), True),
    "accumulated": (spec_of("simple", workers=2, accumulation_steps=2), False),
    "linear": (spec_of(workers=2, schedule=LINEAR, epochs=3), True),
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """``pair(name, how)``: the record of two processes, undisturbed ("whole") or cut off ("cut")."""
    folder = tmp_path_factory.mktemp("pair")
    specs = folder / "specs.json"
    specs.write_text(
        json.dumps({name: [spec.model_dump(mode="json"), cut] for name, (spec, cut) in TWO.items()})
    )
    command = [sys.executable, helpers.__file__, str(folder), str(specs)]
    ranks = [subprocess.Popen([*command, str(rank)], stderr=subprocess.PIPE, text=True) for rank in (0, 1)]
    try:
        errors = [rank.communicate(timeout=600)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(errors)

    def get(name, how):
        return RunRecord.model_validate_json((folder / name / how / "result.json").read_text())

    return get


@pytest.mark.parametrize("name", ["simple", "accumulated"])
def test_two_workers_do_what_one_does(name, pair, whole):
    one, _ = whole(spec_of("simple"))
    two = pair(name, "whole")
    assert two.workers == 2
    assert (two.switch_step, two.rolled_back_to) == (one.switch_step, one.rolled_back_to)
    assert two.trace.lr == pytest.approx(one.trace.lr, rel=1e-6)
    assert two.trace.loss == pytest.approx(one.trace.loss, rel=1e-5)
    assert two.test_accuracy == one.test_accuracy


@pytest.mark.parametrize("name", [name for name, (_, cut) in TWO.items() if cut])
def test_two_workers_cut_off_in_every_epoch(name, pair):
    whole_run, cut = pair(name, "whole"), pair(name, "cut")
    assert result(cut) == result(whole_run)
    assert cut.restarts == cut.epochs


# --- fewer processes than asked for ---


def test_a_run_that_loses_workers_keeps_its_batches_and_its_schedule(whole, tmp_path):
    """Four workers are asked for; three come, then two, then one: the same global batches all along."""
    spec = spec_of("simple", workers=4, batch_size=8)
    file = tmp_path / "spec.json"
    file.write_text(spec.model_dump_json())
    for world_size, last_epoch in ((3, 2), (2, 5)):
        command = [sys.executable, helpers.__file__, str(tmp_path), str(file)]
        ranks = [
            subprocess.Popen(
                [*command, str(rank), str(world_size), str(last_epoch)], stderr=subprocess.PIPE, text=True
            )
            for rank in range(world_size)
        ]
        errors = [rank.communicate(timeout=300)[1] for rank in ranks]
        assert [rank.returncode for rank in ranks] == [0] * world_size, "\n".join(errors)
    record = run(spec, SpyContext(tmp_path), elastic=True)
    assert record.restarts == 2
    alone, _ = whole(spec_of("simple"))
    assert (record.switch_step, record.rolled_back_to) == (alone.switch_step, alone.rolled_back_to)
    assert record.trace.lr == pytest.approx(alone.trace.lr, rel=1e-6)
    assert record.trace.loss == pytest.approx(alone.trace.loss, rel=1e-5)
    assert record.test_accuracy == alone.test_accuracy


def test_fewer_workers_are_refused_unless_the_run_is_elastic(tmp_path):
    with pytest.raises(ValueError, match="workers: 4 were asked for, 1 are running"):
        run(spec_of(workers=4), SpyContext(tmp_path))
