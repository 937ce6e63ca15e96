"""Named points where a test may kill the process, so that every commit is tried under a crash."""

from __future__ import annotations

import os
import signal
from collections import Counter

VARIABLE = "EVOSELECT_FAULT"

_hits: Counter[str] = Counter()


def fault(name: str) -> None:
    """Kill this process when `EVOSELECT_FAULT` is `name`, or `name:K` at the K-th pass."""
    wanted = os.environ.get(VARIABLE)
    if not wanted:
        return
    point, _, nth = wanted.rpartition(":")
    if not nth.isdigit():
        point, nth = wanted, "1"
    if point != name:
        return
    _hits[name] += 1
    if _hits[name] == int(nth):
        # SIGKILL, not an exception: no handler, no `finally` and no flush may soften the crash.
        os.kill(os.getpid(), signal.SIGKILL)
