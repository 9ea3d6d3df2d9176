"""Made-up but plausible runs of a study: one automatic arm, one grid arm, one rival. Seeded."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np

from autolr_ray.train.record import EpochRow, Posterior, ReceiptRow, RunRecord, Trace

PEAKS = (0.003, 0.01, 0.03, 0.1, 0.3)
WARMUPS = (0.05, 0.2)
VERSIONS = {"autolr_ray": "0.1.0", "python": "3.11.7", "ray": "2.60.0", "torch": "2.6.0"}


def study(
    batch_sizes: Sequence[int] = (128, 512, 2048),
    seeds: Sequence[int] = (0, 1, 2),
    peaks: Sequence[float] = PEAKS,
    warmups: Sequence[float] = WARMUPS,
    rival: bool = True,
    gain: float = -0.002,
) -> list[RunRecord]:
    """A finished study. ``gain`` is the automatic arm's true accuracy minus the best of the grid."""
    records = []
    for batch_size in batch_sizes:
        for seed in seeds:
            auto_lr = _best_lr(batch_size) * float(np.exp(0.15 * _rng("lr", batch_size, seed).normal()))
            records.append(run("auto_warmup", "", batch_size, seed, auto_lr, 0.18, gain=gain))
            records.extend(
                run("linear_warmup", f"lr={lr:g} warmup={warmup:g}", batch_size, seed, lr, warmup)
                for lr in peaks
                for warmup in warmups
            )
            if rival:
                records.append(run("adamw_fixed", "", batch_size, seed, 0.02, 0.05, gain=-0.01))
    return records


def run(
    arm: str,
    point: str,
    batch_size: int,
    seed: int,
    peak_lr: float,
    warmup: float,
    *,
    gain: float = 0.0,
    steps: int = 400,
    **changes: object,
) -> RunRecord:
    """One run whose accuracy falls with the distance of its peak LR from the batch size's best."""
    automatic = arm.startswith("auto")
    rng, shared = _rng(arm, point, batch_size, seed), _rng("shared", batch_size, seed)
    switch = max(1, int(warmup * steps) + (int(rng.integers(-8, 9)) if automatic else 0))
    back = switch - 12 if automatic and switch > 20 else -1
    step = np.arange(0, steps, 2)
    rise = np.minimum(1.0, (step + 1) / switch)
    decay = np.where(step < switch, 1.0, 0.5 * (1 + np.cos(np.pi * (step - switch) / (steps - switch))))
    top = 1.6 if automatic else 1.0
    lr = np.where(step < switch, 1e-4 * (top * peak_lr / 1e-4) ** rise, peak_lr * decay)
    off = abs(math.log(peak_lr / _best_lr(batch_size)))
    loss = 0.25 + 2.05 * np.exp(-step / (60 + 25 * off)) + 0.05 * rng.normal(size=step.size)
    if automatic:  # too high a learning rate shows just before the switch
        loss += np.where((step > switch - 14) & (step < switch), 0.05 * (step - switch + 14), 0.0)
    if off > 3.0 and peak_lr > _best_lr(batch_size):
        loss[step > 80] = np.nan
    quality = 0.885 - 0.012 * math.log2(batch_size / 128) - 0.02 * off**1.7 + gain
    quality = max(0.1, quality + 0.004 * float(shared.normal()) + 0.002 * float(rng.normal()))
    epochs, seconds = 4, 20.0 + batch_size / 500 + float(rng.normal())
    grid = np.linspace(0, switch, 40)
    mean = 0.25 + 2.05 * np.exp(-grid / (60 + 25 * off)) + np.maximum(0.0, 0.05 * (grid - switch + 14))
    settings = f"{arm}|{point}|{batch_size}|{seed}|{peak_lr}"
    values: dict[str, object] = {
        "cell": hashlib.sha256(settings.encode()).hexdigest()[:16],
        "study": "synthetic",
        "arm": arm,
        "point": point,
        "batch_size": batch_size,
        "seed": seed,
        "task": "fashion_mnist_subset",
        "model": "small_cnn",
        "optimizer": "sgd",
        "schedule": arm,
        "workers": 2,
        "device": "cpu",
        "epochs": epochs,
        "total_steps": steps,
        "peak_lr": peak_lr,
        "warmup_fraction": warmup,
        "switch_step": switch,
        "verdict": "switch" if automatic else "end of warmup",
        "rolled_back_to": back,
        "train_loss": float(loss[-1]),
        "validation_accuracy": quality + 0.002,
        "test_accuracy": quality,
        "device_seconds": seconds,
        "startup_seconds": 1.2,
        "restarts": 0,
        "finished_at": f"2026-01-02T03:{seed % 60:02d}:00+00:00",
        "versions": dict(VERSIONS),
        "epoch_rows": [
            EpochRow(
                epoch=e + 1,
                step=(e + 1) * steps // epochs,
                lr=float(np.interp((e + 1) * steps / epochs, step, lr)),
                train_loss=float(loss[min(loss.size - 1, (e + 1) * steps // epochs // 2)]),
                validation_accuracy=quality * (1 - 0.3 / (e + 1) ** 2),
                seconds=seconds * (e + 1) / epochs,
            )
            for e in range(epochs)
        ],
        "trace": Trace(step=step.tolist(), lr=lr.tolist(), loss=loss.tolist()),
        "receipts": [_receipt(switch, back, peak_lr)] if automatic else [],
        "posterior": Posterior(
            step=grid.tolist(), mean=mean.tolist(), sd=(0.02 + 0.02 * grid / switch).tolist()
        )
        if automatic
        else Posterior(step=[], mean=[], sd=[]),
    }
    return RunRecord.model_validate({**values, **changes})


def swept(batch_size: int, seed: int, **changes: object) -> RunRecord:
    """An automatic run as it is by default: a short sweep, back to its start, then a linear warmup."""
    whole = run("auto_warmup", "", batch_size, seed, _best_lr(batch_size), 0.18)
    sweep = whole.switch_step // 4
    step = np.array(whole.trace.step)
    lr = np.where(
        step < sweep, 1e-4 * (5 * whole.peak_lr / 1e-4) ** (step / sweep),
        np.minimum(1.0, (step - sweep + 1) / (whole.switch_step - sweep)) * np.array(whole.trace.lr),
    )  # fmt: skip
    (turn,) = whole.receipts
    found = {"verdict": "swept", "reason": "the sweep has shown at which learning rates the loss falls"}
    receipts = [
        turn.model_copy(update={**found, "step": sweep, "rolled_back_to": 1, "strength": math.nan}),
        turn.model_copy(update={"verdict": "reached", "reason": "the warmup has reached the scale"}),
    ]
    trace = whole.trace.model_copy(update={"lr": lr.tolist()})
    update = {"receipts": receipts, "trace": trace, "rolled_back_to": 1, "verdict": "reached", **changes}
    return changed(whole, **update)


def changed(record: RunRecord, **changes: object) -> RunRecord:
    """A copy with some fields replaced; a new cell unless one is given."""
    text = record.cell + repr(sorted(changes.items()))
    fresh = {"cell": hashlib.sha256(text.encode()).hexdigest()[:16]}
    return record.model_copy(update={**fresh, **changes})


def _receipt(switch: int, back: int, lr: float) -> ReceiptRow:
    return ReceiptRow(
        step=switch,
        lr=1.6 * lr,
        verdict="switch",
        reason="the loss minimum lies behind with probability 0.97 in 3 tests running",
        strength=1.02,
        probability=0.97,
        positives=3,
        argmin_step=back if back >= 0 else switch,
        argmin_lr=lr,
    )


def _best_lr(batch_size: int) -> float:
    return 0.02 * math.sqrt(batch_size / 128)


def _rng(*key: object) -> np.random.Generator:
    return np.random.default_rng(int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8], "big"))
