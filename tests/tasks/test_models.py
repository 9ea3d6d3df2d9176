"""Every model by name, on the images it is meant for."""

import copy

import pytest
import torch
from torch.nn import functional as F

from autolr_ray.tasks import MODELS
from autolr_ray.tasks.models import build_model
from autolr_ray.tasks.wide_resnet import wide_resnet


@pytest.mark.parametrize(("channels", "image_size"), [(1, 28), (3, 32)])
@pytest.mark.parametrize("name", MODELS)
def test_small_images_train(name, channels, image_size):
    torch.manual_seed(0)
    model = build_model(name, classes=7, channels=channels, image_size=image_size)
    outputs = model(torch.randn(2, channels, image_size, image_size))
    assert outputs.shape == (2, 7)
    F.cross_entropy(outputs, torch.tensor([0, 6])).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", MODELS)
def test_large_images_fit(name, channels):
    with torch.device("meta"):
        model = build_model(name, classes=1000, channels=channels, image_size=224)
        assert model(torch.empty(2, channels, 224, 224)).shape == (2, 1000)


@pytest.mark.parametrize("name", MODELS)
def test_weights_follow_the_seed(name):
    def first_weights(seed):
        torch.manual_seed(seed)
        model = build_model(name, classes=10, channels=1, image_size=28)
        return next(p for p in model.parameters() if p.ndim > 1 and p.std() > 0).detach().clone()

    assert torch.equal(first_weights(1), first_weights(1))
    assert not torch.equal(first_weights(1), first_weights(2))


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        # As the papers and the usual CIFAR forms count them, 10 classes, 32 x 32 x 3.
        ("resnet18", 11.173962),
        ("resnet50", 23.520842),
        ("wide_resnet28_10", 36.479194),
    ],
)
def test_size_of_the_cifar_forms(name, millions):
    with torch.device("meta"):
        model = build_model(name, classes=10, channels=3, image_size=32)
    assert sum(parameter.numel() for parameter in model.parameters()) == round(millions * 1e6)


def test_large_images_get_the_published_networks():
    with torch.device("meta"):
        counts = {
            name: sum(
                p.numel() for p in build_model(name, classes=1000, channels=3, image_size=224).parameters()
            )
            for name in ("resnet18", "resnet50", "efficientnet_b0", "vit_small")
        }
    assert counts == {
        "resnet18": 11_689_512,
        "resnet50": 25_557_032,
        "efficientnet_b0": 5_288_548,
        "vit_small": 22_050_664,
    }


@pytest.mark.parametrize(("name", "side"), [("resnet18", 4), ("efficientnet_b0", 2)])
def test_small_images_keep_their_resolution_at_the_stem(name, side):
    """The maps before the pooling: one pixel wide if the stem were that for 224 pixels."""
    sizes = []
    with torch.device("meta"):
        model = build_model(name, classes=10, channels=3, image_size=32)
        model.avgpool.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].shape[-1]))
        model(torch.empty(2, 3, 32, 32))
    assert sizes == [side]


@pytest.mark.parametrize(("name", "expected"), [("cnn", False), ("cnn_bn", True), ("mlp", False)])
def test_batch_norm_only_where_named(name, expected):
    model = build_model(name, classes=10, channels=1, image_size=28)
    assert any(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules()) == expected


def test_wide_resnet_adds_its_blocks_to_their_input():
    """With the second convolution of each plain block at zero, such a block does nothing."""
    torch.manual_seed(0)
    network = wide_resnet(classes=4, channels=3, depth=16, widen=1).eval()
    plain = [m for m in network if getattr(m, "project", 0) is None]
    assert len(plain) == 4
    without = copy.deepcopy(network)
    for block in [m for m in without if getattr(m, "project", 0) is None]:
        block.forward = lambda x: x
    for block in plain:
        torch.nn.init.zeros_(block.residual[-1].weight)
    inputs = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(network(inputs), without(inputs))


@pytest.mark.parametrize("depth", [4, 27, 0])
def test_wide_resnet_refuses_depths(depth):
    with pytest.raises(ValueError, match=f"depth: {depth} is not allowed"):
        wide_resnet(classes=4, channels=3, depth=depth)


def test_unknown_model():
    with pytest.raises(
        ValueError, match="model: 'resnet19' is not allowed; expected one of cnn, cnn_bn, mlp,"
    ):
        build_model("resnet19", classes=10, channels=3, image_size=32)
