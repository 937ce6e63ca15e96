"""A failed run is told to a real webhook, and to nobody by a road that can be listened to."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import dagster as dg
import pytest

from evoselect_pipeline.components.alerts import WEBHOOK
from evoselect_pipeline.components.automation import LINE_TAG
from evoselect_pipeline.stores.home import Home
from evoselect_pipeline.stores.tracking import Tracking
from evoselect_pipeline_tests.integration.in_dagster import hear_of


@dg.op
def fails():
    raise ValueError("the disk is full")


@dg.job(tags={"dagster/partition": "0003"})
def playground_round():
    fails()


@pytest.fixture
def webhook():
    """A server on loopback that keeps what is posted to it."""
    posted = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/hook", posted
    server.shutdown()


@pytest.fixture
def tell_of_a_failure(tmp_path):
    """Run a failing job, evaluate the sensor on it; what the sensor logged."""

    def tell(**tags: str) -> list[str]:
        with dg.instance_for_test() as instance:
            result = playground_round.execute_in_process(
                instance=instance, raise_on_error=False, tags=tags
            )
            return hear_of(instance, Home(tmp_path / "home"), result)

    return tell


def test_a_failed_run_is_posted_with_its_round_and_its_reason(
    webhook, monkeypatch, tell_of_a_failure
):
    address, posted = webhook
    monkeypatch.setenv(WEBHOOK, address)
    logged = tell_of_a_failure()
    [told] = posted
    assert (told["job"], told["round"]) == ("playground_round", "0003")
    assert told["text"].startswith(f"Run {told['run_id'][:8]} of playground_round, round 0003")
    assert told["text"].endswith("fails: ValueError: the disk is full")
    assert logged == [told["text"]]


@pytest.mark.parametrize("address", ["http://example.org/T0KEN", "ftp://x/T0KEN", "T0KEN"])
def test_a_webhook_in_the_clear_is_refused_and_its_address_not_repeated(
    address, monkeypatch, tell_of_a_failure
):
    monkeypatch.setenv(WEBHOOK, address)
    [_, refused] = tell_of_a_failure()
    assert f"the webhook in ${WEBHOOK} was not told" in refused
    assert "T0KEN" not in refused


def test_without_a_webhook_the_failure_is_logged_alone(monkeypatch, tell_of_a_failure):
    monkeypatch.delenv(WEBHOOK, raising=False)
    [logged] = tell_of_a_failure()
    assert "round 0003 failed" in logged


def test_a_failure_that_is_tried_again_by_itself_is_no_news(
    webhook, monkeypatch, tell_of_a_failure
):
    address, posted = webhook
    monkeypatch.setenv(WEBHOOK, address)
    assert tell_of_a_failure(**{"dagster/will_retry": "true"}) == []
    assert posted == []


def test_where_mlflow_is_down_the_failure_is_told_all_the_same(
    webhook, monkeypatch, tell_of_a_failure, caplog
):
    address, posted = webhook
    monkeypatch.setenv(WEBHOOK, address)

    def is_down(self, line, round):
        raise ConnectionError("nobody listens")

    monkeypatch.setattr(Tracking, "fail_round", is_down)
    [logged] = tell_of_a_failure(**{LINE_TAG: "playground"})
    assert "the disk is full" in logged
    assert [told["text"] for told in posted] == [logged]
    assert "MLflow was not told that round 0003 of line playground failed: nobody listens" in (
        caplog.text
    )
