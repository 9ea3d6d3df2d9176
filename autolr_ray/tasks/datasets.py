"""The packaged data sets by name: how to find them, read them and prepare their batches.

Nothing here downloads. Files that are missing are an error that names the command which fetches them
(``python -m autolr_ray.tasks.download``), so that the workers of a sweep cannot race for one download.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from autolr_ray.tasks import image_folder
from autolr_ray.tasks.idx import read_idx
from autolr_ray.tasks.images import CropAndFlip, Normalise, PCALighting
from autolr_ray.tasks.task import Splits, TensorData, hold_out

_SUBSET = Path(__file__).parent / "data" / "fashion_mnist_subset"

IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
_CIFAR_FILES = {
    "cifar10": [
        f"cifar-10-batches-py/{name}"
        for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta")
    ],
    "cifar100": [f"cifar-100-python/{name}" for name in ("train", "test", "meta")],
}


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """A named data set and what a model needs to know of it.

    Attributes:
        load: ``load(data_dir)`` -> the three parts.
        check: ``check(data_dir)`` -> None, or a ValueError about ``data_dir``; opens no image.
        classes: number of classes, the model's outputs.
        channels: channels of an image.
        image_size: height and width in pixels.
        default_model: the model where none is named.
        transform: as in :class:`~autolr_ray.tasks.task.Task`.
        augment: as in :class:`~autolr_ray.tasks.task.Task`.
    """

    load: Callable[[Path | None], Splits]
    check: Callable[[Path | None], None]
    classes: int
    channels: int
    image_size: int
    default_model: str
    transform: Callable[[Tensor], Tensor]
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None


def in_memory(train: TensorData, test: TensorData) -> Splits:
    """The three parts of a small data set, with a tenth of ``train`` held out for validation."""
    kept, held = _parted(train, 0.1)
    return Splits(train=kept, validation=held, test=test)


def _parted(whole: TensorData, fraction: float) -> tuple[TensorData, TensorData]:
    """What :func:`hold_out` keeps, and what it holds out."""
    (kept_inputs, kept_targets), (held_inputs, held_targets) = map(whole.take, hold_out(len(whole), fraction))
    return (
        TensorData(inputs=kept_inputs, targets=kept_targets),
        TensorData(inputs=held_inputs, targets=held_targets),
    )


def check_subset(data_dir: Path | None) -> None:
    """The subset is part of the package: any ``data_dir`` will do, and none is read."""


def load_subset(data_dir: Path | None) -> Splits:
    """The packaged 10,800 + 1,200 + 2,000 images ``[n, 1, 28, 28]``; ``data_dir`` is not read."""
    return _load_idx(_SUBSET)


def check_fashion_mnist(data_dir: Path | None) -> None:
    """Raise ValueError unless the four IDX files, gzipped or not, are in ``data_dir``.

    They may lie in ``data_dir`` itself or in ``data_dir/FashionMNIST/raw``, where torchvision puts them.
    """
    _find_idx(data_dir)


def load_fashion_mnist(data_dir: Path | None) -> Splits:
    """54,000 + 6,000 + 10,000 images ``[n, 1, 28, 28]``.

    Raises:
        ValueError: files are missing, or are no images of 28x28 with a label each.
    """
    folder = _find_idx(data_dir)
    try:
        return _load_idx(folder)
    except ValueError as error:
        raise ValueError(f"data_dir: {str(data_dir)!r} is not allowed; {error}") from error


def check_cifar(name: str, data_dir: Path | None) -> None:
    """Raise ValueError unless ``data_dir`` holds the files of ``name`` in torchvision's layout."""
    if data_dir is None or not all((data_dir / file).is_file() for file in _CIFAR_FILES[name]):
        raise _missing(name, data_dir, ", ".join(_CIFAR_FILES[name]))


def load_cifar(name: str, data_dir: Path | None) -> Splits:
    """45,000 + 5,000 + 10,000 images ``[n, 3, 32, 32]``.

    Raises:
        ValueError: files are missing, or are not the published ones.
    """
    check_cifar(name, data_dir)
    from torchvision import datasets

    reader = datasets.CIFAR10 if name == "cifar10" else datasets.CIFAR100
    parts = []
    for train in (True, False):
        try:
            part = reader(root=str(data_dir), train=train, download=False)
        except RuntimeError as error:
            raise ValueError(
                f"data_dir: {str(data_dir)!r} is not allowed; its {name} files are damaged ({error}); delete "
                f"them, then: {_fetch(name)}"
            ) from error
        images = torch.from_numpy(np.ascontiguousarray(part.data.transpose(0, 3, 1, 2)))
        parts.append(TensorData(inputs=images, targets=torch.tensor(part.targets, dtype=torch.int64)))
    return in_memory(*parts)


def check_digits(data_dir: Path | None) -> None:
    """Raise ValueError unless scikit-learn, which carries the images, is installed."""
    if importlib.util.find_spec("sklearn") is None:
        raise ValueError(
            "task: 'digits' is not allowed without scikit-learn, which carries its images; "
            "pip install scikit-learn"
        )


def load_digits(data_dir: Path | None) -> Splits:
    """scikit-learn's 1,797 handwritten digits as 1,294 + 144 + 359 images ``[n, 1, 8, 8]``.

    ``data_dir`` is not read. Pixels of 0 to 16 become bytes of 0 to 240.

    Raises:
        ValueError: scikit-learn is not installed.
    """
    check_digits(data_dir)
    from sklearn import datasets

    found = datasets.load_digits()
    images = torch.from_numpy((found.images * 15).astype(np.uint8)[:, None])
    whole = TensorData(inputs=images, targets=torch.from_numpy(found.target.astype(np.int64)))
    return in_memory(*_parted(whole, 0.2))


def _load_idx(folder: Path) -> Splits:
    train_images, train_labels, test_images, test_labels = (_read_idx_in(folder, name) for name in IDX_FILES)
    for images in (train_images, test_images):
        if images.shape[1:] != (28, 28):
            raise ValueError(f"{folder}: holds images of shape {list(images.shape)}, expected [n, 28, 28]")
    return in_memory(
        TensorData(inputs=train_images[:, None], targets=train_labels.to(torch.int64)),
        TensorData(inputs=test_images[:, None], targets=test_labels.to(torch.int64)),
    )


def _read_idx_in(folder: Path, name: str) -> Tensor:
    packed = folder / f"{name}.gz"
    return torch.from_numpy(read_idx(packed if packed.is_file() else folder / name))


def _find_idx(data_dir: Path | None) -> Path:
    """The folder in or under ``data_dir`` that holds all four files."""
    if data_dir is not None:
        for folder in (data_dir, data_dir / "FashionMNIST" / "raw"):
            if all((folder / name).is_file() or (folder / f"{name}.gz").is_file() for name in IDX_FILES):
                return folder
    files = ", ".join(f"{name}.gz" for name in IDX_FILES)
    raise _missing("fashion_mnist", data_dir, f"{files}, directly or under FashionMNIST/raw")


def _missing(name: str, data_dir: Path | None, expected: str) -> ValueError:
    value = None if data_dir is None else str(data_dir)
    return ValueError(
        f"data_dir: {value!r} is not allowed; {name} needs a folder that holds {expected}; to fetch them: "
        f"{_fetch(name)}"
    )


def _fetch(name: str) -> str:
    return f"python -m autolr_ray.tasks.download {name} --data-dir DIR"


# Means and standard deviations of the published training images in [0, 1], as commonly rounded.
_FASHION = Normalise(mean=(0.2860,), std=(0.3530,))
_DIGITS = Normalise(mean=(0.2877,), std=(0.3537,))  # of the 1,294 training images
_CIFAR10 = Normalise(mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))
_CIFAR100 = Normalise(mean=(0.5071, 0.4865, 0.4409), std=(0.2673, 0.2564, 0.2762))
_IMAGENET = Normalise(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))

DATA_SETS = {
    "fashion_mnist_subset": DataSet(
        load=load_subset,
        check=check_subset,
        classes=10,
        channels=1,
        image_size=28,
        default_model="cnn",
        transform=_FASHION,
    ),
    "digits": DataSet(
        load=load_digits,
        check=check_digits,
        classes=10,
        channels=1,
        image_size=8,
        default_model="cnn",
        transform=_DIGITS,
    ),
    "fashion_mnist": DataSet(
        load=load_fashion_mnist,
        check=check_fashion_mnist,
        classes=10,
        channels=1,
        image_size=28,
        default_model="cnn",
        transform=_FASHION,
    ),
    "cifar10": DataSet(
        load=partial(load_cifar, "cifar10"),
        check=partial(check_cifar, "cifar10"),
        classes=10,
        channels=3,
        image_size=32,
        default_model="resnet18",
        transform=_CIFAR10,
        augment=CropAndFlip(),
    ),
    "cifar100": DataSet(
        load=partial(load_cifar, "cifar100"),
        check=partial(check_cifar, "cifar100"),
        classes=100,
        channels=3,
        image_size=32,
        default_model="resnet18",
        transform=_CIFAR100,
        augment=CropAndFlip(),
    ),
    "imagenet": DataSet(
        load=image_folder.load_image_folder,
        check=image_folder.check_image_folder,
        classes=image_folder.CLASSES,
        channels=3,
        image_size=image_folder.CROP,
        default_model="resnet50",
        transform=_IMAGENET,
        augment=PCALighting(),
    ),
}

TASKS = tuple(DATA_SETS)
"""Names of the packaged data sets."""
