"""One BLAS thread for matrices of a few dozen rows: more threads on a loaded machine are 10x slower."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache

from threadpoolctl import ThreadpoolController


@lru_cache(maxsize=1)
def _controller() -> ThreadpoolController:
    # Looking for the loaded BLAS libraries takes milliseconds: once per process.
    return ThreadpoolController()


_inside: ContextVar[bool] = ContextVar("single_threaded_blas", default=False)


@contextmanager
def single_threaded_blas() -> Iterator[None]:
    """A context in which BLAS calls use one thread; inside another one it costs nothing."""
    if _inside.get():
        yield
        return
    entered = _inside.set(True)
    try:
        # To set and to restore the number takes a tenth of a millisecond.
        with _controller().limit(limits=1, user_api="blas"):
            yield
    finally:
        _inside.reset(entered)
