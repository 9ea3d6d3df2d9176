"""Put the results of the committed studies into README.md, between its two marks.

    python experiments/readme_results.py [--print]

Reads ``summary.md`` in ``experiments/results/quick`` and ``experiments/results/fashion_mnist``, and the
figures, which ``experiments/compare.py`` wrote; and ``summary.md`` in ``experiments/results/quality_third``,
which ``experiments/benchmarks/quality.py`` wrote, as it did those of the earlier seeds in ``quality`` and
``quality_second`` beside it, and that of more seeds in ``quality_tuned``.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STUDY = ROOT / "experiments" / "results" / "quick"
LARGER = ROOT / "experiments" / "results" / "fashion_mnist"
BENCH = ROOT / "experiments" / "results" / "quality_third"
MORE = BENCH.with_name("quality_tuned")
EARLIER = {
    "A first set of seeds": BENCH.with_name("quality"),
    "A second": BENCH.with_name("quality_second"),
}
MARKS = re.compile(r"(<!-- results -->\n).*?(<!-- /results -->)", flags=re.DOTALL)


def section() -> str:
    """What README shows of the results."""
    folder = STUDY.relative_to(ROOT).as_posix()
    summary = (STUDY / "summary.md").read_text(encoding="utf-8")
    # The first table is the verdict; the rest is for the report.
    table = summary[summary.index("\n|") + 1 :].split("\n\n")[0].rstrip()
    headline = summary.split("\n\n")[1]
    larger = LARGER.relative_to(ROOT).as_posix()
    its_headline = (LARGER / "summary.md").read_text(encoding="utf-8").split("\n\n")[1]
    return (
        f"![AutoWarmup turns by itself]({folder}/figures/learning_rates.png)\n\n"
        f"{headline}\n\n{table}\n\n"
        f"`make compare` on two CPU cores wrote these figures: [summary]({folder}/summary.md), "
        f"[report]({folder}/report.html). Seeds, versions and hardware are in it.\n\n"
        f"Three batch sizes, three seeds, a grid of ten and six rivals "
        f"([{LARGER.name}]({larger}/summary.md), [report]({larger}/report.html)): {its_headline}\n"
        "Its auto_warmup runs were made on another, quieter day: compare runs, not device time.\n\n"
        + _bench()
    )


def _bench() -> str:
    """What the bench over many cells says: its first sentence, groups, regrets, the picture."""
    _, headline, groups, regrets, *_ = fresh = _paragraphs(BENCH)
    _, more_headline, more_groups, *_ = more = _paragraphs(MORE)
    parts = [
        "Over networks, optimizers, batch sizes and budgets, on seeds that nobody had looked at before the "
        f"rule was what it is ({_summary(BENCH)}): {headline}",
        *_about_seeds(fresh),
        groups,
        regrets,
        f"![Difference to the tuned baseline, cell by cell]({_place(BENCH)}/difference.png)",
        "More seeds for the groups, AutoWarmup beside what that grid chose "
        f"({_summary(MORE)}): {more_headline}",
        *_about_seeds(more),
        more_groups,
    ]
    for name, place in EARLIER.items():
        again = _paragraphs(place)
        parts.append(f"{name} ({_summary(place)}): {again[1]}")
        parts += _about_seeds(again)
    return "\n\n".join(parts) + "\n"


def _place(folder: Path) -> str:
    return folder.relative_to(ROOT).as_posix()


def _summary(folder: Path) -> str:
    return f"[summary]({_place(folder)}/summary.md)"


def _paragraphs(folder: Path) -> list[str]:
    return (folder / "summary.md").read_text(encoding="utf-8").rstrip().split("\n\n")


def _about_seeds(paragraphs: list[str]) -> list[str]:
    return [part for part in paragraphs if part.startswith("Seeds")]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--print", action="store_true", help="print the section, change nothing")
    if parser.parse_args().print:
        print(section(), end="")
        return
    readme = ROOT / "README.md"
    text, count = MARKS.subn(
        lambda match: match[1] + section() + match[2], readme.read_text(encoding="utf-8")
    )
    if count != 1:
        raise SystemExit("README.md: one pair of marks '<!-- results -->' is needed")
    readme.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
