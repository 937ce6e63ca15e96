"""Rows out of an LLM's answers; what cannot be read is refused with a reason, never guessed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from itertools import islice
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import from_json

from evoselect_pipeline.core.records import Message, Sample, make_sample
from evoselect_pipeline.errors import DataError
from evoselect_pipeline.generation.requests import Request
from evoselect_pipeline.stores.answer_log import Answer

MOST_STARTS = 1_000  # places where rows are looked for in one answer
CUT = ("too_long", "too_slow", "broken_off")  # by us or by the network: worth another try later
# Ends of an answer that holds no row: as servers call them, then as we do.
BROKEN = ("length", "content_filter", "refused", "malformed", *CUT)


class Row(BaseModel):
    """A row as the LLM is asked to write it."""

    model_config = ConfigDict(extra="ignore", strict=True)
    prompt: str
    completion: str


class Rows(BaseModel):
    """An answer as the LLM is asked to give it."""

    model_config = ConfigDict(extra="ignore", strict=True)
    rows: list[Any]


class ReadAnswer(NamedTuple):
    """The rows of an answer, and the reasons of what was refused in it."""

    samples: list[Sample]
    refused: list[str]


def schema() -> dict:
    """The JSON schema that servers are asked to keep to."""
    row = Row.model_json_schema() | {"additionalProperties": False}
    rows = {"type": "array", "items": row}
    return {
        "type": "object",
        "properties": {"rows": rows},
        "required": ["rows"],
        "additionalProperties": False,
    }


def read_answer(answer: Answer, request: Request, as_json: bool, source: str) -> ReadAnswer:
    """Read one answer.

    Parameters
    ----------
    as_json : bool
        The answer holds rows as JSON, fenced or with words around it; what is whole of it counts
        though the rest was cut off. Else it is the completion to the request's own words.
    source : str
        Who wrote it, for the rows' provenance.
    """
    if as_json and answer.ended == "length":
        found = _read_rows(_whole_rows(answer.text), request, source)
        return ReadAnswer(found.samples, [answer.ended, *found.refused])
    if answer.ended in BROKEN:
        return ReadAnswer([], [answer.ended])
    if not answer.text.strip():
        return ReadAnswer([], ["empty"])
    if not as_json:
        pair = {"prompt": request.words, "completion": answer.text.strip()}
        return _read_rows([pair], request, source)
    pairs, why = _rows_in(answer.text, _value_at)
    return _read_rows(pairs, request, source) if pairs else ReadAnswer([], [why])


def _read_rows(pairs: list[Any], request: Request, source: str) -> ReadAnswer:
    """As many rows as were asked for, and the reasons of those that are none."""
    found = ReadAnswer([], [])
    for pair in pairs[: request.num_rows]:
        try:
            row = Row.model_validate(pair)
            turns = [Message("user", row.prompt), Message("assistant", row.completion)]
            sample = make_sample(
                turns, source=source, prompt_id=request.key, parents=request.parents
            )
        except (ValidationError, DataError):
            found.refused.append("malformed_row")
        else:
            found.samples.append(sample)
    return found


def _whole_rows(text: str) -> list[Any]:
    """The rows of a text that was cut off; the last one only if both its texts are whole."""
    rows, _ = _rows_in(text, _value_before_cut)
    try:
        Row.model_validate(rows[-1] if rows else None)
    except ValidationError:
        return rows[:-1]
    return rows


def _rows_in(text: str, value_at: Callable[[str, int], Any]) -> tuple[list[Any], str]:
    """The first rows in a text, or none and why: models wrap them into thoughts and courtesies."""
    why = "not_json"
    for start in islice(re.finditer(r"[{\[]", text), MOST_STARTS):
        try:
            value = value_at(text, start.start())
            told = {"rows": value} if isinstance(value, list) else value
            rows = Rows.model_validate(told).rows
            if any(isinstance(row, dict) for row in rows):
                return rows, ""
            why = "wrong_form" if rows else "empty"
        except ValidationError:
            why = "wrong_form"
        except (ValueError, RecursionError):
            continue
    return [], why


def _value_at(text: str, start: int) -> Any:
    """The JSON that begins at a place, whatever comes after it."""
    return json.JSONDecoder().raw_decode(text, start)[0]


def _value_before_cut(text: str, start: int) -> Any:
    """The same, or what is whole of it where the text ends before it does."""
    try:
        return _value_at(text, start)
    except ValueError:
        return from_json(text[start:].encode("utf-8", "surrogatepass"), allow_partial=True)
