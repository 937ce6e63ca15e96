"""`evoselect ui`: the Dagster webserver and daemon, and the MLflow server, until Ctrl-C."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from evoselect_pipeline.commands.console import stderr, stdout
from evoselect_pipeline.commands.context import home_at, open_home
from evoselect_pipeline.errors import ConfigError
from evoselect_pipeline.stores.home import VARIABLE, Home, project_file
from evoselect_pipeline.stores.tracking import UI_VARIABLE, Tracking

HOST = "127.0.0.1"
START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 20.0


def serve(home_dir: Path | None, port: int, mlflow_port: int) -> int:
    """Start the servers and wait; return 0 after Ctrl-C, 1 if one of them ended by itself."""
    if port == mlflow_port:
        raise ConfigError(f"--port and --mlflow-port are both {port}; choose two")
    _refuse_taken(port, "--port")
    if not home_at(home_dir).mlflow_is_served:
        _refuse_taken(mlflow_port, "--mlflow-port")
    home = open_home(home_dir)
    logs = home.root / "logs"
    logs.mkdir(exist_ok=True)
    # SIGTERM stops the servers too: a service manager sends that. SIGINT is set because a script
    # that starts us with `&` makes us, and through us the servers, ignore it.
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, _interrupt)
    mlflow = home.mlflow_uri if home.mlflow_is_served else f"http://{HOST}:{mlflow_port}"
    os.environ.setdefault(UI_VARIABLE, mlflow)  # rounds link to their MLflow run
    servers: dict[str, subprocess.Popen] = {}
    try:
        for name, command in _commands(home, port, mlflow_port).items():
            servers[name] = _start(command, home, logs / f"{name}.log")
        runs_page = Tracking(home).runs_page()
        ports = {"webserver": port, "mlflow": mlflow_port}
        _wait_until_up(servers, {name: ports[name] for name in servers if name in ports}, logs)
        stdout.print(f"Dagster  http://{HOST}:{port}   rounds, lineage, schedules")
        stdout.print(f"MLflow   {mlflow}{runs_page}   metrics, adapters")
        stdout.print("Ctrl-C stops both.")
        while True:
            _refuse_ended(servers, logs)
            time.sleep(1.0)
    except KeyboardInterrupt:
        stderr.print("stopping")
        return 0
    except ChildProcessError as error:
        stderr.print(f"[red]{error}[/red]")
        return 1
    finally:
        _stop(servers)


def _commands(home: Home, port: int, mlflow_port: int) -> dict[str, list[str]]:
    code = ["--workspace", str(project_file("workspace.yaml"))]
    commands = {
        "webserver": ["dagster-webserver", "--host", HOST, "--port", str(port), *code],
        "daemon": ["dagster-daemon", "run", *code],
    }
    if not home.mlflow_is_served:
        commands["mlflow"] = [
            *("mlflow", "server", "--host", HOST, "--port", str(mlflow_port), "--workers", "1"),
            *("--artifacts-destination", str(home.mlflow_artifacts_dir)),
        ]
    return commands


def _start(command: list[str], home: Home, log: Path) -> subprocess.Popen:
    program = Path(sys.executable).parent / command[0]
    environment = {
        **os.environ,
        VARIABLE: str(home.root),
        "DAGSTER_HOME": str(home.dagster_dir),
        # A line that does not load for a while must not end a backfill for good.
        "DAGSTER_BACKFILL_RETRY_DEFINITION_CHANGED_ERROR": "1",
        "MLFLOW_BACKEND_STORE_URI": home.mlflow_uri,  # not an option: it may hold a password
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    with log.open("ab") as output:
        # A session of its own, so that Ctrl-C reaches us alone and we stop them in order.
        return subprocess.Popen(
            [str(program), *command[1:]],
            env=environment,
            cwd=home.root,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _wait_until_up(servers: dict[str, subprocess.Popen], ports: dict[str, int], logs: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    waiting = dict(ports)
    while waiting:
        _refuse_ended(servers, logs)
        waiting = {name: port for name, port in waiting.items() if not _answers(port)}
        if waiting and time.monotonic() > deadline:
            raise ChildProcessError(f"{', '.join(waiting)} did not come up; see the logs in {logs}")
        time.sleep(0.3)


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://{HOST}:{port}/", timeout=2) as response:
            return response.status == 200
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return False


def _refuse_ended(servers: dict[str, subprocess.Popen], logs: Path) -> None:
    for name, server in servers.items():
        if server.poll() is not None:
            raise ChildProcessError(f"{name} ended by itself; see {logs / f'{name}.log'}")


def _stop(servers: dict[str, subprocess.Popen]) -> None:
    # An impatient second Ctrl-C must not leave servers behind.
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)
    for server in servers.values():
        _signal_group(server, signal.SIGINT)
    deadline = time.monotonic() + STOP_TIMEOUT_S
    for server in servers.values():
        # The whole group: a round that is running in the daemon's must end too.
        while _signal_group(server, 0) and time.monotonic() < deadline:
            server.poll()
            time.sleep(0.1)
        _signal_group(server, signal.SIGKILL)
        server.wait()


def _signal_group(leader: subprocess.Popen, signum: int) -> bool:
    """Send a signal to all processes of a server; return whether there were any."""
    try:
        os.killpg(leader.pid, signum)
    except ProcessLookupError:
        return False
    return True


def _refuse_taken(port: int, option: str) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            raise ConfigError(f"{option} {port} is in use on {HOST}; choose another") from None


def _interrupt(signum: int, frame: object) -> None:
    raise KeyboardInterrupt
