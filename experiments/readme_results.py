"""Put the results of the committed studies into README.md, between its two marks.

    python experiments/readme_results.py [--print]

Reads ``summary.md`` in ``experiments/results/quick``, ``fashion_mnist`` and ``fashion_mnist_resnet18``, and
the figures, which ``experiments/compare.py`` wrote; and ``summary.md`` in ``quality_tuned``, the verdict on
many seeds, and in ``quality``, whole grids and rivals, which ``experiments/benchmarks/quality.py`` wrote; and
the last line of ``train/run_cost.jsonl``, which ``experiments/benchmarks/run_cost.py`` printed.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STUDY = ROOT / "experiments" / "results" / "quick"
LARGER = ROOT / "experiments" / "results" / "fashion_mnist"
ON_GPU = LARGER.with_name("fashion_mnist_resnet18")
BENCH = LARGER.with_name("quality")
VERDICT = LARGER.with_name("quality_tuned")
COST = LARGER.with_name("train") / "run_cost.jsonl"
MARKS = re.compile(r"(<!-- results -->\n).*?(<!-- /results -->)", flags=re.DOTALL)


def section() -> str:
    """What README shows of the results."""
    folder = _place(STUDY)
    _, headline, *_ = _paragraphs(STUDY)
    return (
        f"![AutoWarmup turns by itself]({folder}/figures/learning_rates.png)\n\n"
        f"{headline}\n\n{_table(STUDY)}\n\n"
        f"`make compare` on two CPU cores wrote these figures: {_summary(STUDY)}, "
        f"[report]({folder}/report.html). Seeds, versions and hardware are in it.\n\n"
        "ResNet-18 in bfloat16 on all of Fashion-MNIST, on one GPU "
        f"({_summary(ON_GPU)}, [report]({_place(ON_GPU)}/report.html)): {_paragraphs(ON_GPU)[1]}\n\n"
        f"{_table(ON_GPU)}\n\n"
        "A small network on CPUs, three batch sizes, three seeds, a grid of ten and six rivals "
        f"({_summary(LARGER)}, [report]({_place(LARGER)}/report.html)): {_paragraphs(LARGER)[1]}\n"
        "Its auto_warmup runs were made on another, quieter day: compare runs, not device time.\n\n"
        + _bench()
    )


def _bench() -> str:
    """What the bench over many cells says: the verdict and its groups, then regrets and the picture."""
    _, verdict, groups, *_ = fresh = _paragraphs(VERDICT)
    _, headline, _, regrets, *_ = whole = _paragraphs(BENCH)
    cost = json.loads(COST.read_text(encoding="utf-8").splitlines()[-1])
    parts = [
        "Over networks, optimizers, batch sizes and budgets, on seeds that nobody had looked at before the "
        f"rule was what it is for that cell ({_summary(VERDICT)}): {verdict}",
        *_about_seeds(fresh),
        groups,
        f"![Difference to the tuned baseline, cell by cell]({_place(VERDICT)}/difference.png)",
        f"Those grids, and what people take who tune nothing ({_summary(BENCH)}): {headline}",
        *_about_seeds(whole),
        "Its runs were made on days of different load. In turns of milliseconds on one processor, "
        f"AutoWarmup's come to {100 * cost['cost_share']:.1f} % (standard error "
        f"{100 * cost['cost_share_se']:.2f}) of the processor time of those grids "
        f"([{COST.name}]({_place(COST)})).",
        regrets,
    ]
    return "\n\n".join(parts) + "\n"


def _table(folder: Path) -> str:
    """The first table: a row for each arm and batch size."""
    return next(part for part in _paragraphs(folder) if part.startswith("|"))


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
