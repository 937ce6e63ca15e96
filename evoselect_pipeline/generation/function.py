"""Rows from a function of the user's own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar

from evoselect_pipeline.config_rows import FunctionSource
from evoselect_pipeline.core.records import Sample, digest
from evoselect_pipeline.errors import ConfigError, DataError
from evoselect_pipeline.generation.base import Assignment, Generated
from evoselect_pipeline.stores.rows import sample_of, usable_rows
from evoselect_pipeline.user_code import own_function, source_of

KEY = "generator.function"


@dataclass(frozen=True)
class OwnFunction:
    """A generator that is the user's own Python."""

    heeds_weights: ClassVar[bool] = True
    source: FunctionSource

    def generate(self, assignment: Assignment) -> Generated:
        """Take rows from the function, at most as many as are asked for; see `usable_rows`.

        Raises
        ------
        ConfigError
            If the function cannot be imported, or not be called as it is.
        DataError
            If none of the rows can be used, or the function raises; a connection that fails or
            takes too long is let through, because it may come back.
        """
        rows = islice(self._rows(assignment), self.source.num_candidates)
        placed = ((f"{self._name}: row {number}", row) for number, row in enumerate(rows, start=1))
        read = usable_rows(placed, self._sample)
        return Generated(read.samples, facts={"refused_rows": dict(read.refused)})

    def fingerprint(self, round_number: int) -> str:
        """Hash of the settings and of the source of the module that they name."""
        self._function()
        code = source_of(self.source.function, KEY)
        return digest(self.source.model_dump(mode="json"), code)

    @property
    def _name(self) -> str:
        return f"{KEY} {self.source.function}"

    def _function(self) -> Callable[..., Any]:
        found = own_function(self.source.function, KEY)
        try:
            inspect.signature(found).bind([], 0, 0, {}, **self.source.options)
        except (TypeError, ValueError) as error:
            called = ", ".join(["targets, round_number, seed, weights", *self.source.options])
            raise ConfigError(f"{self._name}: cannot be called with ({called}): {error}") from None
        return found

    def _rows(self, assignment: Assignment) -> Iterator[Any]:
        """What the function returns, one by one; a generator fails while it is read."""
        function = self._function()
        try:
            rows = function(
                assignment.targets,
                assignment.round_number,
                assignment.seed,
                assignment.weights,
                **self.source.options,
            )
            if not isinstance(rows, Iterable):
                raise TypeError(f"it returned {type(rows).__name__}, expected rows")
            yield from rows
        except (ConnectionError, TimeoutError):
            raise
        except Exception as error:  # it is the user's code, which may raise anything
            raise DataError(f"{self._name}: {type(error).__name__}: {error}") from error

    def _sample(self, where: str, row: Any) -> Sample:
        if not isinstance(row, Mapping):
            raise DataError(f"{where}: expected a mapping, found {type(row).__name__}")
        parents = row.get("parents", ())
        if not isinstance(parents, list | tuple) or not all(isinstance(p, str) for p in parents):
            raise DataError(f"{where}: `parents` must be a list of sample ids, got {parents!r}")
        return sample_of(where, row, self.source.function, parents=tuple(parents))
