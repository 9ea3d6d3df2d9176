"""README says only what works: its files are written, its commands run, its figures come from results."""

import os
import re
import subprocess
import sys

import pages
import pytest
from pages import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = pages.blocks(ROOT / "README.md")
# Run by CI and by hand: they set up an environment, or need a cluster.
NOT_HERE = ("make ", "ray up", "ray submit", "ray dashboard", "ray down")
RUN_HERE = ("python ", "autolr-ray ")


def files():
    """The blocks whose first line names a file."""
    named = {}
    for _, text in BLOCKS:
        match = re.match(r"# (\w+\.(?:py|yaml))\n", text)
        if match:
            named[match[1]] = text
    return named


def commands():
    """The command lines of README."""
    return pages.commands(ROOT / "README.md")


def test_every_command_is_known():
    known = [command for command in commands() if command.startswith((*RUN_HERE, *NOT_HERE))]
    assert known == commands()
    assert {"make compare", "make test"} <= set(commands())


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with README's files, and the checkout's experiments beside them."""
    folder = tmp_path_factory.mktemp("readme")
    for name, text in files().items():
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "experiments").symlink_to(ROOT / "experiments")
    return folder


@pytest.mark.parametrize("command", [c for c in commands() if c.startswith(RUN_HERE)])
def test_command_runs(command, workplace, ray_tmp):
    program, *arguments = command.split()
    # The script autolr-ray is there where the package is installed; the tests do not ask for that.
    arguments = [sys.executable, *(["-m", "autolr_ray"] if program == "autolr-ray" else []), *arguments]
    done = subprocess.run(
        arguments, cwd=workplace, env=os.environ | {"RAY_TMPDIR": str(ray_tmp)},
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    if "compare.py" in command:
        assert (workplace / "results" / "my_study" / "report.html").stat().st_size > 10_000


def test_the_task_is_short():
    assert len([line for line in files()["my_task.py"].splitlines() if line.strip()]) <= 35


def test_results_are_those_of_the_committed_study():
    """The figures in README are the summary that the study wrote, to the letter."""
    shown = re.search(r"<!-- results -->\n(.*?)<!-- /results -->", README, flags=re.DOTALL)
    assert shown is not None
    done = subprocess.run(
        [sys.executable, str(ROOT / "experiments" / "readme_results.py"), "--print"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert shown[1] == done.stdout


def test_links_lead_somewhere():
    for target in pages.links(ROOT / "README.md"):
        assert (ROOT / target).exists(), target
