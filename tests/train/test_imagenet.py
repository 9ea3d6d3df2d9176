"""The ImageNet path on real JPEG files: packaged images, enlarged and written as a tree of folders."""

import math

import pytest
import torch
from PIL import Image
from train_helpers import SpyContext, result

from autolr_ray.tasks import get_task
from autolr_ray.train import RunSpec, run

CLASSES = ("bag", "coat", "shirt")


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """train/CLASS/*.JPEG and val/CLASS/*.JPEG: four and one images of 3 classes, 250 pixels or so a side."""
    folder = tmp_path_factory.mktemp("imagenet")
    images = get_task("fashion_mnist_subset").data(None).test
    for label, name in enumerate(CLASSES):
        chosen = images.inputs[images.targets == label][:5]
        for number, image in enumerate(chosen):
            part = folder / ("train" if number < 4 else "val") / name
            part.mkdir(parents=True, exist_ok=True)
            picture = Image.fromarray(image[0].numpy()).convert("RGB")
            picture.resize((240 + 8 * number, 260), Image.Resampling.BICUBIC).save(part / f"{number}.JPEG")
    return folder


@pytest.mark.parametrize("model", ["resnet50", "efficientnet_b0"])
def test_a_few_steps_through_the_whole_path(model, tree, tmp_path):
    spec = RunSpec.model_validate(
        {
            "task": "imagenet", "model": model, "data_dir": str(tree), "batch_size": 4, "epochs": 2,
            "accumulation_steps": 2, "loader_workers": 1, "optimizer": {"name": "adamp"},
            "compute": {"channels_last": True},
        }
    )  # fmt: skip
    record = run(spec, SpyContext(tmp_path / "whole"))
    assert record.total_steps == 2 * (11 // 4)  # 12 images, one held out
    assert all(math.isfinite(loss) for loss in record.trace.loss)
    # A new network knows nothing of 1,000 classes.
    assert record.trace.loss[0] == pytest.approx(math.log(1000), rel=0.15)
    assert 0 <= record.test_accuracy <= 1
    if model == "efficientnet_b0":
        return

    # Cut off in the middle of an epoch, random crops, mirrors, colours and all.
    class Cut(Exception):
        pass

    class Ends(SpyContext):
        left = 2

        def poll(self):
            super().poll()
            self.left -= 1
            if not self.left:
                raise Cut

    inside = spec.model_copy(update={"checkpoint_every": 1})
    with pytest.raises(Cut):
        run(inside, Ends(tmp_path / "cut"))
    assert result(run(inside, SpyContext(tmp_path / "cut"))) == result(record)


def test_colours_are_shifted_in_training_only():
    task = get_task("imagenet")
    grey = torch.full((8, 3, 4, 4), 128, dtype=torch.uint8)
    shifted = task.augment(grey, torch.Generator().manual_seed(0))
    assert shifted.shape == grey.shape
    assert len({tuple(image[:, 0, 0].tolist()) for image in shifted}) == 8
    assert torch.equal(shifted, shifted[:, :, :1, :1].expand_as(shifted))
    assert (shifted - 128).abs().max() < 60
