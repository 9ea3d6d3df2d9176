"""The report holds together on whole and partial ledgers, and shows no test accuracy it may not."""

from __future__ import annotations

import csv
import itertools
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from synthetic import changed, run, study

from autolr_ray.compare.figures import _STYLE, write_figures
from autolr_ray.compare.report import console_table, write_report
from autolr_ray.compare.statistics import reported_runs
from autolr_ray.compare.values import FailureRow
from autolr_ray.train.record import Posterior, RunRecord, Trace

VOID = {"meta", "img", "br", "link", "hr", "input"}
OWN_SCRIPTS = 5  # theme, page, charts, explorer and the curves' data
FIGURES = [
    "accuracy",
    "cost",
    "accuracy_against_cost",
    "grid",
    "learning_rates",
    "losses",
    "posterior",
    "tests",
]


class Page(HTMLParser):
    """Checks that tags nest, and gathers text and images."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.words: list[str] = []
        self.feed(source)
        self.close()
        assert self.open == []
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            assert name != "srcset", f"the page must stand alone: {name}={value}"
            assert name != "href" or (value or "").startswith(("#", "data:")), f"stand alone: {value}"
            assert not name.startswith("on"), f"no script hides in an attribute: {name}"
        if tag == "img":
            self.images.append(dict(attrs))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "title", "script"):
            self.words.append(data)


@pytest.fixture(autouse=True)
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer pixels, faster tests."""
    monkeypatch.setitem(_STYLE, "savefig.dpi", 40)


def texts(folder: Path) -> dict[str, str]:
    return {n: (folder / n).read_text() for n in ("report.html", "summary.md", "summary.csv")}


@pytest.fixture(scope="module")
def records() -> list[RunRecord]:
    return study(batch_sizes=(128, 512), seeds=(0, 1, 2), warmups=(0.05,))


def test_whole_report(tmp_path: Path, records: list[RunRecord]) -> None:
    paths = write_report(records, tmp_path, study_name="made up", expected_cells=len(records) + 2)
    assert [p.stem for p in paths.figures] == FIGURES
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in paths.figures)
    source = paths.html.read_text()
    page = Page(source)
    assert len(page.images) == len(FIGURES)
    assert all((i["src"] or "").startswith("data:image/png;base64,") and i["alt"] for i in page.images)
    addresses = re.findall(r"https?:[^\s\"']*", re.sub(r"base64,[A-Za-z0-9+/=]+", "", source))
    assert set(addresses) == {"http://www.w3.org/2000/svg"}  # the name of SVG's namespace, nothing to load
    assert source.count("<script") == OWN_SCRIPTS
    assert f"{len(records)} of {len(records) + 2} cells finished" in page.text
    for phrase in ("Batch size 128", "instead of 5 runs", "at margin 0.5", "fashion_mnist_subset", "2.60.0"):
        assert phrase in page.text
    assert (
        page.text.index("Batch size 128")
        < page.text.index("Regret")
        < page.text.index("Test accuracy is read")
    )
    assert "instead of 5 runs" in paths.markdown.read_text()
    rows = list(csv.DictReader(paths.csv.open()))
    assert [(r["arm"], r["batch_size"]) for r in rows][:2] == [
        ("auto_warmup", "128"),
        ("linear_warmup", "128"),
    ]
    ours = [r.test_accuracy for r in records if r.arm == "auto_warmup" and r.batch_size == 128]
    assert float(rows[0]["test_accuracy"]) == pytest.approx(sum(ours) / 3)
    leftovers = [p for p in tmp_path.rglob("*") if p.name.endswith(".tmp")]
    assert leftovers == []


def test_test_accuracy_of_the_losers_reaches_no_file(tmp_path: Path, records: list[RunRecord]) -> None:
    poisoned = [
        r if r in reported_runs(records, r.arm, r.batch_size) else r.model_copy(update={"test_accuracy": v})
        for r, v in zip(records, itertools.cycle([0.123456, 0.999, math.nan]), strict=False)
    ]
    write_report(records, tmp_path / "a", study_name="s")
    write_report(list(reversed(poisoned)), tmp_path / "b", study_name="s")
    for path in (tmp_path / "a").rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()
    assert console_table(records) == console_table(poisoned)
    assert "not shown" in texts(tmp_path / "a")["report.html"]


def parts(records: list[RunRecord]) -> dict[str, tuple[list[RunRecord], str]]:
    """Partial ledgers, and what their report must say."""
    bare = {
        "trace": Trace(step=[], lr=[], loss=[]),
        "posterior": Posterior(step=[], mean=[], sd=[]),
        "receipts": [],
        "epoch_rows": [],
        "versions": {},
        "switch_step": -1,
    }
    lost = Trace(step=[0, 1, 2], lr=[0.1, 0.2, 0.0], loss=[math.nan, math.inf, math.nan])
    grid = [r for r in records if r.arm == "linear_warmup"]
    return {
        "nothing": ([], "No run has finished"),
        "no baseline": ([r for r in records if r.arm == "auto_warmup"], "no baseline arm"),
        "no candidate": (grid, "no candidate arm"),
        "one seed": ([r for r in records if r.seed == 0], "1 of the 3 seeds"),
        "one run": (records[:1], "no baseline arm"),
        "hole": (
            [r for r in records if r.arm != "auto_warmup" or r.batch_size == 128],
            "auto_warmup at batch size 512: no finished run",
        ),
        "missing seed": (
            [r for r in records if r.arm != "auto_warmup" or r.seed != 2],
            "auto_warmup at batch size 128: seeds 2 missing",
        ),
        "short point": ([r for r in records if r is not grid[0]], "not eligible, 2 of 3 seeds"),
        "other seeds": (
            [changed(r, seed=r.seed + 9) if r.arm == "linear_warmup" else r for r in records],
            "no seed that both arms have finished",
        ),
        "bare": ([r.model_copy(update=bare) for r in records], "Batch size 512"),
        "lost": (
            [
                r.model_copy(update={"trace": lost, "test_accuracy": math.nan, "peak_lr": math.nan})
                if r.arm == "auto_warmup"
                else r
                for r in records
            ],
            "not a number",
        ),
        "grid lost": (
            [r.model_copy(update={"validation_accuracy": math.nan}) if r in grid else r for r in records],
            "no point could be chosen",
        ),
        "edge": (
            [r for r in records if r.arm != "linear_warmup" or r.peak_lr <= 0.01],
            "the highest peak LR",
        ),
        "repeat": ([*records, changed(records[0], finished_at="2027")], "1 runs left out"),
        "two versions": ([changed(records[0], versions={"ray": "3"}), *records[1:]], "differ in ray version"),
    }


@pytest.mark.parametrize(
    "name", parts([run("a", "", 1, 0, 0.1, 0.1), run("linear_warmup", "p", 1, 0, 0.1, 0.1)])
)
def test_partial_ledgers_say_what_is_missing(tmp_path: Path, records: list[RunRecord], name: str) -> None:
    some, phrase = parts(records)[name]
    table = console_table(some, expected_cells=99)
    assert len(table.splitlines()) >= 3
    if name in ("missing seed", "short point", "edge", "repeat", "two versions"):
        assert phrase in table  # these change the notes, not the page's shape
        return
    paths = write_report(some, tmp_path, study_name="partial", expected_cells=99)
    page = Page(paths.html.read_text())
    assert phrase in page.text
    assert "of 99 cells finished" in page.text
    assert len(page.images) == len(paths.figures)


def test_named_arms_that_do_not_exist_are_reported(tmp_path: Path, records: list[RunRecord]) -> None:
    paths = write_report(records, tmp_path, study_name="s", baseline_arm="nobody", candidate_arm="no one")
    text = Page(paths.html.read_text()).text
    assert "baseline arm nobody has no finished run" in text
    assert "candidate arm no one has no finished run" in text


def test_an_untuned_baseline_and_any_candidate(records: list[RunRecord]) -> None:
    table = console_table(records, baseline_arm="adamw_fixed", candidate_arm="linear_warmup")
    assert "linear_warmup against adamw_fixed" in table
    assert "5 runs" in table


def test_names_are_escaped(tmp_path: Path) -> None:
    evil = "<script>alert('x')</script> $x^{ | &amp;"
    some = [
        changed(r, arm=evil if r.arm == "auto_warmup" else "$_{ grid", task=evil)
        for r in study(batch_sizes=(64,), seeds=(0, 1), peaks=(0.01, 0.03), warmups=(0.1,), rival=False)
    ]
    paths = write_report(some, tmp_path, study_name=evil, candidate_arm=evil, data_note=evil)
    source = paths.html.read_text()
    assert source.count("<script") == OWN_SCRIPTS
    assert evil in Page(source).text
    assert "<script" not in paths.markdown.read_text()
    assert next(csv.DictReader(paths.csv.open()))["arm"] == evil


def test_console_table(records: list[RunRecord]) -> None:
    table = console_table(records, expected_cells=len(records))
    assert table.isascii()
    lines = table.splitlines()
    assert lines[0].startswith("auto_warmup against linear_warmup: ")
    assert len({len(line) for line in lines[2:6]}) == 1  # columns line up
    assert "note:" not in table


def test_a_bad_margin_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="margin"):
        write_report([], tmp_path / "out", study_name="s", margin=-1)
    assert not (tmp_path / "out").exists()


def test_figures_of_one_and_of_five_batch_sizes(tmp_path: Path) -> None:
    for n in (1, 5):  # one panel; a row that is not full
        some = study(batch_sizes=[2 ** (6 + i) for i in range(n)], seeds=(0,), peaks=(0.01, 0.1))
        written = write_figures(some, tmp_path / str(n), candidate="auto_warmup", baseline="linear_warmup")
        assert [f.name for f in written] == FIGURES


def test_failures_stand_in_the_page_in_an_order_of_their_own(
    tmp_path: Path, records: list[RunRecord]
) -> None:
    rows = [
        FailureRow(
            cell=f"cell{i}", arm=arm, point="", batch_size=128, seed=i, attempts=i + 1,
            reason="died" if i else "line one\nline <two>", given_up=i == 1,
        )
        for i, arm in enumerate(("zeta", "adamw_fixed", "adamw_fixed"))
    ]  # fmt: skip
    some = [r for r in records if r.batch_size == 128 and r.seed == 0]
    write_report(some, tmp_path / "a", study_name="s", expected_cells=9, failures=rows)
    write_report(some[::-1], tmp_path / "b", study_name="s", expected_cells=9, failures=rows[::-1])
    assert texts(tmp_path / "a") == texts(tmp_path / "b")
    text = Page(texts(tmp_path / "a")["report.html"]).text
    assert "3 cells without a result, 1 given up" in text
    assert "line one line <two>" in text
    assert text.index("will be tried again line <two>") > text.index("given up died")


def test_reloading_is_offered_while_runs_are_missing(tmp_path: Path, records: list[RunRecord]) -> None:
    some = [r for r in records if r.batch_size == 128 and r.seed == 0]
    lost = FailureRow(
        cell="c", arm="a", point="", batch_size=1, seed=0, attempts=1, reason="died", given_up=True
    )
    cases = [(None, [], False), (len(some), [], False), (len(some) + 1, [], True)]
    cases += [(len(some) + 1, [lost], False), (len(some) + 1, [replace(lost, given_up=False)], True)]
    for expected, failures, offered in cases:
        paths = write_report(some, tmp_path, study_name="s", expected_cells=expected, failures=failures)
        assert ('id="watch"' in paths.html.read_text()) is offered
