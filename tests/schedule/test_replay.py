"""Recorded losses replayed: the same decision as in the run, every kind of file, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from autolr_ray.cli import main
from autolr_ray.schedule import AutoWarmup
from autolr_ray.schedule.replay import Curve, CurveError, read_curve, replay

STEPS = 240


def valley(steps: int = STEPS) -> np.ndarray[Any, np.dtype[np.float64]]:
    """A loss that falls, then rises again from 60 % of the rise on."""
    share = np.arange(steps) / steps
    noise = 0.02 * np.random.default_rng(0).normal(size=steps)
    return 2.3 - 2.0 * np.minimum(share / 0.6, 1.0) + 8.0 * np.maximum(share - 0.6, 0.0) + noise


def curve(**changes: Any) -> Curve:
    return Curve(**{"losses": valley(), "steps": np.arange(STEPS, dtype=np.float64), **changes})


def rates(steps: int = STEPS, low: float = 1e-4, high: float = 10.0) -> np.ndarray[Any, Any]:
    return low * (high / low) ** (np.arange(steps) / steps)


@pytest.mark.parametrize("rule", ["robust", "paper"])
def test_the_decision_is_that_of_the_scheduler(rule: str) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = AutoWarmup(optimizer, 2 * STEPS, rule=rule, steps_per_epoch=10, min_lr=1e-4, max_lr=10.0)
    for loss in valley():
        optimizer.step()
        scheduler.step(float(loss))
    found = replay(curve(), rule=rule, steps_per_epoch=10, min_lr=1e-4, max_lr=10.0).as_dict()
    assert found["verdict"] == "passed"
    assert (found["switch_step"], found["peak_lr"]) == (scheduler.switch_step, scheduler.peak_lr)
    assert 0.6 * STEPS < found["switch_step"] < STEPS
    assert [row["step"] for row in found["receipts"]] == [r.step for r in scheduler.receipts]
    # Learning rates that were recorded say from where to where it rose.
    again = replay(curve(rates=rates()), rule=rule, steps_per_epoch=10).as_dict()
    assert again["switch_step"] == found["switch_step"]
    for name in ("peak_lr", "min_lr", "max_lr"):
        assert again[name] == pytest.approx(found[name], rel=1e-9)


def test_a_rise_that_goes_on() -> None:
    """Half the losses of a rise: nothing is decided, and nothing is made up."""
    half = curve(losses=valley()[: STEPS // 2], steps=np.arange(STEPS / 2))
    found = replay(half, warmup_steps=STEPS).as_dict()
    assert (found["verdict"], found["switch_step"], found["peak_lr"]) == ("rising", None, None)
    assert (found["warmup_steps"], found["losses_used"]) == (STEPS, STEPS // 2)
    # Taken for the whole rise it has no turn: the highest learning rate is kept.
    assert replay(half).as_dict()["verdict"] == "still_falling"


def test_losses_that_are_never_finite() -> None:
    found = replay(curve(losses=np.full(STEPS, math.nan))).as_dict()
    assert found["verdict"] == "diverged"


def test_a_thinned_curve_keeps_its_scale() -> None:
    """One loss in four: about the same turn, in steps of the run, and said."""
    whole = replay(curve(losses=valley(960), steps=np.arange(960.0))).as_dict()
    thin = replay(curve(losses=valley(960)[::4], steps=np.arange(0.0, 960.0, 4.0), warmup_steps=960))
    found = thin.as_dict()
    assert found["warmup_steps"] == 960
    assert found["argmin_step"] == pytest.approx(whole["argmin_step"], abs=60)
    assert found["peak_lr"] == pytest.approx(whole["peak_lr"], rel=1.0)
    assert any("one loss in 4 steps was kept" in note for note in found["notes"])
    assert not whole["notes"]


def test_losses_beyond_the_rise_are_not_used() -> None:
    longer = curve(losses=np.concatenate([valley(), np.zeros(60)]), steps=np.arange(STEPS + 60.0))
    found = replay(longer, warmup_steps=STEPS).as_dict()
    assert found["switch_step"] == replay(curve()).as_dict()["switch_step"]
    assert any("60 losses beyond" in note for note in found["notes"])


def test_every_kind_of_file(tmp_path: Path) -> None:
    losses = valley()
    losses[3] = math.nan
    np.save(tmp_path / "a.npy", losses)
    np.savez(tmp_path / "b.npz", loss=losses, lr=rates(), step=np.arange(STEPS) + 7)
    np.savez(tmp_path / "c.npz", anything=losses)
    plain = [None if math.isnan(loss) else loss for loss in losses.tolist()]
    (tmp_path / "d.json").write_text(json.dumps(plain))
    rows = zip(range(STEPS), losses.tolist(), rates().tolist(), strict=True)
    lines = [f"{step},x,{loss!r},{lr!r}" for step, loss, lr in rows]
    (tmp_path / "e.csv").write_text("\n".join(["step, note, loss, lr", *lines]))
    (tmp_path / "f.tsv").write_text("\ufeffloss\n" + "\n".join(map(repr, losses.tolist())))
    for path in sorted(tmp_path.iterdir()):
        found = read_curve(path)
        np.testing.assert_array_equal(found.losses, losses)
        np.testing.assert_array_equal(found.steps, np.arange(STEPS))
        assert (found.rates is not None) == (path.name in ("b.npz", "e.csv"))


@pytest.mark.parametrize(
    ("name", "content", "phrase"),
    [
        ("x.csv", "a,b\n1,2\n", "loss: no such column; here are a, b"),
        ("x.csv", "loss\n1\nten\n", "loss: 'ten' in line 3 is not allowed"),
        ("x.csv", "loss\n", "a list of numbers is needed"),
        ("x.csv", "step,loss\n1,2\n1,3\n", "step: is not allowed; it must rise"),
        ("x.csv", "loss,lr\n1,\n", "lr: '' in line 2 is not allowed"),
        ("x.json", "[1, true]", "a list of numbers is needed"),
        ("x.json", "{", "cannot be read"),
        ("x.npy", "nothing", "cannot be read"),
        ("x.npz", "nothing", "cannot be read"),
        ("x.txt", "1\n", "losses: x.txt is not allowed; a file .csv, .tsv, .npy, .npz, .json is needed"),
        ("none.csv", None, "cannot be read (No such file"),
    ],
)
def test_files_that_are_no_curve(tmp_path: Path, name: str, content: str | None, phrase: str) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(CurveError) as caught:
        read_curve(tmp_path / name)
    assert phrase in str(caught.value)


def test_rates_that_are_no_rise() -> None:
    linear = np.linspace(1e-5, 1.0, STEPS)
    with pytest.raises(CurveError, match="lr: the recorded learning rate does not rise exponentially"):
        replay(curve(rates=linear))
    # Where the user knows better, the column is not asked.
    assert replay(curve(rates=linear), min_lr=1e-5, max_lr=1.0).as_dict()["max_lr"] == 1.0


@pytest.mark.parametrize(
    ("settings", "phrase"),
    [
        ({"min_lr": 2.0}, "min_lr: 2 is not allowed; it must be below max_lr"),
        ({"warmup_steps": 0}, "warmup_steps: 0 is not allowed"),
        ({"warmup_steps": -3}, "warmup_steps: -3 is not allowed"),
        ({"steps_per_epoch": 0}, "steps_per_epoch: 0 is not allowed"),
        ({"rule": "paper"}, "steps_per_epoch"),
    ],
)
def test_settings_that_are_refused(settings: dict[str, Any], phrase: str) -> None:
    with pytest.raises(CurveError) as caught:
        replay(curve(), **settings)
    assert phrase in str(caught.value)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "losses.npy", valley())
    plot = tmp_path / "why.png"
    assert main(["replay", str(tmp_path / "losses.npy"), "--plot", str(plot)]) == 0
    text = capsys.readouterr().out
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert main(["replay", str(tmp_path / "losses.npy"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    lines = text.splitlines()
    assert lines[0].startswith("passed: the loss has passed its minimum")
    assert lines[1].startswith(f"warmup ends: after step {found['switch_step']} of at most {STEPS}; ")
    table = lines[lines.index("") + 1 :]
    assert table[0].split()[:3] == ["step", "lr", "strength"]
    assert len(table) == 1 + len(found["receipts"])
    assert table[-1].split()[0] == str(found["switch_step"])
    assert table[-1].split()[-1] == "passed"
    assert main(["replay", str(tmp_path / "losses.npy"), "--plot", str(tmp_path / "why.nope")]) == 2
    assert "plot: " in capsys.readouterr().err
