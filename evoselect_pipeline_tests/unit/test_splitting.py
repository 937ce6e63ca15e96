"""Laws of dealing rows out: no near-copy straddles, subtasks keep shares, order is nothing."""

import json
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evoselect_pipeline.config_rows import FileTask
from evoselect_pipeline.core.near_text import near_pairs, text_shingles
from evoselect_pipeline.core.records import Message, make_sample, sample_from_pair
from evoselect_pipeline.core.splitting import deal, groups_of
from evoselect_pipeline.errors import DataError
from evoselect_pipeline.rounds.file_task import file_task_rows
from evoselect_pipeline.stores.jsonl import write_samples

STORY = "Anna keeps {} goats on the hill behind her house and {} hens in the yard of the old mill"
few_words = st.lists(st.sampled_from("abcd"), min_size=1, max_size=9).map(" ".join)
changes = st.dictionaries(st.integers(0, 24), st.sampled_from("xyz"), max_size=6)
of_one_template = changes.map(
    lambda changed: " ".join(changed.get(place, f"w{place}") for place in range(25))
)
prompts = st.lists(few_words | of_one_template, max_size=14)
thresholds = st.sampled_from([0.3, 0.5, 0.6, 0.7, 0.75, 0.8, 0.95])


def labelled(number: int, **fields):
    return sample_from_pair(
        f"{number} of {number * 7} are {number + 3}, or are they?", "x", **fields
    )


def pairs_by_definition(texts, threshold):
    sets = [text_shingles(text) for text in texts]
    return {
        (i, j)
        for j in range(len(texts))
        for i in range(j)
        if min(len(sets[i]), len(sets[j])) >= 4
        and len(sets[i] & sets[j]) / len(sets[i] | sets[j]) >= threshold
    }


def groups_by_definition(rows, threshold):
    """Every row with every other, and then whatever hangs together."""
    group = list(range(len(rows)))
    pairs = pairs_by_definition([row.prompt for row in rows], threshold)
    pairs |= {(i, j) for j in group for i in range(j) if rows[i].prompt == rows[j].prompt}
    for i, j in pairs:
        group = [group[i] if of == group[j] else of for of in group]
    return partition(group)


def partition(groups):
    """Groups without their names."""
    return {frozenset(row for row, of in enumerate(groups) if of == group) for group in groups}


@given(prompts, thresholds | st.just(1.0))
@settings(max_examples=150, deadline=None)
def test_near_pairs_are_all_pairs_that_overlap_so_much(texts, threshold):
    found = list(near_pairs(texts, threshold))
    assert len(found) == len(set(found))
    assert set(found) == pairs_by_definition(texts, threshold)


@given(prompts, thresholds)
@settings(max_examples=150, deadline=None)
def test_groups_are_what_hangs_together_through_near_pairs(texts, threshold):
    rows = [sample_from_pair(text, str(number)) for number, text in enumerate(texts)]
    found = groups_of(rows, threshold).tolist()
    assert partition(found) == groups_by_definition(rows, threshold)


@pytest.mark.parametrize(("num_numbers", "num_groups"), [(1, 1), (4, 2000)])
def test_thousands_of_rows_of_one_template_are_grouped_in_seconds(num_numbers, num_groups):
    """All near-copies of each other, or none though all share half of their words."""
    wording = "please find out in which month the train {} from the old town {} was late {}"
    words = f"{wording} and by how much {{}} and tell me so in one word alone, as I am in a hurry"
    rows = [
        sample_from_pair(words.format(*[f"n{n}"] * num_numbers, *[""] * (4 - num_numbers)), "x")
        for n in range(2000)
    ]
    began = time.process_time()
    assert len(set(groups_of(rows, 0.7).tolist())) == num_groups
    assert time.process_time() - began < 4


def test_a_system_turn_that_all_rows_share_makes_no_copies_of_them():
    system = Message("system", "You answer questions of a class of pupils, briefly. " * 5)
    rows = [
        make_sample([system, Message("user", text), Message("assistant", "x")])
        for text in ("why is the sky blue", "who wrote the first book", "where do the geese go")
    ]
    assert len(set(groups_of(rows, 0.7).tolist())) == 3


def test_what_hangs_together_is_one_group():
    rows = [
        sample_from_pair(STORY.format(3, 4), "7"),
        sample_from_pair(STORY.format(3, 4).upper() + "!", "other"),  # equal but for spelling
        sample_from_pair(f"Well, {STORY.format(3, 4)}", "7"),  # a near-copy
        sample_from_pair("Something else that nobody has said before", "7"),  # named by the user
        sample_from_pair("And one that stands all by itself in this list", "7"),
    ]
    groups = groups_of(rows, 0.7, ["g", "", "", "g", ""])
    assert len(set(groups[:4])) == 1
    assert groups[4] != groups[0]
    assert len(set(groups_of(rows, 1.0))) == 4


@given(st.lists(st.integers(0, 9), min_size=1, max_size=60), st.randoms())
def test_no_group_straddles_and_the_order_of_rows_is_nothing(groups, random):
    rows = [labelled(number, subtask=str(number % 3)) for number in range(len(groups))]
    dealt = deal(rows, groups, [7, 5, 3])
    found = [{groups[row] for row in part} for part in dealt]
    assert not (found[0] & found[1] or found[1] & found[2] or found[0] & found[2])
    assert all(len(part) <= wanted for part, wanted in zip(dealt, (7, 5, 3), strict=True))
    order = list(range(len(rows)))
    random.shuffle(order)
    again = deal([rows[i] for i in order], [groups[i] for i in order], [7, 5, 3])
    assert [{order[row] for row in part} for part in again] == [set(part) for part in dealt]


def test_ragged_subtasks_keep_their_shares_in_every_part():
    sizes = {"large": 300, "middle": 90, "small": 30}
    rows = [
        sample_from_pair(f"{name} question {n}", "x", subtask=name)
        for name, size in sizes.items()
        for n in range(size)
    ]
    for part in deal(rows, list(range(len(rows))), [42, 84, 126]):
        counts = Counter(rows[row].subtask for row in part)
        for name, size in sizes.items():
            assert abs(counts[name] - len(part) * size / len(rows)) <= 3


def task(folder: Path, **fields) -> FileTask:
    return FileTask(kind="files", **{"rows": folder / "rows.jsonl", **fields})


@pytest.fixture
def folder(tmp_path):
    """Forty rows, each with a near-copy."""
    prompts = [
        STORY.format(f"{n} grey", f"{n * 3} loud") + f" number {n} of {n + 1}" for n in range(40)
    ]
    pairs = [sample_from_pair(text, "7") for p in prompts for text in (p, f"So: {p}")]
    write_samples(tmp_path / "rows.jsonl", pairs)
    return tmp_path


def test_one_file_makes_three_parts_whose_near_copies_stay_together(folder):
    found = file_task_rows(task(folder, near_text=0.8))
    parts = (found.targets, found.validation, found.test)
    assert sum(map(len, parts)) >= 78
    assert max(map(len, parts)) - min(map(len, parts)) <= 2
    kept = [{row.prompt.removeprefix("So: ") for row in part} for part in parts]
    assert not (kept[0] & kept[1] or kept[1] & kept[2] or kept[0] & kept[2])


def test_distinct_rows_of_all_files_are_counted_used_or_not(folder):
    assert file_task_rows(task(folder, num_test=9)).num_distinct == 80
    write_samples(folder / "test.jsonl", [labelled(1), labelled(2), labelled(1)])
    assert file_task_rows(task(folder, test=folder / "test.jsonl")).num_distinct == 82


def test_near_copies_of_rows_with_a_file_of_their_own_are_drawn_for_nothing(folder):
    rows = file_task_rows(task(folder, near_text=0.8)).test
    write_samples(folder / "test.jsonl", rows[::2])
    found = file_task_rows(
        task(folder, near_text=0.8, test=folder / "test.jsonl", num_targets=9, num_test=10)
    )
    assert (len(found.targets), len(found.test)) == (9, 10)
    tested = {row.prompt.removeprefix("So: ") for row in rows[::2]}
    drawn = {row.prompt.removeprefix("So: ") for row in [*found.targets, *found.validation]}
    assert not tested & drawn


def test_a_row_that_is_there_twice_counts_once(folder):
    rows = [labelled(number) for number in (1, 2, 1)]
    for name in ("targets", "validation", "test"):
        write_samples(folder / f"{name}.jsonl", rows)
    names = ("targets", "validation", "test")
    found = file_task_rows(task(folder, rows=None, **{n: folder / f"{n}.jsonl" for n in names}))
    assert len(found.test) == 2


def test_f14_rows_are_told_apart_by_what_they_say_and_not_by_an_id(tmp_path):
    """The same content under two ids is one row; one id with two contents is two."""
    rows = [
        {"prompt": "one", "completion": "x", "id": 1, "subtask": "first"},
        {"prompt": "two", "completion": "x", "id": 1},
        {"prompt": "one", "completion": "x", "id": 3, "subtask": "again"},
    ]
    for name in ("targets", "validation", "test"):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(text)
    files = {name: tmp_path / f"{name}.jsonl" for name in ("targets", "validation", "test")}
    found = file_task_rows(task(tmp_path, rows=None, **files)).test
    assert sorted((row.prompt, row.subtask) for row in found) == [("one", "first"), ("two", "")]


def test_too_few_rows_are_refused_with_the_reason(folder):
    with pytest.raises(DataError, match=r"rows.jsonl: \d+ rows for test, where 200 are wanted"):
        file_task_rows(task(folder, num_test=200))
    with pytest.raises(DataError, match=r"num_test is 200, but .*rows.jsonl holds 80 rows"):
        file_task_rows(task(folder, test=folder / "rows.jsonl", num_test=200))


def test_files_that_share_a_group_are_refused(tmp_path):
    for number, name in enumerate(("targets", "validation", "test")):
        (tmp_path / f"{name}.jsonl").write_text(
            f'{{"prompt": "{number}", "completion": "x", "group": "{min(number, 1)}"}}'
        )
    files = {name: tmp_path / f"{name}.jsonl" for name in ("targets", "validation", "test")}
    with pytest.raises(DataError, match="validation and test share 1 groups, such as '1'"):
        file_task_rows(task(tmp_path, rows=None, **files))
