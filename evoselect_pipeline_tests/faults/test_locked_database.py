"""MLflow's SQLite file is locked by something else: waited out, or tried again, and told once."""

import sqlite3
import threading
import time
from contextlib import closing, contextmanager

import pytest
from sqlalchemy import event

from evoselect_pipeline.components.evolution_line import _may_pass
from evoselect_pipeline.stores.home import Home
from evoselect_pipeline.stores.tracking import Tracking


@contextmanager
def write_lock(home: Home):
    """Be in the middle of writing to the database."""
    with closing(sqlite3.connect(home.mlflow_db, isolation_level=None)) as database:
        database.execute("begin immediate")
        yield
        database.execute("rollback")


def points(tracking: Tracking) -> list[tuple[int, float]]:
    run = tracking.line_run("sums")
    return [(p.step, p.value) for p in tracking._client.get_metric_history(run, "after")]


@pytest.fixture(scope="module")
def tracking(tmp_path_factory):
    found = Tracking(Home(tmp_path_factory.mktemp("locked") / "home").init())
    found.log_round("sums", 0, metrics={"after": 0.5})
    return found


def test_c4_a_short_lock_is_waited_out(tracking):
    locked, began = threading.Event(), time.monotonic()

    def hold():
        with write_lock(tracking.home):
            locked.set()
            time.sleep(1.0)

    holder = threading.Thread(target=hold)
    holder.start()
    assert locked.wait(30)
    tracking.log_round("sums", 1, metrics={"after": 0.6})
    holder.join()
    assert time.monotonic() - began >= 1.0
    assert points(tracking) == [(0, 0.5), (1, 0.6)]


def test_c4_a_long_lock_is_a_failure_that_may_pass_and_that_leaves_nothing_twice(tracking):
    engine = tracking._client._tracking_client.store.engine

    @event.listens_for(engine, "before_cursor_execute", retval=True)
    def lose_patience(connection, cursor, statement, parameters, *_):
        return statement.replace("busy_timeout = 20000", "busy_timeout = 20"), parameters

    with write_lock(tracking.home), pytest.raises(Exception, match="database is locked") as raised:
        tracking.log_round("sums", 2, metrics={"after": 0.7})
    assert _may_pass(raised.value), "the stage is tried again"
    for _ in range(2):
        tracking.log_round("sums", 2, metrics={"after": 0.7})
    assert points(tracking)[2:] == [(2, 0.7)]
    assert tracking.round_runs("sums") == [(f"sums/{n:04d}", "RUNNING") for n in (2, 1, 0)]
