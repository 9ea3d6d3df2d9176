"""Data loaded once and shared by all runs: the same results, and never another task's data."""

from __future__ import annotations

from pathlib import Path

import pytest
import train_helpers
from train_helpers import result, spec_of, train

from autolr_ray.tasks import Splits, Task
from autolr_ray.train import loop
from autolr_ray.train.shared_data import shared_splits, use_shared


def test_a_run_on_shared_data_is_the_run_that_loads_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_of(epochs=2)
    own, _ = train(spec, tmp_path / "own")
    data = shared_splits(spec.task, spec.model, spec.data_dir)
    assert data is not None
    for arrays in data.values():
        for array in arrays:
            array.setflags(write=False)  # as those from Ray's object store are

    def nobody(data_dir: Path | None) -> Splits:
        raise AssertionError("the data were loaded once more")

    monkeypatch.setattr(loop, "_loaded", {})
    monkeypatch.setattr(train_helpers, "mlp", Task(**{**vars(train_helpers.mlp), "data": nobody}))
    use_shared(spec, data)
    shared, _ = train(spec, tmp_path / "shared")
    assert result(shared) == result(own)


def test_data_that_are_not_in_memory_or_not_here_are_left_to_the_runs(tmp_path: Path) -> None:
    assert shared_splits("train_helpers:mlp_files", None, None) is None
    assert shared_splits("cifar10", None, tmp_path) is None


def test_data_of_another_task_are_not_taken(tmp_path: Path) -> None:
    spec = spec_of("simple", epochs=1)
    use_shared(spec_of(), shared_splits("train_helpers:mlp", None, None))
    shared, _ = train(spec, tmp_path / "shared")
    use_shared(spec, None)
    alone, _ = train(spec, tmp_path / "alone")
    assert result(shared) == result(alone)
