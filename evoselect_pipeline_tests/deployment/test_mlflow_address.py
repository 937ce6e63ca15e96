"""`EVOSELECT_MLFLOW_URI`: a server or a database elsewhere, and what is said if it is not there."""

import os
import sqlite3
from contextlib import closing

import pytest

from evoselect_pipeline.errors import ConfigError
from evoselect_pipeline.stores.home import Home
from evoselect_pipeline.stores.mlflow_database import prepare_server
from evoselect_pipeline_tests.integration.process import finish

NOWHERE = "127.0.0.1:9"  # the port of `discard`: nobody listens


@pytest.fixture
def set_uri(monkeypatch):
    return lambda uri: monkeypatch.setenv("EVOSELECT_MLFLOW_URI", uri)


def test_an_empty_variable_is_none(tmp_path, set_uri):
    set_uri("")
    assert Home(tmp_path).mlflow_uri == f"sqlite:///{tmp_path}/mlflow.db"
    assert not Home(tmp_path).mlflow_is_served


def test_behind_a_server_no_database_is_made(tmp_path, set_uri):
    set_uri(f"http://{NOWHERE}/")
    home = Home(tmp_path / "home").init()
    assert home.mlflow_uri == f"http://{NOWHERE}"
    assert not [name for name in os.listdir(home.root) if name.startswith("mlflow") and "." in name]


def test_a_database_elsewhere_is_made_once_and_migrated_when_it_is_old(tmp_path, set_uri):
    elsewhere = tmp_path / "elsewhere.db"
    set_uri(f"sqlite:///{elsewhere}")
    home = Home(tmp_path / "home").init()
    assert not home.mlflow_db.exists()
    with closing(sqlite3.connect(elsewhere)) as database, database:
        [(head,)] = database.execute("select version_num from alembic_version").fetchall()
        database.execute("insert into registered_models (name) values ('kept')")
    home.init()
    with closing(sqlite3.connect(elsewhere)) as database:
        assert database.execute("select version_num from alembic_version").fetchall() == [(head,)]
        assert database.execute("select name from registered_models").fetchall() == [("kept",)]


@pytest.mark.parametrize("uri", ["localhost:5000", "file:///tmp/mlruns", "postgres://host/mlflow"])
def test_what_is_no_address_is_refused(tmp_path, set_uri, uri):
    set_uri(uri)
    with pytest.raises(ConfigError, match=r"EVOSELECT_MLFLOW_URI .* expected http://HOST:PORT"):
        Home(tmp_path / "home").init()


def test_a_database_that_lets_nobody_in_is_named_without_its_password(tmp_path):
    uri = f"postgresql+psycopg2://me:hush@{NOWHERE}/mlflow"
    with pytest.raises(ConfigError, match="cannot be opened") as raised:
        prepare_server(uri, tmp_path)
    assert f"postgresql+psycopg2://me:***@{NOWHERE}/mlflow" in str(raised.value)
    assert "hush" not in str(raised.value)


def test_a_command_says_at_once_that_the_server_does_not_answer(tmp_path, set_uri):
    set_uri(f"http://{NOWHERE}")
    ended = finish("init", "--home", tmp_path / "home")
    assert ended.returncode == 2
    assert f"the MLflow server at http://{NOWHERE} does not answer" in " ".join(
        ended.stderr.split()
    )
