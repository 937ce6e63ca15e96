"""The next round's rows are grown most from targets that no chosen row is near, or unlearned."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evoselect_pipeline.config import LineConfig
from evoselect_pipeline.config_rows import ServerSource
from evoselect_pipeline.core.records import sample_from_pair
from evoselect_pipeline.generation.base import Assignment
from evoselect_pipeline.generation.requests import requests_for
from evoselect_pipeline.rounds.line import Line, write_json
from evoselect_pipeline.rounds.pressure import LEAST, MOST, _wrong_in_like_words, pressure
from evoselect_pipeline.stores.artifacts import publish
from evoselect_pipeline.stores.home import Home
from evoselect_pipeline.stores.jsonl import write_samples

ROWS = [sample_from_pair(f"q{n}", f"a{n}", subtask=f"s{n % 2}") for n in range(8)]
TARGETS, VALIDATION = ROWS[:4], ROWS[4:]
IDS = [row.sample_id for row in TARGETS]
GEESE = "How many geese are left on the pond when {} of them have flown south?"
COINS = "What do {} silver coins weigh that the smith has melted into a spoon?"
BOTH = "How many silver coins are left on the pond when the smith has flown south?"


@pytest.fixture
def line(tmp_path):
    return line_of(tmp_path, TARGETS, VALIDATION)


def line_of(home, targets, validation):
    line = Line(LineConfig(line="sums"), Home(home))
    with publish(line.home.line_dir("sums") / "target_set", inputs={}) as folder:
        write_samples(folder / "targets.jsonl", targets)
        write_samples(folder / "validation.jsonl", validation)
    return line


def asking(*texts):
    """Rows of no subtask."""
    return [sample_from_pair(text, "an answer") for text in texts]


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


def test_without_subtasks_targets_like_wrongly_answered_rows_are_asked_for_more_often(tmp_path):
    targets = asking(*(text.format(n) for n in range(3) for text in (GEESE, COINS)))
    asked = asking(*(text.format(n) for n in (7, 8) for text in (GEESE, COINS)))
    line = line_of(tmp_path, targets, asked)
    finish_round(line, [(row.sample_id, 0.2) for row in targets], [0.0, 1.0, 0.0, 1.0])
    weights = pressure(line, 1)
    source = ServerSource(kind="server", base_url="https://llm/v1", model="m", num_candidates=400)
    requests = requests_for(source, Assignment(targets, 1, 0, weights), "m")
    first = Counter(request.parents[0] for request in requests)
    geese, coins = targets[::2], targets[1::2]
    assert min(first[row.sample_id] for row in geese) >= 20
    assert max(first[row.sample_id] for row in coins) <= 12
    assert pressure(line, 1) == weights


def test_a_target_between_the_wrong_and_the_right_rows_weighs_between_them():
    shares = _wrong_in_like_words(
        asking(GEESE, BOTH, COINS), asking(GEESE.format(7), COINS.format(7)), [1.0, 0.0]
    )
    assert 1 >= shares[0] > shares[1] > shares[2] >= 0


@pytest.mark.parametrize(
    ("targets", "asked", "after"),
    [
        ((GEESE, COINS), ("quite other words", "and others still"), [0.0, 1.0]),
        ((GEESE, COINS), (GEESE.format(7), COINS.format(7)), [0.0, 0.0]),
        ((GEESE, COINS), (GEESE.format(7), COINS.format(7)), [1.0, 1.0]),
        (("???", "!!!"), ("...", "?!"), [0.0, 1.0]),
    ],
    ids=["nothing in common", "all wrong", "all right", "no words"],
)
def test_targets_that_are_equally_like_the_wrong_rows_weigh_the_same(
    tmp_path, targets, asked, after
):
    line = line_of(tmp_path, asking(*targets), asking(*asked))
    finish_round(line, [(row.sample_id, 0.2) for row in asking(*targets)], after)
    assert list(pressure(line, 1).values()) == [1.0, 1.0]


TEXTS = st.lists(
    st.text("ab 1?¿語\n", min_size=1, max_size=12).filter(str.strip), min_size=1, max_size=6
)


@given(TEXTS, TEXTS)
def test_whatever_rows_say_the_shares_are_shares_and_heed_no_order(targets, validation):
    rows, wrong = asking(*validation), [number % 2 for number in range(len(validation))]
    shares = _wrong_in_like_words(asking(*targets), rows, wrong)
    assert all(0 <= share <= 1 for share in shares)
    backwards = _wrong_in_like_words(asking(*targets), rows[::-1], wrong[::-1])
    assert shares == pytest.approx(backwards, abs=2e-6)
