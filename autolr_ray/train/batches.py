"""Which examples each optimizer step sees: a function of seed, epoch and step alone.

The global batch of a step is the same whatever the number of workers and micro-batches: the epoch's
permutation is cut into batches, each batch into workers' shares, each share into micro-batches.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from autolr_ray.tasks.task import Batch, Examples, TensorData
from autolr_ray.train.spec import RunSpec

# Tells seeds of examples from seeds of steps.
_EXAMPLES = 0x5EED


def derive_seed(*parts: int) -> int:
    """One 63-bit seed from several small numbers, well mixed and the same on every machine."""
    mixed = 0x9E3779B97F4A7C15
    for part in parts:
        mixed = ((mixed ^ (part + 0x632BE59BD9B4E019)) * 0xBF58476D1CE4E5B9) % 2**64
        mixed ^= mixed >> 31
    return mixed >> 1


class TrainBatches:
    """Training batches of one worker.

    A global batch is ``spec.workers * spec.accumulation_steps`` micro-batches, which the workers that run
    share as evenly as they can: with fewer workers than ``spec.workers`` some take more micro-batches each,
    and the global batch stays what it is.

    Args:
        examples: the training part; a ``TensorData`` lives on ``device`` for the whole run.
        spec: batch size, micro-batches, seed.
        rank: which worker.
        device: where batches are wanted.
        world_size: workers that run; default: ``spec.workers``.

    Raises:
        ValueError: fewer examples than one batch, or more workers than micro-batches.
    """

    def __init__(
        self,
        examples: Examples,
        spec: RunSpec,
        rank: int,
        device: torch.device,
        *,
        world_size: int | None = None,
        accumulation_steps: int | None = None,
    ) -> None:
        self._size = len(examples)  # type: ignore[arg-type]
        if self._size < spec.batch_size:
            raise ValueError(
                f"batch_size: {spec.batch_size} is not allowed; the training part has {self._size} examples"
            )
        world_size = spec.workers if world_size is None else world_size
        if accumulation_steps is None:
            accumulation_steps = 1 if spec.accumulation_steps == "auto" else spec.accumulation_steps
        self.micro_batches = spec.workers * accumulation_steps
        """Micro-batches that make up a global batch, all workers' together."""
        if world_size > self.micro_batches:
            raise ValueError(
                f"workers: {world_size} run, but a batch has {self.micro_batches} micro-batches "
                f"({spec.workers} workers x {accumulation_steps} accumulation_steps): one each at least"
            )
        self._examples = examples.to(device) if isinstance(examples, TensorData) else examples
        self._spec, self._device = spec, device
        self._micro_batch_size = spec.batch_size // self.micro_batches
        self.steps_per_epoch = self._size // spec.batch_size
        mine = torch.arange(self.micro_batches).tensor_split(world_size)[rank]
        self._first, self._last = int(mine[0]), int(mine[-1]) + 1
        self._loader: _EpochLoader | None = None

    def indices(self, epoch: int) -> Tensor:
        """This worker's examples of ``epoch``: [steps, its micro-batches, micro-batch size] int64."""
        generator = torch.Generator().manual_seed(derive_seed(self._spec.seed, epoch))
        order = torch.randperm(self._size, generator=generator)
        order = order[: self.steps_per_epoch * self._spec.batch_size]
        shape = (self.steps_per_epoch, self.micro_batches, self._micro_batch_size)
        return order.view(shape)[:, self._first : self._last]

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[list[Batch]]:
        """For each optimizer step of ``epoch``, from ``first_step``, its micro-batches, on the device."""
        indices = self.indices(epoch)[first_step:]
        if isinstance(self._examples, TensorData):
            for step in indices.to(self._device):
                yield [self._examples.take(index) for index in step]
            return
        if self._loader is None:
            self._loader = _EpochLoader(self._examples, self._spec, self._device)
        seed = derive_seed(self._spec.seed, epoch, _EXAMPLES)
        micro_batches = self._loader.batches(indices.flatten(0, 1).tolist(), seed)
        for _ in range(len(indices)):
            yield [_move(next(micro_batches), self._device) for _ in range(self._last - self._first)]


class _EpochLoader:
    """A loader whose processes live as long as the run; each epoch hands it other batches and a seed."""

    def __init__(self, examples: Dataset[Any], spec: RunSpec, device: torch.device) -> None:
        self._batches: list[list[tuple[int, int]]] = []
        self._loader = _loader(_Seeded(examples), self, spec, device, persistent=True)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return iter(self._batches)

    def __len__(self) -> int:
        return len(self._batches)

    def batches(self, batches: list[list[int]], seed: int) -> Iterator[Batch]:
        """The examples of ``batches``, their random draws from ``seed`` and their index."""
        self._batches = [[(seed, index) for index in batch] for batch in batches]
        return iter(self._loader)


class _Seeded(Dataset[Any]):
    """Examples whose random draws (torch's) depend on the epoch's seed and their index alone.

    Not on which process loads them, nor on what was drawn before: a resumed run sees the same crops.
    """

    def __init__(self, examples: Dataset[Any]) -> None:
        self._examples = examples

    def __getitem__(self, key: tuple[int, int]) -> Any:
        seed, index = key
        # As fork_rng and manual_seed do, without what they do for devices: this is called for each example.
        before = torch.get_rng_state()
        try:
            torch.default_generator.manual_seed(derive_seed(seed, index))
            return self._examples[index]
        finally:
            torch.set_rng_state(before)


def evaluation_batches(
    examples: Examples,
    spec: RunSpec,
    rank: int,
    device: torch.device,
    size: int = 512,
    *,
    world_size: int | None = None,
) -> Iterator[Batch]:
    """This worker's share of ``examples``, each example on exactly one worker, in batches of ``size``."""
    mine = torch.arange(len(examples))[rank :: world_size or spec.workers]  # type: ignore[arg-type]
    if not len(mine):
        return
    chunks = torch.split(mine, size)
    if isinstance(examples, TensorData):
        for index in chunks:
            inputs, targets = examples.take(index)
            yield _move((inputs, targets), device)
        return
    for batch in _loader(examples, [index.tolist() for index in chunks], spec, device):
        yield _move(batch, device)


def _loader(
    examples: Examples,
    batches: Iterable[list[Any]],
    spec: RunSpec,
    device: torch.device,
    *,
    persistent: bool = False,
) -> DataLoader[Batch]:
    return DataLoader(
        examples,  # type: ignore[arg-type]
        batch_sampler=batches,
        num_workers=spec.loader_workers,
        pin_memory=device.type == "cuda",
        persistent_workers=persistent and spec.loader_workers > 0,
    )


def _move(batch: Batch, device: torch.device) -> Batch:
    inputs, targets = batch
    return inputs.to(device, non_blocking=True), targets.to(device, non_blocking=True)
