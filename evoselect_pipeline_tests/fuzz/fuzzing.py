"""How a law is tried: on the same examples in every run, or on fresh ones for as long as asked.

`EVOSELECT_LONG=1` tries each law for `EVOSELECT_FUZZ_SECONDS` (600) of processor time, on seeds
that a failure names. What it finds becomes a test of its own.
"""

import logging
import os
import random
import resource
import time
from collections.abc import Callable
from datetime import timedelta
from functools import wraps
from inspect import signature

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from evoselect_pipeline_tests.integration.process import IS_LONG

SECONDS = float(os.environ.get("EVOSELECT_FUZZ_SECONDS", "600")) if IS_LONG else 0.0
EXAMPLES_OF_A_SEED = 500
MOST_GROWTH_MIB = 512  # of the process, over all examples of a law
BOUNDED = settings(
    deadline=timedelta(seconds=10),  # of one example, on a busy machine
    database=None,
    phases=(Phase.generate, Phase.shrink),
    suppress_health_check=(HealthCheck.too_slow, HealthCheck.data_too_large),
)

ANY_TEXT = st.text(st.characters())  # lone surrogates as well
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | ANY_TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(ANY_TEXT, inner, max_size=4),
    max_leaves=12,
)


def fuzz(*, examples: int, **drawn: st.SearchStrategy) -> Callable[[Callable], Callable]:
    """Try a law on drawn examples: on so many, or as the module says; time and memory are bounded.

    Parameters of the law that are not drawn are fixtures.
    """

    def decorate(law: Callable) -> Callable:
        num_tried = 0

        @wraps(law)
        def counted(**parameters: object) -> None:
            nonlocal num_tried
            num_tried += 1
            law(**parameters)

        number = EXAMPLES_OF_A_SEED if IS_LONG else examples
        test = settings(BOUNDED, max_examples=number)(given(**drawn)(counted))

        def try_out(**fixtures: object) -> None:
            nonlocal num_tried
            num_tried, before, end = 0, _peak_mib(), time.process_time() + SECONDS
            # pytest keeps every record of a test, and by its error the frames it came through.
            logging.disable()
            try:
                _try_seed(test, fixtures)
                while time.process_time() < end:
                    _try_seed(test, fixtures)
            finally:
                logging.disable(logging.NOTSET)
            grown = _peak_mib() - before
            print(f"{law.__name__}: {num_tried} examples, the process grew by {grown:.0f} MiB")
            assert grown < MOST_GROWTH_MIB

        try_out.__name__, try_out.__doc__ = law.__name__, law.__doc__
        try_out.__signature__ = signature(test)  # type: ignore[attr-defined]
        return pytest.mark.timeout(600 + 20 * SECONDS)(try_out)  # the machine may be busy

    return decorate


def _try_seed(test: Callable, fixtures: dict[str, object]) -> None:
    number = random.SystemRandom().getrandbits(32) if IS_LONG else 0
    try:
        seed(number)(test)(**fixtures)
    except Exception as error:
        error.add_note(f"found by @seed({number})")
        raise


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """Content with bits flipped, and parts cut out, doubled or overwritten."""
    content = bytearray(whole)
    for _ in range(draw(st.integers(1, 3))):
        start, source = (draw(st.integers(0, len(content))) for _ in range(2))
        length = draw(st.integers(1, 40))
        kind = draw(st.sampled_from(["flip", "flip", "cut", "end", "splice", "double", "any"]))
        if kind == "flip" and start < len(content):
            content[start] ^= 1 << draw(st.integers(0, 7))
        elif kind == "cut":
            del content[start : start + length]
        elif kind == "end":
            del content[start:]
        elif kind == "splice":
            content[start : start + length] = content[source : source + length]
        elif kind == "double":
            content[start:start] = content[source : source + length]
        elif kind == "any":
            content[start : start + length] = draw(st.binary(max_size=8))
    return bytes(content)
