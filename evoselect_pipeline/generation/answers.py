"""Rows out of an LLM's answers; what cannot be read is refused with a reason, never guessed."""

from __future__ import annotations

import json
import re
from itertools import islice
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

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
        The answer holds rows as JSON, fenced or with words around it; else it is the completion to
        the request's own words.
    source : str
        Who wrote it, for the rows' provenance.
    """
    if answer.ended in BROKEN:
        return ReadAnswer([], [answer.ended])
    if not answer.text.strip():
        return ReadAnswer([], ["empty"])
    if not as_json:
        pairs: list[Any] = [{"prompt": request.words, "completion": answer.text.strip()}]
    else:
        pairs, why = _rows_in(answer.text)
        if not pairs:
            return ReadAnswer([], [why])
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


def _rows_in(text: str) -> tuple[list[Any], str]:
    """The first rows in a text, or none and why: models wrap them into thoughts and courtesies."""
    decoder, why = json.JSONDecoder(), "not_json"
    for start in islice(re.finditer(r"[{\[]", text), MOST_STARTS):
        try:
            value = decoder.raw_decode(text, start.start())[0]
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
