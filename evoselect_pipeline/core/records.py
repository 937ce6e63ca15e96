"""Rows and their identity: a sample is its messages, and its id is a hash of them."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from evoselect_pipeline.errors import RowError

ID_LENGTH = 32
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True)
class Sample:
    """One training, target or test row with its provenance.

    The identity of a sample is its content: two rows with the same messages are the same sample,
    whoever wrote them. Provenance therefore does not enter `sample_id`.

    Attributes
    ----------
    messages : tuple of Message
        A conversation that ends with the assistant turn to be learned.
    subtask : str
        The part of the task a target row belongs to; empty where unknown.
    source : str
        Where the row came from: a generator's name or a file.
    prompt_id : str
        The generator's prompt that produced the row; empty for rows nobody generated.
    parents : tuple of str
        Ids of the target rows or earlier samples it was grown from.
    """

    messages: tuple[Message, ...]
    subtask: str = ""
    source: str = ""
    prompt_id: str = ""
    parents: tuple[str, ...] = field(default=())

    @cached_property
    def sample_id(self) -> str:
        """First 32 hex digits of the sha256 of the canonical messages."""
        return content_id(self.messages)

    @property
    def prompt(self) -> str:
        """The text of everything before the answer, for showing to people."""
        return "\n".join(message.content for message in self.messages[:-1])

    @property
    def completion(self) -> str:
        """The answer: the text of the last assistant turn."""
        return self.messages[-1].content


def canonical_text(text: str) -> str:
    """Unify what does not change meaning: Unicode NFC, and one kind of line end."""
    return unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n"))


def content_id(messages: Sequence[Message]) -> str:
    """Hash a conversation; equal content gives an equal id on every machine."""
    turns = [{"content": canonical_text(m.content), "role": m.role} for m in messages]
    text = json.dumps(turns, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:ID_LENGTH]


def digest(*parts: object) -> str:
    """Hash JSON-able parts: the fingerprint of a setting, a list of ids, a set of inputs."""
    text = json.dumps(parts, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:ID_LENGTH]


def sample_from_pair(prompt: str, completion: str, **provenance) -> Sample:
    """Make a sample of one user turn and one assistant turn."""
    return make_sample([Message("user", prompt), Message("assistant", completion)], **provenance)


def sample_from_row(row: Mapping[str, object], where: str, **provenance) -> Sample:
    """Read a sample from a row: `messages`, or `prompt` and `completion`.

    A `system` beside `prompt` is the system turn. Prompt and completion are text, or lists of turns
    themselves, as TRL has them.

    Parameters
    ----------
    row : mapping
        The decoded row.
    where : str
        File and line, for the error message.

    Raises
    ------
    RowError
        If neither form is present, or it is no conversation, see `make_sample`.
    """
    if row.get("messages") is not None:
        messages = _turns(row["messages"], "messages", where)
    elif row.get("prompt") is not None and row.get("completion") is not None:
        messages = [
            *([Message("system", row["system"])] if row.get("system") else []),  # type: ignore[arg-type]
            *_said_by("user", row["prompt"], "prompt", where),
            *_said_by("assistant", row["completion"], "completion", where),
        ]
    else:
        found = sorted(name for name, value in row.items() if value is not None)
        raise RowError(
            f"{where}: expected `messages`, or `prompt` and `completion`; found {found}. Name the"
            " columns that hold them, as in columns: {prompt: question, completion: answer}"
        )
    try:
        return make_sample(messages, **provenance)
    except RowError as error:
        raise RowError(f"{where}: {error}", error.reason) from None


def _said_by(role: str, value: object, name: str, where: str) -> list[Message]:
    if isinstance(value, list):
        return _turns(value, name, where)
    if isinstance(value, int | float) and not isinstance(value, bool):
        raise RowError(
            f"{where}: {name} must be text, got the number {value!r}: quote it, or in a table make"
            " its column text",
            "not_text",
        )
    if not isinstance(value, str):
        raise RowError(f"{where}: {name} must be text, got {value!r}", "not_text")
    return [Message(role, value)]


def _turns(value: object, name: str, where: str) -> list[Message]:
    if not isinstance(value, list) or not all(isinstance(turn, Mapping) for turn in value):
        raise RowError(f"{where}: `{name}` must be a list of objects with role and content")
    return [Message(turn.get("role", ""), turn.get("content", "")) for turn in value]


def make_sample(messages: Sequence[Message], **provenance) -> Sample:
    """Check a conversation and make a sample of it.

    Raises
    ------
    RowError
        If a turn is not text, is empty, has an unknown role or cannot be stored as UTF-8, or if
        the conversation does not alternate and end with the assistant.
    """
    for number, message in enumerate(messages, start=1):
        if message.role not in ROLES:
            raise RowError(
                f"turn {number}: role must be one of {ROLES}, got {message.role!r}", "unknown_role"
            )
        _check_content(number, message)
    turns = [m.role for m in messages if m.role != "system"]
    expected = ["user", "assistant"] * (len(turns) // 2)
    if not turns or turns != expected or "system" in [m.role for m in messages[1:]]:
        raise RowError(
            "turns must be an optional system turn, then user and assistant in turn, ending with"
            f" assistant; got {[m.role for m in messages]}",
            "turns_out_of_order",
        )
    return Sample(messages=tuple(messages), **provenance)


def _check_content(number: int, message: Message) -> None:
    content: object = message.content
    if not isinstance(content, str) or not content.strip():
        is_empty = content is None or isinstance(content, str)
        raise RowError(
            f"turn {number} ({message.role}): content must be non-empty text, got {content!r}",
            "empty_content" if is_empty else "not_text",
        )
    try:
        content.encode("utf-8")
    except UnicodeEncodeError:
        what = f"turn {number}: content holds a lone surrogate, not text"
        raise RowError(what, "not_text") from None
