"""When an answer is right: what counts of it is taken out, and compared with the reference."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction

from evoselect_pipeline.config_rows import MetricSettings
from evoselect_pipeline.core.records import Sample, digest
from evoselect_pipeline.errors import DataError
from evoselect_pipeline.user_code import own_function, source_of

KEY = "task.metric.function"

# A sign is none after a digit, a letter or a bracket: 10-5 ends in 5.
NUMBER = re.compile(
    r"(?:(?<![\w)])-)?[$€£]?(?:\d+(?:,\d{3})*(?:\.\d+)?|\.\d+)(?:[eE][+-]?\d+\b|/[1-9]\d*)?"
)
MOST_DIGITS = 1_000
MINUS = str.maketrans("\u2212\u2013", "--")  # as typographers set it
FINAL = "####"  # how GSM8K marks its final answer
# An option as models name it, the plainest way first; of each, the last one in the answer counts.
MARKS = str.maketrans(dict.fromkeys("*_\"'`[]{}\u201c\u201d", " ") | {"\\": " "})
# Possessive, and within a line: a row of blanks must not be shared out in every way there is.
OPTIONS = (
    re.compile(
        r"(?i:answer|option|choice)(?:\s++is)?\s*+[:=]?\s*+(?:boxed)?\s*+\(?\s*+"
        r"([A-Za-z])\b(?!\s++[a-z])"
    ),
    re.compile(r"\(([A-Za-z])\)"),
    re.compile(r"boxed\s++([A-Z])\b"),
    re.compile(r"^[^\S\n]*+([A-Za-z])(?:[).:]|[^\S\n]*+$)", re.MULTILINE),
    re.compile(r"(?:'s|\bis|\bit s)\s++([A-Z])\s*+\.?\s*+$"),
)


@dataclass(frozen=True)
class Metric:
    """Scores answers from 0 to 1; `check` refuses rows it cannot score.

    `fingerprint` identifies how it scores: other code of the user's own is another metric.
    """

    fingerprint: str
    score: Callable[[str, Sample], float]
    check: Callable[[Iterable[Sample]], None]


def load_metric(settings: MetricSettings) -> Metric:
    """The metric that a configuration names.

    Raises
    ------
    ConfigError
        If it is a function that cannot be imported.
    """
    if settings.function is not None:
        code = source_of(settings.function, KEY)
        fingerprint = digest(settings.model_dump(), code)
        own = _own(settings.function)

        def try_out(rows: Iterable[Sample]) -> None:
            for row in rows:
                own(row.completion, row)

        return Metric(fingerprint, own, try_out)
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

    return Metric(digest(settings.model_dump()), score, check)


def final_number(text: str) -> Fraction | None:
    """The number after the last `####`, else the last one in the text: `1,000.50` is 1000.5.

    What has more than `MOST_DIGITS` digits, written out, is none.
    """
    marked = text.rstrip().removesuffix(FINAL).rpartition(FINAL)
    found = NUMBER.findall((marked[2] if marked[1] else text).translate(MINUS))
    return _value(found[0] if marked[1] else found[-1]) if found else None


def _value(number: str) -> Fraction | None:
    digits, _, divisor = re.sub(r"[$€£,]", "", number).partition("/")
    exponent = re.split("[eE]", digits)[1:]
    # 1e999999999 is short, and takes all memory there is.
    size = len(digits) + len(divisor) + sum(abs(int(e[:9])) for e in exponent)
    return Fraction(digits) / Fraction(divisor or 1) if size <= MOST_DIGITS else None


def chosen_option(text: str) -> str | None:
    """The letter of the option that an answer names: `B`, `(B)`, `B. because`, `Answer: B`."""
    plain = text.translate(MARKS)
    if re.fullmatch(r"\s*[a-zA-Z]\s*", plain):
        return plain.strip().upper()
    for pattern in OPTIONS:
        if found := pattern.findall(plain):
            return found[-1].upper()
    return None


def _last_match(pattern: str) -> Callable[[str], str | None]:
    compiled = re.compile(pattern)

    def last(text: str) -> str | None:
        found = [match[min(1, compiled.groups)] for match in compiled.finditer(text)]
        found = [part.strip() for part in found if part is not None]
        return found[-1] if found else None

    return last


def _own(path: str) -> Callable[[str, Sample], float]:
    """The user's function, whose scores are held to what a score may be."""
    function = own_function(path, KEY)

    def score(answer: str, row: Sample) -> float:
        try:
            found = float(function(answer, row))
        except Exception as error:  # it is the user's code, which may raise anything
            raise DataError(
                f"{KEY} {path}: {type(error).__name__}: {error}; the answer was {answer[:80]!r}, to"
                f" {row.prompt[:80]!r}"
            ) from error
        if not 0 <= found <= 1:  # nor NaN
            raise DataError(f"{KEY} {path}: it returned {found}; expected 0 to 1")
        return found

    return score
