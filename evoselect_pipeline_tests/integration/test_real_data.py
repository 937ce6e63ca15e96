"""Law: on real questions, selection finds the rows of the target's task and takes no copies.

BIG-Bench-Hard is benchmark data: it is read where it lies beside the project, never shipped.
"""

import random
from collections import Counter
from pathlib import Path

import pytest

from evoselect_pipeline.commands.select import Request, choose, represent, selection_config
from evoselect_pipeline.core.gates import gate
from evoselect_pipeline.core.records import Sample, sample_from_pair
from evoselect_pipeline.core.settings import Budget, GateSettings
from evoselect_pipeline.core.text_keys import text_key
from evoselect_pipeline.stores.rows import read_samples

DATA = Path(__file__).parents[3] / "shared" / "data" / "bbh"
NUM_TASKS, NUM_TARGETS, NUM_COPIES = 10, 32, 250
NO_FILE = Path("none.jsonl")  # rows are handed over in memory here
CONFIG = selection_config(
    Request(NO_FILE, NO_FILE, NO_FILE, 0.1, "playground", "evoselect", seed=0, max_length=2048)
)

pytestmark = [
    pytest.mark.skipif(not DATA.is_dir(), reason=f"BIG-Bench-Hard is not at {DATA}"),
    pytest.mark.slow,
    pytest.mark.timeout(1500),
]


@pytest.fixture(scope="module")
def rows_of_task() -> dict[str, list[Sample]]:
    files = sorted(DATA.glob("*.jsonl"))[:NUM_TASKS]
    return {file.stem: read_samples(file) for file in files}


def copy_of(sample: Sample, rng: random.Random) -> Sample:
    """The same question with other spacing, case or full stop."""
    prompt = rng.choice(
        [
            "  " + sample.prompt.replace(" ", "  "),
            sample.prompt.upper(),
            sample.prompt.lower() + "\n",
            sample.prompt + ".",
        ]
    )
    return sample_from_pair(prompt, sample.completion, subtask=sample.subtask)


@pytest.fixture(scope="module")
def copies(rows_of_task) -> list[Sample]:
    rng = random.Random(0)
    rows = [row for rows in rows_of_task.values() for row in rows]
    return [copy_of(row, rng) for row in rng.sample(rows, NUM_COPIES)]


@pytest.fixture(scope="module")
def targets_of(rows_of_task) -> dict[str, list[Sample]]:
    return {
        task: random.Random(task).sample(rows, NUM_TARGETS) for task, rows in rows_of_task.items()
    }


@pytest.fixture(scope="module")
def represented(rows_of_task, copies, targets_of):
    rows = [*(r for rows in rows_of_task.values() for r in rows), *copies]
    # Placed among the targets of all tasks at once, and so among those of each.
    return represent(rows, [row for rows in targets_of.values() for row in rows], CONFIG)


def test_ten_percent_of_ten_mixed_tasks_are_mostly_of_the_targets_task(
    rows_of_task, copies, targets_of, represented
):
    lifts = {}
    for task, targets in targets_of.items():
        others = [row for rows in rows_of_task.values() for row in rows]
        passed = gate([*others, *copies], targets, GateSettings(overlap="off")).passed
        budget = Budget(rows=round(0.1 * len(passed)))
        selection, _ = choose(passed, targets, budget, represented, CONFIG)

        row_of = {row.sample_id: row for row in passed}
        chosen = [row_of[sample_id] for sample_id in selection.selected_ids]
        share = sum(row.subtask == task for row in chosen) / len(chosen)
        lifts[task] = share / (sum(row.subtask == task for row in passed) / len(passed))

        assert 0.5 * budget.rows < len(chosen) <= budget.rows
        assert max(Counter(text_key(row) for row in chosen).values()) == 1
        assert all(pick.reason and pick.target_id for pick in selection.picks)
        assert len(selection.picks) + len(selection.rejections) == len(passed)
    print({task: round(lift, 2) for task, lift in lifts.items()})
    assert sum(lifts.values()) / len(lifts) >= 7, lifts
    assert min(lifts.values()) >= 4, lifts
