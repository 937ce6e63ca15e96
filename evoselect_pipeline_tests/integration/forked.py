"""The real `evoselect`, forked from a process that has imported what takes long.

Of a tiny round half the time goes to imports; a test that makes one of many rounds, or kills one
often, need not wait for them. What a user starts is in `process.py`.
"""

import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Sequence
from multiprocessing.forkserver import ensure_running, set_forkserver_preload
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

from evoselect_pipeline_tests.integration.process import REPOSITORY, environment

CONTEXT = multiprocessing.get_context("forkserver")
set_forkserver_preload(["evoselect_pipeline_tests.integration.preloaded"])


class Forked:
    """A run of `evoselect` in a process and a group of its own; to be used as a `Popen` is."""

    def __init__(self, *arguments: object, fault: str = "", cwd: Path = REPOSITORY):
        self._folder = TemporaryDirectory(prefix="evoselect-forked-")
        self._files = [Path(self._folder.name, name) for name in ("out", "err")]
        self.args = ["evoselect", *map(str, arguments)]
        variables = environment(fault)
        with patch.dict(os.environ, variables):  # torch reads some of them while it is imported
            ensure_running()
        self._process = CONTEXT.Process(target=_run, args=(self.args, variables, cwd, *self._files))
        self._process.start()
        self.pid: int = self._process.pid or 0

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait until it has ended, or for some seconds; how it ended, if it has."""
        self._process.join(timeout)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait until it has ended; what it wrote."""
        if self.wait(timeout) is None:
            raise TimeoutError(f"{self.args}: has not ended within {timeout} s")
        out, err = (file.read_text() if file.exists() else "" for file in self._files)
        return out, err

    def send_signal(self, signum: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, signum)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run_rounds(home: Path, settings: Sequence[str], rounds: int = 2) -> dict[str, Any]:
    """`evoselect run --format json`, which must succeed; its report."""
    run = Forked("run", "--home", home, "--rounds", rounds, "--format", "json", *settings)
    out, err = run.communicate()
    assert run.returncode == 0, err
    return json.loads(out)


def _run(arguments: list[str], variables: dict[str, str], cwd: Path, out: Path, err: Path) -> None:
    """In the fork: become a process of one's own, and do what the command says."""
    from evoselect_pipeline.cli import main

    os.setpgrp()
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(cwd)
    for file, number in ((out, 1), (err, 2)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
    sys.argv = arguments
    main()
