"""The cost of a comparison on ImageNet: the sums, and that what is committed and quoted is what they give."""

import doctest
import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """Return the script as a module."""
    path = ROOT / "experiments" / "benchmarks" / "imagenet_cost.py"
    spec = importlib.util.spec_from_file_location("imagenet_cost", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def output(script: ModuleType, capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, Any]]:
    """Run it; its rows."""
    script.main(["--json", *arguments])
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def committed() -> list[dict[str, Any]]:
    """The rows in the repository."""
    text = (ROOT / "experiments/results/cluster/imagenet_cost.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_the_committed_file_is_what_it_prints(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody typed a figure by hand."""
    assert output(script, capsys) == committed()


def test_a_sum_by_hand(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    """At one image a second and ten dollars an hour."""
    numbers = ["--epochs", "2", "--grid", "4", "--seeds", "3", "--batch-sizes", "256"]
    row = output(script, capsys, *numbers, "--images-per-second", "1", "--dollars-per-gpu-hour", "10")[0]
    hours = (2 * 1_153_050 + (2 * 128_117 + 50_000) / 3) / 3600
    assert row["gpu_hours_of_a_run"] == pytest.approx(hours)
    assert row["runs"] == {"auto_warmup": 3, "linear_warmup": 12, "comparison": 15}
    assert row["gpu_hours"]["comparison"] == pytest.approx(15 * hours)
    assert row["dollars"]["linear_warmup"] == pytest.approx(12 * hours * 10)
    assert doctest.testmod(script).failed == 0


def test_batch_sizes_and_epochs_are_those_of_the_study(script: ModuleType) -> None:
    """What the shipped study runs; where its arms differ from the sum, script and page say so."""
    study = load_study_text()
    assert {(row["batch_size"], row["epochs"]) for row in committed() if row["batch_size"] is not None} == {
        (batch["size"], batch["epochs"]) for batch in study["batches"]
    }
    grid = study["arms"]["linear_warmup"]["grid"]
    points = len(grid["peak_lr"]) * len(grid["warmup_fraction"])
    assert f"a grid of {points} points" in " ".join(str(script.__doc__).split())
    page = " ".join((ROOT / "docs" / "cluster.md").read_text().split())
    assert f"a grid of {points} and the paper's rule" in page
    assert set(study["arms"]) == {"auto_warmup", "linear_warmup", "autowu_original"}


def load_study_text() -> dict[str, Any]:
    """The shipped study as it is written."""
    text = (ROOT / "experiments" / "studies" / "imagenet_resnet50.yaml").read_text()
    content: dict[str, Any] = yaml.safe_load(text)
    return content


def test_the_total_is_over_the_batch_sizes() -> None:
    """The rows without a batch size add up those with one."""
    for seeds in (1, 3):
        *each, total = [row for row in committed() if row["seeds"] == seeds]
        assert [row["batch_size"] for row in (*each, total)] == [4096, 16384, None]
        for kind in ("runs", "gpu_hours", "dollars"):
            for arm, amount in total[kind].items():
                assert amount == pytest.approx(sum(row[kind][arm] for row in each))


@pytest.mark.parametrize("option", ["--epochs", "--grid", "--images-per-second", "--dollars-per-gpu-hour"])
@pytest.mark.parametrize("value", ["0", "-1", "inf", "much"])
def test_bad_numbers_are_refused(
    script: ModuleType, option: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """By name and value."""
    with pytest.raises(SystemExit):
        script.main([option, value])
    error = capsys.readouterr().err
    assert option in error
    assert value in error


def test_the_page_quotes_the_committed_file() -> None:
    """Every row of the table in docs/cluster.md is one of the file."""
    page = (ROOT / "docs" / "cluster.md").read_text()
    rows = [row for row in committed() if row["batch_size"] is None]
    for row in rows:
        seeds = "1 seed" if row["seeds"] == 1 else f"{row['seeds']} seeds"
        for arm, name in (
            ("auto_warmup", "AutoWarmup"),
            ("linear_warmup", "linear warmup, grid of 10"),
            ("comparison", "the comparison"),
        ):
            hours, dollars = row["gpu_hours"][arm], row["dollars"][arm]
            assert f"| {name}, {seeds} | {row['runs'][arm]} | {hours:,.0f} | {dollars:,.0f} |" in page
    one = rows[0]["gpu_hours_of_a_run"]
    assert f"{one:.1f} GPU-hours a run" in page
    assert f"{one / 8:.1f} hours on 8 GPUs" in page
    assert f"{rows[0]['images_per_second']:,.0f} images/s" in page
    assert f"{rows[0]['dollars_per_gpu_hour']:.2f} USD" in page
