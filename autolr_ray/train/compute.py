"""How a step is computed: number format, memory format, compilation. What is computed is the loop's."""

from __future__ import annotations

import contextlib
from typing import Any, Literal

import torch
from torch import Tensor, nn

from autolr_ray.train.config import Config

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class Compute(Config):
    """Choices that change speed and rounding, not the algorithm.

    Attributes:
        precision: "bfloat16" and "float16" run the network under autocast, its weights in float32; "float16"
            with a gradient scaler, whose skipped steps count as steps.
        channels_last: weights and images in the memory order that convolutions like on GPUs.
        compile: the network through ``torch.compile``; the first step waits for it.
        sync_batch_norm: BatchNorm over all workers' shares instead of each one's own. GPUs only.
    """

    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    channels_last: bool = False
    compile: bool = False
    sync_batch_norm: bool = False

    def prepare(self, network: nn.Module, device: torch.device) -> nn.Module:
        """The network in the formats asked for, on ``device``; before the optimizer is made.

        Raises:
            ValueError: ``sync_batch_norm`` without a GPU.
        """
        if self.sync_batch_norm:
            if device.type != "cuda":
                raise ValueError(
                    f"compute.sync_batch_norm: True is not allowed on {device.type}; torch has it for GPUs"
                )
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
        network = network.to(device)
        if self.channels_last:
            network = network.to(memory_format=torch.channels_last)
        return network

    def inputs(self, inputs: Tensor) -> Tensor:
        """A batch of inputs in the memory format of the weights."""
        if self.channels_last and inputs.dim() == 4:
            return inputs.contiguous(memory_format=torch.channels_last)
        return inputs

    def autocast(self, device: torch.device) -> contextlib.AbstractContextManager[Any]:
        """Around everything from the network's input to the loss."""
        if self.precision == "float32":
            return contextlib.nullcontext()
        return torch.autocast(device.type, dtype=_DTYPES[self.precision])

    def scaler(self, device: torch.device) -> torch.amp.GradScaler:
        """Does nothing unless the precision is float16, whose small gradients would vanish."""
        return torch.amp.GradScaler(device.type, enabled=self.precision == "float16")
