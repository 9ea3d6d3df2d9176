"""The command line: what is wrong is said in one message before anything starts, and by the exit status."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from autolr_ray.cli import main

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "experiments" / "compare.py"


@pytest.fixture(autouse=True)
def _nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """No run, no Ray: these commands end before."""
    monkeypatch.setattr("autolr_ray.cli._compare", lambda *arguments: pytest.fail("a sweep was started"))


def compare(*arguments: object) -> int:
    return main(["compare", *map(str, arguments)])


@pytest.mark.parametrize(
    ("study", "phrase"),
    [
        ("no such study", "is neither a file nor a shipped study; shipped: cifar10"),
        ("cifar10", "python -m autolr_ray.tasks.download cifar10 --data-dir DIR"),
    ],
)
def test_a_bad_study(tmp_path: Path, capsys: pytest.CaptureFixture[str], study: str, phrase: str) -> None:
    assert compare("--study", study, "--results", tmp_path / "results") == 2
    told = capsys.readouterr()
    assert told.out == ""
    (line,) = told.err.splitlines()
    assert phrase in line
    assert not (tmp_path / "results").exists()


def test_results_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    for below in ("file", "file/deeper"):
        assert compare("--study", "quick", "--results", tmp_path / below) == 2
        told = capsys.readouterr()
        assert told.out == ""
        (line,) = told.err.splitlines()
        assert line.startswith(f"results: {tmp_path / below / 'quick'} cannot be written to (")


def test_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = tmp_path / "results"
    assert compare("--study", "fashion_mnist", "--list", "--results", results) == 0
    told = capsys.readouterr()
    lines = told.out.splitlines()
    assert len({line.split()[0] for line in lines}) == len(lines) == 108
    assert any("linear_warmup" in line and "peak_lr=0.001 warmup=0.05" in line for line in lines)
    assert told.err == ""
    assert not results.exists()


@pytest.mark.parametrize(
    "arguments", [[], ["compare"], ["compare", "--study"], ["train"], ["compare", "--x"]]
)
def test_wrong_options(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: autolr-ray" in capsys.readouterr().err


def test_the_script_helps_and_lists_without_ray(tmp_path: Path) -> None:
    """What ``ray submit`` sends works as a script, from anywhere, and these two options cost no Ray."""
    for option, phrase in ((["--help"], "--study"), (["--study", "quick", "--list"], "batch ")):
        code = f"""
import runpy, sys
sys.argv = {[str(SCRIPT), *option]!r}
try:
    runpy.run_path({str(SCRIPT)!r}, run_name="__main__")
except SystemExit as end:
    assert not end.code, end.code
assert "ray" not in sys.modules
"""
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=120
        )
        assert done.returncode == 0, done.stderr
        assert phrase in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_the_scripts_exit_status(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--study", "nothing"],
        capture_output=True, text=True, cwd=tmp_path, timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1


def test_interrupted_before_the_first_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("autolr_ray.cli._compare", interrupted)
    assert compare("--study", "quick", "--results", tmp_path) == 130
    assert "the same command goes on from here" in capsys.readouterr().err


def test_an_object_store_is_refused_as_results(capsys: pytest.CaptureFixture[str]) -> None:
    assert compare("--study", "quick", "--results", "s3://bucket/results") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("results: s3:/bucket/results is not allowed; a folder")
