"""Data sets from files in their published layouts, made small."""

import gzip
import pickle
import re
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from autolr_ray.tasks import check_task, download, get_task
from autolr_ray.tasks.datasets import IDX_FILES
from autolr_ray.tasks.idx import write_idx


def write_fashion(folder, size=28, n=20):
    """Four IDX files; image i of train is all i, image i of test all 100 + i."""
    folder.mkdir(parents=True, exist_ok=True)
    for start, part in ((0, "train"), (100, "t10k")):
        images = np.arange(start, start + n, dtype=np.uint8)[:, None, None].repeat(size, 1).repeat(size, 2)
        write_idx(folder / f"{part}-images-idx3-ubyte.gz", images)
        write_idx(folder / f"{part}-labels-idx1-ubyte.gz", np.arange(n, dtype=np.uint8) % 10)


def write_cifar(data_dir, name):
    """Torchvision's layout; 4 images a file, red = number of the image, green 100, blue = row."""
    keys = {"cifar10": "labels", "cifar100": "fine_labels"}
    files = {
        "cifar10": [
            f"cifar-10-batches-py/{f}" for f in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
        ],
        "cifar100": ["cifar-100-python/train", "cifar-100-python/test"],
    }
    metas = {
        "cifar10": ("cifar-10-batches-py/batches.meta", "label_names"),
        "cifar100": ("cifar-100-python/meta", "fine_label_names"),
    }
    n = 4 if name == "cifar10" else 20
    for number, file in enumerate(files[name]):
        values = np.arange(number * n, number * n + n, dtype=np.uint8)
        planes = [
            values[:, None].repeat(1024, 1),
            np.full((n, 1024), 100),
            np.tile(np.arange(1024) // 32, (n, 1)),
        ]
        data = np.concatenate(planes, axis=1).astype(np.uint8)
        path = data_dir / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pickle.dumps({"data": data, keys[name]: (values % 10).tolist()}))
    (data_dir / metas[name][0]).write_bytes(pickle.dumps({metas[name][1]: ["a"]}))


def write_images(data_dir, classes=("ant", "bee"), train=10, val=3):
    """A tree of JPEG files of noise, 80 x 60."""
    generator = np.random.default_rng(0)
    for part, n in (("train", train), ("val", val)):
        for name in classes:
            folder = data_dir / part / name
            folder.mkdir(parents=True)
            for i in range(n):
                Image.fromarray(generator.integers(256, size=(60, 80, 3), dtype=np.uint8)).save(
                    folder / f"{i}.jpeg"
                )


def test_digits():
    from sklearn import datasets

    source = datasets.load_digits()
    check_task("digits", "mlp", None)
    splits = get_task("digits").data(None)
    parts = (splits.train, splits.validation, splits.test)
    assert [len(part) for part in parts] == [1294, 144, 359]
    rows = torch.cat([torch.column_stack([part.targets, part.inputs.flatten(1)]) for part in parts])
    expected = np.column_stack([source.target, (source.images * 15).reshape(len(source.images), -1)])
    # Every image once, with its own label, whatever the order.
    assert sorted(rows.tolist()) == sorted(expected.astype(int).tolist())
    normalised = get_task("digits").transform(splits.train.inputs)
    assert normalised.mean().abs() < 1e-3
    assert (normalised.std() - 1).abs() < 1e-3


def test_digits_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="task: 'digits' is not allowed without scikit-learn"):
        check_task("digits", None, None)


@pytest.mark.parametrize("place", [".", "FashionMNIST/raw"])
@pytest.mark.parametrize("packed", [True, False])
def test_fashion_mnist(tmp_path, place, packed):
    folder = tmp_path / place
    write_fashion(folder)
    if not packed:
        for name in IDX_FILES:
            (folder / name).write_bytes(gzip.decompress((folder / f"{name}.gz").read_bytes()))
            (folder / f"{name}.gz").unlink()
    check_task("fashion_mnist", None, tmp_path)
    splits = get_task("fashion_mnist").data(tmp_path)
    assert [len(p) for p in (splits.train, splits.validation, splits.test)] == [18, 2, 20]
    for part, start in ((splits.train, 0), (splits.validation, 0), (splits.test, 100)):
        assert part.inputs.shape[1:] == (1, 28, 28)
        numbers = part.inputs[:, 0, 0, 0].long() - start
        assert torch.equal(numbers % 10, part.targets)
    seen = torch.cat([splits.train.inputs, splits.validation.inputs])[:, 0, 0, 0]
    assert sorted(seen.tolist()) == list(range(20))


def test_fashion_mnist_of_another_shape(tmp_path):
    write_fashion(tmp_path, size=32)
    with pytest.raises(ValueError, match=r"data_dir: .* is not allowed; .*expected \[n, 28, 28\]"):
        get_task("fashion_mnist").data(tmp_path)


def test_fashion_mnist_damaged(tmp_path):
    write_fashion(tmp_path)
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(b"half a download")
    with pytest.raises(ValueError, match=r"data_dir: .* is not allowed; .*t10k-images.*no whole gzip file"):
        get_task("fashion_mnist").data(tmp_path)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar(tmp_path, name, monkeypatch):
    write_cifar(tmp_path, name)
    check_task(name, None, tmp_path)
    # The files are not the published ones: their sums cannot agree.
    with pytest.raises(ValueError, match=f"data_dir: .* is not allowed; its {name} files are damaged"):
        get_task(name).data(tmp_path)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    splits = get_task(name).data(tmp_path)
    assert [len(p) for p in (splits.train, splits.validation, splits.test)] == [
        18,
        2,
        4 if name == "cifar10" else 20,
    ]
    for part in (splits.train, splits.validation, splits.test):
        assert part.inputs.shape[1:] == (3, 32, 32)
        assert part.inputs.dtype == torch.uint8
        assert part.inputs.is_contiguous()
        assert part.inputs[0, 1:, 5, 7].tolist() == [100, 5]
        assert torch.equal(part.inputs[:, 0, 9, 9].long() % 10, part.targets)
    assert splits.test.inputs[:, 0].min() == 20


@pytest.mark.parametrize("name", ["fashion_mnist", "cifar10", "cifar100"])
def test_missing_files_name_the_field_and_the_remedy(tmp_path, name):
    remedy = re.escape(f"python -m autolr_ray.tasks.download {name} --data-dir DIR")
    for value in (None, tmp_path, tmp_path / "absent"):
        shown = re.escape(repr(None if value is None else str(value)))
        message = f"^data_dir: {shown} is not allowed; {name} needs a folder that holds .*{remedy}$"
        with pytest.raises(ValueError, match=message):
            check_task(name, None, value)
        with pytest.raises(ValueError, match=message):
            get_task(name).data(value)


@pytest.mark.parametrize("name", ["fashion_mnist", "cifar10", "cifar100"])
def test_one_file_missing_is_noticed(tmp_path, name):
    if name == "fashion_mnist":
        write_fashion(tmp_path)
    else:
        write_cifar(tmp_path, name)
    check_task(name, None, tmp_path)
    files = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    files[-1].unlink()
    with pytest.raises(ValueError, match="data_dir"):
        check_task(name, None, tmp_path)


def test_imagenet(tmp_path):
    write_images(tmp_path)
    check_task("imagenet", None, tmp_path)
    task = get_task("imagenet")
    splits = task.data(tmp_path)
    assert [len(p) for p in (splits.train, splits.validation, splits.test)] == [18, 2, 6]
    for part in (splits.train, splits.validation, splits.test):
        image, target = part[0]
        assert image.shape == (3, 224, 224)
        assert image.dtype == torch.uint8
        assert target == (1 if "bee" in part.samples[0][0] else 0)
    assert {t for _, t in splits.test.samples} == {0, 1}
    paths = [path for part in (splits.train, splits.validation) for path, _ in part.samples]
    assert len(set(paths)) == 20
    assert all(path.startswith(str(tmp_path / "train")) for path in paths)
    assert all(path.startswith(str(tmp_path / "val")) for path, _ in splits.test.samples)
    assert task.transform(torch.zeros(2, 3, 224, 224, dtype=torch.uint8)).shape == (2, 3, 224, 224)


def test_imagenet_train_is_random_and_held_out_is_not(tmp_path):
    write_images(tmp_path)
    splits = get_task("imagenet").data(tmp_path)
    torch.manual_seed(0)
    first, second = splits.train[0][0], splits.train[0][0]
    assert not torch.equal(first, second)
    torch.manual_seed(0)
    assert torch.equal(first, splits.train[0][0])
    for part in (splits.validation, splits.test):
        assert torch.equal(part[0][0], part[0][0])
    # The middle of the image, the short side at 256: of 341 x 256, columns 58 to 282.
    path, _ = splits.validation.samples[0]
    resized = Image.open(path).convert("RGB").resize((341, 256), Image.Resampling.BILINEAR)
    middle = np.asarray(resized)[16:240, 58:282].transpose(2, 0, 1).copy()
    assert torch.equal(splits.validation[0][0], torch.from_numpy(middle))


def test_imagenet_through_a_loader(tmp_path):
    write_images(tmp_path)
    splits = get_task("imagenet").data(tmp_path)
    loader = torch.utils.data.DataLoader(splits.train, batch_size=4, num_workers=1)
    images, targets = next(iter(loader))
    assert images.shape == (4, 3, 224, 224)
    assert targets.dtype == torch.int64


def test_imagenet_errors(tmp_path):
    with pytest.raises(
        ValueError, match="data_dir: None is not allowed; imagenet needs a folder that holds train/"
    ):
        check_task("imagenet", None, None)
    with pytest.raises(ValueError, match=r"data_dir: .*it has no folder train/"):
        check_task("imagenet", None, tmp_path)
    (tmp_path / "train").mkdir()
    with pytest.raises(ValueError, match=r"data_dir: .*it has no folder val/"):
        check_task("imagenet", None, tmp_path)
    (tmp_path / "val").mkdir()
    with pytest.raises(ValueError, match=r"data_dir: .*train/ has 0 class folders"):
        check_task("imagenet", None, tmp_path)
    (tmp_path / "train" / "ant").mkdir()
    with pytest.raises(
        ValueError, match=r"data_dir: .*1 class folders are in only one of train/ and val/.*'ant'"
    ):
        check_task("imagenet", None, tmp_path)
    (tmp_path / "val" / "ant").mkdir()
    check_task("imagenet", None, tmp_path)
    with pytest.raises(ValueError, match=r"data_dir: .*train/: .*ant"):
        get_task("imagenet").data(tmp_path)
    for i in range(1000):
        (tmp_path / "train" / f"c{i}").mkdir()
    with pytest.raises(ValueError, match="train/ has 1001 class folders, and 1 to 1000"):
        check_task("imagenet", None, tmp_path)


def test_download_fetches_what_is_absent_once(tmp_path, monkeypatch, capsys):
    calls = []

    def fake(root, download):
        assert download is True
        calls.append(root)
        write_cifar(tmp_path / "new", "cifar10")

    monkeypatch.setattr("torchvision.datasets.CIFAR10", fake)
    for _ in range(2):
        assert download.main(["cifar10", "--data-dir", str(tmp_path / "new")]) == 0
    assert calls == [str(tmp_path / "new")]
    assert "cifar10 is in" in capsys.readouterr().out


def test_download_says_why_it_failed(tmp_path, monkeypatch, capsys):
    def no_network(**_):
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.datasets.CIFAR100", no_network)
    assert download.main(["cifar100", "--data-dir", str(tmp_path)]) == 1
    assert "cifar100 could not be fetched into" in (error := capsys.readouterr().err)
    assert "no route to host" in error


def test_download_that_brings_nothing_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr("torchvision.datasets.FashionMNIST", lambda **_: None)
    with pytest.raises(ValueError, match="data_dir"):
        download.download("fashion_mnist", tmp_path)


def test_download_knows_its_names(tmp_path):
    with pytest.raises(
        ValueError, match="name: 'imagenet' is not allowed; expected one of fashion_mnist, cifar10"
    ):
        download.download("imagenet", tmp_path)
