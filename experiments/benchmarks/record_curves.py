"""Record loss curves of whole warmups, without a switch, for ``replay.py``.

    python experiments/benchmarks/record_curves.py --out curves.npz --seeds 10 11

Each curve is the training loss of every step while the learning rate rises exponentially from 1e-5 to 1
over half of a run's optimizer steps, for every combination of model, optimizer, budget and seed asked
for. The file has, for each curve NAME, ``NAME/losses`` float32 [n], ``NAME/steps_per_epoch``,
``NAME/total_epochs`` and ``NAME/warmup_steps``. It is rewritten after each curve, and curves that it
already has are skipped: a run that was cut off goes on where it was.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import numpy as np
import torch

from autolr_ray.tasks import TensorData, get_task
from autolr_ray.train import RunSpec
from autolr_ray.train.batches import TrainBatches, derive_seed

BUDGETS = ("64x4", "128x12", "256x8", "1024x16", "1024x40", "4096x30")  # batch size x epochs


def record(
    task_name: str, model: str, optimizer: str, batch_size: int, epochs: int, seed: int
) -> dict[str, np.ndarray]:
    """One curve as the arrays of the file, by their names' last part."""
    spec = RunSpec.model_validate(
        {
            "task": task_name, "model": model, "batch_size": batch_size, "epochs": epochs, "seed": seed,
            "optimizer": {"name": optimizer},
        }
    )  # fmt: skip
    task = get_task(spec.task, spec.model)
    torch.manual_seed(seed)
    network = task.model()
    train = task.data(None).train
    assert isinstance(train, TensorData)
    batches = TrainBatches(train, spec, rank=0, device=torch.device("cpu"))
    chosen = spec.optimizer.build(network.parameters(), batches.steps_per_epoch * epochs)
    warmup_steps = int(batches.steps_per_epoch * epochs * 0.5)
    losses: list[float] = []
    for epoch in range(epochs):
        for ((inputs, targets),) in batches.epoch(epoch):
            if len(losses) == warmup_steps:
                break
            torch.manual_seed(derive_seed(seed, len(losses)))
            for group in chosen.param_groups:
                group["lr"] = 1e-5 * 1e5 ** (len(losses) / warmup_steps)
            chosen.zero_grad(set_to_none=True)
            loss = task.loss(network(task.transform(inputs)), targets)
            loss.backward()  # type: ignore[no-untyped-call]
            chosen.step()
            losses.append(loss.item())
    return {
        "losses": np.array(losses, dtype=np.float32),
        "steps_per_epoch": np.array(batches.steps_per_epoch),
        "total_epochs": np.array(epochs),
        "warmup_steps": np.array(warmup_steps),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="the .npz file to write or to continue")
    parser.add_argument("--task", default="fashion_mnist_subset", help="data set (default: %(default)s)")
    parser.add_argument("--models", nargs="+", default=["cnn", "cnn_bn", "mlp"])
    parser.add_argument("--optimizers", nargs="+", default=["adamw", "adamp", "lamb", "sgd_nesterov"])
    parser.add_argument(
        "--budgets",
        nargs="+",
        default=BUDGETS,
        metavar="BATCHxEPOCHS",
        type=str,
        help="(default: %(default)s)",
    )
    parser.add_argument("--seeds", nargs="+", type=int, required=True, help="fresh ones")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    curves = dict(np.load(arguments.out, allow_pickle=False)) if arguments.out.exists() else {}
    budgets = [tuple(map(int, budget.split("x"))) for budget in arguments.budgets]
    wanted = list(itertools.product(arguments.models, arguments.optimizers, budgets, arguments.seeds))
    for number, (model, optimizer, (batch_size, epochs), seed) in enumerate(wanted, start=1):
        name = f"{arguments.task}-{model}-{optimizer}-bs{batch_size}-E{epochs}-s{seed}"
        if f"{name}/losses" not in curves:
            found = record(arguments.task, model, optimizer, batch_size, epochs, seed)
            curves |= {f"{name}/{key}": value for key, value in found.items()}
            temporary = arguments.out.with_suffix(".tmp.npz")
            np.savez_compressed(temporary, **curves)
            temporary.replace(arguments.out)
        print(f"[{number}/{len(wanted)}] {name}", flush=True)


if __name__ == "__main__":
    main()
