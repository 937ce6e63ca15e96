"""How much memory this process has, as the system counts it."""

from __future__ import annotations

from pathlib import Path


def status_kib(field: str) -> int:
    """A figure of Linux's /proc/self/status in KiB: `VmRSS`, what is resident; `VmHWM`, its peak.

    Not getrusage: its peak outlives exec, so it would hold that of the parent.
    """
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    [figure] = [line.split()[1] for line in lines if line.startswith(f"{field}:")]
    return int(figure)
