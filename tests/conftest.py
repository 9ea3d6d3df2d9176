"""What every test gets: one thread, no usage reports, and skips where the machine lacks something."""

import os

# Before anything imports numpy or torch, and inherited by every process a test starts.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


def _why_no_gpu() -> str | None:
    import torch

    return None if torch.cuda.is_available() else "needs CUDA: torch.cuda.is_available() is False"


def _why_no_cluster() -> str | None:
    if os.environ.get("LABORATORY") == "required":
        return None  # a laboratory that cannot be built fails its tests then
    try:
        tried = subprocess.run(["unshare", "--net", "true"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"needs root that can make network namespaces: {error}"
    if tried.returncode:
        return f"needs root that can make network namespaces: {tried.stderr.strip()}"
    return None


_NEEDS: dict[str, Callable[[], str | None]] = {"gpu": _why_no_gpu, "cluster": _why_no_cluster}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip marked tests where the machine lacks what they need; look only for what some test asks for."""
    for marker, why_not in _NEEDS.items():
        marked = [item for item in items if item.get_closest_marker(marker)]
        if marked and (reason := why_not()):
            for item in marked:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def ray_tmp() -> Iterator[Path]:
    """Give a private ``_temp_dir`` for Ray, with a fresh HOME in it for the whole session.

    The path is short because Ray puts Unix sockets about 65 characters below it, and such a path ends at 107.
    HOME is fresh because ``ray.init()`` writes its authentication token there.
    """
    folder = Path(tempfile.mkdtemp(prefix="ar-", dir="/tmp"))
    home = folder / "home"
    home.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        yield folder
    shutil.rmtree(folder, ignore_errors=True)
