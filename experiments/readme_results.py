"""Put the results of the committed studies into README.md, between its two marks.

    python experiments/readme_results.py [--print]

Reads ``summary.md`` in ``experiments/results/quick`` and ``experiments/results/fashion_mnist``, and the
figures, which ``experiments/compare.py`` wrote; and ``summary.md`` in ``experiments/results/quality``, which
``experiments/benchmarks/quality.py`` wrote, as it did those in ``experiments/results/quality_second`` and
``experiments/results/quality_third``.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STUDY = ROOT / "experiments" / "results" / "quick"
LARGER = ROOT / "experiments" / "results" / "fashion_mnist"
BENCH = ROOT / "experiments" / "results" / "quality"
OTHER_SEEDS = {
    "A second set of seeds": BENCH.with_name("quality_second"),
    "A third, that nobody had looked at before the rule was what it is": BENCH.with_name("quality_third"),
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
    folder = BENCH.relative_to(ROOT).as_posix()
    _, headline, groups, regrets, *_ = paragraphs = _paragraphs(BENCH)
    parts = [
        f"Over networks, optimizers, batch sizes and budgets ([summary]({folder}/summary.md)): {headline}",
        *_about_seeds(paragraphs),
        groups,
        regrets,
        f"![Difference to the tuned baseline, cell by cell]({folder}/difference.png)",
    ]
    for name, place in OTHER_SEEDS.items():
        again = _paragraphs(place)
        parts += [f"{name} ([summary]({place.relative_to(ROOT).as_posix()}/summary.md)): {again[1]}"]
        parts += _about_seeds(again)
    return "\n\n".join(parts) + "\n"


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
