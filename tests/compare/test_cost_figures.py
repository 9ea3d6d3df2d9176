"""The figures of cost, and arms that stay apart however many there are."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from synthetic import changed, run, study

from autolr_ray.compare.cost_figures import accuracy_against_cost, cost
from autolr_ray.compare.figures import accuracy, write_figures
from autolr_ray.compare.scene import Scene, short
from autolr_ray.compare.statistics import best_of_runs
from autolr_ray.train.record import RunRecord

LONG = "a_name_of_sixty_characters_as_long_as_a_study_allows_one_to_be"[:60]


def many(arms: int, sizes: tuple[int, ...] = (128, 512, 2048)) -> list[RunRecord]:
    records = study(batch_sizes=sizes, seeds=(0, 1), peaks=(0.01, 0.03), warmups=(0.1,), rival=False)
    names = [LONG, *(f"rival_{i:02d}" for i in range(arms - 3))]
    records += [
        changed(
            run(name, "", size, seed, 0.02, 0.1, gain=-0.003 * i),
            tuning_seconds=5.0 * (i % 2), tuning="range test" * (i % 2),
        )
        for i, name in enumerate(names)
        for size in sizes
        for seed in (0, 1)
    ]  # fmt: skip
    return records


def scene(records: list[RunRecord]) -> Scene:
    return Scene(records=records, candidate="auto_warmup", baseline="linear_warmup")


@pytest.mark.parametrize("arms", [8, 30, 70])
def test_every_arm_has_a_look_of_its_own(arms: int) -> None:
    found = scene(many(arms, sizes=(128,)))
    assert len(found.arms) == arms
    assert len({(found.colour(a), found.shape(a)) for a in found.arms}) == arms
    if arms <= 9:
        assert len({found.colour(a) for a in found.arms}) == arms
        assert len({found.shape(a) for a in found.arms}) == arms


def ticks_in_view(axes: Axes) -> list[Text]:
    low, high = sorted(axes.get_ylim())
    return [t for t in axes.get_yticklabels() if low <= t.get_position()[1] <= high]


def overlapping(texts: list[Text], figure: Figure) -> list[tuple[str, str]]:
    renderer = FigureCanvasAgg(figure).get_renderer()
    boxes = [(t.get_text(), t.get_window_extent(renderer)) for t in texts if t.get_text() and t.get_visible()]
    return [
        (a, b)
        for i, (a, one) in enumerate(boxes)
        for b, other in boxes[i + 1 :]
        if one.overlaps(other) and min(one.x1, other.x1) - max(one.x0, other.x0) > 1
        and min(one.y1, other.y1) - max(one.y0, other.y0) > 1
    ]  # fmt: skip


@pytest.mark.parametrize("draw", [accuracy, cost, accuracy_against_cost])
@pytest.mark.parametrize("arms", [3, 8, 12])
def test_labels_of_many_arms_do_not_overlap_and_fit(draw: object, arms: int) -> None:
    figure = draw(scene(many(arms)))  # type: ignore[operator]
    FigureCanvasAgg(figure).draw()
    texts = [t for x in figure.axes for t in [*x.texts, *ticks_in_view(x)]]
    texts += [t for one in figure.legends for t in one.get_texts()]
    assert overlapping(texts, figure) == []
    width, height = figure.canvas.get_width_height()
    for one in [*figure.legends, *(t for t in texts if t.get_text())]:
        box = one.get_window_extent()
        assert box.x0 >= -1, one
        assert box.x1 <= width + 1, one
        assert box.y1 <= height + 1, one


def test_the_cost_figure_draws_tuning_hatched() -> None:
    figure = cost(scene(many(8, sizes=(128,))))
    assert figure is not None
    bars = figure.axes[0].patches
    plain = {round(b.get_y() + b.get_height() / 2): b.get_width() for b in bars if not b.get_hatch()}  # type: ignore[attr-defined]
    hatched = {round(b.get_y() + b.get_height() / 2): b.get_width() for b in bars if b.get_hatch()}  # type: ignore[attr-defined]
    # auto_warmup, linear_warmup with its other point, then the rivals, every second with a probe.
    assert sorted(plain) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert sorted(hatched) == [2, 4, 6, 8]
    assert hatched[4] == pytest.approx(5.0)


def test_accuracy_against_cost_shows_validation_and_the_whole_grid() -> None:
    records = study(batch_sizes=(128,), seeds=(0, 1, 2))
    poisoned = [changed(r, cell=r.cell, test_accuracy=0.01) for r in records]
    for some in (records, poisoned):
        figure = accuracy_against_cost(scene(some))
        assert figure is not None
        lines = {len(line.get_xdata()): line for line in figure.axes[0].lines if line.get_marker() == "s"}  # type: ignore[arg-type]
        expected = best_of_runs(records, "linear_warmup", 128)
        assert list(lines[10].get_xdata()) == [c.device_seconds for c in expected]  # type: ignore[call-overload]
        assert list(lines[10].get_ydata()) == [100 * c.validation_accuracy for c in expected]  # type: ignore[call-overload]
        (ours,) = [line for line in figure.axes[0].lines if line.get_marker() == "o"]
        mine = [r for r in records if r.arm == "auto_warmup"]
        assert ours.get_ydata()[0] == pytest.approx(100 * sum(r.validation_accuracy for r in mine) / 3)  # type: ignore[index]
        assert ours.get_xdata()[0] == pytest.approx(sum(r.device_seconds for r in mine) / 3)  # type: ignore[index]


def test_nothing_to_draw(tmp_path: Path) -> None:
    assert cost(scene([])) is None
    assert accuracy_against_cost(scene([])) is None
    assert write_figures([], tmp_path, candidate=None, baseline=None) == []
    lost = [changed(r, validation_accuracy=float("nan")) for r in study(batch_sizes=(64,), seeds=(0,))]
    assert accuracy_against_cost(scene(lost)) is None


def test_long_names_keep_their_ends() -> None:
    assert short("auto_warmup") == "auto_warmup"
    assert len(short(LONG)) <= 32
    assert short(LONG)[:10] == LONG[:10]
    assert short(LONG)[-10:] == LONG[-10:]
    assert short("$" * 60).count(r"\$") == 30
