"""ImageNet as folders of JPEG files: ``data_dir/train/CLASS/*`` and ``data_dir/val/CLASS/*``.

Any set of images in that layout with at most 1,000 classes can be read. Images leave the loader as bytes
``[3, 224, 224]``; they are normalised on the device.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sized
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from autolr_ray.tasks.task import Splits, hold_out

CLASSES = 1_000
CROP = 224
RESIZE = 256
_EXPECTED = (
    "imagenet needs a folder that holds train/CLASS/* and val/CLASS/*, image files in a folder a class"
)

Sample = tuple[str, int]


class ImageFiles(Dataset[tuple[Tensor, int]], Sized):
    """Image files that are read and transformed when they are asked for.

    Args:
        samples: (path, class) of each image.
        transform: a PIL image in RGB -> a tensor.
    """

    def __init__(self, samples: list[Sample], transform: Callable[[Any], Tensor]) -> None:
        self.samples = samples
        self.transform = transform

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        from torchvision.datasets.folder import default_loader

        path, target = self.samples[index]
        return self.transform(default_loader(path)), target


def check_image_folder(data_dir: Path | None) -> None:
    """Look at the folders, not at the images.

    Raises:
        ValueError: a folder is missing or empty, train and val have other classes, or there are too many.
    """
    if data_dir is None:
        raise ValueError(f"data_dir: None is not allowed; {_EXPECTED}")
    classes: dict[str, set[str]] = {}
    for part in ("train", "val"):
        folder = data_dir / part
        if not folder.is_dir():
            raise ValueError(
                f"data_dir: {str(data_dir)!r} is not allowed; it has no folder {part}/; {_EXPECTED}"
            )
        with os.scandir(folder) as entries:
            classes[part] = {entry.name for entry in entries if entry.is_dir()}
    if not 1 <= len(classes["train"]) <= CLASSES:
        raise ValueError(
            f"data_dir: {str(data_dir)!r} is not allowed; train/ has {len(classes['train'])} class folders, "
            f"and 1 to {CLASSES} are needed; {_EXPECTED}"
        )
    if classes["train"] != classes["val"]:
        other = sorted(classes["train"] ^ classes["val"])
        raise ValueError(
            f"data_dir: {str(data_dir)!r} is not allowed; {len(other)} class folders are in only one of "
            f"train/ and val/ (the first is {other[0]!r}); {_EXPECTED}"
        )


def load_image_folder(data_dir: Path | None) -> Splits:
    """Train with random crops and mirrors; validation, held out of train, and test (val/) without.

    Random crops draw from torch's global generator, which a ``DataLoader`` seeds in each worker.

    Raises:
        ValueError: as :func:`check_image_folder`, or a class has no image.
    """
    check_image_folder(data_dir)
    assert data_dir is not None
    from torchvision.transforms import v2

    random = v2.Compose([v2.RandomResizedCrop(CROP), v2.RandomHorizontalFlip(), v2.PILToTensor()])
    fixed = v2.Compose([v2.Resize(RESIZE), v2.CenterCrop(CROP), v2.PILToTensor()])
    samples = _samples(data_dir, "train")
    train, validation = hold_out(len(samples))
    return Splits(
        train=ImageFiles([samples[i] for i in train.tolist()], random),
        validation=ImageFiles([samples[i] for i in validation.tolist()], fixed),
        test=ImageFiles(_samples(data_dir, "val"), fixed),
    )


def _samples(data_dir: Path, part: str) -> list[Sample]:
    from torchvision.datasets import ImageFolder

    try:
        samples: list[Sample] = ImageFolder(str(data_dir / part)).samples
    except FileNotFoundError as error:
        raise ValueError(
            f"data_dir: {str(data_dir)!r} is not allowed; {part}/: {error}; {_EXPECTED}"
        ) from error
    return samples
