"""How often a rule ends a warmup whose loss has not passed its minimum: Monte Carlo on made-up curves.

    python experiments/benchmarks/false_switches.py --rule robust --json

A cell is a shape (flat at 2.3, or falling from 2.3 to 0.8 along half a cosine), a number of steps per epoch
(12 epochs each), and noise: Gaussian of a standard deviation, Student's t with 3 degrees of freedom scaled
to it, or AR(1) with coefficient 0.7 and that marginal standard deviation. Curve ``i`` of a cell has a seed of
its own, so cells can be drawn again one at a time. Every switch before the curve's end is false.

One JSON line a cell: ``{"shape", "noise", "sd", "steps", "curves", "false", "share"}``, and a last one with
the highest share of each kind of noise.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
import warnings
import zlib
from collections.abc import Callable, Sequence

import numpy as np
import torch
from replay import Array, Curve, replay

from autolr_ray.schedule import RULES

EPOCHS = 12
SHAPES: dict[str, Callable[[Array], Array]] = {
    "flat": lambda x: np.full_like(x, 2.3),
    "falling": lambda x: 0.8 + 0.75 * (1.0 + np.cos(math.pi * x)),
}


def gaussian(generator: np.random.Generator, n: int) -> Array:
    """Independent, standard deviation 1."""
    return generator.standard_normal(n)


def heavy(generator: np.random.Generator, n: int) -> Array:
    """Independent, Student's t with 3 degrees of freedom, standard deviation 1."""
    return generator.standard_t(3, n) / math.sqrt(3.0)


def correlated(generator: np.random.Generator, n: int) -> Array:
    """AR(1) with coefficient 0.7, standard deviation 1."""
    noise = generator.standard_normal(n) * math.sqrt(1.0 - 0.7**2)
    noise[0] /= math.sqrt(1.0 - 0.7**2)
    for i in range(1, n):
        noise[i] += 0.7 * noise[i - 1]
    return noise


NOISES = {"gaussian": gaussian, "heavy": heavy, "correlated": correlated}


def false_switches(rule: str, shape: str, noise: str, sd: float, steps_per_epoch: int, curves: int) -> int:
    """How many of ``curves`` curves of this cell the rule ends."""
    steps = EPOCHS * steps_per_epoch
    found = 0
    for i in range(curves):
        seed = zlib.crc32(f"{shape} {noise} {sd} {steps} {i}".encode())
        losses = SHAPES[shape](np.arange(steps) / steps)
        losses = losses + sd * NOISES[noise](np.random.default_rng(seed), steps)
        result = replay(Curve(name=shape, losses=losses, steps_per_epoch=steps_per_epoch), rule)
        found += result.switch_step >= 0
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rule", choices=sorted(RULES), default="robust")
    parser.add_argument("--curves", type=int, default=200, help="curves a cell (default: %(default)s)")
    parser.add_argument("--noises", nargs="+", choices=list(NOISES), default=list(NOISES))
    parser.add_argument("--sds", nargs="+", type=float, default=[0.1, 0.3, 0.5], help="standard deviations")
    parser.add_argument("--steps-per-epoch", nargs="+", type=int, default=[5, 20, 50])
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    highest = dict.fromkeys(options.noises, 0.0)
    cells = itertools.product(options.noises, SHAPES, options.steps_per_epoch, options.sds)
    for noise, shape, steps_per_epoch, sd in cells:
        false = false_switches(options.rule, shape, noise, sd, steps_per_epoch, options.curves)
        row = {
            "shape": shape, "noise": noise, "sd": sd, "steps": EPOCHS * steps_per_epoch,
            "curves": options.curves, "false": false, "share": false / options.curves,
        }  # fmt: skip
        highest[noise] = max(highest[noise], false / options.curves)
        text = f"{noise:<10} {shape:<8} W {row['steps']:>5}  sd {sd:<4g} false {row['share']:.1%}"
        print(json.dumps(row) if options.json else text, flush=True)
    summary = {"rule": options.rule, "highest_share": highest}
    print(json.dumps({"summary": summary}) if options.json else f"\nhighest: {highest}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
