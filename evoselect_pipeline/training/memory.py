"""Memory that runs out in a pass of a model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from accelerate.utils.memory import should_reduce_batch_size

from evoselect_pipeline.errors import ConfigError


@contextmanager
def memory_bounded_by(setting: str, value: int, besides: str = "") -> Iterator[None]:
    """Name the setting to lower where memory runs out, and what to do besides.

    Nothing is lowered unasked: on a GPU the size of a batch shows in the last digits.
    """
    try:
        yield
    except RuntimeError as error:
        if not should_reduce_batch_size(error):
            raise
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"{setting}: memory ran out at {value} ({reason}). Halve it{besides} and run again;"
            " what is stored stays"
        ) from error
