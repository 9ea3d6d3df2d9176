"""What a task is: data, model and loss, under one name.

A task is one object. The packaged ones are built by name (``autolr_ray.tasks.get_task``); a user's
own is found by ``"package.module:attribute"`` and is an instance of :class:`Task`.
"""

from __future__ import annotations

from collections.abc import Callable, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True, kw_only=True)
class TensorData(Sized):
    """Examples that are all in memory: whole batches are taken by index, no loader in between.

    Attributes:
        inputs: ``[n, ...]``, any dtype; one row an example.
        targets: ``[n]`` (or ``[n, ...]``), what the loss takes.
    """

    inputs: Tensor
    targets: Tensor

    def __post_init__(self) -> None:
        if len(self.inputs) != len(self.targets):
            raise ValueError(
                f"targets: {len(self.targets)} rows for {len(self.inputs)} inputs; "
                "one target for each input is needed"
            )

    def __len__(self) -> int:
        return len(self.inputs)

    def take(self, index: Tensor) -> Batch:
        """The examples at ``index`` ([batch] int64, on the data's device), in its order."""
        return self.inputs[index], self.targets[index]

    def to(self, device: torch.device | str) -> TensorData:
        """The same examples on ``device``."""
        return TensorData(inputs=self.inputs.to(device), targets=self.targets.to(device))


Examples = TensorData | Dataset[Any]


@dataclass(frozen=True, kw_only=True)
class Splits:
    """A data set in the protocol's three parts: fit on train, choose on validation, report test.

    Each part is a :class:`TensorData` or a map-style ``Dataset`` of ``(input, target)`` pairs.
    """

    train: Examples
    validation: Examples
    test: Examples


def argmax_correct(outputs: Tensor, targets: Tensor) -> Tensor:
    """1.0 where the highest of ``outputs`` [batch, classes] is the target [batch], else 0.0."""
    return (outputs.argmax(dim=1) == targets).to(torch.float32)


def unchanged(inputs: Tensor) -> Tensor:
    """The identity: no preprocessing."""
    return inputs


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is trained: data, model, loss and the score that arms are compared by.

    Attributes:
        name: what the report calls it.
        data: ``data(data_dir)`` gives the three parts; ``data_dir`` is the study's, or None.
        model: ``model()`` gives a new network; the caller seeds torch first.
        loss: ``loss(outputs, targets)`` -> mean loss over the batch, a 0-d tensor.
        correct: ``correct(outputs, targets)`` -> score of each example, [batch], higher is better;
            its mean is what tables call accuracy.
        transform: applied to every batch of inputs on the device (bytes to normalised floats, say).
        augment: ``augment(inputs, generator)``, applied to training batches before ``transform``; all
            its randomness comes from the generator, which is on the inputs' device. None: none.
    """

    name: str
    data: Callable[[Path | None], Splits]
    model: Callable[[], nn.Module]
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy
    correct: Callable[[Tensor, Tensor], Tensor] = argmax_correct
    transform: Callable[[Tensor], Tensor] = unchanged
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None


def hold_out(n: int, fraction: float = 0.1, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Indices of train and validation examples, [n_train] and [n_validation], sorted, disjoint.

    The split depends on ``n``, ``fraction`` and ``seed`` alone, so that every arm and every restart
    sees the same one.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction: {fraction} is not allowed; it must lie between 0 and 1")
    held = round(n * fraction)
    if held < 1 or held >= n:
        raise ValueError(f"n: {n} examples are too few to hold out a fraction of {fraction}")
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    return order[held:].sort().values, order[:held].sort().values
