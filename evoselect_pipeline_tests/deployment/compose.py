"""The services of docker/compose.yaml as processes of this machine, by their own commands.

A service is a session of processes, as a container is: it is killed as a whole. What differs from
the containers is in `SUBSTITUTIONS`, and nothing else does.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).parents[2]
COMPOSE = REPOSITORY / "docker/compose.yaml"
BIN = Path(sys.executable).parent
PORTS = ("postgres", "mlflow", "code", "webserver")
READY_S = 180

# What a container has of its own, and processes of one machine do not: a name, ports and folders.
SUBSTITUTIONS = (
    (r"(?<=//)postgres:5432", "127.0.0.1:{postgres}"),
    (r"\bmlflow:5000", "127.0.0.1:{mlflow}"),
    (r"(localhost|127\.0\.0\.1):5000", "127.0.0.1:{mlflow}"),
    (r"--port=5000", "--port={mlflow}"),
    (r"host: code, port: 4000", "host: 127.0.0.1, port: {code}"),
    (r"^4000$", "{code}"),
    (r"127\.0\.0\.1:3000", "127.0.0.1:{webserver}"),
    (r"^3000$", "{webserver}"),
    (r"\b0\.0\.0\.0\b", "127.0.0.1"),
    (r"/home/evoselect/state", "{home}"),
    (r"/home/evoselect/lines", "{lines}"),
)


def read_compose() -> dict[str, Any]:
    """The compose file, anchors resolved."""
    return yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))


def _is_of_machine(name: str) -> bool:
    """Whether a container of this machine would have a variable, too.

    Those of OpenBLAS choose its kernels, and other kernels round other last bits.
    """
    return name in ("HOME", "LANG", "PYTHONPATH") or name.startswith("OPENBLAS_")


class Deployment:
    """The services of the compose file in a scratch folder; PostgreSQL is started by the caller."""

    def __init__(self, scratch: Path, ports: dict[str, int], password: str):
        self.home = scratch / "home"
        self.ports = ports
        self.logs = scratch / "logs"
        self._image = scratch / "image"
        self._words = {**ports, "home": self.home, "lines": scratch / "lines"}
        self._password = password
        self._services = read_compose()["services"]
        self._running: dict[str, subprocess.Popen] = {}
        self.logs.mkdir()
        self._make_image()

    def _make_image(self) -> None:
        """What the Dockerfile copies to the working directory, for relative paths in commands."""
        (self._image / "docker").mkdir(parents=True)
        names = (
            "dagster.yaml",
            "docker/storage.yaml",
            "docker/workspace.yaml",
            "docker/answers.py",
        )
        for name in names:
            text = (REPOSITORY / name).read_text(encoding="utf-8")
            (self._image / name).write_text(self._here(text))

    def _here(self, text: str) -> str:
        """A text of the compose file as it must read outside of containers."""
        for pattern, replacement in SUBSTITUTIONS:
            text = re.sub(pattern, replacement.format(**self._words), text)
        return text

    def environment(self, service: str) -> dict[str, str]:
        """The environment that the compose file gives a service."""
        own = {
            name: self._here(value).replace(
                "${POSTGRES_PASSWORD:?set POSTGRES_PASSWORD}", self._password
            )
            for name, value in self._services[service]["environment"].items()
        }
        kept = {name: value for name, value in os.environ.items() if _is_of_machine(name)}
        path = f"{BIN}:{os.environ['PATH']}"
        return kept | own | {"PATH": path, "OMP_NUM_THREADS": "1"}

    def command(self, service: str, words: list[str]) -> list[str]:
        """Words of the compose file as a command of this machine."""
        # Compose reads `$$` as `$`.
        return [self._here(word.replace("$$", "$")) for word in words]

    def run(self, service: str) -> None:
        """Run a one-shot service to its end."""
        process = self._popen(service, self._services[service]["command"])
        assert process.wait(timeout=READY_S) == 0, self.log(service)

    def start(self, *services: str) -> None:
        """Start services and wait until their own health checks pass."""
        for service in services:
            words = self._services[service]["command"]
            self._running[service] = self._popen(service, words)
        for service in services:
            wait_for(
                lambda name=service: self.is_healthy(name), READY_S, f"{service} to be healthy"
            )

    def is_healthy(self, service: str) -> bool:
        """Run a service's health check once."""
        assert self._running[service].poll() is None, self.log(service)
        kind, *words = self._services[service]["healthcheck"]["test"]
        assert kind == "CMD"
        check = subprocess.run(
            self.command(service, words),
            cwd=self._image,
            env=self.environment(service),
            capture_output=True,
            check=False,
        )
        return check.returncode == 0

    def kill(self, service: str) -> None:
        """SIGKILL all processes of a service, as the end of a container does."""
        process = self._running.pop(service)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def stop(self, service: str) -> None:
        """End a service as `docker compose stop` does: SIGTERM, and SIGKILL after ten seconds."""
        process = self._running[service]
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=10)
        with contextlib.suppress(ProcessLookupError):
            self.kill(service)

    def stop_all(self) -> None:
        """End whatever runs, the last started first."""
        for service in reversed(list(self._running)):
            self.kill(service)

    def log(self, service: str) -> str:
        """The end of what a service has said."""
        return (self.logs / f"{service}.log").read_text(encoding="utf-8", errors="replace")[-6000:]

    def _popen(self, service: str, words: list[str]) -> subprocess.Popen:
        with (self.logs / f"{service}.log").open("ab") as output:
            return subprocess.Popen(
                self.command(service, words),
                cwd=self._image,
                env=self.environment(service),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )


def wait_for(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    """Ask again and again; return the first answer that is true."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited {seconds} s in vain for {what}"
        time.sleep(0.5)
    return found
