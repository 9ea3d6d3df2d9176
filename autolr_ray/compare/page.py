"""The report as one HTML page that stands alone: no network, styles and scripts inside."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from autolr_ray.compare import tables
from autolr_ray.compare.explorer import explorer_json
from autolr_ray.compare.figures import FigureFile
from autolr_ray.compare.findings import Findings
from autolr_ray.compare.tables import RunKey, key_of
from autolr_ray.compare.values import ArmSummary, FailureRow, Verdict
from autolr_ray.compare.wording import number, percent, points, seconds, spread

# The section of each figure; one that is not named here stands with the costs if its name says so, else
# with the accuracies.
_SECTION = {
    "grid": "rates",
    "learning_rates": "rates",
    "losses": "turns",
    "posterior": "turns",
    "tests": "turns",
}


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A figure as the page holds it: ``source`` is a data URL."""

    title: str
    caption: str
    source: str
    section: str


def render_page(
    findings: Findings,
    *,
    study_name: str,
    data_note: str = "",
    figures: Sequence[FigureFile] = (),
    failures: Sequence[FailureRow] = (),
) -> str:
    """The whole page; the same arguments give the same text."""
    environment = _environment()
    scripts = {name: Markup(_text(f"{name}.js")) for name in ("theme", "page", "charts", "explorer")}
    reported = tables.reported_keys(findings.summaries)
    found = {size: findings.comparison(size) for size in findings.batch_sizes}
    verdicts = {size: c for size, c in found.items() if c is not None}
    # The candidate's strips have a scale of their own: a rival far off would press them together.
    reach = tables.strip_reach(verdicts.values())
    wide_reach = tables.strip_reach(findings.comparisons.values())
    expected = findings.expected_cells
    settled = len(findings.runs) + sum(f.given_up for f in failures)
    return environment.get_template("report.html.j2").render(
        f=findings,
        study=study_name,
        data_note=data_note,
        failures=sorted(failures, key=lambda x: (x.batch_size, x.arm, x.point, x.seed)),
        unfinished=expected is not None and settled < expected,
        pictures=[_picture(figure) for figure in figures],
        batch_names=[f"Batch {size:,}" for size in findings.batch_sizes],
        regrets=tables.regrets(findings.summaries, findings.batch_sizes),
        peaks=tables.peak_rows(findings.runs, findings.summaries, findings.tunings, findings.baseline),
        strips={key: tables.strip(c, wide_reach) for key, c in findings.comparisons.items()},
        wide_reach=wide_reach,
        verdict_strips={size: tables.strip(c, reach) for size, c in verdicts.items()},
        reach=reach,
        deciding=tables.deciding,
        reported=reported,
        key_of=key_of,
        curves=explorer_json(findings.runs, reported, _first_shown(findings)),
        style=Markup(_text("report.css")),
        scripts=scripts,
        policy=_policy(*scripts.values()),
        Verdict=Verdict,
    )


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("autolr_ray.compare"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=percent, points=points, seconds=seconds, number=number, spread=spread)
    environment.filters.update(minus=_minus, signed=_signed)
    return environment


def _minus(text: str) -> str:
    """A real minus sign reads better than a hyphen; names keep theirs, no digit follows a blank there."""
    return re.sub(r"(?<=[\s\[])-(?=\d)", "\N{MINUS SIGN}", f" {text}")[1:]


def _signed(value: float, digits: int = 2) -> str:
    """A difference of accuracies in points: ``-0.0123`` -> ``"-1.23"``, "n/a" where there is none."""
    if value != value:
        return "n/a"
    rounded = round(100 * value, digits)
    return f"{rounded:+.{digits}f}" if rounded else f"{0:.{digits}f}"


def _text(name: str) -> str:
    return files("autolr_ray.compare").joinpath("templates", name).read_text(encoding="utf-8").strip()


def _policy(*scripts: str) -> str:
    """What the page may load, as a browser enforces it: itself. Only its own scripts run, whatever a name
    or an error message holds.
    """
    digests = (base64.b64encode(hashlib.sha256(s.encode()).digest()).decode("ascii") for s in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {allowed}; "
        "base-uri 'none'; form-action 'none'"
    )


def _picture(figure: FigureFile) -> Picture:
    section = _SECTION.get(figure.name, "cost" if "cost" in figure.name else "accuracy")
    data = base64.b64encode(figure.path.read_bytes()).decode("ascii")
    source = f"data:image/png;base64,{data}"
    return Picture(title=figure.title, caption=figure.caption, source=source, section=section)


def _first_shown(f: Findings) -> list[RunKey]:
    """One run of the candidate and one of the baseline at the first batch size that has both."""

    def keys(size: int) -> list[RunKey]:
        found: dict[str, ArmSummary] = {s.arm: s for s in f.summaries if s.batch_size == size}
        arms = [arm for arm in (f.candidate, f.baseline) if arm in found]
        return [(arm, found[arm].point, size, found[arm].seeds[0]) for arm in arms if arm is not None]

    return max(map(keys, f.batch_sizes), key=len, default=[])
