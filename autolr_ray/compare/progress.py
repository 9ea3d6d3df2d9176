"""What a sweep tells the person who waits for it: one line a finished run, with the time left."""

from __future__ import annotations

from autolr_ray.compare.study import Cell


def say(line: str) -> None:
    """Print a line at once."""
    print(line, flush=True)


class Progress:
    """Counts finished runs and estimates the time left.

    The estimate takes the mean time of this sweep's finished runs of the same number of workers (of any,
    before the first), the runs that go on at once, and the epochs that each has.

    Args:
        cells: every run of the study.
        finished: cells that need not run.
    """

    def __init__(self, cells: list[Cell], finished: set[str]) -> None:
        self.total = len(cells)
        self.done = sum(cell.spec.cell in finished for cell in cells)
        self._left = {cell.spec.cell: cell for cell in cells if cell.spec.cell not in finished}
        self._times: dict[int, list[float]] = {}
        self._concurrency: dict[int, int] = {}

    def add(self, cells: list[Cell]) -> None:
        """More runs than were known at the start."""
        self.total += len(cells)
        self._left |= {cell.spec.cell: cell for cell in cells}

    def expect(self, workers: int, concurrency: int) -> None:
        """Runs of ``workers`` workers will go on ``concurrency`` at once."""
        self._concurrency[workers] = concurrency

    def finish(self, cell: Cell, seconds: float) -> None:
        """One run is done and took ``seconds`` of wall time."""
        self.done += 1
        self._left.pop(cell.spec.cell, None)
        self._times.setdefault(cell.spec.workers, []).append(seconds / cell.spec.epochs)

    def drop(self, cell: Cell) -> None:
        """One run failed and will not be tried again."""
        self._left.pop(cell.spec.cell, None)

    @property
    def eta_seconds(self) -> float | None:
        """Seconds left; None before the first run is done."""
        known = [second for times in self._times.values() for second in times]
        if not known:
            return None
        left = 0.0
        for cell in self._left.values():
            times = self._times.get(cell.spec.workers, known)
            left += sum(times) / len(times) * cell.spec.epochs / self._concurrency.get(cell.spec.workers, 1)
        return left

    def line(self, cell: Cell, outcome: str) -> str:
        """How a run ended, how many are done and the time left, in one line."""
        width = len(str(self.total))
        if not self._left:
            left = "done" if self.done == self.total else f"{self.total - self.done} without result"
        else:
            left = f"{clock(self.eta_seconds)} left"
        return f"[{self.done:{width}d}/{self.total}]  {describe(cell)}: {outcome}  |  {left}"


def clock(seconds: float | None) -> str:
    """Seconds as people read them.

    >>> clock(None), clock(42.3), clock(312), clock(7500)
    ('?', '42 s', '5 min 12 s', '2 h 05 min')
    """
    if seconds is None:
        return "?"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def describe(cell: Cell) -> str:
    """Arm, point, batch size and seed in one short line."""
    parts = [cell.arm, cell.point, f"batch {cell.spec.batch_size}", f"seed {cell.spec.seed}"]
    return " ".join(part for part in parts if part)
