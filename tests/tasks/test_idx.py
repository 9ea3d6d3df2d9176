"""IDX files: what is written is read back, and what is no IDX file is refused."""

import gzip

import numpy as np
import pytest

from autolr_ray.tasks.idx import read_idx, write_idx


@pytest.mark.parametrize("shape", [(5,), (3, 4), (2, 3, 4), (0, 3)])
def test_written_is_read_back(tmp_path, shape):
    array = np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)
    write_idx(tmp_path / "a.gz", array)
    (tmp_path / "a").write_bytes(gzip.decompress((tmp_path / "a.gz").read_bytes()))
    for name in ("a.gz", "a"):
        np.testing.assert_array_equal(read_idx(tmp_path / name), array)
    # A reader may write into what it got: the data of a task are tensors over it.
    assert read_idx(tmp_path / "a").flags.writeable


def test_bytes_as_the_format_says(tmp_path):
    (tmp_path / "a").write_bytes(bytes([0, 0, 8, 2, 0, 0, 0, 1, 0, 0, 0, 2, 7, 9]))
    assert read_idx(tmp_path / "a").tolist() == [[7, 9]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no IDX file"),
        (b"PNG.....", "no IDX file"),
        (bytes([0, 0, 13, 1, 0, 0, 0, 0]), "no IDX file"),
        (bytes([0, 0, 8, 2, 0, 0, 0, 1]), "header of 12 bytes is cut short at 8"),
        (bytes([0, 0, 8, 1, 0, 0, 0, 3, 1, 2]), "holds 2 bytes"),
        (bytes([0, 0, 8, 1, 0, 0, 0, 1, 1, 2]), "holds 2 bytes"),
    ],
)
def test_other_files_are_refused(tmp_path, content, message):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_idx(tmp_path / "a")


def test_damaged_gzip_is_refused(tmp_path):
    write_idx(tmp_path / "a.gz", np.arange(200, dtype=np.uint8))
    whole = (tmp_path / "a.gz").read_bytes()
    for content in (whole[:-20], b"no gzip"):
        (tmp_path / "a.gz").write_bytes(content)
        with pytest.raises(ValueError, match="no whole gzip file"):
            read_idx(tmp_path / "a.gz")
