"""Dagster's webserver as a browser talks to it."""

import json
import urllib.error
import urllib.request
from typing import Any

from evoselect_pipeline.rounds.stages import STAGES
from evoselect_pipeline_tests.deployment.compose import wait_for

ASSETS = ["target_set", *(stage.name for stage in STAGES)]
LOCATION = {
    "repositoryLocationName": "evoselect_pipeline",
    "repositoryName": "__repository__",
}

ADD_ROUND = """
mutation ($where: RepositorySelector!, $name: String!, $key: String!) {
  addDynamicPartition(repositorySelector: $where, partitionsDefName: $name, partitionKey: $key) {
    __typename
    ... on PythonError { message }
    ... on UnauthorizedError { message }
  }
}"""
LAUNCH = """
mutation ($params: LaunchBackfillParams!) {
  launchPartitionBackfill(backfillParams: $params) {
    __typename
    ... on LaunchBackfillSuccess { backfillId }
    ... on PythonError { message }
    ... on UnauthorizedError { message }
  }
}"""
BACKFILL = """
query ($id: String!) {
  partitionBackfillOrError(backfillId: $id) { ... on PartitionBackfill { status } }
}"""
RUNS = """
{ runsOrError { ... on Runs { results { runId status startTime endTime tags { key value } } } } }"""
ROUNDS = """
query ($asset: AssetKeyInput!) {
  assetOrError(assetKey: $asset) {
    ... on Asset { assetMaterializations(limit: 500) { partition runId label } }
  }
}"""


class Webserver:
    """GraphQL over HTTP."""

    def __init__(self, port: int):
        self._address = f"http://127.0.0.1:{port}/graphql"

    def ask(self, query: str, **variables: Any) -> Any:
        """The one answer to a query."""
        body = json.dumps({"query": query, "variables": variables}).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self._address, body, headers)
        answer = self._send(request)
        if answer is None and not query.lstrip().startswith("mutation"):
            # After a restart of PostgreSQL each old connection of the webserver fails once.
            answer = wait_for(lambda: self._send(request), 60, "an answer of the webserver")
        assert answer is not None, "HTTP 500"
        assert "errors" not in answer, answer
        [only] = answer["data"].values()
        return only

    def _send(self, request: urllib.request.Request) -> Any:
        """The answer to a request, or None if the webserver could not make one."""
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            if error.code != 500:
                raise
            return None

    def launch_rounds(self, line: str, keys: list[str]) -> str:
        """Materialize whole rounds as a backfill; return its id."""
        for key in keys:
            said = self.ask(ADD_ROUND, where=LOCATION, name=f"{line}_rounds", key=key)
            # The line's sensor may have been faster with the first one.
            expected = ("AddDynamicPartitionSuccess", "DuplicateDynamicPartitionError")
            assert said["__typename"] in expected, said
        selection = [{"path": [line, asset]} for asset in ASSETS]
        params = {"assetSelection": selection, "partitionNames": keys}
        said = self.ask(LAUNCH, params=params)
        assert said["__typename"] == "LaunchBackfillSuccess", said
        return said["backfillId"]

    def backfill_status(self, backfill: str) -> str:
        """Where a backfill is."""
        return self.ask(BACKFILL, id=backfill)["status"]

    def runs(self) -> list[dict[str, Any]]:
        """All runs, oldest first, with their tags as a mapping."""
        found = self.ask(RUNS)["results"]
        for run in found:
            run["tags"] = {tag["key"]: tag["value"] for tag in run["tags"]}
        return sorted(found, key=lambda run: run["startTime"] or 0.0)

    def materializations(self, line: str, asset: str) -> list[str]:
        """The rounds of an asset's materializations, oldest first."""
        found = self.ask(ROUNDS, asset={"path": [line, asset]})["assetMaterializations"]
        return [event["partition"] for event in reversed(found)]
