"""Objects of the user's own, found by ``package.module:attribute``, and what their code is."""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any


def named_object(field: str, name: str, wanted: str, fits: Callable[[Any], bool]) -> Any:
    """The object that ``name`` leads to.

    The module is looked for where Python looks, then in the current directory.

    Args:
        field: what the name is the value of, for messages.
        name: ``"package.module:attribute"``.
        wanted: what is needed, for messages.
        fits: whether an object is that.

    Raises:
        ValueError: the name has another form, leads nowhere, or to something else.
    """
    module_name, _, attribute = name.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), attribute)):
        raise ValueError(f"{field}: {name!r} is not allowed; expected the form 'package.module:attribute'")
    module = _import(field, name, module_name)
    if not hasattr(module, attribute):
        raise ValueError(
            f"{field}: {name!r} is not allowed; module {module_name!r} has no attribute {attribute!r}"
        )
    found: Any = getattr(module, attribute)
    if not fits(found):
        raise ValueError(
            f"{field}: {name!r} is not allowed; {attribute!r} is a value of type {type(found).__name__}, "
            f"expected {wanted}"
        )
    return found


def code_fingerprint(names: Iterable[str]) -> str:
    """A hash of the code behind ``package.module:attribute`` names; "" where there are none.

    Of a module in a package, all of the package's modules count; what those import from elsewhere does not.
    Comments and layout do not count.

    Raises:
        ValueError: a module's source cannot be found or read.
    """
    files = sorted({path for name in names for path in _sources(name)})
    if not files:
        return ""
    digest = hashlib.sha256()
    for path in files:
        try:
            tree = ast.parse(path.read_bytes())
        except (OSError, SyntaxError, ValueError) as error:
            raise ValueError(f"code: {path} cannot be read ({error})") from error
        digest.update(f"{path.name}\n{ast.dump(tree)}\n".encode())
    return digest.hexdigest()[:16]


def _sources(name: str) -> list[Path]:
    top = name.partition(":")[0].partition(".")[0]
    spec = importlib.util.find_spec(top)
    if spec is None or spec.origin is None:
        raise ValueError(f"code: no source of {top!r} was found")
    path = Path(spec.origin)
    return sorted(path.parent.rglob("*.py")) if path.name == "__init__.py" else [path]


def _import(field: str, name: str, module_name: str) -> object:
    # A console script does not have the current directory on its path. It goes last, so that no file in it
    # can take the place of a library, and stays, because the user's module may import its neighbours later.
    current = os.getcwd()
    if current not in sys.path and "" not in sys.path:
        sys.path.append(current)
    # The module may have been written since Python last listed the directory (a notebook does that).
    importlib.invalidate_caches()
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if module_name == missing or module_name.startswith(f"{missing}."):
            raise ValueError(
                f"{field}: {name!r} is not allowed; no module {missing!r} was found; the current directory "
                f"({current}), PYTHONPATH and the installed packages are searched"
            ) from error
        raise ValueError(
            f"{field}: {name!r} is not allowed; module {module_name!r} was found, but it imports "
            f"{missing!r}, which was not"
        ) from error
