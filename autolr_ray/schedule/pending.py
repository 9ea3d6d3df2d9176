"""Losses that wait for the next look, on the device they came on, and their mean over the ranks."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from autolr_ray.schedule.base import Loss
from autolr_ray.schedule.smoother import Array


class PendingLosses:
    """A queue of losses that never waits for the device.

    Losses on the host are kept as numbers; losses on a device are copied into a buffer there, which
    costs one asynchronous copy and no synchronisation.
    """

    def __init__(self) -> None:
        self._host: list[float] = []
        self._device: torch.Tensor | None = None
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, loss: Loss, capacity: int) -> None:
        """Queue one loss; TypeError or ValueError, and nothing queued, unless it is one number.

        ``capacity``: the most losses that the queue will hold before it is drained.
        """
        if isinstance(loss, torch.Tensor):
            if loss.numel() != 1:
                raise ValueError(
                    f"loss: a tensor of shape {tuple(loss.shape)} is not allowed; one element is needed"
                )
            if loss.is_cpu and self._device is None:
                self._host.append(loss.item())
            else:
                self._add_on_device(loss.detach(), capacity)
        elif isinstance(loss, (float, int, np.floating)) and not isinstance(loss, bool):
            if self._device is None:
                self._host.append(float(loss))
            else:
                self._device[self._count].fill_(float(loss))
        else:
            raise TypeError(f"loss: {loss!r} is not allowed; a float or a 0-d tensor is needed")
        self._count += 1

    def _add_on_device(self, loss: torch.Tensor, capacity: int) -> None:
        if self._device is None:
            self._device = torch.empty(capacity, dtype=torch.float32, device=loss.device)
            if self._host:
                self._device[: self._count].copy_(torch.tensor(self._host))
                self._host = []
        self._device[self._count].copy_(loss.reshape(()), non_blocking=True)

    def tensor(self) -> torch.Tensor:
        """The queued losses [k] float64, where they are."""
        if self._device is not None:
            return self._device[: self._count].to(torch.float64)
        return torch.tensor(self._host, dtype=torch.float64)

    def drain(self, *, distributed: bool) -> Array:
        """The queued losses [k] on the host, averaged over the ranks; the queue is empty after it."""
        losses = self.tensor()
        if distributed:
            losses = losses.to(collective_device())
            dist.all_reduce(losses)
            losses = losses / dist.get_world_size()
        self.fill([])
        return np.asarray(losses.cpu().numpy(), dtype=np.float64)

    def fill(self, losses: list[float]) -> None:
        """Replace the queue."""
        self._host, self._device, self._count = list(losses), None, len(losses)


def is_distributed(wanted: bool | None) -> bool:
    """Whether decisions are shared between processes; ``wanted`` None: when there are several."""
    several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    if wanted and not several:
        raise RuntimeError("distributed: True is not allowed before torch.distributed has several processes")
    return several and wanted is not False


def collective_device() -> torch.device:
    """Where the default process group wants its tensors."""
    if dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def from_rank_zero(vector: torch.Tensor) -> Any:
    """What rank 0 has in ``vector`` (same shape everywhere), on the host of every rank."""
    shared = vector.to(collective_device())
    dist.broadcast(shared, src=0)
    return shared.cpu()
