"""The page in a real browser: it stands alone, and all that moves in it works, by mouse and by keyboard."""

from __future__ import annotations

import itertools
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator

import pytest
from synthetic import changed, study, swept

from autolr_ray.compare.figures import _STYLE
from autolr_ray.compare.report import write_report
from autolr_ray.compare.statistics import reported_runs
from autolr_ray.compare.values import FailureRow
from autolr_ray.train.record import ReceiptRow, RunRecord, Trace

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright from PyPI")

# Names as long as the hostile ones leave a figure no room.
pytestmark = pytest.mark.filterwarnings("ignore:constrained_layout not applied")

EVIL = "</script><script>hacked=1</script><img src=x onerror=hacked=1> \"quoted\" 'single' żółć \u2028 ${x}"
PHONE = {"width": 390, "height": 844}
DESK = {"width": 1280, "height": 900}


def chromium() -> str | None:
    """An installed browser; none is ever fetched."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)


def failure(**changes: object) -> FailureRow:
    values = {
        "cell": "abcdef0123456789", "arm": "adamw_fixed", "point": "", "batch_size": 2048, "seed": 7,
        "attempts": 3, "reason": "Traceback:\n  line 3\nRuntimeError: out of memory", "given_up": True,
    }  # fmt: skip
    return FailureRow(**(values | changes))  # type: ignore[arg-type]


def runs() -> list[RunRecord]:
    """Two batch sizes; one run without a validation accuracy, and a warmup with many tests."""
    found = study(batch_sizes=(128, 2048), seeds=(0, 1, 2), peaks=(0.01, 0.03, 0.1), warmups=(0.05,))
    lost = next(i for i, r in enumerate(found) if r.point == "lr=0.1 warmup=0.05" and r.seed == 1)
    found[lost] = changed(found[lost], validation_accuracy=math.nan)
    first = found[0]
    receipts = [
        ReceiptRow(
            step=step, lr=step / 1000, verdict="rising" if step < 60 else "passed", reason=f"at {step}",
            strength=step / 60, probability=math.nan, positives=int(step == 60), argmin_step=step // 2,
            argmin_lr=step / 2000,
        )
        for step in range(2, 61, 2)
    ]  # fmt: skip
    broken = next(i for i, r in enumerate(found) if r.arm == "adamw_fixed" and r.seed == 0)
    trace = found[broken].trace
    loss = [math.nan if 100 <= i < 140 else v for i, v in zip(trace.step, trace.loss, strict=True)]
    found[broken] = changed(found[broken], trace=trace.model_copy(update={"loss": loss}))
    found[0] = changed(first, receipts=receipts, switch_step=60, rolled_back_to=48)
    return found


def bare(records: list[RunRecord]) -> list[RunRecord]:
    """Runs that kept nothing, runs that lost every loss, and runs with losses below zero."""
    nothing = Trace(step=[], lr=[], loss=[])
    lost = Trace(step=[0, 1, 2], lr=[0.0, 0.0, 0.0], loss=[math.nan, math.inf, math.nan])
    below = Trace(step=[0, 1, 2], lr=[0.1, 0.1, 0.1], loss=[-1.0, -1.0, -1.0])
    return [
        changed(r, trace=trace, peak_lr=math.nan, switch_step=-1, receipts=[], versions={})
        for r, trace in zip(records, itertools.cycle((nothing, lost, below)), strict=False)
    ]


@pytest.fixture(scope="module")
def records() -> list[RunRecord]:
    return runs()


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory, records: list[RunRecord]) -> dict[str, str]:
    """Addresses of pages: an unfinished study, a finished one, and one with hostile names."""
    folder = tmp_path_factory.mktemp("reports")
    evil = {"auto_warmup": EVIL, "linear_warmup": f"grid {EVIL}"}
    renamed = [changed(r, arm=evil[r.arm], task=EVIL) for r in records if r.arm in evil]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(_STYLE, "savefig.dpi", 40)  # fewer pixels, faster tests
        written = {
            "unfinished": write_report(
                records, folder / "unfinished", study_name="a study", expected_cells=len(records) + 2,
                failures=[failure(), failure(arm="auto_warmup", reason="the worker died", given_up=False)],
            ),
            "finished": write_report(
                records, folder / "finished", study_name="a study", expected_cells=len(records) + 1,
                failures=[failure()],
            ),
            "evil": write_report(
                renamed, folder / "evil", study_name=EVIL, candidate_arm=EVIL, data_note=EVIL,
                failures=[failure(arm=EVIL, point=EVIL, reason=f"{EVIL}\n{EVIL}")],
            ),
            "bare": write_report(bare(records), folder / "bare", study_name="nothing kept"),
            "swept": write_report(
                [swept(128, 0), *(r for r in records if r.batch_size == 128 and r.point[:7] == "lr=0.01")],
                folder / "swept", study_name="as by default",
            ),
            "empty": write_report([], folder / "empty", study_name="nothing yet", expected_cells=3),
        }  # fmt: skip
    return {name: paths.html.as_uri() for name, paths in written.items()}


@pytest.fixture(scope="module")
def browser() -> Iterator[playwright.Browser]:
    path = chromium()
    if path is None:
        pytest.skip("needs an installed Chromium: none on PATH, and CHROMIUM is not set")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


Open = Callable[..., "playwright.Page"]


@pytest.fixture
def visit(browser: playwright.Browser, reports: dict[str, str]) -> Iterator[Open]:
    """Opens a report in a fresh profile; in the end nothing may have gone wrong or over the network."""
    contexts, wrong = [], []

    def open_page(name: str, **options: object) -> playwright.Page:
        context = browser.new_context(**({"viewport": DESK} | options))
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("console", lambda m: wrong.append(f"console: {m.text}") if m.type != "log" else None)
        page.on("pageerror", lambda e: wrong.append(f"page error: {e}"))
        page.on("dialog", lambda d: wrong.append(f"dialog: {d.message}"))
        own = reports[name]
        page.on("request", lambda r: wrong.append(r.url) if r.url != own and r.url[:5] != "data:" else None)
        page.goto(own)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []


def column(
    page: playwright.Page, table: str, name: str
) -> tuple[playwright.Locator, Callable[[], list[str]]]:
    """A column's header button and its visible texts from above."""
    heads = page.locator(f"table[data-keep={table}] thead th")
    place = [text.strip() for text in heads.all_text_contents()].index(name)
    rows = f"table[data-keep={table}] tbody tr"

    def texts() -> list[str]:
        return page.eval_on_selector_all(rows, f"rows => rows.map(r => r.cells[{place}].innerText.trim())")

    return heads.nth(place).locator("button"), texts


def paths(page: playwright.Page, chart: str) -> list[str]:
    """What is drawn of each chosen run, the thin raw losses aside."""
    return page.eval_on_selector_all(f"#{chart} .curve:not(.raw)", "c => c.map(p => p.getAttribute('d'))")


@pytest.mark.parametrize("name", ["unfinished", "evil", "bare", "empty"])
def test_the_page_stands_alone(visit: Open, name: str) -> None:
    page = visit(name)
    sizes = page.eval_on_selector_all(
        "img", "all => all.map(i => [i.complete, i.naturalWidth, i.alt.length])"
    )
    assert len(sizes) >= {"empty": 0, "bare": 4}.get(name, 7)
    assert all(complete and width > 100 and alt > 10 for complete, width, alt in sizes)
    hashes = page.eval_on_selector_all(
        "nav a, a.skip", "all => all.map(a => a.getAttribute('href').slice(1))"
    )
    assert len(hashes) >= 3
    assert all(page.locator(f"[id='{target}']").count() == 1 for target in hashes)


def test_tables_sort_by_number_and_back(visit: Open) -> None:
    page = visit("unfinished")
    button, texts = column(page, "runs", "Validation accuracy")
    original = texts()
    assert original.count("n/a") == 1
    button.click()
    known = [float(t.removesuffix(" %")) for t in texts()[:-1]]
    assert known == sorted(known)
    assert texts()[-1] == "n/a"
    assert button.locator("..").get_attribute("aria-sort") == "ascending"
    button.press("Enter")
    assert [float(t.removesuffix(" %")) for t in texts()[:-1]] == known[::-1]
    assert texts()[-1] == "n/a"
    assert button.locator("..").get_attribute("aria-sort") == "descending"
    button.press("Space")
    assert texts() == original
    assert page.locator("[aria-sort]").count() == 0

    button, texts = column(page, "runs", "Batch size")
    button.click()
    button.click()
    assert texts() == sorted(texts(), key=lambda t: -int(t.replace(",", "")))
    assert texts()[0] == "2,048"  # as a text it would stand behind the 128s... or the 2s before the 1s
    button, texts = column(page, "regret", "Mean")
    button.click()
    values = [float(t.replace("\N{MINUS SIGN}", "-")) for t in texts()]
    assert values == sorted(values)
    assert values[0] < 0
    button, texts = column(page, "runs", "Arm")
    button.click()
    assert texts() == sorted(texts())


def test_chosen_runs_are_drawn_with_their_marks(visit: Open, records: list[RunRecord]) -> None:
    page = visit("unfinished")
    assert len(paths(page, "chart-lr")) == len(paths(page, "chart-loss")) == 2  # candidate and baseline
    page.click("#clear")
    assert paths(page, "chart-lr") == []
    row = page.locator("#list tbody tr").filter(has_text="auto_warmup").first
    row.locator("th").click()
    for chart in ("chart-lr", "chart-loss"):
        [path] = paths(page, chart)
        assert path.count("L") >= 100
        assert "NaN" not in path
        switch = page.locator(f"#{chart} .run .switch")
        back = page.locator(f"#{chart} .run .back")
        turn = float(switch.get_attribute("x1"))
        start = float(back.get_attribute("x"))
        assert start + float(back.get_attribute("width")) == pytest.approx(turn)
        # The run has 400 steps, turned at 60 and went back to 48: the places are as far apart.
        left = page.eval_on_selector(f"#{chart} .frameline", "line => Number(line.getAttribute('x1'))")
        assert (start - left) / (turn - left) == pytest.approx(48 / 60, abs=1e-3)
    assert page.locator("#chart-lr .run .peak").count() == 1
    assert page.locator("#chart-lr .run .test").count() == 30
    assert page.locator("#chart-lr .run .test.positive").count() == 1
    ticks = [
        float(t) for t in page.locator("#chart-lr text").all_text_contents() if re.fullmatch(r"0\.0*1", t)
    ]
    assert len(ticks) >= 2  # decades: the axis is logarithmic

    page.locator("#decisions summary").click()
    rows = page.locator("#decisions tbody tr")
    playwright.expect(rows).to_have_count(30)
    assert rows.last.inner_text().split("\t")[:4] == ["60", "0.06", "passed", "at 60"]
    assert "no test took place" not in page.locator("#decisions").inner_text()


def test_a_sweep_and_what_it_put_back_are_drawn(visit: Open) -> None:
    page = visit("swept")
    run = swept(128, 0)
    for chart in ("chart-lr", "chart-loss"):
        marks = [page.locator(f"#{chart} .run .{name}") for name in ("sweep", "back")]
        for mark in marks:
            playwright.expect(mark).to_have_count(1)
        ends = [float(m.get_attribute("x")) + float(m.get_attribute("width")) for m in marks]
        turn = float(page.locator(f"#{chart} .run .switch").first.get_attribute("x1"))
        assert ends[0] == pytest.approx(ends[1])  # the sweep's end is where weights were put back
        assert ends[0] < turn
    assert page.locator("#reading tbody tr").first.locator("td").nth(5).inner_text() == "1"
    table = page.locator('table[data-keep="decisions"] tbody tr').filter(has_text="auto_warmup")
    told = [row.split("\t") for row in table.all_inner_texts()]
    assert [(row[1], row[3], row[-1]) for row in told] == [
        (str(run.sweep_steps), "swept", "1"), (str(run.switch_step), "reached", "no"),
    ]  # fmt: skip


def test_reading_follows_the_pointer_and_the_keys(visit: Open, records: list[RunRecord]) -> None:
    page = visit("unfinished")
    run = records[0]
    read = page.locator("#reading tbody tr").first
    assert read.locator("th").inner_text() == "auto_warmup, batch 128, seed 0"
    assert read.locator("td").first.inner_text() == str(run.trace.step[-1])

    def check() -> int:
        step, lr, loss = (read.locator("td").nth(i).inner_text() for i in range(3))
        at = run.trace.step.index(int(step))
        assert float(lr.replace("\N{MINUS SIGN}", "-")) == pytest.approx(run.trace.lr[at], rel=6e-3)
        assert float(loss) == pytest.approx(run.trace.loss[at], rel=6e-3)
        return int(step)

    chart = page.locator("#chart-loss svg")
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 50)
    assert check() == pytest.approx(200, abs=30)
    assert page.locator("#chart-lr .here").count() == page.locator("#chart-loss .here").count() == 2
    page.mouse.move(5, 5)
    assert page.locator(".here").count() == 0
    page.locator("#chart-lr").focus()
    for _ in range(20):
        page.keyboard.press("ArrowRight")
    assert check() == pytest.approx(0.2 * 400, abs=8)
    assert "auto_warmup, batch 128, seed 0: step" in page.locator("#said").text_content()


def test_runs_are_chosen_by_keyboard_alone(visit: Open) -> None:
    page = visit("unfinished")
    page.click("#clear")
    page.locator("#show-filtered").focus()
    page.keyboard.press("Tab")  # into the list: the box that scrolls, or a header, or the first run
    for _ in range(40):
        if page.evaluate("document.activeElement.type") == "checkbox":
            break
        page.keyboard.press("Tab")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Space")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    chosen = page.eval_on_selector_all("#list input:checked", "all => all.map(i => i.closest('tr').rowIndex)")
    assert chosen == [2, 3]
    assert len(paths(page, "chart-lr")) == 2
    assert page.locator("#reading tbody tr").count() == 2
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Home")
    assert page.evaluate("document.activeElement.closest('tr').rowIndex") == 1
    page.locator("#reading .drop").first.press("Enter")
    assert len(paths(page, "chart-lr")) == 1


def test_the_list_stays_under_the_pointer(visit: Open) -> None:
    page = visit("unfinished")
    page.click("#clear")
    page.locator("#list tbody tr").nth(3).scroll_into_view_if_needed()
    for i in (3, 2, 1):
        head = page.locator("#list tbody tr").nth(i).locator("th")
        before = head.bounding_box()["y"]
        head.click()
        assert head.bounding_box()["y"] == pytest.approx(before, abs=1.5)


def test_filter_and_the_most_at_once(visit: Open, records: list[RunRecord]) -> None:
    page = visit("unfinished")
    page.fill("#filter", "LINEAR 2,048")
    wanted = [r for r in records if r.arm == "linear_warmup" and r.batch_size == 2048]
    assert page.locator("#list tbody tr:visible").count() == len(wanted) == 9
    assert page.locator("#count").inner_text() == f"9 of {len(records)} runs"
    page.click("#show-filtered")
    assert len(paths(page, "chart-lr")) == 8
    assert (
        len(set(page.eval_on_selector_all("#charts .run", "all => all.map(g => g.className.baseVal)"))) == 8
    )
    page.click("[data-axis=share]")
    assert "100 %" in page.locator("#chart-lr").inner_text()
    page.fill("#filter", "no such run")
    assert page.locator("#show-filtered").is_disabled()


def test_a_loss_that_was_lost_leaves_a_gap(visit: Open) -> None:
    page = visit("unfinished")
    page.click("#clear")
    page.fill("#filter", "adamw_fixed 128")
    page.locator("#list tbody tr:visible th").nth(0).click()
    page.locator("#list tbody tr:visible th").nth(1).click()
    assert [path.count("M") for path in paths(page, "chart-loss")] == [2, 1]
    assert [path.count("M") for path in paths(page, "chart-lr")] == [1, 1]


def test_runs_that_kept_nothing_are_told_as_such(visit: Open) -> None:
    page = visit("bare")
    page.click("#clear")
    drawn = {}
    for i in range(3):
        page.locator("#list tbody tr th").nth(i).click()
        for axis in ("log", "linear"):
            page.click(f"[data-loss={axis}]")
            drawn[i, axis] = [bool(path) for path in paths(page, "chart-loss")]
        page.locator("#chart-loss").focus()
        page.keyboard.press("ArrowRight")
        text = page.locator("#reading").inner_text() + page.locator("#charts").inner_text()
        assert "NaN" not in text
        assert "undefined" not in text
        assert page.locator("#charts [d*=NaN], #charts [y1=NaN], #charts [cx=NaN]").count() == 0
        page.click("#clear")
    assert sorted(map(tuple, drawn.values())) == [(), (), (), (), (), (True,)]  # below zero: linear alone


def test_colours_change_and_are_remembered(visit: Open) -> None:
    page = visit("finished", color_scheme="light")
    colours = "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
    light = page.evaluate(colours)
    assert page.evaluate("getComputedStyle(document.querySelector('img')).filter") == "none"
    page.click("#theme")
    dark = page.evaluate(colours)
    assert dark != light
    assert brightness(dark[0]) < 60 < 200 < brightness(dark[1])
    assert "invert" in page.evaluate("getComputedStyle(document.querySelector('img')).filter")
    assert page.locator("#theme").inner_text() == "Light colours"
    page.reload()
    assert page.evaluate(colours) == dark
    page.emulate_media(media="print")
    assert brightness(page.evaluate(colours)[0]) > 240  # paper is white
    system = visit("finished", color_scheme="dark")
    assert system.evaluate(colours) == dark
    system.click("#theme")
    assert system.evaluate(colours) == light


def brightness(colour: str) -> float:
    return sum(map(float, re.findall(r"[\d.]+", colour)[:3])) / 3


@pytest.mark.parametrize("scripts", [True, False])
@pytest.mark.parametrize("name", ["unfinished", "evil", "empty"])
def test_a_phone_needs_no_sideways_scrolling(visit: Open, name: str, scripts: bool) -> None:
    page = visit(name, viewport=PHONE, java_script_enabled=scripts)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    wide = page.evaluate(
        """() => [...document.querySelectorAll('body *')].filter(e => e.getBoundingClientRect().right > 391
           && !e.closest('.wide, .picture, .hidden, svg, pre')).map(e => e.outerHTML.slice(0, 80))"""
    )
    assert wide == []


def test_without_scripts_all_that_is_static_is_there(visit: Open, records: list[RunRecord]) -> None:
    page = visit("unfinished", java_script_enabled=False)
    assert page.locator("#list tbody tr:visible").count() == len(records)
    for gone in ("#stage", "#theme", "#watch", "#filter", "#list .pick"):
        assert not page.locator(gone).first.is_visible()
    assert page.get_by_text("With JavaScript this page draws").is_visible()
    assert page.locator("table:visible").count() >= 7
    assert page.locator("th button").count() == 0


def test_failures_are_told(visit: Open) -> None:
    page = visit("unfinished")
    text = page.locator("#failures").inner_text()
    assert "2 cells without a result, 1 given up" in text
    rows = page.locator("#failures tbody tr")
    given_up, waiting = rows.filter(has_text="given up"), rows.filter(has_text="tried again")
    assert given_up.locator("summary").inner_text() == "RuntimeError: out of memory"
    assert not page.get_by_text("line 3").is_visible()
    given_up.locator("summary").press("Enter")
    assert page.get_by_text("line 3").is_visible()
    assert "the worker died" in waiting.inner_text()
    assert page.locator("header").get_by_text("2 without a result").is_visible()
    assert visit("empty").locator("#failures").count() == 0


def test_hostile_names_are_only_shown(visit: Open) -> None:
    page = visit("evil")
    page.wait_for_timeout(100)  # an image that fails to load says so a little later
    assert page.evaluate("typeof window.hacked") == "undefined"
    assert page.locator("h1").text_content() == EVIL
    assert EVIL in page.locator("#reading tbody th").first.text_content()
    assert EVIL in page.locator("#failures pre").text_content()
    assert page.locator("img[src=x]").count() == 0
    page.locator("#decisions summary").first.click()
    assert page.evaluate("typeof window.hacked") == "undefined"


def test_watching_keeps_the_place(
    visit: Open,
) -> None:
    assert visit("finished").locator("#watch").count() == 0
    page = visit("unfinished")
    page.clock.install()
    page.reload()
    page.evaluate("window.before = true")
    page.clock.run_for(60_000)
    assert page.evaluate("window.before") is True  # off until it is asked for

    watch = page.locator("#watch")
    watch.click()
    assert watch.get_attribute("aria-pressed") == "true"
    page.locator("#rates details summary").first.click()
    page.click("#clear")
    automatic = page.locator("#list tbody tr").filter(has_text="auto_warmup")
    automatic.nth(1).locator("th").click()
    automatic.nth(0).locator("th").click()
    page.locator("#decisions summary").first.click()
    column(page, "runs", "Seed")[0].click()
    page.fill("#filter", "warmup")
    page.locator("#cost").evaluate("e => e.scrollIntoView({behavior: 'instant'})")
    before = keepsake(page)
    assert before["open"] >= 2
    for _ in range(2):  # it goes on after the first time
        page.evaluate("window.before = true")
        with page.expect_event("load"):
            page.clock.run_for(15_000)
        assert page.evaluate("window.before") is None
        assert keepsake(page) == before
    watch.click()
    page.evaluate("window.before = true")
    page.clock.run_for(60_000)
    assert page.evaluate("window.before") is True


def keepsake(page: playwright.Page) -> dict[str, object]:
    """What a reader would miss after a reload."""
    return page.evaluate(
        """() => ({
            y: Math.round(scrollY), open: document.querySelectorAll('details[open]').length,
            runs: [...document.querySelectorAll('#reading tbody th')].map(e => e.textContent),
            colours: [...document.querySelectorAll('#reading .key')].map(e => e.className),
            filter: document.querySelector('#filter').value,
            shown: document.querySelectorAll('#list tbody tr:not([hidden])').length,
            seeds: [...document.querySelectorAll('#list tbody tr')].map(r => r.cells[4].textContent),
            focus: document.activeElement.id,
            watch: document.querySelector('#watch').getAttribute('aria-pressed'),
        })"""
    )


def test_test_accuracies_of_losers_are_not_in_the_data(visit: Open, records: list[RunRecord]) -> None:
    page = visit("finished")
    data = page.evaluate("JSON.parse(document.querySelector('#curves').textContent).runs")
    assert len(data) == len(records)
    shown = {
        (r.arm, r.point, r.batch_size, r.seed)
        for arm in {r.arm for r in records}
        for size in (128, 2048)
        for r in reported_runs(records, arm, size)
    }
    told = {(d["arm"], d["point"], d["batch"], d["seed"]) for d in data if d["test"] != "not shown"}
    assert told == shown
    assert len(told) < len(data)
