"""Who hears how far long work is: the terminal's progress bar, or a log line now and then."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

OnProgress = Callable[[str, int, int], None]  # what, units done, units in all

LOG_EVERY_S = 10.0
_log = logging.getLogger("evoselect_pipeline")
_last_logged: dict[str, float] = {}


def _log_now_and_then(what: str, done: int, total: int) -> None:
    if total == 1:  # nobody counts it: it is told of when it begins
        if done == 0:
            _log.info("%s", what)
        return
    now = time.monotonic()
    if done >= total or now - _last_logged.get(what, 0.0) >= LOG_EVERY_S:
        _last_logged[what] = now
        _log.info("%s: %d of %d", what, done, total)


_listener: OnProgress = _log_now_and_then


def progress(what: str, done: int, total: int) -> None:
    """Report that `done` of `total` units of `what` are finished."""
    _listener(what, done, total)


@contextmanager
def working_on(what: str) -> Iterator[None]:
    """Report work whose units nobody counts: it is one unit, begun now and done at the end."""
    progress(what, 0, 1)
    yield
    progress(what, 1, 1)


@contextmanager
def listening(listener: OnProgress):
    """Send progress to `listener` inside the block, instead of to the log."""
    global _listener
    before, _listener = _listener, listener
    try:
        yield
    finally:
        _listener = before
