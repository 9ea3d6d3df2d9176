"""Weights as they were near the loss minimum, and putting them back.

Steps beyond the minimum ran at learning rates that were too high; the weights they left behind need
not recover. Snapshots hold the model's parameters and buffers and the optimizer's state.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import nn
from torch.optim import Optimizer

from autolr_ray.schedule.packed import Packed, pack

PLACES = ("host", "device")
CAPACITY = 5
_NOT_STATE = ("params", "lr", "initial_lr")


class HasState(Protocol):
    """What can be snapshot besides model and optimizer: a gradient scaler, say."""

    def state_dict(self) -> dict[str, Any]:
        """Its state."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any:
        """Put a state back."""


class SnapshotStore:
    """At most five snapshots, spread over the steps at which the loss may have been lowest.

    The estimate of the minimum moves as losses come in, back as well as forward along a flat bottom. Kept
    are the newest, the one nearest the minimum, the last one before the earliest step that may be the
    minimum, and of those between as many as there is room for, evenly; older ones go.

    Args:
        model: whose ``state_dict`` tensors are kept.
        optimizer: whose per-parameter state and group values (except ``lr``) are kept.
        scaler: whose ``state_dict`` is kept; None: none.
        place: "host": tensors on a GPU are copied to pinned memory without waiting for the copy;
            "device": they are cloned where they are.
    """

    def __init__(
        self, model: nn.Module, optimizer: Optimizer, *, scaler: HasState | None = None, place: str = "host"
    ) -> None:
        self._model = _bare(model)
        self._optimizer = optimizer
        self._scaler = scaler
        self._on_host = place == "host"
        self._snapshots: dict[int, Packed] = {}

    @property
    def steps(self) -> list[int]:
        """The optimizer steps that have a snapshot, ascending."""
        return sorted(self._snapshots)

    def take(self, step: int, argmin_step: float, earliest_step: float | None = None) -> None:
        """Keep the present state as that after ``step`` optimizer steps, drop what is not needed.

        Args:
            step: later than any before.
            argmin_step: where the loss is lowest, as far as is known now.
            earliest_step: the first step that may be as low, <= ``argmin_step``; default: the same.
        """
        earliest = argmin_step if earliest_step is None else min(earliest_step, argmin_step)
        before = [s for s in self.steps if s <= earliest]
        kept = [*before[-1:], *(s for s in self.steps if s > earliest), step]
        nearest = min(kept, key=lambda s: (abs(s - argmin_step), s))
        while len(kept) > CAPACITY:
            # The one whose neighbours are closest to each other is missed least.
            spans = {s: kept[i + 2] - kept[i] for i, s in enumerate(kept[1:-1]) if s != nearest}
            kept.remove(min(spans, key=lambda s: (spans[s], s)))
        self._snapshots = {s: snapshot for s, snapshot in self._snapshots.items() if s in kept}
        self._snapshots[step] = self._pack(self._present())

    def restore(self, argmin_step: float, *, optimizer: dict[str, Any] | None = None) -> int | None:
        """Put back the snapshot nearest ``argmin_step`` in place; its step, or None without one.

        Args:
            argmin_step: where the loss is lowest.
            optimizer: the state that the optimizer gets instead, from :meth:`optimizer_state`.
        """
        if not self._snapshots:
            return None
        step = min(self.steps, key=lambda s: (abs(s - argmin_step), s))
        self._put_back(self._snapshots[step].nested() | (optimizer or {}))
        return step

    def weights(self, step: int) -> dict[str, torch.Tensor]:
        """Parameters and buffers of the snapshot after ``step``, named as in :meth:`present`."""
        kept: dict[str, torch.Tensor] = self._snapshots[step].nested()["model"]
        return kept

    def present(self) -> dict[str, torch.Tensor]:
        """The model's parameters and buffers now, themselves."""
        return _tensors(self._model)

    def clear(self) -> None:
        """Free the memory."""
        self._snapshots = {}

    @property
    def nbytes(self) -> int:
        """Memory that the snapshots take."""
        return sum(snapshot.nbytes for snapshot in self._snapshots.values())

    def optimizer_state(self) -> dict[str, Any]:
        """A copy of the optimizer's per-parameter state and group values, for :meth:`restore`."""
        copied: dict[str, Any] = self._pack(self._optimizer_now()).nested()
        return copied

    def _pack(self, state: dict[str, Any]) -> Packed:
        return pack(state, on_host=self._on_host, wait=False)

    def _present(self) -> dict[str, Any]:
        """All that a snapshot is of, itself."""
        return {
            "model": _tensors(self._model),
            **self._optimizer_now(),
            "scaler": self._scaler.state_dict() if self._scaler is not None else None,
        }

    def _optimizer_now(self) -> dict[str, Any]:
        return {
            "optimizer": [
                dict(self._optimizer.state.get(parameter, {}))
                for group in self._optimizer.param_groups
                for parameter in group["params"]
            ],
            "groups": [
                {key: value for key, value in group.items() if key not in _NOT_STATE}
                for group in self._optimizer.param_groups
            ],
        }

    @torch.no_grad()
    def _put_back(self, snapshot: dict[str, Any]) -> None:
        # In place: DDP buckets, fused optimizers and CUDA graphs hold on to these very tensors.
        for name, tensor in _tensors(self._model).items():
            tensor.copy_(snapshot["model"][name])
        states = iter(snapshot["optimizer"])
        for group, kept in zip(self._optimizer.param_groups, snapshot["groups"], strict=True):
            _drop_new(group, {*kept, *_NOT_STATE})
            _update(group, kept)
            for parameter in group["params"]:
                state = self._optimizer.state[parameter]
                kept_state = next(states)
                _drop_new(state, set(kept_state))
                _update(state, kept_state, like=parameter)
        if self._scaler is not None and snapshot["scaler"] is not None:
            self._scaler.load_state_dict(snapshot["scaler"])

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers and tensors; as large as the snapshots."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # copies may still be under way
        return {"snapshots": {step: snapshot.state_dict() for step, snapshot in self._snapshots.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state``; ValueError, and nothing changed, where it is of another model."""
        present = {name: tensor.shape for name, tensor in _tensors(self._model).items()}
        snapshots = {int(step): self._loaded(snapshot) for step, snapshot in state["snapshots"].items()}
        for snapshot in snapshots.values():
            kept = {name: tensor.shape for name, tensor in snapshot.nested()["model"].items()}
            if kept != present:
                other = sorted(name for name in kept | present if kept.get(name) != present.get(name))
                raise ValueError(
                    f"state_dict: its snapshots are of another model; {len(other)} tensors differ, "
                    f"the first is {other[0]!r}"
                )
        self._snapshots = snapshots

    def _loaded(self, state: dict[str, Any]) -> Packed:
        """States from before snapshots were packed have the nested tensors themselves."""
        return Packed.of(state) if Packed.is_state(state) else self._pack(state)


def _bare(model: nn.Module) -> nn.Module:
    """The user's own module under PyTorch's wrappers: with the same names on any number of workers."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def _tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """The model's parameters and buffers, those that a checkpoint leaves out included."""
    return dict(model.named_parameters()) | {f"buffer:{name}": b for name, b in model.named_buffers()}


def _drop_new(target: dict[str, Any], known: set[str]) -> None:
    """What the optimizer added after the snapshot, at its first step, goes again."""
    for key in [key for key in target if key not in known]:
        del target[key]


def _update(target: dict[str, Any], kept: dict[str, Any], like: torch.Tensor | None = None) -> None:
    for key, value in kept.items():
        present = target.get(key)
        if isinstance(value, torch.Tensor) and isinstance(present, torch.Tensor):
            present.copy_(value)
        else:
            target[key] = _own(value, like)


def _own(value: Any, like: torch.Tensor | None) -> Any:
    """A copy that the optimizer may change, tensors where it keeps them."""
    if isinstance(value, torch.Tensor):
        # 0-d counters stay on the host, as torch's optimizers keep them.
        device = torch.device("cpu") if like is None or value.dim() == 0 else like.device
        return value.to(device, copy=True)
    if isinstance(value, dict):
        return {key: _own(item, like) for key, item in value.items()}
    return [_own(item, like) for item in value] if isinstance(value, list) else value
