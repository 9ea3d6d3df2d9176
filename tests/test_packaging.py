"""The package as a whole: versions, pins, licence, what an import costs, and which way imports point."""

import ast
import hashlib
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "autolr_ray"
# A module may import from its own layer and those before it.
LAYERS = ("schedule", "tasks", "train", "compare", "cli")
# What a user of the scheduler alone must not pay for.
HEAVY = ("ray", "torchvision", "timm", "pandas", "pyarrow", "matplotlib")


def _project() -> dict[str, Any]:
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return project


def _pins() -> list[Requirement]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]


def _modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_version_and_python() -> None:
    """The version is a version, and the installed package is the one here."""
    project = _project()
    assert str(Version(project["version"])) == project["version"]
    assert project["requires-python"] == ">=3.11"
    try:
        installed = importlib.metadata.version(project["name"])
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the package is not installed here; `make test` installs it")
    assert installed == project["version"]


def test_dependencies_have_lower_bounds() -> None:
    """Every run-time dependency says what it needs at least; Ray, which breaks between minors, both ends."""
    requirements = {r.name: r for r in map(Requirement, _project()["dependencies"])}
    for requirement in requirements.values():
        assert any(s.operator == ">=" for s in requirement.specifier), str(requirement)
        assert requirement.url is None
    assert {s.operator for s in requirements["ray"].specifier} == {">=", "<"}


def test_constraints_are_exact() -> None:
    """One ``==`` version on each line, no address, no file, and never PyTorch 2.13.0."""
    text = (ROOT / "constraints.txt").read_text()
    assert "make lock" in text.split("\n\n")[0]
    assert not re.search(r"://|file:| @ |^-", text, flags=re.MULTILINE)
    for pin in _pins():
        (specifier,) = pin.specifier
        assert specifier.operator == "=="
        assert "*" not in specifier.version
        assert not pin.extras
    assert [str(pin.specifier) for pin in _pins() if pin.name == "torch"] != ["==2.13.0"]


@pytest.mark.parametrize("python", ["3.11", "3.12"])
def test_constraints_satisfy_pyproject(python: str) -> None:
    """On each supported Python every dependency has exactly one pin, and it is in the range asked for."""
    environment: dict[str, str | AbstractSet[str]] = {
        **{key: str(value) for key, value in default_environment().items()},
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_machine": "x86_64",
        "python_version": python,
        "python_full_version": f"{python}.0",
    }
    pinned: dict[str, Version] = {}
    for pin in _pins():
        if pin.marker is None or pin.marker.evaluate(environment):
            name = canonicalize_name(pin.name)
            assert name not in pinned, f"{name} is pinned twice on Python {python}"
            (specifier,) = pin.specifier
            pinned[name] = Version(specifier.version)
    project = _project()
    for asked in chain(project["dependencies"], *project["optional-dependencies"].values()):
        requirement = Requirement(asked)
        assert pinned[canonicalize_name(requirement.name)] in requirement.specifier, asked


def test_license_is_apache_2() -> None:
    """The licence is the unmodified text, appendix included, and the metadata names it."""
    words = " ".join((ROOT / "LICENSE").read_text().split())
    assert words.startswith("Apache License Version 2.0, January 2004")
    digest = hashlib.sha256(words.encode()).hexdigest()
    assert digest == "0ffddef9e48f8a09aed5caf2d44f7ba1c1be2d9b8e0a6f693b1635b2d5566645"
    assert _project()["license"] == "Apache-2.0"


def test_import_is_light() -> None:
    """``import autolr_ray`` brings PyTorch, NumPy and SciPy, and none of the heavy packages."""
    code = f"import sys, autolr_ray; print(*[name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300, cwd=ROOT
    )
    assert done.stdout.split() == []


@pytest.mark.parametrize("path", _modules(), ids=_name)
def test_module_has_a_docstring(path: Path) -> None:
    """Every module says what it is for."""
    assert ast.get_docstring(ast.parse(path.read_text()))


def _imports(path: Path) -> Iterator[str]:
    """Yield the absolute dotted name of everything that a module imports, inside functions too."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join((*start, *((node.module,) if node.module else ())))
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _layer(dotted: str) -> str | None:
    parts = dotted.split(".")
    return parts[1] if parts[0] == "autolr_ray" and len(parts) > 1 and parts[1] in LAYERS else None


@pytest.mark.parametrize("layer", LAYERS)
def test_imports_point_one_way(layer: str) -> None:
    """Each layer imports only from those before it, and the schedules never import a heavy package."""
    folder, module = PACKAGE / layer, PACKAGE / f"{layer}.py"
    paths = sorted(folder.rglob("*.py")) if folder.is_dir() else [module]
    if not folder.is_dir() and not module.is_file():
        pytest.skip(f"autolr_ray/{layer} is not there yet")
    later = LAYERS[LAYERS.index(layer) + 1 :]
    for path in paths:
        for imported in _imports(path):
            assert _layer(imported) not in later, f"{_name(path)} imports {imported}"
            # The look inside imports what it draws with when it is called.
            if layer == "schedule" and path.stem != "look_inside":
                assert imported.split(".")[0] not in HEAVY, f"{_name(path)} imports {imported}"


def test_modules_outside_the_layers_import_none() -> None:
    """A helper beside the layers, which every layer may use, uses none of them; only ``__init__`` gathers."""
    for path in PACKAGE.glob("*.py"):
        if path.stem not in ("__init__", "__main__", *LAYERS):
            assert not [name for name in _imports(path) if _layer(name)], _name(path)
