"""Law: MLflow answers to its own names alone, so that no page of others can ask it (G11)."""

import re

import pytest

from evoselect_pipeline.commands.ui import _commands
from evoselect_pipeline.stores.home import Home
from evoselect_pipeline_tests.deployment.compose import read_compose

FOREIGN = ("evil.example", "mlflow.evil.example", "127.0.0.1.evil.example", "evil.example:5000")


def status(monkeypatch, options: list[str], host: str) -> int:
    """What a server that is started with these options answers to a request for this host."""
    from fastapi import FastAPI
    from fastapi.testclient import TestClient
    from mlflow.server.fastapi_security import init_fastapi_security

    allowed = re.findall(r"--allowed-hosts[= ](\S+)", " ".join(options))
    monkeypatch.delenv("MLFLOW_SERVER_ALLOWED_HOSTS", raising=False)
    if allowed:  # as MLflow's command does with the option
        monkeypatch.setenv("MLFLOW_SERVER_ALLOWED_HOSTS", allowed[0])
    app = FastAPI()
    app.get("/runs")(lambda: "runs")
    init_fastapi_security(app)
    return TestClient(app).get("/runs", headers={"Host": host}).status_code


@pytest.fixture(params=["evoselect ui", "compose"])
def options(request, tmp_path) -> list[str]:
    """The command line of each way to start the server."""
    if request.param == "compose":
        return read_compose()["services"]["mlflow"]["command"]
    return _commands(Home(tmp_path), 3000, 5000)["mlflow"]


@pytest.mark.parametrize("host", FOREIGN)
def test_g11_a_request_for_a_foreign_host_is_refused(monkeypatch, options, host):
    assert status(monkeypatch, options, host) == 403


def test_g11_a_request_for_this_machine_is_answered(monkeypatch, options):
    assert status(monkeypatch, options, "127.0.0.1:5000") == 200
