"""Add what the authors' code decides on recorded curves to their file, for ``replay.py --rule paper``.

    python experiments/benchmarks/original_decisions.py --traces curves.npz --peer PATH_TO_THEIR_autowu.py

Their code draws random subsets of the losses, so each curve is fed to it once for each of ``--seeds`` seeds
of that draw. The file gets, for each curve NAME, ``NAME/official_seeds`` [S], ``NAME/official_switch_step``
[S] (losses seen when it switched, -1 for never), ``NAME/official_lr_after`` [S] (NaN for never) and
``NAME/official_error`` [S] ('' for none). It is rewritten after each curve, and curves that have decisions
are skipped: a run that was cut off goes on where it was. Needs gpytorch.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from replay import read_curves


def load_peer(path: Path) -> ModuleType:
    """The authors' ``autowu.py`` as a module."""
    spec = importlib.util.spec_from_file_location("peer_autowu", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise SystemExit(f"--peer: {path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def decide(
    peer: ModuleType, losses: np.ndarray[Any, Any], steps_per_epoch: int, epochs: int, seed: int
) -> Any:
    """(switch step or -1, learning rate after it or NaN, error or '') of one run of the authors' code."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = peer.AutoWU(optimizer, steps_per_epoch=steps_per_epoch, total_epochs=epochs)
    scheduler.warmup_phase_regressor._rng_generator.manual_seed(seed)
    try:
        for step, loss in enumerate(torch.from_numpy(losses).float(), start=1):
            # The end of the longest warmup comes before a test at that step.
            if step >= int(0.5 * scheduler.total_steps):
                break
            scheduler.step(loss)
            if scheduler.phase != "warmup":
                return step, float(optimizer.param_groups[0]["lr"]), ""
    except Exception as error:
        return -1, np.nan, f"{type(error).__name__}: {error}"[:200]
    return -1, np.nan, ""


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--traces", type=Path, required=True, help="the .npz file to add to")
    parser.add_argument("--peer", type=Path, required=True, help="the authors' autowu.py")
    parser.add_argument("--seeds", type=int, default=5, help="runs a curve (default: %(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    peer = load_peer(options.peer)
    curves = read_curves(options.traces)
    with np.load(options.traces, allow_pickle=False) as file:
        arrays = dict(file)
    began = time.monotonic()
    for number, curve in enumerate(curves, start=1):
        if f"{curve.name}/official_seeds" not in arrays:
            epochs = int(arrays[f"{curve.name}/total_epochs"])
            found = [
                decide(peer, curve.losses, curve.steps_per_epoch, epochs, seed)
                for seed in range(options.seeds)
            ]
            arrays[f"{curve.name}/official_seeds"] = np.arange(options.seeds)
            for place, key in enumerate(("switch_step", "lr_after", "error")):
                arrays[f"{curve.name}/official_{key}"] = np.array([row[place] for row in found])
            temporary = options.traces.with_suffix(".tmp.npz")
            np.savez_compressed(temporary, **arrays)
            temporary.replace(options.traces)
        left = (time.monotonic() - began) / number * (len(curves) - number)
        print(f"[{number}/{len(curves)}] {curve.name}, about {left / 60:.0f} min left", flush=True)


if __name__ == "__main__":
    main()
