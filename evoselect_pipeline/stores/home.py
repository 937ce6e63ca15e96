"""The home folder: one place for all state, and the lease that keeps a line to one writer."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import evoselect_pipeline
from evoselect_pipeline.errors import ArtifactError, ConfigError, RoundHeldError
from evoselect_pipeline.stores.artifacts import write_text_atomic
from evoselect_pipeline.stores.faults import fault

if TYPE_CHECKING:
    from filelock import FileLock

LAYOUT_VERSION = 1
VARIABLE = "EVOSELECT_HOME"
DEFAULT = "./evoselect_home"

# A line names a folder, Dagster assets and an MLflow model; Dagster allows no hyphen.
_LINE = re.compile(r"[a-z0-9][a-z0-9_]{0,62}")
_ROUND = re.compile(r"[0-9]{4}")


def line_name(name: str) -> str:
    """Return the name of an evolution line, or raise ConfigError: it becomes a folder."""
    if not isinstance(name, str) or not _LINE.fullmatch(name):
        raise ConfigError(
            f"line {name!r}: a name is 1 to 63 of a-z 0-9 _, starting with a letter or digit"
        )
    return name


def round_key(number: int) -> str:
    """The partition key of a round: 3 -> "0003"."""
    if not 0 <= number <= 9999:
        raise ConfigError(f"round {number}: expected 0 to 9999")
    return f"{number:04d}"


def round_of(key: str) -> int:
    """The round of a partition key: "0003" -> 3."""
    if not _ROUND.fullmatch(key):
        raise ConfigError(f"round key {key!r}: expected four digits, such as 0003")
    return int(key)


def project_file(name: str) -> Path:
    """A file of the project's top folder, from a checkout or from an installed wheel."""
    package = Path(evoselect_pipeline.__file__).parent
    places = (package.parent / name, package / "project_files" / name)
    for place in places:
        if place.is_file():
            return place
    raise ArtifactError(
        f"{name}: found neither of {[str(p) for p in places]}; reinstall evoselect-pipeline"
    )


@dataclass(frozen=True)
class Home:
    """The folder that holds all state: Dagster, LanceDB, MLflow and the artifacts of each round."""

    root: Path

    def __post_init__(self) -> None:
        root = Path(self.root).expanduser().absolute()
        # SQLAlchemy would read these as the start of a query or an escape in the database's URI.
        if any(mark in str(root) for mark in "?%#"):
            raise ConfigError(f"home {root}: a path with ?, % or # cannot hold the MLflow database")
        object.__setattr__(self, "root", root)

    @classmethod
    def from_env(cls) -> Home:
        """The home named by `EVOSELECT_HOME`, or `./evoselect_home`."""
        return cls(Path(os.environ.get(VARIABLE) or DEFAULT))

    @property
    def lance_dir(self) -> Path:
        """Where the LanceDB tables are."""
        return self.root / "lance"

    @property
    def mlflow_db(self) -> Path:
        """The MLflow database file."""
        return self.root / "mlflow.db"

    @property
    def mlflow_uri(self) -> str:
        """The MLflow tracking URI; absolute, since MLflow reads a relative one from the cwd."""
        return f"sqlite:///{self.mlflow_db}"

    @property
    def mlflow_artifacts_dir(self) -> Path:
        """Where MLflow keeps the figures and texts of runs."""
        return self.root / "mlflow_artifacts"

    @property
    def dagster_dir(self) -> Path:
        """`DAGSTER_HOME`."""
        return self.root / "dagster"

    def line_dir(self, line: str) -> Path:
        """The folder of one evolution line."""
        return self.root / "lines" / line_name(line)

    def round_dir(self, line: str, round: int) -> Path:
        """The folder of one round of a line."""
        return self.line_dir(line) / round_key(round)

    def init(self) -> Home:
        """Create what is missing and migrate what is old; safe to call at any time, from anywhere.

        Raises
        ------
        ArtifactError
            If the home was written by a newer version, or cannot be written.
        """
        self._check_layout()
        try:
            for folder in (self.lance_dir, self.mlflow_artifacts_dir, self.dagster_dir):
                folder.mkdir(parents=True, exist_ok=True)
            (self.root / "lines").mkdir(exist_ok=True)
            self.locks_dir.mkdir(exist_ok=True)
        except OSError as error:
            raise ArtifactError(
                f"home {self.root}: cannot be created ({error.strerror}: {error.filename});"
                f" set {VARIABLE} to a folder you may write"
            ) from error
        from filelock import FileLock

        with FileLock(self.locks_dir / "init.lock"):
            config = self.dagster_dir / "dagster.yaml"
            if not config.exists():
                write_text_atomic(config, project_file("dagster.yaml").read_text(encoding="utf-8"))
            self._init_mlflow()
            # Written last: a home with a layout version is a complete one.
            if not self._layout_file.exists():
                write_text_atomic(self._layout_file, f"{LAYOUT_VERSION}\n")
        return self

    @contextmanager
    def lease(self, line: str, what: str = "a round") -> Iterator[None]:
        """Be the only process that works on a line; re-entrant within the process.

        The operating system drops the lock when the process dies, so there is no stale lease.

        Raises
        ------
        RoundHeldError
            At once, naming the owner, if another process holds the line.
        """
        lock_file = self.locks_dir / f"line-{line_name(line)}.lock"
        lock_file.parent.mkdir(parents=True, exist_ok=True)
        _acquire(lock_file, f"line {line}", what)
        try:
            yield
        finally:
            _release(lock_file)

    @property
    def locks_dir(self) -> Path:
        """Where the lock files are; the operating system drops a lock with the process."""
        return self.root / "locks"

    @property
    def _layout_file(self) -> Path:
        return self.root / "layout_version"

    def _check_layout(self) -> None:
        if not self._layout_file.exists():
            return
        text = self._layout_file.read_text(encoding="utf-8").strip()
        if not text.isdigit():
            raise ArtifactError(f"{self._layout_file}: expected a number, got {text[:40]!r}")
        if int(text) > LAYOUT_VERSION:
            raise ArtifactError(
                f"home {self.root}: layout version {text} is newer than {LAYOUT_VERSION}, which"
                f" this version writes; upgrade evoselect-pipeline or set {VARIABLE} elsewhere"
            )

    def _init_mlflow(self) -> None:
        """Create or migrate the MLflow database; the caller holds the init lock.

        MLflow itself does not survive several processes that start on a fresh SQLite file, nor a
        kill between two migrations; so the file is made aside and renamed, and never in place.
        Before an upgrade of MLflow stop what uses the old file: it would go on writing to that.
        """
        version = metadata.version("mlflow")
        marker = self.root / "mlflow_version"
        if self.mlflow_db.exists() and _text_of(marker) == version:
            return
        # One name for all: the lock is ours, so what is there was left by a process that died.
        temporary = self.root / ".mlflow-new.db"
        _remove_database(temporary)
        try:
            if self.mlflow_db.exists():
                _copy_database(self.mlflow_db, temporary)
                _migrate_mlflow(temporary)
                shutil.copy2(self.mlflow_db, self.root / "mlflow.db.before-migration")
            else:
                _create_mlflow(temporary, self.mlflow_artifacts_dir)
            fault("home:before_database")
            os.replace(temporary, self.mlflow_db)
        finally:
            _remove_database(temporary)
        write_text_atomic(marker, version)


@dataclass
class _Held:
    lock: FileLock
    depth: int


# Keyed by process id too: a forked child must compete for the lease, not inherit it.
_held: dict[tuple[int, Path], _Held] = {}
_guard = threading.Lock()


def _acquire(lock_file: Path, subject: str, what: str) -> None:
    from filelock import FileLock, Timeout

    owner_file = lock_file.with_suffix(".owner.json")
    key = (os.getpid(), lock_file)
    with _guard:
        if key in _held:
            _held[key].depth += 1
            return
        # Any thread may release what another took, hence not thread-local.
        lock = FileLock(lock_file, thread_local=False)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            raise RoundHeldError(
                f"{subject} is held by {_owner(owner_file)}; wait for it to end, or stop it"
            ) from None
        try:
            _write_owner(owner_file, what)
        except ArtifactError:
            lock.release()
            raise
        _held[key] = _Held(lock, depth=1)


def _release(lock_file: Path) -> None:
    key = (os.getpid(), lock_file)
    with _guard:
        held = _held[key]
        held.depth -= 1
        if held.depth == 0:
            del _held[key]
            lock_file.with_suffix(".owner.json").unlink(missing_ok=True)
            held.lock.release()


def _write_owner(file: Path, what: str) -> None:
    record = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "what": what,
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_text_atomic(file, json.dumps(record) + "\n")


def _owner(file: Path) -> str:
    # The owner takes the lock first and writes its name second: there may be none yet.
    record = json.loads(_text_of(file) or "{}")
    if not record:
        return "another process"
    return "{what} (process {pid} on {host}, since {since})".format(**record)


def _text_of(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return ""


def _create_mlflow(database: Path, artifacts_dir: Path) -> None:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    # Importing MLflow sets its loggers' levels; that it creates its tables is no news to the user.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
    store = SqlAlchemyStore(f"sqlite:///{database}", str(artifacts_dir))
    # Closes every connection, so that SQLite folds its side files into the one we rename.
    store.engine.dispose()


def _remove_database(database: Path) -> None:
    # SQLite's journals carry the database's name with an ending.
    for path in database.parent.glob(f"{database.name}*"):
        path.unlink()


def _copy_database(source: Path, target: Path) -> None:
    with closing(sqlite3.connect(source)) as old, closing(sqlite3.connect(target)) as new:
        old.backup(new)


def _migrate_mlflow(database: Path) -> None:
    command = [sys.executable, "-m", "mlflow", "db", "upgrade", f"sqlite:///{database}"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise ArtifactError(
            f"{database}: MLflow could not migrate its database; the old one is unchanged:\n"
            f"{result.stderr[-2000:]}"
        )
