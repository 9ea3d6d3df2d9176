"""The packaged subset: what it holds, and that the script draws exactly it."""

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from autolr_ray.tasks import get_task
from autolr_ray.tasks.idx import read_idx, write_idx

ROOT = Path(__file__).parents[2]
PACKAGED = ROOT / "autolr_ray" / "tasks" / "data" / "fashion_mnist_subset"
SOURCE = ROOT.parent / "shared" / "data" / "fashion-mnist"
PARTS = ("train", "t10k")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """The drawing script as a module."""
    spec = importlib.util.spec_from_file_location(
        "draw_fashion_mnist_subset", ROOT / "experiments" / "draw_fashion_mnist_subset.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def images_and_labels(folder, part):
    """The two arrays of a part."""
    return (
        read_idx(folder / f"{part}-images-idx3-ubyte.gz"),
        read_idx(folder / f"{part}-labels-idx1-ubyte.gz"),
    )


@pytest.mark.parametrize(("part", "per_class"), [("train", 1200), ("t10k", 200)])
def test_classes_are_equal_and_mixed(part, per_class):
    images, labels = images_and_labels(PACKAGED, part)
    assert images.shape == (10 * per_class, 28, 28)
    assert np.bincount(labels).tolist() == [per_class] * 10
    # Sorted labels would make batches of one class; about a tenth of neighbours agree in a shuffle.
    assert 0.05 < (labels[1:] == labels[:-1]).mean() < 0.15


def test_no_image_occurs_twice():
    drawn = [image.tobytes() for part in PARTS for image in images_and_labels(PACKAGED, part)[0]]
    assert len(set(drawn)) == len(drawn) == 14_000


def test_package_data_stay_small_and_carry_their_licence():
    assert sum(file.stat().st_size for file in PACKAGED.iterdir()) < 8_000_000
    assert "MIT License" in (PACKAGED / "LICENSE").read_text(encoding="utf-8")
    assert "subset of a public copy of Fashion-MNIST" in (PACKAGED / "README.md").read_text(encoding="utf-8")


def test_loaded_parts():
    splits = get_task("fashion_mnist_subset").data(None)
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [10_800, 1_200, 2_000]
    for part in (splits.train, splits.validation, splits.test):
        assert part.inputs.shape[1:] == (1, 28, 28)
        assert part.inputs.dtype == torch.uint8
        assert part.targets.dtype == torch.int64
    as_bytes = [
        {image.numpy().tobytes() for image in part.inputs}
        for part in (splits.train, splits.validation, splits.test)
    ]
    assert sum(map(len, as_bytes)) == len(set.union(*as_bytes)) == 14_000


def test_subset_can_be_learned():
    """Guards the labels, the normalisation and the model together: chance is 0.1."""
    task = get_task("fashion_mnist_subset")
    splits = task.data(None)
    torch.manual_seed(0)
    model = task.model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for index in torch.randperm(len(splits.train)).split(256):
        inputs, targets = splits.train.take(index)
        optimizer.zero_grad()
        task.loss(model(task.transform(inputs)), targets).backward()
        optimizer.step()
    with torch.no_grad():
        correct = task.correct(model(task.transform(splits.test.inputs)), splits.test.targets)
    assert correct.shape == (2_000,)
    assert correct.mean() > 0.65


@pytest.fixture
def tiny_source(tmp_path):
    """A source of 20 + 20 images, 2 a class; the first test image is also in train."""
    folder = tmp_path / "source"
    folder.mkdir()
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(10, dtype=np.uint8), 2)
    train = generator.integers(256, size=(20, 28, 28), dtype=np.uint8)
    test = generator.integers(256, size=(20, 28, 28), dtype=np.uint8)
    test[0] = train[0]
    for part, images in zip(PARTS, (train, test), strict=True):
        write_idx(folder / f"{part}-images-idx3-ubyte.gz", images)
        write_idx(folder / f"{part}-labels-idx1-ubyte.gz", labels)
    return folder


def test_script_leaves_out_a_test_image_seen_in_train(script, tiny_source, tmp_path):
    script.write_subset(tiny_source, tmp_path / "out", train_per_class=1, test_per_class=1)
    test, labels = images_and_labels(tmp_path / "out", "t10k")
    source = images_and_labels(tiny_source, "t10k")[0]
    # Class 0 has two test images, and the first is in train: the second is all that is left.
    np.testing.assert_array_equal(test[labels == 0][0], source[1])
    with pytest.raises(ValueError, match="1 usable images in its smallest class, not 2"):
        script.write_subset(tiny_source, tmp_path / "out", train_per_class=1, test_per_class=2)


def test_script_ignores_the_order_of_the_source(script, tiny_source, tmp_path):
    script.write_subset(tiny_source, tmp_path / "first", train_per_class=1, test_per_class=1)
    for part in PARTS:
        images, labels = images_and_labels(tiny_source, part)
        write_idx(tiny_source / f"{part}-images-idx3-ubyte.gz", images[::-1])
        write_idx(tiny_source / f"{part}-labels-idx1-ubyte.gz", labels[::-1])
    script.write_subset(tiny_source, tmp_path / "second", train_per_class=1, test_per_class=1)
    for file in (tmp_path / "first").iterdir():
        assert file.read_bytes() == (tmp_path / "second" / file.name).read_bytes()


@pytest.mark.skipif(
    not SOURCE.is_dir(), reason="the full public copy of Fashion-MNIST is not beside the repository"
)
def test_script_reproduces_the_package_data(script, tmp_path):
    script.write_subset(SOURCE, tmp_path / "first")
    script.write_subset(SOURCE, tmp_path / "second")
    names = sorted(file.name for file in PACKAGED.iterdir())
    assert names == sorted(file.name for file in (tmp_path / "first").iterdir())
    for name in names:
        first = tmp_path / "first" / name
        assert first.read_bytes() == (tmp_path / "second" / name).read_bytes()
        if name.endswith(".gz"):
            # Unpacked, because another zlib may pack the same content to other bytes.
            np.testing.assert_array_equal(read_idx(first), read_idx(PACKAGED / name))
        else:
            assert first.read_bytes() == (PACKAGED / name).read_bytes()
