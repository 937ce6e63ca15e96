"""Rows out of a server's answers; what cannot be read is refused with a reason, never guessed."""

from __future__ import annotations

import json
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from evoselect_pipeline.core.records import Message, Sample, make_sample
from evoselect_pipeline.errors import DataError
from evoselect_pipeline.generation.requests import Request
from evoselect_pipeline.stores.answer_log import Answer

WHOLE = ("stop", "")  # some servers do not say why they ended


class Row(BaseModel):
    """A row as the server is asked to write it."""

    model_config = ConfigDict(extra="ignore", strict=True)
    prompt: str
    completion: str


class Rows(BaseModel):
    """An answer as the server is asked to give it."""

    model_config = ConfigDict(extra="ignore", strict=True)
    rows: list[dict]


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
    if answer.ended not in WHOLE:
        return ReadAnswer([], [answer.ended])
    if not answer.text.strip():
        return ReadAnswer([], ["empty"])
    if not as_json:
        pairs: list[dict] = [{"prompt": request.words, "completion": answer.text.strip()}]
    else:
        try:
            pairs = Rows.model_validate(_json_in(answer.text)).rows
        except ValidationError:
            return ReadAnswer([], ["wrong_form"])
        except ValueError:
            return ReadAnswer([], ["not_json"])
    found = ReadAnswer([], [] if pairs else ["empty"])
    for pair in pairs:
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


def _json_in(text: str) -> object:
    """The first JSON object in a text; models wrap it into fences and courtesies."""
    start = text.find("{")
    if start < 0:
        raise ValueError("no object")
    try:
        return json.JSONDecoder().raw_decode(text, start)[0]
    except RecursionError:
        raise ValueError("nested too deeply") from None
