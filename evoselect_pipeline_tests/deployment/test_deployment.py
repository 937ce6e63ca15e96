"""The compose file's own commands, PostgreSQL and SIGKILLs: no round is lost, none is made twice.

`EVOSELECT_LONG=1` kills or restarts every process in turn during a backfill of five rounds.
"""

import json
import os
import signal
import socket
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import pytest

from evoselect_pipeline.rounds.line import PROMOTED
from evoselect_pipeline.rounds.stages import STAGES
from evoselect_pipeline.stores.artifacts import open_artifact
from evoselect_pipeline_tests.deployment.compose import BIN, PORTS, REPOSITORY, Deployment, wait_for
from evoselect_pipeline_tests.deployment.graphql import Webserver
from evoselect_pipeline_tests.deployment.postgres import Postgres
from evoselect_pipeline_tests.integration.forked import Forked
from evoselect_pipeline_tests.integration.process import IS_LONG, write_line

NUM_ROUNDS = 5 if IS_LONG else 2
PASSWORD = "p@ss:word/%"  # every mark that an address would have to escape
LINE = "tiny"
ROUND_S = 500  # with three minutes, at most, to notice a death and to try again

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000 if IS_LONG else 900)]


class Site(NamedTuple):
    """A running deployment."""

    services: Deployment
    postgres: Postgres
    webserver: Webserver
    config: Path


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, all different."""
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


@pytest.fixture
def open_folder():
    """A folder outside of pytest's own, which are closed to the user that PostgreSQL runs as."""
    with TemporaryDirectory(prefix="evoselect-postgres-") as folder:
        yield Path(folder)


@pytest.fixture
def site(tmp_path_factory, open_folder):
    scratch = tmp_path_factory.mktemp("deployment")
    ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
    config = write_line(scratch / "lines", LINE)
    postgres = Postgres(open_folder, ports["postgres"], PASSWORD)
    services = Deployment(scratch, ports, PASSWORD)
    try:
        services.run("init")
        services.start("mlflow")
        services.start("code")
        services.start("daemon", "webserver")
        yield Site(services, postgres, Webserver(ports["webserver"]), config)
    finally:
        services.stop_all()
        postgres.stop()


def keys(count: int = NUM_ROUNDS) -> list[str]:
    return [f"{number:04d}" for number in range(count)]


def digests(home: Path, number: int) -> dict[str, str]:
    """The digest of every stage's artifact: rows, weights, scores, verdict and report."""
    folder = home / "lines" / LINE / f"{number:04d}"
    return {stage.name: open_artifact(folder / stage.name).digest for stage in STAGES}


def reached(site: Site, number: int, stage: str) -> None:
    """Wait until a round has published a stage."""
    published = site.services.home / f"lines/{LINE}/{number:04d}" / stage / "manifest.json"
    try:
        wait_for(published.is_file, ROUND_S, f"{stage} of round {number}")
    except AssertionError as error:
        error.add_note(what_happened(site))
        raise


def what_happened(site: Site) -> str:
    """Each run, its tags, and the end of what the daemon and the code server have said."""
    runs = [f"{run['runId']} {run['status']} {run['tags']}" for run in site.webserver.runs()]
    return "\n".join([*runs, *(site.services.log(service) for service in ("daemon", "code"))])


def kill_worker(site: Site, number: int, stage: str) -> None:
    """SIGKILL the process that executes a round, once it has published a stage."""
    reached(site, number, stage)
    owner = site.services.home / f"locks/line-{LINE}.owner.json"
    record = wait_for(lambda: owner.is_file() and owner.read_text(), 60, "a worker")
    os.kill(json.loads(record)["pid"], signal.SIGKILL)


def kill(site: Site, *services: str) -> None:
    """SIGKILL services at once, and start them again."""
    for service in services:
        site.services.kill(service)
    site.services.start(*services)


def restart(site: Site, service: str) -> None:
    """Stop and start a service, as an upgrade does."""
    site.services.stop(service)
    site.services.start(service)


def disturb_once(site: Site) -> None:
    """A power cut in the first round: the code server dies with the run's worker."""
    reached(site, 0, "incoming_adapter")
    kill(site, "code", "daemon", "webserver")


def disturb_every_round(site: Site) -> None:
    """Each process is killed alone, killed with the others, and restarted."""
    kill_worker(site, 0, "candidates")
    kill(site, "webserver")
    reached(site, 1, "candidates")
    kill(site, "daemon")
    kill(site, "code")
    reached(site, 2, "incoming_adapter")
    restart(site, "mlflow")
    kill_worker(site, 2, "candidates")
    reached(site, 3, "candidates")
    kill(site, "code", "daemon", "webserver", "mlflow")
    reached(site, 4, "candidates")
    site.postgres.stop()
    site.postgres.start()
    reached(site, 4, "projected_gradients")
    for service in ("daemon", "webserver", "code"):
        restart(site, service)


def check_strictly(site: Site) -> None:
    """`evoselect check --strict` as a user runs it in the code server's container."""
    checked = subprocess.run(
        [BIN / "evoselect", "check", "--line", LINE, "--strict"],
        env=site.services.environment("code"),
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def assert_in_mlflow(postgres: Postgres) -> None:
    """One finished run a round, and one point a metric and step, in the tables themselves."""
    query = (
        "select t.value, r.status from runs r join tags t using (run_uuid)"
        " where t.key = 'evoselect.round_key' and t.value <> '' order by 1"
    )
    expected = [[f"{LINE}/{key}", "FINISHED"] for key in keys()]
    assert postgres.rows("mlflow", query) == expected
    doubled = (
        "select run_uuid, key, step, count(*) from metrics where key not like 'system/%'"
        " group by 1, 2, 3 having count(*) > 1"
    )
    assert postgres.rows("mlflow", doubled) == []
    artifacts = "select artifact_location from experiments where name = 'evoselect'"
    assert postgres.rows("mlflow", artifacts)[0][0].startswith("mlflow-artifacts:/")


def test_rounds_survive_the_death_of_every_process_and_equal_those_on_sqlite(site, tmp_path):
    plain = tmp_path / "sqlite"
    reference = Forked("run", "--home", plain, "--config", site.config, "--rounds", NUM_ROUNDS)
    backfill = site.webserver.launch_rounds(LINE, keys())
    (disturb_every_round if IS_LONG else disturb_once)(site)
    reached(site, NUM_ROUNDS - 1, STAGES[-1].name)
    wait_for(
        lambda: site.webserver.backfill_status(backfill).startswith("COMPLETED"),
        60,
        "the end of the backfill",
    )
    # Success as a rule; on a slow machine Dagster was once seen to count a run that stepped aside,
    # although its retry made the round. What was promised is what the rounds came to.
    assert site.webserver.materializations(LINE, PROMOTED) == keys(), "each round once, in order"
    for stage in STAGES[1:]:
        assert set(site.webserver.materializations(LINE, stage.name)) == set(keys()), stage.name
    check_strictly(site)
    assert_in_mlflow(site.postgres)
    # The asset graph launched them without a limit; they took the line's.
    rounds = [run["tags"] for run in site.webserver.runs() if "dagster/partition" in run["tags"]]
    assert {tags["dagster/max_runtime"] for tags in rounds} == {"86400"}

    said = reference.communicate(timeout=ROUND_S)
    assert reference.returncode == 0, said
    for number in range(NUM_ROUNDS):
        assert digests(site.services.home, number) == digests(plain, number)
