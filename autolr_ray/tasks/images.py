"""Image batches on the device: normalise, crop and flip, lighting. No loop over images.

Augmentation is given bytes and gives values in byte units (0 to 255), so that it can stand in front of
:class:`Normalise` or be left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Normalise:
    """Bytes ``[n, c, h, w]`` to float32, ``(bytes / 255 - mean) / std`` in each channel.

    Attributes:
        mean: one number a channel, of images in [0, 1].
        std: the same.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, inputs: Tensor) -> Tensor:
        """The batch, normalised, on the same device."""
        mean = _per_channel(self.mean, inputs.device)
        std = _per_channel(self.std, inputs.device)
        return (inputs.to(torch.float32) / 255 - mean) / std


@dataclass(frozen=True)
class CropAndFlip:
    """Pad every side with black, crop a random window of the old size, mirror half of the images.

    Attributes:
        padding: pixels added on each side, and the farthest an image is moved.
    """

    padding: int = 4

    def __call__(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        """The batch ``[n, c, h, w]`` in its dtype, each image with its own window and mirror."""
        n, channels, height, width = inputs.shape
        device = inputs.device

        def draw(high: int) -> Tensor:
            return torch.randint(high, (n, 1), generator=generator, device=device)

        rows = draw(2 * self.padding + 1) + torch.arange(height, device=device)
        columns = draw(2 * self.padding + 1) + torch.arange(width, device=device)
        columns = torch.where(draw(2) == 1, columns.flip(1), columns)
        image = torch.arange(n, device=device)[:, None, None, None]
        channel = torch.arange(channels, device=device)[None, :, None, None]
        padded = F.pad(inputs, (self.padding,) * 4)
        return padded[image, channel, rows[:, None, :, None], columns[:, None, None, :]]


# Principal components of ImageNet's RGB values in [0, 1] (Krizhevsky et al. 2012, section 4.1; the
# figures are those which the usual ResNet-50 recipes share): variances, then one vector a column.
_EIGENVALUES = (0.2175, 0.0188, 0.0045)
_EIGENVECTORS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))


@dataclass(frozen=True)
class PCALighting:
    """Shift each image's colour by a random amount along ImageNet's principal colours.

    Attributes:
        std: standard deviation of the amounts; 0.1 in the usual recipes.
    """

    std: float = 0.1

    def __call__(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        """The batch ``[n, 3, h, w]`` as float32 in byte units."""
        amounts = torch.randn(len(inputs), 3, generator=generator, device=inputs.device)
        scaled = self.std * amounts * _on_device(_EIGENVALUES, inputs.device)
        basis = torch.stack([_on_device(row, inputs.device) for row in _EIGENVECTORS])
        return inputs.to(torch.float32) + 255 * (scaled @ basis.T)[:, :, None, None]


def _per_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    return _on_device(values, device)[:, None, None]


@lru_cache(maxsize=64)
def _on_device(values: tuple[float, ...], device: torch.device) -> Tensor:
    """``values`` on ``device``, kept: a new copy for each batch would make a GPU wait for the host."""
    # An evaluation may come first, and a tensor made in its inference mode could not be trained with.
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=torch.float32, device=device)
