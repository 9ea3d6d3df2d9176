"""The grid-edge guard: grids that grow by themselves, for the same reasons whoever looks."""

import pytest
from synthetic import changed, run

from autolr_ray.compare.extend import all_cells
from autolr_ray.compare.study import Study

PEAKS = (0.001, 0.003, 0.01)


def study_of(batches=(64,), **grid):
    return Study.model_validate(
        {
            "name": "grows", "task": "fashion_mnist_subset", "seeds": [0, 1],
            "batches": [{"size": size, "epochs": 1} for size in batches],
            "arms": {
                "auto": {},
                "tuned": {"grid": {"peak_lr": PEAKS, "warmup_fraction": [0.1, 0.2]} | grid},
            },
            "candidate": "auto", "baseline": "tuned",
        }
    )  # fmt: skip


def finish(cells, score):
    """A record of each cell, labelled by somebody else; validation accuracy ``score(peak, warmup)``."""
    done = []
    for cell in cells:
        schedule = cell.spec.schedule
        peak = getattr(schedule, "peak_lr", 0.0)
        accuracy = score(peak, getattr(schedule, "warmup_fraction", 0.0))
        made = run("other", "other", cell.spec.batch_size, cell.spec.seed, peak or 0.003, 0.1)
        done.append(
            changed(
                made, cell=cell.spec.cell, validation_accuracy=accuracy, peak_lr=peak,
                warmup_fraction=getattr(schedule, "warmup_fraction", 0.0),
            )
        )  # fmt: skip
    return done


def grown(study, score):
    """Run, grow, run again until it stops; the cells of each round."""
    rounds, done = [], []
    while True:
        have = {r.cell for r in done}
        new = [cell for cell in all_cells(study, done) if cell.spec.cell not in have]
        if not new:
            return rounds
        rounds.append(new)
        done += finish(new, score)


def peaks(cells):
    return sorted({cell.spec.schedule.peak_lr for cell in cells if cell.point})


def test_a_best_point_inside_needs_nothing_more():
    (only,) = grown(study_of(), lambda peak, warmup: 0.9 - abs(peak - 0.003))
    assert len(only) == 2 + 3 * 2 * 2


@pytest.mark.parametrize(
    ("score", "expected"),
    [
        (lambda peak, warmup: peak, [[0.0333], [0.111], [0.37]]),
        (lambda peak, warmup: 1 - peak, [[0.000333], [0.000111], [0.000037]]),
        (lambda peak, warmup: -abs(peak - 0.03), [[0.0333], [0.111]]),
    ],
    ids=["ever higher", "ever lower", "found"],
)
def test_it_grows_at_the_edge_until_the_best_is_inside_or_the_limit(score, expected):
    _first, *more = grown(study_of(), score)
    assert [peaks(cells) for cells in more] == [pytest.approx(value) for value in expected]
    for cells in more:
        assert len(cells) == 2 * 2  # each warmup, each seed
        assert {(cell.spec.schedule.warmup_fraction, cell.spec.seed) for cell in cells} == {
            (0.1, 0), (0.1, 1), (0.2, 0), (0.2, 1)
        }  # fmt: skip
        assert {cell.point for cell in cells} == {
            f"peak_lr={peaks(cells)[0]:g} warmup={fraction:g}" for fraction in (0.1, 0.2)
        }


def test_only_the_batch_size_at_whose_edge_it_is():
    study = study_of(batches=(64, 128))
    done = finish(study.cells(), lambda peak, warmup: -abs(peak - 0.003))
    done = [
        r.model_copy(update={"validation_accuracy": r.peak_lr}) if r.batch_size == 128 else r for r in done
    ]
    new = all_cells(study, done)[len(study.cells()) :]
    assert {cell.spec.batch_size for cell in new} == {128}


def test_not_before_every_point_is_finished():
    study = study_of()
    done = finish(study.cells(), lambda peak, warmup: peak)
    for missing in range(len(done)):
        partly = done[:missing] + done[missing + 1 :]
        more = len(all_cells(study, partly)) > len(study.cells())
        assert more is (done[missing].peak_lr == 0.0)  # the untuned arm's runs do not matter


def test_off_and_single_points():
    for study in (study_of(extend=0), study_of(peak_lr=[0.01])):
        assert len(grown(study, lambda peak, warmup: peak)) == 1


def test_the_same_whatever_the_order_of_the_records():
    study = study_of()
    done = finish(study.cells(), lambda peak, warmup: peak)
    forward = [cell.spec.cell for cell in all_cells(study, done)]
    assert [cell.spec.cell for cell in all_cells(study, done[::-1])] == forward
