"""Law: a comparison's rounds in memory choose and train what the pipeline's stages do."""

import pytest

from evoselect_pipeline.bench import chain
from evoselect_pipeline.bench.arms import method_arm
from evoselect_pipeline.commands.context import read_line_config
from evoselect_pipeline.rounds.data import target_set
from evoselect_pipeline.rounds.line import Line, read_facts, read_json
from evoselect_pipeline.rounds.stages import STAGES
from evoselect_pipeline.stores.home import Home
from evoselect_pipeline_tests.integration.process import IS_LONG, TINY

pytestmark = pytest.mark.slow


WEIGHTS = "adapter_model.safetensors"
SETTINGS = TINY | {
    "seed": 5,
    "generator.num_candidates": 400,
    "selection.ratio": 0.25,
    "quality.warm_up_steps": 10,
    "train.steps": 20,
}
# What is changed, and the judge of each round.
CASES = {
    "judged": ({}, ["warm-up", "adapter of round 0"]),
    "by sketches alone": (
        {"gradients.target_span": False, "selection.method": "round_robin"},
        ["none", "none"],
    ),
    "on fresh gradients": ({"refresh_proxy": True, "selection.method": "tsds"}, ["none", "none"]),
}


def in_memory(config, folder, monkeypatch) -> tuple[list[list[str]], list[dict]]:
    """Ids that each round of a chain chooses, and the record of its rounds."""
    chosen, choose = [], chain.choose

    def spying(*arguments):
        found = choose(*arguments)
        chosen.append([sample.sample_id for sample in found.samples])
        return found

    monkeypatch.setattr(chain, "choose", spying)
    arm = method_arm(config.selection.method, config)
    told = chain.run_chain(chain.Block(config), arm, 2, folder)
    return chosen, told["rounds"]


@pytest.mark.parametrize("case", CASES if IS_LONG else [*CASES][:1])
def test_a_chain_in_memory_and_the_stages_choose_and_train_alike(case, tmp_path, monkeypatch):
    changes, judges = CASES[case]
    settings = SETTINGS | changes
    config = read_line_config(None, [f"{key}={value}" for key, value in settings.items()])
    chosen, told = in_memory(config, tmp_path / "chain", monkeypatch)

    line = Line(config, Home(tmp_path / "home"))
    target_set(line)
    for number in (0, 1):
        made = {stage.name: stage.run(line, number) for stage in STAGES}
        picks = read_json(made["selected_subset"].path / "picks.json")
        assert [pick["sample_id"] for pick in picks] == chosen[number]
        assert read_facts(made["answer_quality"])["judge"] == judges[number]
        assert read_facts(made["evaluation"])["after_test"] == told[number]["test"]
        trained = made["lora_checkpoint"].path / "adapter" / WEIGHTS
        twin = tmp_path / "chain" / f"adapter-{number}" / WEIGHTS
        assert trained.read_bytes() == twin.read_bytes()
        left = {path.name for path in line.home.round_dir(line.name, number).iterdir()}
        assert left == {*made, "hidden_truth", "report.html"}
