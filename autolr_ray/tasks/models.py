"""The packaged models by name, each built for the data it will see.

``small`` images, of 64 pixels or less, keep their resolution at the stem: the stems made for 224 pixels
would leave a 32-pixel image one pixel wide half-way through the network.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from autolr_ray.tasks.wide_resnet import wide_resnet

_SMALL = 64


def build_model(name: str, *, classes: int, channels: int, image_size: int) -> nn.Module:
    """A new network ``[n, channels, image_size, image_size]`` -> ``[n, classes]``, never pretrained.

    Args:
        name: one of :data:`MODELS`.
        classes: number of outputs.
        channels: channels of an image.
        image_size: height and width in pixels.

    Raises:
        ValueError: the name is unknown.
    """
    check_model(name)
    return _BUILDERS[name](classes, channels, image_size)


def check_model(name: str) -> None:
    """Raise ValueError unless ``name`` is one of :data:`MODELS`."""
    if name not in _BUILDERS:
        raise ValueError(f"model: {name!r} is not allowed; expected one of {', '.join(MODELS)}")


def _cnn(classes: int, channels: int, image_size: int, *, batch_norm: bool) -> nn.Module:
    """Two strided convolutions and two linear layers: an epoch of 10,800 images in a second on one core."""
    side = -(-image_size // 4)
    layers: list[nn.Module] = []
    for inputs, outputs, kernel in ((channels, 16, 5), (16, 32, 3)):
        layers.append(nn.Conv2d(inputs, outputs, kernel, stride=2, padding=kernel // 2, bias=not batch_norm))
        if batch_norm:
            layers.append(nn.BatchNorm2d(outputs))
        layers.append(nn.ReLU())
    if image_size > _SMALL:
        # The first linear layer would otherwise grow with the square of the image.
        side = 8
        layers.append(nn.AdaptiveAvgPool2d(side))
    layers += [nn.Flatten(), nn.Linear(32 * side * side, 128), nn.ReLU(), nn.Linear(128, classes)]
    return nn.Sequential(*layers)


def _mlp(classes: int, channels: int, image_size: int) -> nn.Module:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(channels * image_size * image_size, 256),
        nn.ReLU(),
        nn.Linear(256, 256),
        nn.ReLU(),
        nn.Linear(256, classes),
    )


def _resnet(classes: int, channels: int, image_size: int, *, name: str) -> nn.Module:
    from torchvision import models

    network: Any = getattr(models, name)(weights=None, num_classes=classes)
    if image_size <= _SMALL:
        network.conv1 = _stem(channels, 64, kernel=3, stride=1)
        network.maxpool = nn.Identity()
    elif channels != 3:
        network.conv1 = _stem(channels, 64, kernel=7, stride=2)
    return _module(network)


def _efficientnet_b0(classes: int, channels: int, image_size: int) -> nn.Module:
    from torchvision import models

    network: Any = models.efficientnet_b0(weights=None, num_classes=classes)
    if image_size <= _SMALL or channels != 3:
        stride = 1 if image_size <= _SMALL else 2
        network.features[0][0] = _stem(channels, 32, kernel=3, stride=stride)
    return _module(network)


def _wide_resnet28_10(classes: int, channels: int, image_size: int) -> nn.Module:
    return wide_resnet(classes=classes, channels=channels)


def _vit_small(classes: int, channels: int, image_size: int) -> nn.Module:
    import timm

    return _module(
        timm.create_model(
            "vit_small_patch16_224",
            pretrained=False,
            img_size=image_size,
            patch_size=4 if image_size <= _SMALL else 16,
            in_chans=channels,
            num_classes=classes,
        )
    )


def _stem(channels: int, outputs: int, *, kernel: int, stride: int) -> nn.Conv2d:
    """A first convolution, with the initial weights that torchvision gives its own."""
    conv = nn.Conv2d(channels, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


def _module(network: Any) -> nn.Module:
    """The type which the libraries' own stubs do not give."""
    assert isinstance(network, nn.Module)
    return network


_BUILDERS: dict[str, Callable[[int, int, int], nn.Module]] = {
    "cnn": partial(_cnn, batch_norm=False),
    "cnn_bn": partial(_cnn, batch_norm=True),
    "mlp": _mlp,
    "resnet18": partial(_resnet, name="resnet18"),
    "resnet50": partial(_resnet, name="resnet50"),
    "wide_resnet28_10": _wide_resnet28_10,
    "efficientnet_b0": _efficientnet_b0,
    "vit_small": _vit_small,
}

# Losses other than cross entropy, by model: label smoothing belongs to how EfficientNet is trained.
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "efficientnet_b0": partial(functional.cross_entropy, label_smoothing=0.1)
}

MODELS = tuple(_BUILDERS)
"""Names of the packaged models."""
