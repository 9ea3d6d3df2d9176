"""The LR range test of a rival arm: torch-lr-finder's, on the batches and the loss of the loop."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer

# Of the smoothed losses, the first are too few to trust, and the last are where it diverges: the package's.
_SKIP_START, _SKIP_END = 10, 5
# The test is over where the smoothed loss is this many times its least: the package's.
_DIVERGED = 5.0


def range_test(
    model: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    batches: Iterator[list[tuple[Tensor, Tensor]]],
    make_optimizer: Callable[[], Optimizer],
    min_lr: float,
    max_lr: float,
    steps: int,
    *,
    scaler: GradScaler,
    world_size: int,
) -> float:
    """The learning rate at which the smoothed loss falls most steeply; ``model`` is as it was before.

    Every rank calls it; the losses are averaged, so that all find the same.

    Args:
        model: the network in training mode, in its wrapper if it has one.
        loss: mean loss of a micro-batch ``(inputs, targets)``.
        batches: of each step, its micro-batches; at least ``steps`` of them.
        make_optimizer: makes the optimizer, used for the test alone.
        min_lr, max_lr: the range, exponentially covered.
        steps: optimizer steps of the test.
        scaler: a gradient scaler for the test alone.
        world_size: number of ranks.

    Raises:
        ValueError: the loss was not finite for long enough to tell.
    """
    from torch_lr_finder import LRFinder

    device = next(model.parameters()).device
    stream = _Stream(batches)
    # ``loss`` has its own autocast; the package's must not add one.
    mixed = {"amp_backend": "torch", "amp_config": {"device_type": device.type, "enabled": False}}
    finder = LRFinder(
        _Inputs(model), make_optimizer(), loss, device=device,
        **({**mixed, "grad_scaler": scaler} if scaler.is_enabled() else {}),
    )  # fmt: skip
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        finder.range_test(
            stream.loader(), start_lr=min_lr, end_lr=max_lr, num_iter=steps, accumulation_steps=stream.parts,
            # Ranks must stop at the same step: none stops early, the end is cut off below.
            diverge_th=float("inf"),
        )  # fmt: skip
        finder.reset()
    losses = torch.tensor(finder.history["loss"], dtype=torch.float64, device=device)
    if world_size > 1:
        dist.all_reduce(losses)
        losses /= world_size
    return steepest(np.array(finder.history["lr"], float), losses.cpu().numpy())


def steepest(rates: np.ndarray[Any, Any], losses: np.ndarray[Any, Any]) -> float:
    """The learning rate where the smoothed ``losses`` ([steps]) fall most steeply per step.

    >>> rates = np.logspace(-4, 0, 41)
    >>> steepest(rates, 2.0 - np.tanh(4 * (np.log10(rates) + 2.0)))
    0.01

    Raises:
        ValueError: too few finite losses before it diverges.
    """
    least = np.minimum.accumulate(np.where(np.isfinite(losses), losses, np.inf))
    over = np.flatnonzero(~np.isfinite(losses) | (losses > _DIVERGED * np.abs(least)))
    # The package drops the last ones because they are where it diverges; it looks at all before.
    end = (int(over[0]) if len(over) else len(losses)) - _SKIP_END
    if end - _SKIP_START < 2:
        raise ValueError(
            f"lr_range_test: the loss diverged after {end + _SKIP_END} of {len(losses)} steps, too soon to "
            f"tell; a lower min_lr than {rates[0]:g} is needed"
        )
    slopes = np.gradient(losses[_SKIP_START:end])
    return float(rates[_SKIP_START + int(slopes.argmin())])


class _Inputs(nn.Module):
    """The network for the package's eyes: its weights are saved and put back, the loss calls it itself."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs


class _Stream:
    """Micro-batches one by one, in the package's own iterator type."""

    def __init__(self, batches: Iterator[list[tuple[Tensor, Tensor]]]) -> None:
        self._batches = batches
        self._first = next(batches)
        self.parts = len(self._first)

    def _all(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield from self._first
        for micro_batches in self._batches:
            yield from micro_batches

    def loader(self) -> Any:
        """What ``range_test`` takes in place of a ``DataLoader``."""
        from torch_lr_finder import TrainDataLoaderIter

        class Iterating(TrainDataLoaderIter):  # type: ignore[misc]
            def __init__(self, examples: Iterator[tuple[Tensor, Tensor]]) -> None:
                self._examples = examples

            def __next__(self) -> tuple[Tensor, Tensor]:
                return next(self._examples)

        return Iterating(self._all())
