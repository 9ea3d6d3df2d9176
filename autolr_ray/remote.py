"""Storage that is no folder, ``s3://bucket/prefix`` and its like, with those manners of a ``Path`` used here.

pyarrow's file systems, which Ray's own ``storage_path`` takes as well: same credentials, same options. An
object appears whole or not at all; there is nothing to make or to sync before it is written.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Annotated, Any
from urllib.parse import urlsplit

import pyarrow.fs
from pydantic import PlainSerializer, PlainValidator


class RemotePath:
    """A place in object storage.

    Args:
        uri: ``scheme://bucket/prefix``, with options of pyarrow after a ``?``, as in
            ``s3://bucket/prefix?endpoint_override=http://localhost:9000``.
        below: relative path under it.

    Raises:
        ValueError: pyarrow does not know the scheme, or the URI is malformed.
    """

    def __init__(self, uri: str, below: str = "") -> None:
        self._uri, self._below = uri, below
        self._system, self._base = _file_system(uri)

    @property
    def key(self) -> str:
        """The path within the file system."""
        return f"{self._base}/{self._below}".rstrip("/")

    @property
    def parent(self) -> RemotePath:
        """What it lies in."""
        above = str(PurePosixPath(self._below).parent)
        return RemotePath(self._uri, "" if above == "." else above)

    @property
    def name(self) -> str:
        """The last part."""
        return PurePosixPath(self.key).name

    @property
    def stem(self) -> str:
        """The last part without its suffix."""
        return PurePosixPath(self.key).stem

    def __truediv__(self, other: str | Path) -> RemotePath:
        return RemotePath(self._uri, f"{self._below}/{other}".lstrip("/"))

    def __str__(self) -> str:
        before, mark, options = self._uri.partition("?")
        return f"{before.rstrip('/')}/{self._below}".rstrip("/") + mark + options

    __repr__ = __str__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemotePath) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def __reduce__(self) -> tuple[Any, ...]:
        return RemotePath, (self._uri, self._below)

    def is_file(self) -> bool:
        """Whether there is an object of this name."""
        return bool(self._info().type == pyarrow.fs.FileType.File)

    def exists(self) -> bool:
        """Whether there is an object of this name, or any below it."""
        return bool(self._info().type != pyarrow.fs.FileType.NotFound)

    def is_dir(self) -> bool:
        """Whether there are objects below it."""
        return bool(self._info().type == pyarrow.fs.FileType.Directory)

    def iterdir(self) -> Iterator[RemotePath]:
        """What lies directly below."""
        selector = pyarrow.fs.FileSelector(self.key, allow_not_found=True)
        for info in self._system.get_file_info(selector):
            yield self / info.base_name

    def glob(self, pattern: str) -> Iterator[RemotePath]:
        """What lies directly below and has a name like ``pattern``."""
        return (path for path in self.iterdir() if fnmatch(path.name, pattern))

    def read_bytes(self) -> bytes:
        """The object; FileNotFoundError where there is none."""
        if not self.is_file():
            raise FileNotFoundError(f"{self}: no such object")
        with self._system.open_input_stream(self.key) as stream:
            return bytes(stream.read())

    def write_bytes(self, content: bytes | memoryview) -> None:
        """Put the object in one piece.

        Raises:
            OSError: the storage refuses it.
        """
        with self._system.open_output_stream(self.key) as stream:
            stream.write(content)

    def unlink(self, missing_ok: bool = False) -> None:
        """Delete the object."""
        try:
            self._system.delete_file(self.key)
        except FileNotFoundError:
            if not missing_ok:
                raise

    def remove_tree(self) -> None:
        """Delete all objects below."""
        if self.exists():
            self._system.delete_dir(self.key)

    def _info(self) -> Any:
        return self._system.get_file_info(self.key)


Location = Path | RemotePath


def location(where: object) -> Location:
    """A folder for a path, object storage for a URI.

    >>> location("results"), location("s3://bucket/results") / "quick"
    (PosixPath('results'), s3://bucket/results/quick)

    Raises:
        ValueError: neither.
    """
    if isinstance(where, (Path, RemotePath)):
        return where
    if not isinstance(where, str) or not where:
        raise ValueError(f"{where!r} is not allowed; a folder or a URI such as s3://bucket/prefix is needed")
    return RemotePath(where) if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", where) else Path(where)


Place = Annotated[Location, PlainValidator(location), PlainSerializer(str, return_type=str)]


@lru_cache(maxsize=16)
def _file_system(uri: str) -> tuple[Any, str]:
    parts = urlsplit(uri)
    if not parts.netloc and parts.scheme != "file":
        raise ValueError(f"{uri!r} is not allowed; a bucket is needed: {parts.scheme}://BUCKET/PREFIX")
    try:
        system, path = pyarrow.fs.FileSystem.from_uri(uri)
    except (ValueError, OSError, NotImplementedError) as error:
        raise ValueError(f"{uri!r} is not allowed; {' '.join(str(error).split())}") from error
    return system, path.rstrip("/")
