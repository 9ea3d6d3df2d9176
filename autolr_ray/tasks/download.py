"""Fetch a data set once, before any run: ``python -m autolr_ray.tasks.download cifar10 --data-dir DIR``.

The files come from where torchvision gets them, are checked against its MD5 sums and lie in its layout.
Files that are there already are left alone.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from autolr_ray.tasks.datasets import DATA_SETS

DOWNLOADABLE = ("fashion_mnist", "cifar10", "cifar100")


def download(name: str, data_dir: Path) -> None:
    """Put the files of ``name``, one of :data:`DOWNLOADABLE`, into ``data_dir``, which is made if absent.

    Raises:
        ValueError: the name is unknown, or the files are still not there afterwards.
        OSError: no network, or the folder cannot be written.
        RuntimeError: what came is not what was published.
    """
    if name not in DOWNLOADABLE:
        raise ValueError(f"name: {name!r} is not allowed; expected one of {', '.join(DOWNLOADABLE)}")
    check = DATA_SETS[name].check
    try:
        check(data_dir)
        return
    except ValueError:
        pass
    from torchvision import datasets

    readers: dict[str, Any] = {
        "fashion_mnist": datasets.FashionMNIST,
        "cifar10": datasets.CIFAR10,
        "cifar100": datasets.CIFAR100,
    }
    data_dir.mkdir(parents=True, exist_ok=True)
    readers[name](root=str(data_dir), download=True)
    check(data_dir)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; 0 if the files are there at the end, else 1."""
    parser = argparse.ArgumentParser(prog="python -m autolr_ray.tasks.download", description=__doc__)
    parser.add_argument("name", choices=DOWNLOADABLE)
    parser.add_argument("--data-dir", type=Path, required=True, help="the study's data_dir")
    parsed = parser.parse_args(arguments)
    try:
        download(parsed.name, parsed.data_dir)
    except (OSError, RuntimeError, ValueError) as error:
        print(f"{parsed.name} could not be fetched into {parsed.data_dir}: {error}", file=sys.stderr)
        return 1
    print(f"{parsed.name} is in {parsed.data_dir}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
