"""A key that is planted wherever one may be: no file, terminal, page or message repeats it."""

import json
import sys
from base64 import b64encode
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import dagster as dg
import lancedb
import pytest
from pydantic import ValidationError

from evoselect_pipeline.cli import main
from evoselect_pipeline.components import evolution_line
from evoselect_pipeline.components.alerts import WEBHOOK, tells_of_failed_runs
from evoselect_pipeline.config import LineConfig
from evoselect_pipeline.config_file import parse_config
from evoselect_pipeline.errors import ConfigError
from evoselect_pipeline.stores.home import Home
from evoselect_pipeline.stores.tracking import UI_VARIABLE
from evoselect_pipeline_tests.faults.test_generation_kills import user_line
from evoselect_pipeline_tests.integration.fake_llm import FakeLLM, Reply, fake_llm, rows

KEY = "sk-planted/4711+zQ=8fJx29KpLmTtWw"  # other forms in URLs, in JSON and in base64
FORMS = [
    KEY,
    quote(KEY, safe=""),
    KEY.replace("/", r"\/"),
    b64encode(KEY.encode()).decode().rstrip("="),
]
PASSWORD = "hush-4711"  # in the address of MLflow's UI, which rounds link to
STRANGERS_KEY = "sk-proj-" + "a1B2c3" * 4  # of somebody else, in a row


class Site(NamedTuple):
    """What was left behind by a round that went well and by two that failed."""

    home: Path
    exported: Path
    terminal: str
    server: FakeLLM
    hook: FakeLLM


def rows_with_keys(number, body):
    """A sum whose question holds our key in some form, and one, now and then, with another key."""
    first, form = body["seed"] % 900 + 100, FORMS[number % len(FORMS)].replace("\\", "\\\\")
    stranger = STRANGERS_KEY if number % 2 else "ok"
    return rows(
        (f"add {first} and {number}, says {form}", f"{first + number}"),
        (f"take {number} from {first}", f"{first - number} {stranger}"),
    )


def call(*arguments: object) -> int:
    """`evoselect` in this process."""
    sys.argv = ["evoselect", *map(str, arguments)]
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def tell_of_failures(home: Path) -> None:
    """What the sensor does about the runs that failed."""
    with dg.DagsterInstance.from_config(str(home / "dagster")) as instance:
        for run in instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE])):
            [failure] = instance.all_logs(run.run_id, of_type=dg.DagsterEventType.RUN_FAILURE)
            context = dg.build_run_status_sensor_context(
                sensor_name="tells_of_failed_runs",
                dagster_event=failure.get_dagster_event(),
                dagster_instance=instance,
                dagster_run=run,
            ).for_run_failure()
            tells_of_failed_runs(context)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planted")
    home, exported, terminal = folder / "home", folder / "exported", StringIO()
    refusal: list[int] = []

    def reply(number, body):
        said = {"error": {"message": f"not with {' nor '.join(FORMS)}"}}
        return Reply(said, refusal[0]) if refusal else rows_with_keys(number, body)

    with (
        pytest.MonkeyPatch.context() as patch,
        fake_llm(reply) as server,
        fake_llm(lambda number, body: Reply({})) as hook,
        redirect_stdout(terminal),
        redirect_stderr(terminal),
    ):
        patch.setattr(sys, "argv", [])
        patch.setattr(evolution_line, "RETRIES", 0)
        patch.setenv("DAGSTER_HOME", "")
        patch.setenv("A_KEY", KEY)
        patch.setenv(WEBHOOK, hook.address)
        patch.setenv(UI_VARIABLE, f"https://me:{PASSWORD}@mlflow.example")
        config = user_line(folder, server, api_key_variable="A_KEY", retries=0)
        line = ("--config", config, "--home", home)
        for status, ends in ((None, 0), (401, 1), (500, 1)):
            refusal[:] = [status] if status else []
            assert call("run", *line, "--rounds", 1, "--format", "json") == ends
        assert call("export", *line, "--out", exported) == 0
        for command in (("status",), ("lineage", "--round", 0), ("lineage", "--adapter", 0)):
            for form in ("json", "table"):
                assert call(*command, *line, "--format", form) == 0
        assert call("check", "--strict", *line) == 0
        tell_of_failures(home)
    return Site(home, exported, terminal.getvalue(), server, hook)


def left_behind(site: Site) -> dict[str, str]:
    """Everything that can be read, by its place."""
    files = (file for top in (site.home, site.exported) for file in top.rglob("*"))
    found = {str(file): file.read_bytes().decode("latin-1") for file in files if file.is_file()}
    database = lancedb.connect(site.home / "lance")  # whose files may be compressed
    for name in database.list_tables().tables:
        found[f"table {name}"] = str(database.open_table(name).to_arrow().to_pylist())
    return found | {
        "terminal": site.terminal,
        "webhook": str([a | {"key": 0} for a in site.hook.asked]),
    }


def places_of(secret: str, site: Site) -> list[str]:
    return [place for place, text in left_behind(site).items() if secret in text]


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_g9_our_own_key_is_nowhere_though_the_server_repeats_it_in_rows_and_refusals(site, form):
    assert site.server.asked[0]["key"] == f"Bearer {KEY}"
    assert places_of(form, site) == []


@pytest.mark.slow
def test_g9_a_link_to_mlflow_bears_no_password(site):
    assert places_of(PASSWORD, site) == []
    assert places_of("https://***@mlflow.example/#/experiments/", site)


@pytest.mark.slow
def test_g9_what_was_told_of_the_key_is_that_it_was_there(site):
    assert len(site.hook.asked) == 2
    assert all("***" in told["message"] for told in site.hook.asked)
    assert "refuses the key in $A_KEY, or its account: Error code: 401 - not with ***" in " ".join(
        site.terminal.split()
    )
    assert any("answers.jsonl" in place for place in places_of("says ***", site))


@pytest.mark.slow
def test_g9_a_strangers_key_in_a_row_is_kept_where_rows_are_and_shown_nowhere(site):
    places = {Path(place).name for place in places_of(STRANGERS_KEY, site)}
    tables = {place for place in places if place.endswith(".lance")}
    assert places - tables == {"answers.jsonl", "table samples"}
    assert len(tables) == 1
    assert "[an API key]" in site.terminal
    reports = [Path(place).name for place in places_of("[an API key]", site) if "report" in place]
    assert "report.html" in reports
    adapter = [place for place in places_of("holds_secret", site) if "rejected.json" in place]
    assert len(adapter) == 1, "it was not trained on"


WRONG_PLACES = {
    "password": {"base_url": "http://me:KEY@127.0.0.1/v1"},
    "password, no scheme": {"base_url": "me:KEY@127.0.0.1/v1"},
    "password, other scheme": {"base_url": "ftp://me:KEY@127.0.0.1/v1"},
    "query": {"base_url": "https://llm.example/v1?key=KEY"},
    "query, no scheme": {"base_url": "llm.example/v1?key=KEY"},
    "fragment": {"base_url": "https://llm.example/v1#KEY"},
    "variable": {"api_key_variable": "KEY"},
    "unknown field": {"api_key": "KEY"},
    "extra body": {"extra_body": {"nested": [{"authorization": "KEY"}]}},
    "a list for a name": {"model": ["KEY"]},
}


@pytest.mark.parametrize("place", WRONG_PLACES)
def test_g9_a_key_in_the_wrong_place_of_a_configuration_is_refused_unrepeated(place):
    planted = json.loads(json.dumps(WRONG_PLACES[place]).replace("KEY", STRANGERS_KEY))
    tree = {
        "task": {"kind": "files", "targets": "a", "validation": "b", "test": "c"},
        "generator": {"kind": "server", "base_url": "http://127.0.0.1/v1", "model": "m"} | planted,
    }
    with pytest.raises(ConfigError) as refused:
        parse_config(tree, "line.yaml")
    with pytest.raises(ValidationError) as by_dagster:
        LineConfig.model_validate(tree)
    for error in (refused, by_dagster):
        assert STRANGERS_KEY not in str(error.value)


def test_g9_a_key_among_the_options_of_ones_own_function_is_refused_unrepeated():
    generator = {"kind": "function", "function": "a:b", "options": {"token": STRANGERS_KEY}}
    task = {"kind": "files", "targets": "a", "validation": "b", "test": "c"}
    with pytest.raises(ConfigError, match="options holds what looks like an API key") as refused:
        parse_config({"task": task, "generator": generator}, "line.yaml")
    assert STRANGERS_KEY not in str(refused.value)


@pytest.mark.parametrize("uri", ["https://me:hush@h:5000", "postgres://me:hush@h/x", "me:hush@h"])
def test_g9_a_password_in_mlflows_address_is_refused_unrepeated(tmp_path, monkeypatch, uri):
    monkeypatch.setenv("EVOSELECT_MLFLOW_URI", uri)
    with pytest.raises(ConfigError, match="EVOSELECT_MLFLOW_URI") as refused:
        Home(tmp_path / "home").init()
    assert "hush" not in str(refused.value)
