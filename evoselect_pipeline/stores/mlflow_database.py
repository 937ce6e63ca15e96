"""MLflow's database: made or migrated before anything uses it, and never half done."""

from __future__ import annotations

import logging
import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

from evoselect_pipeline.errors import ArtifactError, ConfigError
from evoselect_pipeline.stores.faults import fault


def prepare_file(database: Path, artifacts_dir: Path) -> None:
    """Create or migrate a SQLite file; the caller holds a lock.

    MLflow itself does not survive several processes that start on a fresh SQLite file, nor a
    kill between two migrations; so the file is made aside and renamed, and never in place.
    Before an upgrade of MLflow stop what uses the old file: it would go on writing to that.
    """
    # One name for all: the lock is the caller's, so what is there was left by one that died.
    temporary = database.parent / ".mlflow-new.db"
    _remove(temporary)
    try:
        if database.exists():
            _copy(database, temporary)
            _migrate_file(temporary)
            shutil.copy2(database, database.parent / "mlflow.db.before-migration")
        else:
            _create(f"sqlite:///{temporary}", artifacts_dir)
        fault("home:before_database")
        os.replace(temporary, database)
    finally:
        _remove(temporary)


def prepare_server(uri: str, artifacts_dir: Path) -> None:
    """Create or migrate MLflow's tables on a database server; the caller holds a lock.

    Raises
    ------
    ConfigError
        At once, without the password, if the server does not let us in.
    """
    from sqlalchemy import create_engine, inspect
    from sqlalchemy.exc import OperationalError

    engine = create_engine(uri)
    try:
        exists = inspect(engine).has_table("alembic_version")
    except OperationalError as error:
        raise ConfigError(
            f"MLflow's database {without_password(uri)} cannot be opened: {error.orig}".strip()
            + "; start its server, or mend the address and the credentials"
        ) from None
    finally:
        engine.dispose()
    if not exists:
        _create(uri, artifacts_dir)
        return
    from mlflow.store.db import utils

    engine = utils.create_sqlalchemy_engine_with_retry(uri)
    utils._upgrade_db(engine)  # what `mlflow db upgrade URI` does, less the URI in the process list
    engine.dispose()


def without_password(uri: str) -> str:
    """A database's or a server's address as it may be shown."""
    from sqlalchemy.engine import make_url

    return make_url(uri).render_as_string(hide_password=True)


def _create(uri: str, artifacts_dir: Path) -> None:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    # Importing MLflow sets its loggers' levels; that it creates its tables is no news to the user.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
    store = SqlAlchemyStore(uri, str(artifacts_dir))
    # Closes every connection, so that SQLite folds its side files into the one we rename.
    store.engine.dispose()


def _remove(database: Path) -> None:
    # SQLite's journals carry the database's name with an ending.
    for path in database.parent.glob(f"{database.name}*"):
        path.unlink()


def _copy(source: Path, target: Path) -> None:
    with closing(sqlite3.connect(source)) as old, closing(sqlite3.connect(target)) as new:
        old.backup(new)


def _migrate_file(database: Path) -> None:
    command = [sys.executable, "-m", "mlflow", "db", "upgrade", f"sqlite:///{database}"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise ArtifactError(
            f"{database}: MLflow could not migrate its database; the old one is unchanged:\n"
            f"{result.stderr[-2000:]}"
        )
