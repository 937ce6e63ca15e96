"""A failed run is told to a real webhook, and to nobody by a road that can be listened to."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import dagster as dg
import pytest

from evoselect_pipeline.components.alerts import WEBHOOK, tells_of_failed_runs


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


@dg.asset
def candidates():
    pass


@dg.asset_check(asset=candidates, blocking=True)
def well_formed():
    return dg.AssetCheckResult(passed=False, description="3 usable candidates: generate more")


def tell_of_a_failure(checked: bool = False, **tags: str) -> list[str]:
    """Run a failing job, evaluate the sensor on it; what the sensor logged."""
    with dg.instance_for_test() as instance:
        if checked:
            result = dg.materialize(
                [candidates, well_formed], instance=instance, raise_on_error=False
            )
        else:
            result = playground_round.execute_in_process(
                instance=instance, raise_on_error=False, tags=tags
            )
        context = dg.build_run_status_sensor_context(
            sensor_name="tells_of_failed_runs",
            dagster_event=result.get_run_failure_event(),
            dagster_instance=instance,
            dagster_run=result.dagster_run,
        ).for_run_failure()
        logged: list[str] = []
        context.log.error = logged.append  # type: ignore[method-assign]
        tells_of_failed_runs(context)
        return logged


def test_a_failed_run_is_posted_with_its_round_and_its_reason(webhook, monkeypatch):
    address, posted = webhook
    monkeypatch.setenv(WEBHOOK, address)
    logged = tell_of_a_failure()
    [told] = posted
    assert (told["job"], told["round"]) == ("playground_round", "0003")
    assert told["text"].startswith(f"Run {told['run_id'][:8]} of playground_round, round 0003")
    assert told["text"].endswith("fails: ValueError: the disk is full")
    assert logged == [told["text"]]


@pytest.mark.parametrize("address", ["http://example.org/T0KEN", "ftp://x/T0KEN", "T0KEN"])
def test_a_webhook_in_the_clear_is_refused_and_its_address_not_repeated(address, monkeypatch):
    monkeypatch.setenv(WEBHOOK, address)
    [_, refused] = tell_of_a_failure()
    assert f"the webhook in ${WEBHOOK} was not told" in refused
    assert "T0KEN" not in refused


def test_without_a_webhook_the_failure_is_logged_alone(monkeypatch):
    monkeypatch.delenv(WEBHOOK, raising=False)
    [logged] = tell_of_a_failure()
    assert "round 0003 failed" in logged


def test_a_check_that_stopped_a_run_speaks_for_itself(monkeypatch):
    monkeypatch.delenv(WEBHOOK, raising=False)
    [logged] = tell_of_a_failure(checked=True)
    assert logged.endswith(
        "failed: candidates, check well_formed: 3 usable candidates: generate more"
    )


def test_a_failure_that_is_tried_again_by_itself_is_no_news(webhook, monkeypatch):
    address, posted = webhook
    monkeypatch.setenv(WEBHOOK, address)
    assert tell_of_a_failure(**{"dagster/will_retry": "true"}) == []
    assert posted == []
