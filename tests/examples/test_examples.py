"""Every example runs as a user would run it, on a few images; what it prints and saves is checked.

Plain processes and runs on Ray go side by side, because most of their time is spent waiting or importing.
"""

import os
import re
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import ray
import ray.train
import torch

EXAMPLES = Path(__file__).parents[2] / "experiments" / "examples"
EPOCHS, IMAGES = 5, 424
# 53 optimizer steps an epoch: the warmup ends at step 57 to 59, whether the sweep took 5 steps or 8, or as
# many times 13 steps later as the learning rate went on rising, and losses are watched for 132.
STEPS, WATCHED = 53, 132
LENGTH = f"--epochs {EPOCHS} --limit {IMAGES} --batch-size"
PASSED = re.compile(r"switch at step (\d+), peak lr ([\d.e-]+): (the (?:loss|warmup) .+)")
EPOCH = re.compile(r"epoch (\d+): (?:loss [\d.]+, )?lr ([\d.e-]+), (warmup|decay)")


def run_example(name: str, options: str, **environment: str) -> str:
    """What the example prints; an error with its last lines if it fails."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *options.split()],
        env=os.environ | environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


class Resumed:
    """A run and the same run taken up again, in a new process, after its first epoch."""

    def __init__(self, folder: Path, name: str, options: str, first: str) -> None:
        self.whole, self.again = folder / "whole", folder / "again"
        self.printed = run_example(name, f"{options} --checkpoints {self.whole}")
        self.printed_again = run_example(
            name, f"{options} --checkpoints {self.again} --resume {self.whole / first}"
        )


class OnRay:
    """A run on the Ray of these tests."""

    def __init__(self, folder: Path, address: str, name: str, options: str) -> None:
        self.printed = run_example(
            name, f"{options} --storage {folder}", RAY_ADDRESS=address, RAY_AUTH_MODE="token"
        )
        # Of the checkpoints only those that Ray Train lists: a copy that a crash cut short lies there too.
        (run,) = (entry for entry in folder.iterdir() if entry.is_dir())
        listed = ray.train.Result.from_path(str(run)).best_checkpoints or []
        files = [Path(checkpoint.path) / "state.pt" for checkpoint, _ in listed]
        states = [torch.load(file, weights_only=True) for file in files if file.exists()]
        self.states = {state["epochs_done"]: state for state in states}


@pytest.fixture(scope="module")
def runs(ray_tmp, tmp_path_factory):
    """Every run by name, as a future: two lanes, so that two cores are busy and Ray's are never short."""
    folder = tmp_path_factory.mktemp("examples")
    futures: dict[str, Future] = {}
    lanes = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
    for name, *arguments in (
        ("plain", "plain_pytorch.py", f"{LENGTH} 8", "epoch-1.pt"),
        ("lightning", "lightning_ray.py", f"--plain {LENGTH} 4 --accumulate 2", "epoch=0.ckpt"),
        ("accelerate", "accelerate_example.py", f"{LENGTH} 4 --accumulate 2", "epoch-1"),
    ):
        futures[name] = lanes[0].submit(Resumed, folder / name, *arguments)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")  # a controller that polls often
        ray.init(
            address="local", num_cpus=2, include_dashboard=False, object_store_memory=100_000_000,
            _temp_dir=str(ray_tmp), log_to_driver=False, logging_level="WARNING",
        )  # fmt: skip
        address = ray.get_runtime_context().gcs_address
        for name, *arguments in (
            ("ray_train", "ray_train.py", f"{LENGTH} 8 --workers 2 --crash-after 2"),
            ("lightning_ray", "lightning_ray.py", f"{LENGTH} 4 --accumulate 2"),
        ):
            futures[name] = lanes[1].submit(OnRay, folder / name, address, *arguments)
        try:
            yield futures
        finally:
            for lane in lanes:
                lane.shutdown(cancel_futures=True)
            ray.shutdown()


def epochs(printed: str) -> dict[int, tuple[float, str]]:
    """Learning rate and phase at the end of each epoch, from the lines printed."""
    return {int(number): (float(lr), phase) for number, lr, phase in EPOCH.findall(printed)}


def turn(sweep: int, rises: int) -> tuple[int, float]:
    """If the sweep took so many steps and the learning rate went on rising so many times: the step of the
    peak, and the learning rate after the first epoch as a share of it.
    """
    warmup = int(0.2 * (EPOCHS * STEPS - sweep))
    return sweep + warmup + 13 * rises, (STEPS - sweep + 1) / (warmup + 1) / 1.5**rises


def assert_turned_and_ended(printed: str) -> None:
    """A linear warmup first; its end, with the reason, in the first half; zero at the end, exactly."""
    rows = epochs(printed)
    assert sorted(rows) == [*range(1, EPOCHS + 1)]
    assert rows[1][1] == "warmup"
    assert rows[EPOCHS] == (0.0, "decay")
    (switch,) = set(PASSED.findall(printed))
    assert STEPS < int(switch[0]) <= WATCHED
    assert 1e-5 < float(switch[1]) < 1.0
    if "has reached" in switch[2]:
        share = rows[1][0] / float(switch[1])
        turns = [turn(sweep, rises) for sweep in range(5, 9) for rises in range(5)]
        assert any((int(switch[0]), share) == (step, pytest.approx(known, rel=1e-4)) for step, known in turns)


def assert_equal(left: Any, right: Any) -> None:
    """Nested states are equal bit for bit; NaN equals NaN."""
    assert type(left) is type(right)
    if isinstance(left, torch.Tensor):
        torch.testing.assert_close(left, right, rtol=0, atol=0, equal_nan=True)
    elif isinstance(left, dict):
        assert_equal(list(left), list(right))
        assert_equal(list(left.values()), list(right.values()))
    elif isinstance(left, (list, tuple)):
        assert len(left) == len(right)
        for one, other in zip(left, right, strict=True):
            assert_equal(one, other)
    else:
        assert left == right


def assert_in_warmup(state: dict) -> None:
    """What makes resuming hard is there: no switch yet, losses that may wait, snapshots to go back to."""
    ((start, *_),) = state["legs"]
    assert (state["last_epoch"], state["peak_lr"], len(state["pending"])) == (
        STEPS,
        None,
        (STEPS - start) % 2,
    )
    assert state["snapshots"]["snapshots"]


@pytest.mark.parametrize("name", ["plain", "accelerate", "lightning"])
def test_learning_rate_turns_and_ends_at_zero(name, runs):
    run = runs[name].result()
    assert_turned_and_ended(run.printed)
    lines = EPOCH.findall(run.printed)
    assert EPOCH.findall(run.printed_again) == lines[1:]
    assert PASSED.findall(run.printed_again) == PASSED.findall(run.printed)


def test_plain_resumes_bit_for_bit(runs):
    run = runs["plain"].result()
    assert_in_warmup(torch.load(run.whole / "epoch-1.pt", weights_only=True)["scheduler"])
    whole, again = (torch.load(at / f"epoch-{EPOCHS}.pt", weights_only=True) for at in (run.whole, run.again))
    assert [group["lr"] for group in whole["optimizer"]["param_groups"]] == [0.0]
    assert_equal(again, whole)


def test_accelerate_resumes_bit_for_bit(runs):
    run = runs["accelerate"].result()
    assert_in_warmup(torch.load(run.whole / "epoch-1" / "custom_checkpoint_0.pkl", weights_only=True))
    for file in ("custom_checkpoint_0.pkl", "optimizer.bin"):
        whole, again = (
            torch.load(at / f"epoch-{EPOCHS}" / file, weights_only=True) for at in (run.whole, run.again)
        )
        assert_equal(again, whole)
    weights = [(at / f"epoch-{EPOCHS}" / "model.safetensors").read_bytes() for at in (run.whole, run.again)]
    assert weights[0] == weights[1]


def test_lightning_resumes_bit_for_bit(runs):
    run = runs["lightning"].result()
    assert_in_warmup(torch.load(run.whole / "epoch=0.ckpt", weights_only=True)["lr_schedulers"][0])
    whole, again = (
        torch.load(at / f"epoch={EPOCHS - 1}.ckpt", weights_only=True) for at in (run.whole, run.again)
    )
    assert whole["global_step"] == again["global_step"] == EPOCHS * STEPS
    for part in ("state_dict", "optimizer_states", "lr_schedulers"):
        assert_equal(again[part], whole[part])


def test_two_ray_workers_crash_and_go_on(runs):
    run = runs["ray_train"].result()
    assert_turned_and_ended(run.printed)
    assert sorted(run.states) == [*range(1, EPOCHS + 1)]
    states = [run.states[number] for number in range(1, EPOCHS + 1)]
    for number, state in enumerate(states, start=1):
        assert state["scheduler"]["last_epoch"] == number * STEPS
        # Names are those of the bare network, whatever the number of workers.
        assert "0.weight" in state["model"]
    # Nothing was forgotten: what was decided before the crash, and the optimizer's own count of steps, which
    # began anew after the sweep.
    for before, after in pairwise(states):
        decided, later = before["scheduler"]["receipts"], after["scheduler"]["receipts"]
        count = len(decided["verdicts"])
        assert_equal({name: values[:count] for name, values in later.items()}, decided)
    end = states[-1]["scheduler"]
    assert end["rolled_back_to"] == 1
    counts = {float(state["step"]) for state in states[-1]["optimizer"]["state"].values()}
    assert counts == {EPOCHS * STEPS - end["legs"][0][0]}


def test_two_ray_workers_save_the_losses_of_both(runs):
    run = runs["ray_train"].result()
    (own,) = set(re.findall(r"epoch 1: loss ([\d.]+)", run.printed))
    state = run.states[1]["scheduler"]
    assert_in_warmup(state)
    losses = [*state["trace"]["kept"].tolist(), *state["pending"].tolist()]
    assert len(losses) == STEPS
    assert f"{losses[-1]:.4f}" != own


def test_lightning_on_ray_does_what_it_does_alone(runs):
    run, alone = runs["lightning_ray"].result(), runs["lightning"].result()
    assert_turned_and_ended(run.printed)
    assert epochs(run.printed) == epochs(alone.printed)
    (switch,) = set(PASSED.findall(alone.printed))
    assert set(PASSED.findall(run.printed)) == {switch}
    assert f"reported last: switch_step {switch[0]}, lr 0\n" in run.printed
