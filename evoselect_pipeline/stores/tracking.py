"""MLflow tracking: one parent run per line, one child run per round, the champion in the registry.

A round that is tried again finds its run by a tag and continues it. Params and metric points are
append-only in MLflow, so what is already there is looked up first and never logged twice. One
process writes to a line at a time (the lease of `home.py`), so looking first is safe.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from time import time
from typing import TYPE_CHECKING, Any, NamedTuple

from evoselect_pipeline.addresses import without_login
from evoselect_pipeline.core.records import digest
from evoselect_pipeline.errors import ConfigError, NumericsError
from evoselect_pipeline.stores.faults import fault
from evoselect_pipeline.stores.home import Home, line_name, round_key, round_of

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient

EXPERIMENT = "evoselect"
CHAMPION = "champion"
LINE_TAG = "evoselect.line"
ROUND_TAG = "evoselect.round_key"
SHA_TAG = "evoselect.sha256"
PARENT_TAG = "mlflow.parentRunId"
NOTE_TAG = "mlflow.note.content"  # what the UI shows as a run's description
UI_VARIABLE = "EVOSELECT_MLFLOW_UI"
# A server takes no plain path as a model's source: a browser's user could make it read any file.
IN_HOME = "evoselect-home:"
# What MLflow accepts in one tag; longer values are cut, since the whole is in params.json.
TAG_CHARS = 4_000

# Read by MLflow when it is imported; a user's own setting wins.
SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SKIP_PIP_REQUIREMENTS_CHECK": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    # Half a minute, not four: whoever waits is a stage, which is tried again, or a sensor's tick.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "4",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}


class Champion(NamedTuple):
    """The adapter of a line that serves, as the registry names it."""

    line: str
    round: int
    version: str
    path: str
    sha256: str


class Tracking:
    """Write the rounds of a home to MLflow, through its client alone: no global active run."""

    def __init__(self, home: Home):
        self.home = home
        self._open: dict[str, str] = {}  # ids of the runs that were seen to be open, by their names

    def line_run(self, line: str) -> str:
        """Id of the parent run of a line; created at first, open while a round is."""
        return self._run({LINE_TAG: line_name(line), ROUND_TAG: ""}, name=line)

    def runs_page(self) -> str:
        """Path in the MLflow UI of the page that lists the runs of all lines."""
        # Without the workflow type the UI opens an empty page about traces.
        return f"/#/experiments/{self._experiment_id}/runs?workflowType=machine_learning"

    def run_page(self, line: str, round: int) -> str:
        """Where the MLflow UI shows a round's run: an address, or else a path in it.

        Only a server, or `EVOSELECT_MLFLOW_UI`, tells at which address browsers find the UI.
        """
        found = self._find(line, f"{line_name(line)}/{round_key(round)}")
        path = f"/#/experiments/{self._experiment_id}/runs/{found.info.run_id if found else ''}"
        served = self.home.mlflow_uri if self.home.mlflow_is_served else ""
        # Dagster keeps the link, where a password has no place.
        return without_login(os.environ.get(UI_VARIABLE) or served).rstrip("/") + path

    def round_run(self, line: str, round: int) -> str:
        """Id of the child run of a round; created at first, re-opened when tried again."""
        key = f"{line_name(line)}/{round_key(round)}"
        tags = {LINE_TAG: line, ROUND_TAG: key, PARENT_TAG: self.line_run(line)}
        return self._run(tags, name=key)

    def status(self, line: str, round: int) -> str | None:
        """Status of the run of a round; None if it has no run yet."""
        found = self._find(line, f"{line_name(line)}/{round_key(round)}")
        return found and found.info.status

    def round_runs(self, line: str) -> list[tuple[str, str]]:
        """Round key and status of every run of a line's rounds, duplicates included."""
        runs = self._client.search_runs(
            [self._experiment_id],
            f"tags.`{LINE_TAG}` = '{line_name(line)}' AND tags.`{ROUND_TAG}` != ''",
            max_results=10_000,
        )
        return [(run.data.tags[ROUND_TAG], run.info.status) for run in runs]

    def log_round(
        self,
        line: str,
        round: int,
        *,
        params: Mapping[str, object] | None = None,
        metrics: Mapping[str, float] | None = None,
        texts: Mapping[str, str] | None = None,
        folders: Mapping[str, Path] | None = None,
        tags: Mapping[str, object] | None = None,
    ) -> str:
        """Log what a round did; logging it again changes nothing. Return the id of its run.

        Parameters
        ----------
        params : mapping
            Settings. MLflow never changes a param: a new value becomes the tag
            `changed_param.<name>`, and the artifact `params.json` holds the latest ones.
        metrics : mapping
            Finite numbers; logged on the round's run and, with step = round, on the line's, where
            they draw the learning curve.
        texts, folders : mapping
            By the artifact's name; the same name replaces the artifact. Folders are copied.
        tags : mapping
            Set, and replaced when set again.

        Raises
        ------
        NumericsError
            If a metric is NaN or infinite: MLflow would store a number in its place.
        """
        points = _finite(metrics or {}, f"{line} round {round}")
        names = [_artifact_name(name) for name in (*(texts or {}), *(folders or {}))]
        if len(set(names)) != len(names):
            raise ConfigError(f"{line} round {round}: a text and a folder share a name: {names}")
        run_id = self.round_run(line, round)
        self._log_params(run_id, params or {})
        fault("tracking:metrics:before")
        for owner in (run_id, self.line_run(line)):
            self._log_points(owner, points, step=round)
            fault("tracking:metrics:after")
        for key, value in (tags or {}).items():
            self._client.set_tag(run_id, key, value)
        for name, text in (texts or {}).items():
            self._client.log_text(run_id, text, name)
        for name, folder in (folders or {}).items():
            self._client.log_artifacts(run_id, str(folder), name)
        return run_id

    def log_curve(
        self, line: str, round: int, name: str, points: Sequence[tuple[int, float]]
    ) -> None:
        """Log a metric over the steps within a round, on the round's run alone."""
        from mlflow.entities import Metric

        run_id = self.round_run(line, round)
        _finite({str(step): value for step, value in points}, f"{name} of {line} round {round}")
        held = {p.step: p.value for p in self._client.get_metric_history(run_id, name)}
        now = int(time() * 1000)
        new = [Metric(name, v, now, step) for step, v in points if held.get(step) != v]
        self._client.log_batch(run_id, metrics=new, synchronous=True)

    def log_rows(
        self, line: str, round: int, name: str, ids: Sequence[str], path: Path, context: str
    ) -> str:
        """Log a set of rows as an input of the round: its ids' digest, which is returned.

        Parameters
        ----------
        name : str
            The same name and digest are logged once.
        context : str
            What the rows serve for, such as `training`.
        """
        from mlflow.entities import Dataset, DatasetInput, InputTag

        run_id = self.round_run(line, round)
        rows_digest = digest(sorted(ids))
        dataset = Dataset(
            name=name,
            digest=rows_digest,
            source_type="local",
            source=json.dumps({"uri": str(path)}),
            profile=json.dumps({"num_rows": len(ids)}),
        )
        tag = InputTag("mlflow.data.context", context)
        self._client.log_inputs(run_id, [DatasetInput(dataset, [tag])])
        return rows_digest

    def finish_round(self, line: str, round: int, status: str = "FINISHED") -> None:
        """Close the run of a round, and the line's until its next round begins."""
        fault("tracking:finish:before")
        for run_id in (self.round_run(line, round), self.line_run(line)):
            self._client.set_terminated(run_id, status)
        self._open.clear()

    def open_rounds(self) -> list[tuple[str, int]]:
        """Line and number of every round whose run has not ended, oldest first."""
        runs = self._client.search_runs(
            [self._experiment_id],
            f"attributes.status = 'RUNNING' AND tags.`{ROUND_TAG}` != ''",
            order_by=["attributes.start_time ASC"],
            max_results=1_000,
        )
        keys = [run.data.tags[ROUND_TAG].rpartition("/") for run in runs]
        return [(line, round_of(key)) for line, _, key in keys]

    def register_adapter(
        self,
        line: str,
        round: int,
        path: Path,
        sha256: str,
        metrics: Mapping[str, float],
        *,
        promoted: bool = True,
    ) -> str:
        """Register an adapter as a version of the model named like the line; return the version.

        The files stay in the home: the version's source is their folder. Registering the same
        adapter of the same round again gives the same version.

        Parameters
        ----------
        sha256 : str
            The artifact's digest, to know it again.
        promoted : bool
            Whether the alias `champion` moves to this version.
        """
        key = f"{line_name(line)}/{round_key(round)}"
        values = _finite(metrics, f"{line} round {round}")
        known = [v for v in self._versions(line) if _is(v, {ROUND_TAG: key, SHA_TAG: sha256})]
        if known:
            version = known[0]
        else:
            tags = {ROUND_TAG: key, SHA_TAG: sha256, LINE_TAG: line}
            version = self._client.create_model_version(
                name=line,
                source=f"{IN_HOME}{path}" if self.home.mlflow_is_served else str(path),
                run_id=self.round_run(line, round),
                tags=tags | {name: repr(value) for name, value in values.items()},
                description=f"Adapter of {key}",
            )
        fault("tracking:register:before_alias")
        if promoted:
            self._client.set_registered_model_alias(line, CHAMPION, version.version)
        return str(version.version)

    def retire_champion(self, line: str) -> None:
        """Take the alias `champion` away: the bare base model serves."""
        if self.champion(line) is not None:
            self._client.delete_registered_model_alias(line, CHAMPION)

    def champion(self, line: str) -> Champion | None:
        """The promoted adapter of a line, or None before the first promotion."""
        from mlflow.exceptions import MlflowException

        try:
            version = self._client.get_model_version_by_alias(line_name(line), CHAMPION)
        except MlflowException as error:
            # An unknown alias of a known model is INVALID_PARAMETER_VALUE in MLflow.
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise
        number = int(version.tags[ROUND_TAG].rpartition("/")[2])
        path = str(version.source).removeprefix(IN_HOME)
        return Champion(line, number, str(version.version), path, version.tags[SHA_TAG])

    @cached_property
    def _client(self) -> MlflowClient:
        for name, value in SETTINGS.items():
            os.environ.setdefault(name, value)
        # Creates or migrates the database: MLflow does not survive two clients doing so at once.
        self.home.init()
        from mlflow.tracking import MlflowClient

        return MlflowClient(self.home.mlflow_uri, self.home.mlflow_uri)

    @cached_property
    def _experiment_id(self) -> str:
        from mlflow.exceptions import MlflowException

        for _ in range(2):
            if found := self._client.get_experiment_by_name(EXPERIMENT):
                if found.lifecycle_stage != "active":
                    self._client.restore_experiment(found.experiment_id)
                return found.experiment_id
            try:
                location = self.home.mlflow_artifacts_dir / EXPERIMENT
                # A server says itself where it keeps artifacts: clients need not reach the place.
                chosen = None if self.home.mlflow_is_served else location.as_uri()
                return self._client.create_experiment(EXPERIMENT, chosen)
            except MlflowException as error:
                # Another line's process was faster: look again.
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
        raise ConfigError(f"MLflow's experiment {EXPERIMENT} can neither be found nor created")

    def _run(self, tags: dict[str, str], name: str) -> str:
        """Find the run with these line and round tags, or create it; leave it running."""
        if name not in self._open:
            found = self._find(tags[LINE_TAG], tags[ROUND_TAG])
            if found is None:
                found = self._client.create_run(self._experiment_id, tags=tags, run_name=name)
                fault("tracking:run:after_create")
            elif found.info.status != "RUNNING":
                self._client.update_run(found.info.run_id, status="RUNNING")
            self._open[name] = found.info.run_id
        return self._open[name]

    def _find(self, line: str, key: str) -> Run | None:
        # Line and key are checked names, so neither can escape the quotes.
        runs = self._client.search_runs(
            [self._experiment_id],
            f"tags.`{LINE_TAG}` = '{line}' AND tags.`{ROUND_TAG}` = '{key}'",
            order_by=["attributes.start_time ASC"],
            max_results=1,
        )
        return runs[0] if runs else None

    def _log_params(self, run_id: str, params: Mapping[str, object]) -> None:
        from mlflow.entities import Param

        if not params:
            return
        logged = self._client.get_run(run_id).data.params
        wanted = {name: str(value)[:TAG_CHARS] for name, value in params.items()}
        new = [Param(name, value) for name, value in wanted.items() if name not in logged]
        self._client.log_batch(run_id, params=new, synchronous=True)
        for name, value in wanted.items():
            if logged.get(name, value) != value:
                self._client.set_tag(run_id, f"changed_param.{name}", value)
        text = json.dumps(dict(params), indent=2, sort_keys=True, default=str)
        self._client.log_text(run_id, text + "\n", "params.json")

    def _log_points(self, run_id: str, points: Mapping[str, float], step: int) -> None:
        """Log the points that the run does not hold yet; a new value at an old step is added."""
        from mlflow.entities import Metric

        known = self._client.get_run(run_id).data.metrics
        now = int(time() * 1000)
        new = [
            Metric(name, value, now, step)
            for name, value in points.items()
            if name not in known or not self._holds(run_id, name, value, step)
        ]
        self._client.log_batch(run_id, metrics=new, synchronous=True)

    def _holds(self, run_id: str, name: str, value: float, step: int) -> bool:
        history = self._client.get_metric_history(run_id, name)
        # The last point of a step is what a plot ends on: a value that went and came back is new.
        at_step = [point.value for point in history if point.step == step]
        return bool(at_step) and at_step[-1] == value

    def _versions(self, line: str) -> list[ModelVersion]:
        from mlflow.exceptions import MlflowException

        try:
            self._client.create_registered_model(line, description=f"Adapters of line {line}")
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        return list(self._client.search_model_versions(f"name = '{line}'", max_results=10_000))


def _is(version: Any, tags: Mapping[str, str]) -> bool:
    return all(version.tags.get(key) == value for key, value in tags.items())


def _finite(metrics: Mapping[str, float], where: str) -> dict[str, float]:
    bad = {name: value for name, value in metrics.items() if not math.isfinite(value)}
    if bad:
        raise NumericsError(f"{where}: metrics must be finite, got {bad}; nothing was logged")
    return {name: float(value) for name, value in metrics.items()}


def _artifact_name(name: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or name == "params.json":
        raise ConfigError(f"artifact {name!r}: expected a relative name without `..`")
    return name
