"""When an answer is right: what counts of it is taken out, and compared with the reference."""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from decimal import Decimal

from evoselect_pipeline.config_rows import MetricSettings
from evoselect_pipeline.core.records import Sample
from evoselect_pipeline.errors import ConfigError, DataError

# A sign is none after a digit, a letter or a bracket: 10-5 ends in 5.
NUMBER = re.compile(r"(?:(?<![\w)])-)?[$€£]?(?:\d+(?:,\d{3})*(?:\.\d+)?|\.\d+)")
FINAL = "####"  # how GSM8K marks its final answer
# An option as models name it, the plainest way first; of each, the last one in the answer counts.
OPTIONS = (
    re.compile(r"(?i:answer|option|choice)(?:\s+is)?\s*[:=]?\s*\**\(?([A-Z])\b"),
    re.compile(r"\(([A-Z])\)"),
    re.compile(r"^\s*\**([A-Z])(?:[).:*]|\s*$)", re.MULTILINE),
)


@dataclass(frozen=True)
class Metric:
    """Scores answers from 0 to 1; `check` refuses rows it cannot score."""

    name: str
    score: Callable[[str, Sample], float]
    check: Callable[[Iterable[Sample]], None]


def load_metric(settings: MetricSettings) -> Metric:
    """The metric that a configuration names.

    Raises
    ------
    ConfigError
        If it is a function that cannot be imported.
    """
    if settings.kind == "function":
        return Metric(str(settings.function), _own(str(settings.function)), lambda rows: None)
    counts = {
        "exact": str.strip,
        "numeric": final_number,
        "choice": chosen_option,
        "regex": _last_match(settings.pattern or ""),
    }[settings.kind]

    def score(answer: str, row: Sample) -> float:
        found = counts(answer)
        return float(found is not None and found == counts(row.completion))

    def check(rows: Iterable[Sample]) -> None:
        for row in rows:
            if counts(row.completion) is None:
                raise DataError(
                    f"task.metric {settings.kind!r} finds nothing to compare in the reference"
                    f" answer {row.completion[:80]!r} to {row.prompt[:80]!r}; take another metric,"
                    " or mend the row"
                )

    return Metric(settings.kind, score, check)


def final_number(text: str) -> Decimal | None:
    """The number after the last `####`, else the last one in the text: `1,000.50` is 1000.5."""
    found = NUMBER.findall(text.rpartition(FINAL)[2] if FINAL in text else text)
    if not found:
        return None
    number = found[0] if FINAL in text else found[-1]
    return Decimal(re.sub(r"[$€£,]", "", number))


def chosen_option(text: str) -> str | None:
    """The letter of the option that an answer names: `B`, `(B)`, `B. because`, `Answer: B`."""
    if re.fullmatch(r"\s*[a-zA-Z]\s*", text):
        return text.strip().upper()
    for pattern in OPTIONS:
        if found := pattern.findall(text):
            return found[-1].upper()
    return None


def _last_match(pattern: str) -> Callable[[str], str | None]:
    compiled = re.compile(pattern)

    def last(text: str) -> str | None:
        found = list(compiled.finditer(text))
        return found[-1][min(1, compiled.groups)].strip() if found else None

    return last


def _own(name: str) -> Callable[[str, Sample], float]:
    """The user's function, whose scores are held to what a score may be."""
    module, _, attribute = name.partition(":")
    try:
        function = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # the user's module may do anything
        raise ConfigError(
            f"task.metric.function {name!r}: {error}; install its package where the pipeline runs"
        ) from None

    def score(answer: str, row: Sample) -> float:
        found = float(function(answer, row))
        if not 0 <= found <= 1 or math.isnan(found):
            raise ConfigError(f"task.metric.function {name!r} returned {found}; expected 0 to 1")
        return found

    return score
