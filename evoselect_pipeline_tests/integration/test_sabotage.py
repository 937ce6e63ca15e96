"""A round whose answers were shuffled teaches nonsense: its adapter is not promoted."""

import json
from random import Random

import dagster as dg
import pytest

from evoselect_pipeline.config_file import parse_config
from evoselect_pipeline.core.records import sample_from_pair
from evoselect_pipeline.generation.playground import PlaygroundGenerator
from evoselect_pipeline.playground.tasks import task_rows
from evoselect_pipeline.rounds.champion import champion
from evoselect_pipeline.rounds.line import Line
from evoselect_pipeline.stores.jsonl import write_samples
from evoselect_pipeline_tests.integration.in_dagster import materialize


def good_rows(targets, seed):
    """Rows of the task with right answers alone."""
    written = PlaygroundGenerator("compose", "strong").generate_with_truth(targets, 900, seed)
    return [row for row, kind in zip(*written, strict=True) if kind == "good"]


def shuffled(rows, seed):
    """The same prompts, each with another one's answer."""
    answers = [row.completion for row in rows]
    Random(seed).shuffle(answers)
    return [sample_from_pair(row.prompt, a) for row, a in zip(rows, answers, strict=True)]


@pytest.fixture
def config(tmp_path):
    """A line on files: an honest round, then a sabotaged one."""
    task = task_rows("compose", num_targets=16, num_validation=80, num_test=20)
    for split in ("targets", "validation", "test"):
        write_samples(tmp_path / f"{split}.jsonl", getattr(task, split))
    write_samples(tmp_path / "r0000.jsonl", good_rows(task.targets, seed=1))
    write_samples(tmp_path / "r0001.jsonl", shuffled(good_rows(task.targets, seed=2), seed=3))
    tree = {
        "task": {"kind": "files"}
        | {split: f"{tmp_path}/{split}.jsonl" for split in ("targets", "validation", "test")},
        "generator": {"kind": "files", "pattern": f"{tmp_path}/r{{round}}.jsonl"},
        "gradients": {"dim": 64},
        "quality": {"prior": "none"},
        "selection": {"method": "random", "ratio": 1.0},
        "train": {"steps": 60},
    }
    return parse_config(tree, "test")


@pytest.mark.slow
def test_a_sabotaged_round_is_not_promoted_and_the_check_says_by_how_much(instance, home, config):
    line = Line(config, home)
    assert materialize(instance, home, config, "0000").success
    honest = line.artifact(0, "lora_checkpoint").digest
    assert champion(line).digest == honest

    result = materialize(instance, home, config, "0001")
    assert result.success  # a round that helped nobody is no failure of the pipeline
    facts = json.loads((line.artifact(1, "promoted_adapter").path / "facts.json").read_text())
    assert facts["gain_high"] < -0.02
    said = {found.check_name: found for found in result.get_asset_check_evaluations()}
    verdict = said["worth_promoting"]
    assert not verdict.passed
    assert verdict.severity == dg.AssetCheckSeverity.WARN
    assert "not promoted, the adapter of round 0000 stays champion" in verdict.description
    assert "evoselect promote --round 1 --line playground promotes it" in verdict.description
    assert f"fell by {-facts['gain_validation']:.3f}" in verdict.description
    assert not said["not_worse_than_before"].passed
    assert champion(line).digest == honest
    assert line.tracking.champion(line.name).sha256 == honest
