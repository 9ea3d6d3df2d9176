"""What is written in the repository's pages and headers: their blocks, commands and links."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[1]


def blocks(page: Path) -> list[tuple[str, str]]:
    """The kind and the text of each fenced block."""
    return re.findall(
        r"^```(\w+)\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL
    )


def commands(page: Path) -> list[str]:
    """The command lines of a page's blocks, comments and blank lines left out, continued lines in one."""
    text = "".join(text for kind, text in blocks(page) if kind == "bash").replace("\\\n", " ")
    return [line.split("  #")[0].strip() for line in text.splitlines() if line.strip()]


def header_commands(file: Path) -> list[str]:
    """The lines of a YAML file's comments that hold a command; what is aligned to their right is a remark."""
    lines = (line.strip() for line in file.read_text(encoding="utf-8").splitlines())
    comments = "\n".join(line.removeprefix("#").strip() for line in lines if line.startswith("#"))
    found = re.split(r"\s{3,}", comments.replace("\\\n", " "))
    return [line for text in found for line in text.splitlines() if line.startswith(("ray ", "python "))]


def compare_words(command: str) -> list[str] | None:
    """What ``compare`` is told by a command, however it is reached; None where it is not."""
    words = shlex.split(command)
    for n, word in enumerate(words):
        if word == "compare" or word.endswith("compare.py"):
            rest = words[n + 1 :]
            # `ray submit` takes what stands before "--" for its own.
            if words[:2] == ["ray", "submit"] and rest:
                assert rest[0] == "--", command
                rest = rest[1:]
            return rest
    return None


def links(page: Path) -> list[str]:
    """Where a page's links to files of the repository lead, anchors left out."""
    return re.findall(r"\]\((?!https?:)([^)#\s]+)", page.read_text(encoding="utf-8"))
