"""From finished runs to the rows of a study: each run under every label that the study has for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from autolr_ray.compare.arms import AshaArm
from autolr_ray.compare.asha import asha_records, expected_asha_records
from autolr_ray.compare.extend import all_cells
from autolr_ray.compare.study import Study
from autolr_ray.train.record import RunRecord


@dataclass(frozen=True, kw_only=True)
class Rows:
    """What a study's runs stand for.

    Attributes:
        records: one for each arm, point, batch size and seed that is finished; arms that share a run have a
            row each, and ASHA arms a row for each result.
        others: runs that the study does not ask for (of an earlier form of it, or of somebody else's).
        expected: how many ``records`` there will be, as far as is known now.
    """

    records: list[RunRecord]
    others: list[RunRecord]
    expected: int


def rows_of(study: Study, found: Sequence[RunRecord], *, borrowed: bool = True) -> Rows:
    """The study's rows.

    Args:
        study: the study.
        found: finished runs, one a cell; their own labels are those of whoever ran them.
        borrowed: with the rows of ASHA arms, which are worked out from others' runs; that imports Ray.
    """
    cells = all_cells(study, found)
    by_cell = {record.cell: record for record in found}
    records = [
        by_cell[cell.spec.cell].model_copy(update={"study": study.name, "arm": cell.arm, "point": cell.point})
        for cell in cells
        if cell.spec.cell in by_cell
    ]
    wanted = {cell.spec.cell for cell in cells}
    return Rows(
        records=[*records, *(asha_records(study, records) if borrowed else ())],
        others=[record for record in found if record.cell not in wanted],
        expected=len(cells) + (expected_asha_records(study) if borrowed else 0),
    )


def rows_in_ledger(study: Study, ledger: Sequence[RunRecord]) -> list[RunRecord]:
    """Those rows of a ledger that belong to the study as it is now; others are left out."""
    asha = {name for name, arm in study.arms.items() if isinstance(arm, AshaArm)}
    runs = [record for record in ledger if record.arm not in asha]
    cells = {(cell.arm, cell.point, cell.spec.cell) for cell in all_cells(study, runs)}
    known = {cell for _, _, cell in cells}
    return [
        record for record in ledger
        if (record.arm, record.point, record.cell) in cells
        or (record.arm in asha and record.cell in known)
    ]  # fmt: skip
