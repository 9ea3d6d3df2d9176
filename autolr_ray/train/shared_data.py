"""A task's data, loaded once by the sweep and handed to every run that is a plain process.

What is all in memory anyway travels as arrays through Ray's object store, which a node's processes share.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from autolr_ray.tasks import Splits, TensorData, get_task
from autolr_ray.train.loop import preload
from autolr_ray.train.spec import RunSpec

# Of each part, inputs and targets.
SharedData = dict[str, tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]
_PARTS = ("train", "validation", "test")


def shared_splits(task: str, model: str | None, data_dir: Path | None) -> SharedData | None:
    """The task's three parts as arrays; None where they are not tensors in memory, or not to be had here.

    The sweep's own process may be on a machine without the data: then every run loads its own, as it does
    where the data are image folders.
    """
    try:
        splits = get_task(task, model).data(data_dir)
        parts = {name: getattr(splits, name) for name in _PARTS}
        if not all(isinstance(part, TensorData) for part in parts.values()):
            return None
        return {name: (part.inputs.numpy(), part.targets.numpy()) for name, part in parts.items()}
    except (OSError, ValueError, TypeError, RuntimeError):
        return None


def use_shared(spec: RunSpec, data: SharedData | None) -> None:
    """Let the next runs in this process that have ``spec``'s data take them from ``data``."""
    if data is None:
        return
    with warnings.catch_warnings():
        # The arrays cannot be written to; nothing here writes to examples.
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        parts = {
            name: TensorData(inputs=torch.from_numpy(inputs), targets=torch.from_numpy(targets))
            for name, (inputs, targets) in data.items()
        }
    preload(spec.task, spec.model, spec.data_dir, Splits(**parts))
