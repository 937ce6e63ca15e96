"""The home folder: one place for all state, and the lease that keeps a line to one writer."""

from __future__ import annotations

import json
import os
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import evoselect_pipeline
from evoselect_pipeline.addresses import without_login
from evoselect_pipeline.errors import ArtifactError, ConfigError, RoundHeldError
from evoselect_pipeline.stores.artifacts import make_folder, write_text_atomic

if TYPE_CHECKING:
    from filelock import FileLock

LAYOUT_VERSION = 1
VARIABLE = "EVOSELECT_HOME"
MLFLOW_VARIABLE = "EVOSELECT_MLFLOW_URI"
DEFAULT = "./evoselect_home"
MOST_PATH_BYTES = 400  # SQLite opens no path of more than 512, and Dagster's begin with the home's

# A line names a folder, Dagster assets and an MLflow model; Dagster allows no hyphen.
_LINE = re.compile(r"[a-z0-9][a-z0-9_]{0,62}")
_ROUND = re.compile(r"[0-9]{4}")
# Of SQLite an absolute path alone: a relative one is another file in each folder it is read from.
_MLFLOW_URI = re.compile(r"(https?|(postgresql|mysql|mssql)(\+\w+)?)://|sqlite(\+\w+)?:////")


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
        if len(os.fsencode(root)) > MOST_PATH_BYTES:
            raise ConfigError(
                f"home {root}: a path of more than {MOST_PATH_BYTES} bytes cannot hold SQLite's"
                " databases; choose a shorter one"
            )
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
        """Where MLflow is: `EVOSELECT_MLFLOW_URI`, or a SQLite file in the home.

        Absolute, since MLflow reads a relative file from the cwd.

        Raises
        ------
        ConfigError
            If the variable holds neither a server's address nor a database's.
        """
        uri = os.environ.get(MLFLOW_VARIABLE) or f"sqlite:///{self.mlflow_db}"
        if not _MLFLOW_URI.match(uri):
            raise ConfigError(
                f"{MLFLOW_VARIABLE} {without_login(uri)!r}: expected http://HOST:PORT, https://HOST"
                " or a database such as postgresql+psycopg2://HOST/NAME or sqlite:////PATH/mlflow.db"
            )
        if uri.startswith("http") and "@" in uri:  # links and MLflow's own errors would repeat it
            raise ConfigError(
                f"{MLFLOW_VARIABLE} holds a password; put it into MLFLOW_TRACKING_PASSWORD, and the"
                " user into MLFLOW_TRACKING_USERNAME"
            )
        return uri.rstrip("/")

    @property
    def mlflow_is_served(self) -> bool:
        """Whether an MLflow server stands between us and MLflow's database."""
        return self.mlflow_uri.startswith("http")

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
        try:
            self._check_layout()
            for folder in (self.lance_dir, self.mlflow_artifacts_dir, self.dagster_dir):
                make_folder(folder)
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

    def is_held_for(self, what: str) -> bool:
        """Whether a process holds a lease for this right now; it is not waited for."""
        from filelock import FileLock, Timeout

        for owner_file in self.locks_dir.glob("line-*.owner.json"):
            if json.loads(_text_of(owner_file) or "{}").get("what") != what:
                continue
            try:
                with FileLock(_lock_of(owner_file)).acquire(blocking=False):
                    pass  # it died without a word
            except Timeout:
                return True
        return False

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
        """Create or migrate MLflow's database; the caller holds the init lock."""
        from evoselect_pipeline.stores.mlflow_database import prepare_file, prepare_server

        if self.mlflow_is_served:
            return
        if os.environ.get(MLFLOW_VARIABLE):
            prepare_server(self.mlflow_uri, self.mlflow_artifacts_dir)
            return
        version = metadata.version("mlflow")
        marker = self.root / "mlflow_version"
        if self.mlflow_db.exists() and _text_of(marker) == version:
            return
        prepare_file(self.mlflow_db, self.mlflow_artifacts_dir)
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
    what = record.pop("what").removesuffix(f" (process {record['pid']})")  # a command's own name
    return f"{what} (process {{pid}} on {{host}}, since {{since}})".format(**record)


def _lock_of(owner_file: Path) -> Path:
    return owner_file.with_name(owner_file.name.replace(".owner.json", ".lock"))


def _text_of(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return ""
