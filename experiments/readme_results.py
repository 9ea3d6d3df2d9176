"""Put the results of the committed studies into README.md, between its two marks.

    python experiments/readme_results.py [--print]

Reads ``summary.md`` in ``experiments/results/quick`` and ``experiments/results/fashion_mnist``, and the
figures, which ``experiments/compare.py`` wrote.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STUDY = ROOT / "experiments" / "results" / "quick"
LARGER = ROOT / "experiments" / "results" / "fashion_mnist"
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
    )


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
