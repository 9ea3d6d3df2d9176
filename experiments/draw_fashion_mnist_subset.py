"""Draw the packaged Fashion-MNIST subset: 12,000 train and 2,000 test images, equal classes.

    python experiments/draw_fashion_mnist_subset.py --source DIR --out DIR

``--source`` holds the four gzipped IDX files of Fashion-MNIST; ``--out`` gets four of the same names,
a LICENSE and a README.

Images are ranked by the SHA-256 of a seed and their own bytes, and the lowest of each class are taken.
So the draw depends on no library's random stream and not on the order of the source files, and an image
that occurs twice is drawn once.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autolr_ray.tasks.idx import read_idx, write_idx

Bytes = NDArray[np.uint8]

SEED = "autolr_ray fashion_mnist_subset 0"
CLASSES = 10
TRAIN_PER_CLASS = 1_200
TEST_PER_CLASS = 200

README = """\
# fashion_mnist_subset

This is a subset of a public copy of Fashion-MNIST (Zalando SE, MIT licence: see LICENSE), packaged so
that the tasks `fashion_mnist_subset/*` need no download. Figures made with it are figures on this subset,
not on Fashion-MNIST.

| file | content |
|---|---|
| `train-images-idx3-ubyte.gz`, `train-labels-idx1-ubyte.gz` | {train:,} images, {train_each:,} a class |
| `t10k-images-idx3-ubyte.gz`, `t10k-labels-idx1-ubyte.gz` | {test:,} images, {test_each:,} a class |

Images are 28x28, one channel, unsigned bytes; files are gzipped IDX.

How it was drawn, by `experiments/draw_fashion_mnist_subset.py`: in each class of each part, images are
ranked by the SHA-256 of "{seed}" followed by the image's 784 bytes, and the
lowest are taken; the whole part is then stored in the order of that rank, which is a shuffle. An image
that occurs more than once in a part is drawn at most once, and a test image that also occurs anywhere in
the 60,000 train images is never drawn.
"""

LICENSE = """\
The MIT License (MIT) Copyright © 2017 Zalando SE, https://tech.zalando.com

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and \
associated documentation files (the “Software”), to deal in the Software without restriction, including \
without limitation the rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell \
copies of the Software, and to permit persons to whom the Software is furnished to do so, subject to the \
following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial \
portions of the Software.

THE SOFTWARE IS PROVIDED “AS IS”, WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT \
LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO \
EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER \
IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR \
THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""


def ranks(images: Bytes) -> list[bytes]:
    """The rank of each image: one 32-byte digest of the seed and its pixels."""
    return [hashlib.sha256(SEED.encode() + image.tobytes()).digest() for image in images]


def draw(rank: list[bytes], labels: Bytes, per_class: int, excluded: set[bytes]) -> NDArray[np.int64]:
    """Indices of the ``per_class`` lowest ranks in each class, in order of rank, none in ``excluded``.

    Raises:
        ValueError: a class has too few images to draw from.
    """
    taken: list[int] = []
    count = [0] * CLASSES
    seen = set(excluded)
    for index in sorted(range(len(rank)), key=lambda i: (rank[i], labels[i])):
        label = int(labels[index])
        if rank[index] not in seen and count[label] < per_class:
            seen.add(rank[index])
            count[label] += 1
            taken.append(index)
    if min(count) < per_class:
        raise ValueError(f"source: has {min(count)} usable images in its smallest class, not {per_class}")
    return np.array(taken, dtype=np.int64)


def write_subset(
    source: Path, out: Path, train_per_class: int = TRAIN_PER_CLASS, test_per_class: int = TEST_PER_CLASS
) -> None:
    """Draw from the four files in ``source`` and write the package data to ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    excluded: set[bytes] = set()
    for part, per_class in (("train", train_per_class), ("t10k", test_per_class)):
        images = read_idx(source / f"{part}-images-idx3-ubyte.gz")
        labels = read_idx(source / f"{part}-labels-idx1-ubyte.gz")
        rank = ranks(images)
        index = draw(rank, labels, per_class, excluded)
        write_idx(out / f"{part}-images-idx3-ubyte.gz", images[index])
        write_idx(out / f"{part}-labels-idx1-ubyte.gz", labels[index])
        # All of train, drawn or not: whoever trains on the full set may still test on this one.
        excluded |= set(rank)
    readme = README.format(
        train=CLASSES * train_per_class,
        test=CLASSES * test_per_class,
        train_each=train_per_class,
        test_each=test_per_class,
        seed=SEED,
    )
    (out / "README.md").write_text(readme, encoding="utf-8")
    (out / "LICENSE").write_text(LICENSE, encoding="utf-8")


def main() -> None:
    """Read the two folders from the command line and draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", type=Path, required=True, help="folder of the four IDX gz files")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    arguments = parser.parse_args()
    write_subset(arguments.source, arguments.out)


if __name__ == "__main__":
    main()
