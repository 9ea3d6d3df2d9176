"""docs/cluster.md says only what is there: its links lead somewhere, its commands and figures are real."""

from __future__ import annotations

import argparse
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from pages import ROOT, commands, compare_words, header_commands, links

from autolr_ray.cli import add_compare, make_parser
from autolr_ray.compare.study import shipped_studies

PAGE = ROOT / "docs" / "cluster.md"
HEADERS = [
    ROOT / "cluster.yaml",
    ROOT / "experiments/cluster/on_premise.yaml",
    ROOT / "experiments/studies/imagenet_resnet50.yaml",
    ROOT / "experiments/studies/imagenet_efficientnet_b0.yaml",
]


def written(file: Path) -> list[str]:
    return commands(file) if file.suffix == ".md" else header_commands(file)


def test_links_lead_somewhere() -> None:
    assert links(PAGE)
    for target in links(PAGE):
        assert (PAGE.parent / target).exists(), target


@pytest.mark.parametrize("file", [PAGE, *HEADERS], ids=lambda file: file.name)
def test_flags_of_compare_are_real(file: Path) -> None:
    """Every study is run with options that there are; one of no file of the user's comes with the package."""
    parser = argparse.ArgumentParser()
    add_compare(parser)
    told = [words for command in written(file) if (words := compare_words(command)) is not None]
    assert told
    for words in told:
        options = parser.parse_args(words)
        assert options.study in shipped_studies() or options.study.endswith("mine.yaml")
    assert not any("--submission-id" in command for command in written(file)), "refused the second time"


def test_a_study_can_be_looked_at_from_here_and_on_the_head() -> None:
    asked = [shlex.split(command) for command in commands(PAGE) if "autolr-ray status" in command]
    assert len(asked) == 2
    for words in asked:
        if words[:2] == ["ray", "exec"]:
            words = shlex.split(words[-1])
        # Without a bucket: pyarrow would ask AWS where it is.
        words = [re.sub("^s3://BUCKET", "results", word) for word in words]
        assert words.pop(0) == "autolr-ray"
        assert len(make_parser().parse_args(words).paths) == 1


def test_the_cluster_can_grow_for_what_the_page_asks_for() -> None:
    """No run waits for a machine that never comes: ``--max-concurrent`` is the cap of cluster.yaml."""
    most = yaml.safe_load((ROOT / "cluster.yaml").read_text())["max_workers"]
    asked = [
        words
        for command in commands(PAGE)
        if (words := compare_words(command)) and "--max-concurrent" in words
    ]
    assert asked
    assert {int(words[words.index("--max-concurrent") + 1]) for words in asked} == {most}


def measured() -> list[dict[str, Any]]:
    text = (ROOT / "experiments/results/cluster/scale.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_the_page_quotes_the_committed_measurement() -> None:
    """How large a study may be: the table has the rows of the file, and no other figures."""
    page = PAGE.read_text()
    *rows, fitted = measured()
    for row in rows:
        marginal = row["marginal_seconds_per_cell"]
        line = (
            f"| {row['cells']:,} | {row['nodes']} | {row['wall_seconds']:.0f} s "
            f"| {'' if marginal is None else f'{1000 * marginal:.0f} ms'} | {row['again_seconds']:.0f} s "
            f"| {row['driver_peak_megabytes']:,.0f} MB | {1000 * row['ledger_megabytes']:.0f} kB "
            f"| {row['report_megabytes']:.2f} MB |"
        )
        assert " ".join(line.split()) in page, line
    assert max(fitted["exponents"].values()) <= 1
    assert f"at most {max(fitted['exponents'].values()):.2f}" in page
