"""Rival arms: what each does is what its authors' package does, charged with all that it costs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import prodigyopt
import pytest
import schedulefree
import torch
import train_helpers
from pydantic import ValidationError
from torch import nn
from train_helpers import assert_same, result, spec_of, train, train_with_cuts

from autolr_ray.tasks import Task
from autolr_ray.tasks.named import code_fingerprint
from autolr_ray.train import RunRecord, RunSpec
from autolr_ray.train import loop as loop_module
from autolr_ray.train.range_test import steepest

RANGE = {"kind": "lr_range_test", "steps": 60, "warmup_fraction": 0.1}
SCHEDULE_FREE = {"optimizer": {"name": "schedule_free_adamw"}, "schedule": {"kind": "constant", "lr": 0.02}}
PRODIGY = {
    "optimizer": {"name": "prodigy"},
    "schedule": {"kind": "linear_warmup", "peak_lr": 1.0, "warmup_fraction": 0.0},
}
OWN = {"kind": "own", "arm": "test_rivals:one_cycle", "settings": {"max_lr": 0.03}}

here = Path(__file__).resolve()


# --- the LR range test -----------------------------------------------------------------------------------


def test_after_the_range_test_a_run_is_linear_warmup_to_what_it_found(tmp_path: Path) -> None:
    record, state = train(spec_of(schedule=RANGE), tmp_path / "tested")
    assert 1e-4 < record.peak_lr < 1.0
    linear = {"kind": "linear_warmup", "peak_lr": record.peak_lr, "warmup_fraction": 0.1}
    plain, plain_state = train(spec_of(schedule=linear), tmp_path / "plain")
    for part in ("model", "optimizer", "schedule", "losses", "rates"):
        assert_same(state[part], plain_state[part], part)
    assert record.test_accuracy == plain.test_accuracy
    assert record.tuning == "LR range test"
    assert 0 < record.tuning_seconds < record.device_seconds
    assert (plain.tuning, plain.tuning_seconds) == ("", 0.0)


def test_a_run_taken_up_again_does_not_test_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    original = loop_module.range_test

    def counted(*arguments: object, **keywords: object) -> float:
        calls.append(1)
        return original(*arguments, **keywords)  # type: ignore[arg-type]

    monkeypatch.setattr(loop_module, "range_test", counted)
    whole, state = train(spec_of(schedule=RANGE), tmp_path / "whole")
    assert len(calls) == 1
    cut, cut_state = train_with_cuts(spec_of(schedule=RANGE), tmp_path / "cut", "after")
    assert len(calls) == 2
    assert result(cut.model_copy(update={"tuning_seconds": 0.0})) == result(
        whole.model_copy(update={"tuning_seconds": 0.0})
    )
    state.pop("tuning_seconds"), cut_state.pop("tuning_seconds")
    assert_same(cut_state, state)
    assert cut.tuning_seconds > 0


def test_two_workers_find_the_learning_rate_that_one_finds(tmp_path: Path) -> None:
    schedule = RANGE | {"min_lr": 1e-4}
    specs = {"range": (spec_of("simple", workers=2, epochs=2, schedule=schedule), True)}
    found = two_processes(tmp_path, specs)["range"]
    alone, _ = train(spec_of("simple", epochs=2, schedule=schedule), tmp_path / "alone")
    assert found["whole"].peak_lr == pytest.approx(alone.peak_lr, rel=1e-9)
    assert found["cut"].peak_lr == found["whole"].peak_lr
    assert found["whole"].tuning_seconds > 0


def test_the_suggestion_lies_where_the_loss_falls_most_steeply_and_before_it_diverges() -> None:
    rates = np.logspace(-6, 1, 100)
    losses = 2.3 - 1.5 / (1 + np.exp(-4 * (np.log10(rates) + 3)))
    assert steepest(rates, losses) == pytest.approx(1e-3, rel=0.2)
    losses[70:] = np.linspace(5, 500, 30)
    losses[72] = 0.0  # a fall from a loss that has diverged counts for nothing
    assert steepest(rates, losses) == pytest.approx(1e-3, rel=0.2)
    losses[60:] = np.nan
    assert steepest(rates, losses) == pytest.approx(1e-3, rel=0.2)
    losses[15:] = np.nan
    with pytest.raises(ValueError, match="diverged after 15 of 100 steps"):
        steepest(rates, losses)


# --- optimizers that scale their own steps ----------------------------------------------------------------


def by_hand(kind: str, spec: RunSpec, task: Task) -> tuple[nn.Module, torch.optim.Optimizer, list[float]]:
    """The same steps in a few plain lines with the authors' optimizer."""
    from autolr_ray.train.batches import TrainBatches

    torch.manual_seed(spec.seed)
    network = task.model()
    batches = TrainBatches(task.data(None).train, spec, 0, torch.device("cpu"))
    total = batches.steps_per_epoch * spec.epochs
    optimizer: torch.optim.Optimizer
    if kind == "prodigy":
        optimizer = prodigyopt.Prodigy(network.parameters(), lr=1.0, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total)
    else:
        optimizer = schedulefree.AdamWScheduleFree(
            network.parameters(), lr=0.02, weight_decay=0.01, warmup_steps=round(0.05 * total)
        )
        optimizer.train()
        schedule = None
    losses = []
    for epoch in range(spec.epochs):
        for ((inputs, targets),) in batches.epoch(epoch):
            optimizer.zero_grad()
            loss = task.loss(network(task.transform(inputs)), targets)
            loss.backward()
            optimizer.step()
            losses.append(float(loss))
            if schedule is not None:
                schedule.step()
        if kind != "prodigy":  # an evaluation goes to the averages and back
            optimizer.eval(), optimizer.train()  # type: ignore[attr-defined]
    return network, optimizer, losses


@pytest.mark.parametrize(("kind", "settings"), [("prodigy", PRODIGY), ("schedule_free", SCHEDULE_FREE)])
def test_a_run_takes_the_steps_of_the_authors_optimizer(kind: str, settings: dict, tmp_path: Path) -> None:
    spec = spec_of("simple", **settings)
    record, state = train(spec, tmp_path)
    network, optimizer, losses = by_hand(kind, spec, train_helpers.simple)
    torch.testing.assert_close(state["losses"], torch.tensor(losses, dtype=torch.float64), rtol=1e-6, atol=0)
    assert record.validation_accuracy > 0.6
    if kind == "prodigy":
        d = optimizer.param_groups[0]["d"]
        assert record.peak_lr == max(record.trace.lr)
        assert record.trace.lr[0] == pytest.approx(1e-6)
        assert record.peak_lr > 100e-6
        assert record.peak_lr <= d
    else:
        assert record.peak_lr == 0.02
        optimizer.eval()  # type: ignore[attr-defined]
        inputs, targets = train_helpers.examples("test").take(torch.arange(train_helpers.SIZES["test"]))
        with torch.no_grad():
            correct = network(train_helpers.scale64(inputs)).argmax(dim=1) == targets
        assert record.test_accuracy == pytest.approx(float(correct.double().mean()))


def test_schedule_free_is_scored_at_its_averages_with_statistics_of_their_own(tmp_path: Path) -> None:
    """With BatchNorm: the score is that of the averaged weights and of statistics taken for them."""
    spec = spec_of(**SCHEDULE_FREE, epochs=4)
    context = train_helpers.SpyContext(tmp_path)
    training = loop_module.TrainingRun(spec, context, elastic=False)
    training.start_clock()
    training.train_epoch(0)
    before = {name: value.clone() for name, value in training.network.state_dict().items()}
    seen = {}
    original = loop_module.mean_score

    def spy(network: nn.Module, *arguments: object, **keywords: object) -> float:
        seen.update({name: value.clone() for name, value in network.state_dict().items()})
        return original(network, *arguments, **keywords)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop_module, "mean_score", spy)
        training.evaluate(training.splits.validation)
    weights = [name for name, _ in training.network.named_parameters()]
    assert any(not torch.allclose(seen[name], before[name], atol=1e-4) for name in weights)
    assert not torch.allclose(seen["1.running_mean"], before["1.running_mean"], atol=1e-4)
    after = training.network.state_dict()
    for name, value in before.items():  # training goes on from where it was
        torch.testing.assert_close(after[name], value, rtol=1e-5, atol=1e-6)
    assert torch.equal(after["1.running_mean"], before["1.running_mean"])
    # The statistics are those of the averaged weights over the epoch's own batches.
    inputs = torch.cat(list(training._recent_inputs()))
    hidden = nn.functional.linear(inputs, seen["0.weight"], seen["0.bias"])
    torch.testing.assert_close(seen["1.running_mean"], hidden.mean(dim=0), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "settings", [PRODIGY, SCHEDULE_FREE, {"schedule": OWN}], ids=["prodigy", "free", "own"]
)
def test_cut_off_and_taken_up_again_is_the_same_bit_for_bit(settings: dict, tmp_path: Path) -> None:
    whole, state = train(spec_of(**settings), tmp_path / "whole")
    cut, cut_state = train_with_cuts(spec_of(**settings), tmp_path / "cut", "after")
    assert result(cut) == result(whole)
    assert_same(cut_state, state)


@pytest.mark.parametrize(
    ("optimizer", "kind"),
    [
        ("prodigy", {"kind": "auto_warmup"}),
        ("prodigy", {"kind": "lr_range_test"}),
        ("schedule_free_adamw", {"kind": "auto_warmup"}),
        ("schedule_free_adamw", {"kind": "linear_warmup", "peak_lr": 0.1}),
    ],
)
def test_what_makes_no_sense_together_is_refused(optimizer: str, kind: dict) -> None:
    with pytest.raises(
        ValidationError, match=f"{kind['kind']!r} is not allowed with the optimizer '{optimizer}'"
    ):
        spec_of(optimizer={"name": optimizer}, schedule=kind)


# --- a user's own arm -------------------------------------------------------------------------------------


def one_cycle(parts):
    optimizer = torch.optim.SGD(parts.model.parameters(), lr=0.1, momentum=0.9)
    return optimizer, torch.optim.lr_scheduler.OneCycleLR(
        optimizer, total_steps=parts.total_steps + 1, **parts.settings
    )


def no_scheduler(parts):
    return parts.make_optimizer(), None


def no_pair(parts):
    return parts.make_optimizer()


def no_schedule(parts):
    return parts.make_optimizer(), "cosine"


number = 3


def test_an_arm_of_ones_own_trains_with_what_it_returns(tmp_path: Path) -> None:
    spec = spec_of(schedule=OWN)
    record, state = train(spec, tmp_path)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, total_steps=201, max_lr=0.03)
    rates = []
    for _ in range(200):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert state["rates"].tolist() == rates
    assert (record.optimizer, record.schedule) == ("SGD", "test_rivals:one_cycle")
    assert record.peak_lr == max(rates)
    assert record.validation_accuracy > 0.6


def test_an_arm_without_scheduler_keeps_the_optimizers_learning_rate(tmp_path: Path) -> None:
    record, _ = train(
        spec_of(schedule={"kind": "own", "arm": "test_rivals:no_scheduler"}, epochs=1), tmp_path
    )
    assert set(record.trace.lr) == {1.0}


@pytest.mark.parametrize(
    ("arm", "message"),
    [
        ("test_rivals:no_pair", r"an \(optimizer, scheduler\) pair is needed"),
        ("test_rivals:no_schedule", "it returned a str as scheduler"),
        ("test_rivals:number", "'number' is a value of type int, expected a function of Parts"),
        ("test_rivals:missing", "has no attribute 'missing'"),
        ("no_such_module:arm", "no module 'no_such_module' was found"),
        ("one_cycle", "expected the form 'package.module:attribute'"),
    ],
)
def test_an_arm_that_is_none_is_refused_by_name(arm: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"arm: .*{message}"):
        train(spec_of(schedule={"kind": "own", "arm": arm}, epochs=1), tmp_path)


# --- the code behind names --------------------------------------------------------------------------------


def test_the_fingerprint_changes_with_the_code_and_not_with_comments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    module = tmp_path / "fingerprinted.py"
    module.write_text("def arm(parts):\n    return parts.lr * 2\n")
    first = code_fingerprint(["fingerprinted:arm"])
    module.write_text("# what it does\ndef arm(parts):\n\n    return parts.lr  *  2\n")
    assert code_fingerprint(["fingerprinted:arm"]) == first
    module.write_text("def arm(parts):\n    return parts.lr * 3\n")
    assert code_fingerprint(["fingerprinted:arm"]) != first
    assert code_fingerprint([]) == ""
    package = tmp_path / "fingerprinted_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "parts.py").write_text("x = 1\n")
    before = code_fingerprint(["fingerprinted_package.parts:x"])
    (package / "helper.py").write_text("y = 1\n")
    assert code_fingerprint(["fingerprinted_package.parts:x"]) != before


def test_a_worker_with_other_code_refuses_the_run(tmp_path: Path) -> None:
    spec = spec_of(epochs=1)
    right = spec.model_copy(update={"code": code_fingerprint(spec.own_names)})
    assert right.cell != spec.cell
    train(right, tmp_path / "right")
    with pytest.raises(
        ValueError, match=r"code: this worker's train_helpers:mlp has code .* was made for 0123"
    ):
        train(spec.model_copy(update={"code": "0123"}), tmp_path / "wrong")


# --- helpers ----------------------------------------------------------------------------------------------


def two_processes(folder: Path, specs: dict[str, tuple[RunSpec, bool]]) -> dict[str, dict[str, RunRecord]]:
    """Run specs on two gloo processes; the records, undisturbed and cut off after every epoch."""
    file = folder / "specs.json"
    file.write_text(json.dumps({n: (s.model_dump(mode="json"), c) for n, (s, c) in specs.items()}))
    command = [sys.executable, str(here.parent / "train_helpers.py"), str(folder), str(file)]
    processes = [subprocess.Popen([*command, str(rank)], cwd=here.parent) for rank in range(2)]
    assert [process.wait(timeout=600) for process in processes] == [0, 0]
    return {
        name: {
            how.name: RunRecord.model_validate_json((how / "result.json").read_text())
            for how in (folder / name).iterdir()
        }
        for name in specs
    }
