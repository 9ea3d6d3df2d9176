"""The wide residual network of Zagoruyko and Komodakis (2016), in its form for 32-pixel images.

Three groups of pre-activation blocks at full, half and quarter resolution, ``16 * widen`` channels in the
first and twice as many in each that follows; no dropout.
"""

from __future__ import annotations

from torch import Tensor, nn


class WideBlock(nn.Module):
    """BatchNorm, ReLU and a 3x3 convolution, twice, added to the input.

    Where the block changes the channels or the resolution, the sum takes a 1x1 convolution of the
    activated input instead of the input.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.activate = nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU())
        self.residual = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
        )
        self.project = (
            nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)
            if inputs != outputs or stride != 1
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """``[n, inputs, h, w]`` -> ``[n, outputs, h / stride, w / stride]``."""
        active: Tensor = self.activate(x)
        change: Tensor = self.residual(active)
        return change + (x if self.project is None else self.project(active))


def wide_resnet(*, classes: int, channels: int, depth: int = 28, widen: int = 10) -> nn.Sequential:
    """A WRN-``depth``-``widen`` for images of any size, ``[n, channels, h, w]`` -> ``[n, classes]``.

    Raises:
        ValueError: ``depth`` is not 6 k + 4 for a whole k >= 1.
    """
    blocks, rest = divmod(depth - 4, 6)
    if rest or blocks < 1:
        raise ValueError(f"depth: {depth} is not allowed; it must be 6 k + 4 for a whole k >= 1")
    width = 16
    layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, padding=1, bias=False)]
    for group in range(3):
        outputs = 16 * widen * 2**group
        for block in range(blocks):
            layers.append(WideBlock(width, outputs, stride=2 if group and not block else 1))
            width = outputs
    layers += [
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, classes),
    ]
    network = nn.Sequential(*layers)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network
