"""The command line: what is wrong is said in one message before anything starts, and by the exit status."""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from autolr_ray import options
from autolr_ray.cli import main, make_parser
from autolr_ray.schedule import DECAYS, RULES
from autolr_ray.schedule.auto_warmup import WARMUPS
from autolr_ray.train import OPTIMIZERS, AutoWarmupSpec, LinearWarmupSpec, RunSpec
from autolr_ray.train.compute import Compute
from autolr_ray.train.schedules import ConstantSpec, RangeTestSpec

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "experiments" / "compare.py"


@pytest.fixture(autouse=True)
def _nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """No run, no Ray: these commands end before."""
    started = "autolr_ray.compare.command.compare"
    monkeypatch.setattr(started, lambda *arguments, **more: pytest.fail("a sweep was started"))


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
    assert len({line.split()[0] for line in lines}) == 135
    assert len(lines) == 144  # the fixed setting is a point of the grid as well
    assert any("linear_warmup" in line and "peak_lr=0.001 warmup=0.05" in line for line in lines)
    assert told.err == ""
    assert not results.exists()


@pytest.mark.parametrize(
    "arguments", [[], ["compare"], ["compare", "--study"], ["replay"], ["compare", "--x"]]
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
            [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=300
        )
        assert done.returncode == 0, done.stderr
        assert phrase in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_the_scripts_exit_status(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--study", "nothing"],
        capture_output=True, text=True, cwd=tmp_path, timeout=300,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1


def test_interrupted_before_the_first_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: object, **more: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("autolr_ray.compare.command.compare", interrupted)
    assert compare("--study", "quick", "--results", tmp_path) == 130
    assert "the same command goes on from here" in capsys.readouterr().err


def test_an_unknown_kind_of_storage_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert compare("--study", "quick", "--results", "floppy://bucket/results") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("results: 'floppy://bucket/results' is not allowed")


@pytest.mark.parametrize("value", ["0", "-1", "many", "1.5"])
def test_so_many_at_once_are_refused(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        compare("--study", "quick", "--max-concurrent", value)
    assert caught.value.code == 2
    assert f"--max-concurrent: '{value}' is not allowed" in capsys.readouterr().err


def commands() -> dict[str, argparse.ArgumentParser]:
    (found,) = (a for a in make_parser()._actions if isinstance(a, argparse._SubParsersAction))
    return dict(found.choices)


def test_every_command_teaches() -> None:
    """A sentence, what each option is for, and examples that the parser takes."""
    assert list(commands()) == ["compare", "train", "report", "status", "board", "replay"]
    for name, parser in commands().items():
        assert parser.description
        assert all(action.help for action in parser._actions), name
        lines = (parser.epilog or "").replace("\\\n", "").splitlines()
        examples = [line.strip() for line in lines if line.strip().startswith("autolr-ray")]
        assert len(examples) >= 2, name
        for example in examples:
            words = shlex.split(re.split(r" [|>] ", example)[0])[1:]
            assert make_parser().parse_args(words).command == name


def test_help_costs_nothing() -> None:
    """No command's help waits for torch, Ray or pandas."""
    code = """
import contextlib, io, sys
from autolr_ray.cli import main
for name in ("compare", "train", "report", "status", "board", "replay", ""):
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()) as said:
        main([*name.split(), "--help"])
    assert "usage: autolr-ray " + name in said.getvalue()
print(*sorted({"torch", "numpy", "ray", "pandas", "matplotlib", "pydantic"} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split() == []


def test_names_and_defaults_in_the_help_are_those_of_a_run() -> None:
    names = (options.OPTIMIZERS, options.RULES, options.WARMUPS, options.DECAYS, options.SCHEDULES)
    models = (AutoWarmupSpec, LinearWarmupSpec, RangeTestSpec, ConstantSpec)
    kinds = tuple(model.model_fields["kind"].default for model in models)
    assert names == (OPTIMIZERS, tuple(RULES), WARMUPS, tuple(DECAYS), kinds)
    usual: dict[str, Any] = {"precision": Compute().precision}
    for model in (ConstantSpec, RangeTestSpec, LinearWarmupSpec, AutoWarmupSpec, RunSpec):
        usual |= {name: field.default for name, field in model.model_fields.items()}
    usual |= {"optimizer": usual["optimizer"].name, "schedule": usual["schedule"].kind}
    said = {
        action.dest: match[1]
        for action in commands()["train"]._actions
        if action.default is None and (match := re.search(r"\(default: (\S+)\)", action.help or ""))
    }
    assert len(said) >= 10
    assert said == {name: str(usual[name]) for name in said}
    # Where two schedules differ, both are said.
    for name in ("min_lr", "max_lr"):
        (rate,) = (action for action in commands()["train"]._actions if action.dest == name)
        both = ", ".join(str(model.model_fields[name].default) for model in (AutoWarmupSpec, RangeTestSpec))
        assert f"(default: {both})" in (rate.help or "")


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [(["tran"], "train"), (["train", "--optimizer", "lam"], "lamb"), (["zzz"], None)],
)
def test_a_mistyped_name(arguments: list[str], meant: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(arguments)
    told = capsys.readouterr().err
    assert ("did you mean" in told) == (meant is not None)
    assert meant is None or f"did you mean {meant!r}?" in told


def test_completion(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """What bash is given completes commands, options, choices, and files where one is meant."""
    with pytest.raises(SystemExit) as caught:
        main(["--print-completion", "bash"])
    assert not caught.value.code
    (tmp_path / "script").write_text(capsys.readouterr().out)
    (tmp_path / "mine.yaml").touch()
    for typed, expected in {
        "autolr-ray re": {"report", "replay"},
        "autolr-ray train --opt": {"--optimizer"},
        "autolr-ray train --optimizer adam": {"adamp", "adamw"},
        "autolr-ray compare --study mi": {"mine.yaml"},
    }.items():
        words = typed.split()
        code = f"""source ./script; COMP_WORDS=({typed}); COMP_CWORD={len(words) - 1}
            COMP_LINE='{typed}'; COMP_POINT={len(typed)}; _shtab_autolr_ray autolr-ray {words[-1]} {words[-2]}
            printf '%s ' "${{COMPREPLY[@]}}" """
        done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=30)
        assert set(done.stdout.split()) == expected, done.stderr


@pytest.mark.parametrize("shell", ["zsh", "tcsh"])
def test_completion_of_other_shells(shell: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Commands, options and choices are in what they are given; where the shell is here, it can read it."""
    with pytest.raises(SystemExit) as caught:
        main(["--print-completion", shell])
    assert not caught.value.code
    script = capsys.readouterr().out
    for word in (*commands(), "--optimizer", "schedule_free_adamw", "lr_range_test", "--study"):
        assert word.removeprefix("--") in script, word
    assert {"zsh": "compdef", "tcsh": "complete autolr-ray"}[shell] in script
    if shutil.which(shell):
        (tmp_path / "script").write_text(script)
        done = subprocess.run(
            [shell, "-n", "script"], capture_output=True, text=True, cwd=tmp_path, timeout=30
        )
        assert (done.returncode, done.stderr) == (0, "")


def test_a_reader_that_goes_away() -> None:
    """``autolr-ray ... | head`` ends in silence, however much it still had to say."""
    code = f"( sleep 0.5; {sys.executable} -m autolr_ray --print-completion bash; echo $? >&2 ) | true"
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.stderr.split() == ["141"]
