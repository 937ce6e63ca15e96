"""The asset graph is what the committed snapshot says: a change is a decision, not an accident.

After a deliberate change: `python evoselect_pipeline_tests/test_asset_graph.py` writes it anew.
"""

import json
from pathlib import Path
from typing import Any

import dagster as dg

from evoselect_pipeline.definitions import defs

SNAPSHOT = Path(__file__).parent / "snapshots/asset_graph.json"


def described() -> dict[str, Any]:
    """Assets, checks, jobs, schedules and sensors that Dagster loads."""
    definitions = defs()
    graph = definitions.resolve_asset_graph()
    nodes = {key.to_user_string(): graph.get(key) for key in graph.get_all_asset_keys()}
    assets = {
        name: {
            "deps": sorted(key.to_user_string() for key in node.parent_keys),
            "partitions": partitions_name(node.partitions_def),
            "pools": sorted(node.pools or ()),
            "group": node.group_name,
            "kinds": sorted(node.kinds),
        }
        for name, node in sorted(nodes.items())
    }
    checks = {
        f"{key.asset_key.to_user_string()}:{key.name}": {
            "blocking": graph.get_check_spec(key).blocking,
            "partitions": partitions_name(graph.get_check_spec(key).partitions_def),
        }
        for key in sorted(graph.asset_check_keys, key=str)
    }
    jobs = [job for job in definitions.resolve_all_job_defs() if not job.name.startswith("__")]
    return {
        "assets": assets,
        "checks": checks,
        "jobs": {job.name: job_assets(job) for job in sorted(jobs, key=lambda job: job.name)},
        "schedules": {
            s.name: [s.job_name, s.cron_schedule, s.execution_timezone, s.default_status.value]
            for s in map(definitions.resolve_schedule_def, schedule_names(definitions))
        },
        "sensors": {
            s.name: [s.default_status.value, s.minimum_interval_seconds]
            for s in definitions.sensors or ()
        },
        "resources": sorted(definitions.resources or {}),
    }


def partitions_name(partitions: dg.PartitionsDefinition | None) -> str | None:
    return f"dynamic: {partitions.name}" if partitions else None  # type: ignore[attr-defined]


def job_assets(job: dg.JobDefinition) -> dict[str, Any]:
    selected = job.asset_layer.selected_asset_keys
    return {
        "assets": sorted(key.to_user_string() for key in selected),
        "partitions": partitions_name(job.partitions_def),
        "tags": dict(sorted(job.tags.items())),
    }


def schedule_names(definitions: dg.Definitions) -> list[str]:
    return sorted(schedule.name for schedule in definitions.schedules or ())


def test_the_asset_graph_equals_the_snapshot():
    # Loading reads state from the newest instance of the process, which may be another test's.
    with dg.instance_for_test():
        found = described()
    assert found == json.loads(SNAPSHOT.read_text(encoding="utf-8"))


if __name__ == "__main__":
    SNAPSHOT.parent.mkdir(exist_ok=True)
    SNAPSHOT.write_text(json.dumps(described(), indent=1) + "\n", encoding="utf-8")
