"""MNIST-1D for ``quality.py``: a data set that nothing was chosen on.

Greydanus and Kobak 2020, arXiv 2011.14439: ten classes of noisy, shifted and stretched signals of 40 points,
made on the spot by the authors' package with its own settings: 3,600 to train on, 400 to validate, 1,000 to
test. Each name is a task, ``mnist1d_<network>``; the networks are small ones for signals, with and without
BatchNorm.
"""

from __future__ import annotations

import functools
import random
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from autolr_ray.tasks import Splits, Task, TensorData
from autolr_ray.tasks.datasets import in_memory

_POINTS, _CLASSES, _WIDTH = 40, 10, 32


@functools.cache
def splits(data_dir: Path | None) -> Splits:
    """The three parts, inputs ``[n, 1, 40]`` float32; ``data_dir`` is not read.

    Raises:
        ModuleNotFoundError: mnist1d is not installed (``pip install mnist1d``).
    """
    from mnist1d.data import get_dataset_args, make_dataset

    kept = random.getstate(), np.random.get_state()  # noqa: NPY002  # it seeds both
    try:
        made = make_dataset(get_dataset_args())
    finally:
        random.setstate(kept[0])
        np.random.set_state(kept[1])  # noqa: NPY002
    return in_memory(_part(made["x"], made["y"]), _part(made["x_test"], made["y_test"]))


def _part(signals: np.ndarray, classes: np.ndarray) -> TensorData:
    inputs: Tensor = torch.from_numpy(signals.astype(np.float32))[:, None]
    return TensorData(inputs=inputs, targets=torch.from_numpy(classes.astype(np.int64)))


def mlp() -> nn.Module:
    """Two hidden layers of 128."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(_POINTS, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(),
        nn.Linear(128, _CLASSES),
    )  # fmt: skip


def cnn(batch_norm: bool = False) -> nn.Module:
    """Three strided convolutions of 32 channels, then a linear layer."""
    layers: list[nn.Module] = []
    for channels, size in ((1, 5), (_WIDTH, 3), (_WIDTH, 3)):
        layers.append(nn.Conv1d(channels, _WIDTH, size, stride=2, padding=1, bias=not batch_norm))
        layers += [nn.BatchNorm1d(_WIDTH)] if batch_norm else []
        layers.append(nn.ReLU())
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(_WIDTH * 5, _CLASSES))


mnist1d_mlp = Task(name="mnist1d, mlp", data=splits, model=mlp)
mnist1d_cnn = Task(name="mnist1d, cnn", data=splits, model=cnn)
mnist1d_cnn_bn = Task(name="mnist1d, cnn_bn", data=splits, model=functools.partial(cnn, batch_norm=True))
