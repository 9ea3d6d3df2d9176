"""What ``quality.py`` trains besides the packaged models, small enough for one core.

Each name is a task, ``<data set>_<network>``: a ResNet-18 an eighth as wide, and a vision transformer of
three blocks.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn

from autolr_ray.tasks import Task, get_task


def narrow_resnet18(channels: int, image_size: int) -> nn.Module:
    """ResNet-18 with 8 to 64 channels instead of 64 to 512, timm's, its stem made for small images."""
    from timm.models.resnet import BasicBlock, ResNet

    network: Any = ResNet(
        BasicBlock, [2, 2, 2, 2], num_classes=10, in_chans=channels, channels=(8, 16, 32, 64)
    )
    small = image_size <= 16
    network.conv1 = nn.Conv2d(channels, 64, kernel_size=3, stride=1 if small else 2, padding=1, bias=False)
    if small:
        network.maxpool = nn.Identity()
    assert isinstance(network, nn.Module)
    return network


def small_vit(channels: int, image_size: int) -> nn.Module:
    """A vision transformer of width 48 with 3 blocks of 3 heads, timm's; 16 patches an image."""
    from timm.models.vision_transformer import VisionTransformer

    network: Any = VisionTransformer(
        img_size=image_size, patch_size=image_size // 4, in_chans=channels, num_classes=10,
        embed_dim=48, depth=3, num_heads=3,
    )  # fmt: skip
    assert isinstance(network, nn.Module)
    return network


def _with(data_set: str, image_size: int, network: Any) -> Task:
    model = partial(network, channels=1, image_size=image_size)
    return replace(get_task(data_set, "cnn"), name=f"{data_set}, {network.__name__}", model=model)


fashion_resnet18 = _with("fashion_mnist_subset", 28, narrow_resnet18)
fashion_vit = _with("fashion_mnist_subset", 28, small_vit)
digits_resnet18 = _with("digits", 8, narrow_resnet18)
digits_vit = _with("digits", 8, small_vit)
