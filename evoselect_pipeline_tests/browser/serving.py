"""A running `evoselect ui`, and what it leaves behind."""

import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from evoselect_pipeline_tests.integration.process import start


class Served(NamedTuple):
    """A running `evoselect ui`."""

    process: subprocess.Popen
    home: Path
    dagster: str
    mlflow: str


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def served(home: Path) -> Iterator[Served]:
    """Start `evoselect ui` on free ports, wait until it prints its addresses, stop it."""
    ports = ("--port", free_port(), "--mlflow-port", free_port())
    process = start("ui", "--home", home, *ports)
    try:
        assert process.stdout
        dagster, mlflow, hint = (process.stdout.readline() for _ in range(3))
        assert "Ctrl-C" in hint, process.communicate()
        yield Served(process, home, dagster.split()[1], mlflow.split()[1])
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)


def processes_of(home: Path) -> set[int]:
    """Ids of the processes that work on a home, by their environment."""
    mark = f"EVOSELECT_HOME={home}".encode()
    found = set()
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark in environ.read_bytes().split(b"\0"):
                found.add(int(environ.parent.name))
        except (OSError, ValueError):  # it has ended, or is not ours
            continue
    return found


def stop(ui: Served, signum: signal.Signals) -> None:
    """End `evoselect ui` by a signal; it must take all its processes along."""
    ui.process.send_signal(signum)
    ui.process.communicate(timeout=60)
    assert ui.process.returncode == 0
    assert processes_of(ui.home) == set()
