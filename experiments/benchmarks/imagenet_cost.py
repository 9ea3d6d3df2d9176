"""What a comparison on ImageNet would cost, worked out from published figures: nothing was measured by us.

    python experiments/benchmarks/imagenet_cost.py --json > experiments/results/cluster/imagenet_cost.jsonl

ResNet-50 at the batch sizes and epochs of ``experiments/studies/imagenet_resnet50.yaml``: a linear warmup
over a grid of 10 points and one AutoWarmup run, for one seed and for three. No GPU of ours ran any of it.

    seconds of a run = epochs x (train images + evaluated images / 3) / (images/s of one GPU x GPUs)
    GPU-hours = runs x GPUs x seconds of a run / 3600           (so the number of GPUs cancels out)
    dollars = GPU-hours x price of a GPU-hour

A forward pass alone counts as a third of a training step. Of the 1,281,167 training images a tenth is held
out; every epoch evaluates on it, and the last one also on the 50,000 of the test part.

Not in the sum: starting machines, data that come slower than the GPUs eat them, exchanging gradients between
machines (the published speed is that of 8 GPUs in one machine), losing a spot machine, storage, the head.
Nor what a grid grows by at its edge where its best point lies there: up to ``extend`` times (3 where the
study says nothing), each at the price of a point. The study that is shipped has other arms than the sum: a
grid of 3 points, and the paper's rule beside the two arms here.
AutoWarmup's own share of a step and AdamP's are not in it either: the published speed is that of SGD.

Where the defaults are from:

- ``--images-per-second`` 16,621 / 8: NVIDIA's table of ResNet-50 v1.5 training with PyTorch, DALI and mixed
  precision on 8 A100 80 GB (DGX A100, container 21.03), in NVIDIA/DeepLearningExamples on GitHub,
  PyTorch/Classification/ConvNets/resnet50v1.5/README.md.
- ``--dollars-per-gpu-hour`` 27.44705 / 8: AWS's list price on demand of p4de.24xlarge, which has the same 8
  GPUs, in us-east-1, Linux, in the price list of AmazonEC2 published on 2026-03-04. Today's:
  https://aws.amazon.com/ec2/pricing/on-demand/
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import Any

TRAIN_IMAGES, TEST_IMAGES, HELD_OUT = 1_281_167, 50_000, 0.1
IMAGES_PER_SECOND, DOLLARS_PER_GPU_HOUR = 16_621 / 8, 27.44705 / 8
FORWARD_SHARE = 1 / 3


def gpu_hours_of_a_run(epochs: int, images_per_second: float) -> float:
    """One run, evaluations included; the same for every batch size.

    >>> round(gpu_hours_of_a_run(120, 2000.0), 2)
    19.93
    """
    held_out = round(TRAIN_IMAGES * HELD_OUT)
    trained = epochs * (TRAIN_IMAGES - held_out)
    evaluated = epochs * held_out + TEST_IMAGES
    return (trained + FORWARD_SHARE * evaluated) / images_per_second / 3600


def rows(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Each batch size with each number of seeds, then the sum over them (``batch_size`` None)."""
    one = gpu_hours_of_a_run(options.epochs, options.images_per_second)
    for seeds in options.seeds:
        parts = [(size, 1) for size in options.batch_sizes]
        for batch_size, batches in [*parts, (None, len(parts))]:
            runs = {"auto_warmup": seeds * batches, "linear_warmup": seeds * batches * options.grid}
            runs["comparison"] = sum(runs.values())
            yield {
                "name": "imagenet_cost", "measured": False, "model": "resnet50", "batch_size": batch_size,
                "epochs": options.epochs, "seeds": seeds, "grid": options.grid,
                "images_per_second": options.images_per_second,
                "dollars_per_gpu_hour": options.dollars_per_gpu_hour,
                "gpu_hours_of_a_run": one, "hours_of_a_run_on_8_gpus": one / 8,
                "runs": runs,
                "gpu_hours": {arm: count * one for arm, count in runs.items()},
                "dollars": {arm: count * one * options.dollars_per_gpu_hour for arm, count in runs.items()},
            }  # fmt: skip


def positive(kind: type[int] | type[float]) -> Any:
    """Return a converter for argparse that refuses zero and less."""

    def convert(text: str) -> float:
        value = kind(text)
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text} is not allowed; a number above 0 is needed")
        return value

    convert.__name__ = kind.__name__
    return convert


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--batch-sizes", type=positive(int), nargs="+", default=[4096, 16384])
    parser.add_argument("--epochs", type=positive(int), default=120, help="(default: %(default)s)")
    parser.add_argument("--grid", type=positive(int), default=10, help="points (default: %(default)s)")
    parser.add_argument("--seeds", type=positive(int), nargs="+", default=[1, 3], help="(default: 1 3)")
    parser.add_argument(
        "--images-per-second", type=positive(float), default=IMAGES_PER_SECOND,
        help="training speed of one GPU (default: %(default)s, an A100 80 GB)",
    )  # fmt: skip
    parser.add_argument(
        "--dollars-per-gpu-hour", type=positive(float), default=DOLLARS_PER_GPU_HOUR,
        help="(default: %(default)s, an eighth of p4de.24xlarge on demand)",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    for row in rows(options):
        if options.json:
            print(json.dumps(row))
            continue
        size = "all batch sizes" if row["batch_size"] is None else f"batch {row['batch_size']:,}"
        print(f"{size}, {row['seeds']} seed(s):")
        for arm, hours in row["gpu_hours"].items():
            runs, dollars = row["runs"][arm], row["dollars"][arm]
            print(f"  {arm:14s} {runs:3d} runs {hours:9,.0f} GPU-hours {dollars:9,.0f} USD")


if __name__ == "__main__":
    main()
