"""Debian's PostgreSQL on a scratch folder, with what the compose file asks of its image."""

import contextlib
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from evoselect_pipeline_tests.deployment.compose import REPOSITORY, wait_for

USER = "evoselect"  # POSTGRES_USER of the compose file


def installed() -> Path | None:
    """The folder of the newest server's programs."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    return found[-1].parent if found else None


class Postgres:
    """One server; it refuses root, and then runs as the package's user `postgres`."""

    def __init__(self, scratch: Path, port: int, password: str):
        programs = installed()
        if programs is None:
            pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
        if os.geteuid() == 0 and not shutil.which("setpriv"):
            pytest.skip("PostgreSQL refuses root, and there is no setpriv to become another user")
        self._programs, self._port, self._password = programs, port, password
        self._data = scratch / "data"
        self._log = scratch / "postgres.log"
        if os.geteuid() == 0:
            shutil.chown(scratch, "postgres", "postgres")
        self._initdb(scratch)
        self.start()
        self._psql("postgres", REPOSITORY / "docker/databases.sql")

    def _as_owner(self, program: str, *arguments: object) -> list[str]:
        become = ("setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", "--")
        command = (self._programs / program, *arguments)
        return [*map(str, (*(become if os.geteuid() == 0 else ()), *command))]

    def _initdb(self, scratch: Path) -> None:
        secret = scratch / "password"
        secret.write_text(self._password)
        secret.chmod(0o644)
        options = ("--auth=scram-sha-256", f"--username={USER}", f"--pwfile={secret}", "--no-sync")
        command = self._as_owner("initdb", "-D", self._data, *options)
        subprocess.run(command, check=True, capture_output=True, cwd="/")
        secret.unlink()

    def start(self) -> None:
        """Start the server and wait until it lets us in."""
        options = ("-p", self._port, "-c", "listen_addresses=127.0.0.1", "-k", self._data)
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(
                self._as_owner("postgres", "-D", self._data, *options),
                cwd="/",
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        ready = [str(self._programs / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self._port)]
        wait_for(lambda: subprocess.run(ready, check=False).returncode == 0, 60, "PostgreSQL")

    def stop(self) -> None:
        """End the server as its image does, by SIGINT: sessions are cut, nothing is lost."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGINT)
        self._process.wait(timeout=60)

    def rows(self, database: str, query: str) -> list[list[str]]:
        """What a query finds."""
        text = self._psql(database, query)
        return [line.split("|") for line in text.splitlines()]

    def _psql(self, database: str, what: str | Path) -> str:
        kind = "-f" if isinstance(what, Path) else "-c"
        address = ("-h", "127.0.0.1", "-p", str(self._port), "-U", USER, "-d", database)
        done = subprocess.run(
            [
                self._programs / "psql",
                "-X",
                "-A",
                "-t",
                "-v",
                "ON_ERROR_STOP=1",
                *address,
                kind,
                what,
            ],
            env={**os.environ, "PGPASSWORD": self._password},
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout
