"""Which examples each optimizer step sees: a function of seed, epoch and step alone.

The global batch of a step is the same whatever the number of workers and micro-batches: the epoch's
permutation is cut into batches, each batch into workers' shares, each share into micro-batches.
"""

from __future__ import annotations

from collections.abc import Iterator
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

    Args:
        examples: the training part; a ``TensorData`` lives on ``device`` for the whole run.
        spec: batch size, workers, accumulation, seed.
        rank: which worker.
        device: where batches are wanted.

    Raises:
        ValueError: fewer examples than one batch.
    """

    def __init__(self, examples: Examples, spec: RunSpec, rank: int, device: torch.device) -> None:
        self._size = len(examples)  # type: ignore[arg-type]
        if self._size < spec.batch_size:
            raise ValueError(
                f"batch_size: {spec.batch_size} is not allowed; the training part has {self._size} examples"
            )
        self._examples = examples.to(device) if isinstance(examples, TensorData) else examples
        self._spec, self._rank, self._device = spec, rank, device
        self.steps_per_epoch = self._size // spec.batch_size

    def indices(self, epoch: int) -> Tensor:
        """This worker's examples of ``epoch``: [steps, accumulation_steps, micro_batch_size] int64."""
        spec = self._spec
        generator = torch.Generator().manual_seed(derive_seed(spec.seed, epoch))
        order = torch.randperm(self._size, generator=generator)[: self.steps_per_epoch * spec.batch_size]
        shape = (self.steps_per_epoch, spec.workers, spec.accumulation_steps, spec.micro_batch_size)
        return order.view(shape)[:, self._rank]

    def epoch(self, epoch: int) -> Iterator[list[Batch]]:
        """For each optimizer step of ``epoch`` its micro-batches, on the device."""
        indices = self.indices(epoch)
        if isinstance(self._examples, TensorData):
            for step in indices.to(self._device):
                yield [self._examples.take(index) for index in step]
            return
        seeded = _Seeded(self._examples, derive_seed(self._spec.seed, epoch, _EXAMPLES))
        loader = _loader(seeded, indices.flatten(0, 1).tolist(), self._spec, self._device)
        micro_batches = iter(loader)
        for _ in range(self.steps_per_epoch):
            yield [
                _move(next(micro_batches), self._device) for _ in range(self._spec.accumulation_steps)
            ]  # fmt: skip


class _Seeded(Dataset[Any]):
    """Examples whose random draws (torch's) depend on the epoch's seed and their index alone.

    Not on which process loads them, nor on what was drawn before: a resumed run sees the same crops.
    """

    def __init__(self, examples: Dataset[Any], seed: int) -> None:
        self._examples, self._seed = examples, seed

    def __getitem__(self, index: int) -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(self._seed, index))
            return self._examples[index]


def evaluation_batches(
    examples: Examples, spec: RunSpec, rank: int, device: torch.device, size: int = 512
) -> Iterator[Batch]:
    """This worker's share of ``examples``, each example on exactly one worker, in batches of ``size``."""
    mine = torch.arange(len(examples))[rank :: spec.workers]  # type: ignore[arg-type]
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
    examples: Examples, batches: list[list[int]], spec: RunSpec, device: torch.device
) -> DataLoader[Batch]:
    return DataLoader(
        examples,  # type: ignore[arg-type]
        batch_sampler=batches,
        num_workers=spec.loader_workers,
        pin_memory=device.type == "cuda",
    )


def _move(batch: Batch, device: torch.device) -> Batch:
    inputs, targets = batch
    return inputs.to(device, non_blocking=True), targets.to(device, non_blocking=True)
