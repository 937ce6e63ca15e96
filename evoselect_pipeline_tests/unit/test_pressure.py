"""The next round's rows are grown most from targets that no chosen row is near, or unlearned."""

import pytest

from evoselect_pipeline.config import LineConfig
from evoselect_pipeline.core.records import sample_from_pair
from evoselect_pipeline.rounds.line import Line, write_json
from evoselect_pipeline.rounds.pressure import LEAST, MOST, pressure
from evoselect_pipeline.stores.artifacts import publish
from evoselect_pipeline.stores.home import Home
from evoselect_pipeline.stores.jsonl import write_samples

ROWS = [sample_from_pair(f"q{n}", f"a{n}", subtask=f"s{n % 2}") for n in range(8)]
TARGETS, VALIDATION = ROWS[:4], ROWS[4:]
IDS = [row.sample_id for row in TARGETS]


@pytest.fixture
def line(tmp_path):
    line = Line(LineConfig(line="sums"), Home(tmp_path))
    with publish(line.home.line_dir("sums") / "target_set", inputs={}) as folder:
        write_samples(folder / "targets.jsonl", TARGETS)
        write_samples(folder / "validation.jsonl", VALIDATION)
    return line


def finish_round(line, costs, after, champion=0):
    """Leave what a round leaves: the cost of each chosen row by target, and who was right."""

    def leave(stage, **files):
        with publish(line.stage_dir(0, stage), inputs={}) as folder:
            for name, value in files.items():
                write_json(folder / f"{name}.json", value)

    leave("selected_subset", picks=[{"target_id": i, "cost": c} for i, c in costs])
    leave("evaluation", after={"validation": after}, base={"validation": [1.0] * 4})
    leave("promoted_adapter", facts={"champion_round": champion})


def test_all_targets_weigh_the_same_at_first(line):
    assert pressure(line, 0) == dict.fromkeys(IDS, 1.0)


def test_far_and_unreached_targets_weigh_more(line):
    finish_round(line, [(IDS[0], 0.1), (IDS[0], 0.3), (IDS[1], 0.2), (IDS[2], 0.6)], [1.0] * 4)
    found = pressure(line, 1)
    # Mean costs .2, .2, .6, and the largest for the unreached one; nothing is unlearned.
    assert [found[i] for i in IDS] == pytest.approx([0.75, 0.75, 1.25, 1.25])


def test_targets_of_a_subtask_that_is_answered_wrongly_weigh_more(line):
    costs = [(i, 0.2) for i in IDS]
    finish_round(line, costs, [0.0, 1.0, 0.0, 1.0])  # all of s0 wrong, all of s1 right
    assert [pressure(line, 1)[i] for i in IDS] == pytest.approx([1.5, 0.5, 1.5, 0.5])
    # An adapter that was not promoted does not answer in the next round.
    finish_round(line, costs, [0.0] * 4, champion=None)
    assert set(pressure(line, 1).values()) == {1.0}


def test_no_target_is_forgotten_and_none_takes_all(line):
    finish_round(line, [(i, 1e-6) for i in IDS[1:]] + [(IDS[0], 2.0)], [1.0, 0.0, 1.0, 0.0])
    found = pressure(line, 1)
    assert min(found.values()) >= LEAST and max(found.values()) <= MOST
