"""Facts of a stage as Dagster metadata."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg

from evoselect_pipeline.report.text import one_line


def metadata_of(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Dagster metadata of a flat mapping: numbers get plotted, nested values become JSON.

    Dagster refuses numpy numbers and shows nothing for NaN; facts hold neither, and what is None
    is left out.
    """
    shown: dict[str, Any] = {}
    for name, value in facts.items():
        if isinstance(value, (dict, list)):
            shown[name] = dg.MetadataValue.json(value)
        elif isinstance(value, float) and not math.isfinite(value):
            shown[name] = str(value)
        elif value is not None:
            shown[name] = value
    return shown


def subset_table(picks: list[dict[str, Any]], most: int = 50) -> dg.TableMetadataValue:
    """The first chosen rows with their reasons, for reading in the UI.

    The UI gives a table half a page: hence three columns, and ids as short as reasons name them.
    """
    rows = [(pick["rank"], pick["sample_id"][:8], pick["reason"]) for pick in picks[:most]]
    return table({"rank": "int", "sample_id": "string", "reason": "string"}, rows)


def quantile_table(quantiles: Sequence[tuple[float, float]]) -> dg.TableMetadataValue:
    """The plausibility up to which each share of the answers lies."""
    rows = [(f"{share:.0%}", round(value, 3)) for share, value in quantiles]
    return table({"share of answers": "string", "plausible at most": "float"}, rows)


def table(types: dict[str, str], rows: Sequence[tuple]) -> dg.TableMetadataValue:
    """A table of plain text, numbers and truth values; columns by name and type.

    Dagster shows text as it is, whatever marks it holds, and keeps all of it in its event log:
    hence each is cut, and without secrets.
    """
    cells = [tuple(one_line(v) if isinstance(v, str) else v for v in row) for row in rows]
    return dg.TableMetadataValue(
        records=[dg.TableRecord(dict(zip(types, row, strict=True))) for row in cells],
        schema=dg.TableSchema([dg.TableColumn(name, kind) for name, kind in types.items()]),
    )
