"""Law: rows mean the same in every form they come in, and every fault is named with its place."""

import csv
import json
import re
from pathlib import Path

import datasets
import polars as pl
import pytest

from evoselect_pipeline.config_rows import Columns, HubRows
from evoselect_pipeline.core.records import Message
from evoselect_pipeline.errors import DataError
from evoselect_pipeline.report.reasons import REASONS
from evoselect_pipeline.stores.rows import (
    UNANSWERED,
    read_candidates,
    read_prompts,
    read_samples,
    read_user_rows,
)

ROW = {"prompt": "q", "completion": "a"}
ROWS = [
    {"prompt": "What is \u00e9?", "completion": 'a, "letter"\nof two', "subtask": "x"},
    {"prompt": "3 + 4 =", "completion": "7", "subtask": "y"},
]


def as_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def as_json(path, rows):
    path.write_text(json.dumps(rows, indent=2), encoding="utf-8")


def as_csv(path, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0], delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)


def as_parquet(path, rows):
    pl.DataFrame(rows).write_parquet(path)


WRITERS = {
    ".jsonl": as_jsonl, ".ndjson": as_jsonl, ".json": as_json, ".csv": as_csv, ".tsv": as_csv,
    ".parquet": as_parquet,
}  # fmt: skip


@pytest.mark.parametrize("suffix", WRITERS)
def test_every_form_gives_the_same_rows(tmp_path, suffix):
    path = tmp_path / f"rows{suffix}"
    WRITERS[suffix](path, ROWS)
    found = read_samples(path)
    assert [(s.prompt, s.completion, s.subtask) for s in found] == [tuple(r.values()) for r in ROWS]
    assert {s.source for s in found} == {path.name}
    renamed = [
        {"Q": r["prompt"], "A": r["completion"], "kind": r["subtask"], "id": 7} for r in ROWS
    ]
    WRITERS[suffix](path, renamed)
    columns = Columns(prompt="Q", completion="A", subtask="kind", group="id")
    assert read_samples(path, columns) == found
    assert {row.group for row in read_user_rows(path, columns)} == {"7"}


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".parquet"])
def test_conversations_come_as_messages_or_as_lists_of_turns(tmp_path, suffix):
    turns = [{"role": r, "content": c} for r, c in (("user", "1?"), ("assistant", "2"))]
    path = tmp_path / f"rows{suffix}"
    WRITERS[suffix](path, [{"messages": [*turns, *turns]}])
    assert len(read_samples(path)[0].messages) == 4
    WRITERS[suffix](path, [{"talk": turns}])
    assert read_samples(path, Columns(messages="talk"))[0].completion == "2"
    WRITERS[suffix](path, [{"prompt": turns[:1], "completion": turns[1:]}])
    assert read_samples(path)[0].prompt == "1?"


def test_a_system_column_becomes_the_system_turn(tmp_path):
    path = tmp_path / "rows.jsonl"
    as_jsonl(path, [ROW | {"system": "Be brief."}, ROW])
    first, second = read_samples(path)
    assert first.messages[0] == Message("system", "Be brief.")
    assert len(second.messages) == 2


def test_a_template_makes_a_prompt_of_several_columns(tmp_path):
    path = tmp_path / "rows.jsonl"
    as_jsonl(path, [{"question": "Which flies?", "choices": ["a hen", "a kite"], "label": 1}])
    columns = Columns(
        prompt="{{ question }}"
        "{% for text in choices %}\n({{ 'ABCD'[loop.index0] }}) {{ text }}{% endfor %}",
        completion="({{ 'ABCD'[label] }})",
    )
    [found] = read_samples(path, columns)
    assert found.prompt == "Which flies?\n(A) a hen\n(B) a kite"
    assert found.completion == "(B)"
    with pytest.raises(DataError, match=r"rows.jsonl:1: columns.prompt: .*'qustion' is undefined"):
        read_samples(path, Columns(prompt="{{ qustion }}", completion="x"))
    with pytest.raises(DataError, match=r"columns.prompt: SecurityError"):
        read_samples(path, Columns(prompt="{{ question.__class__.__mro__ }}", completion="label"))


def test_a_dataset_is_read_from_a_folder_that_was_saved_or_holds_data_files(tmp_path):
    saved = datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS))
    saved.save_to_disk(tmp_path / "saved")
    (tmp_path / "files").mkdir()
    as_jsonl(tmp_path / "files" / "train.jsonl", ROWS)
    for name in ("saved", "files"):
        found = read_samples(HubRows(dataset=str(tmp_path / name)))
        assert [s.completion for s in found] == [row["completion"] for row in ROWS]
    with pytest.raises(DataError, match=r"saved \(dev\): the dataset cannot be loaded"):
        read_samples(HubRows(dataset=str(tmp_path / "saved"), split="dev"))
    with pytest.raises(DataError, match=r"nowhere \(train\): the dataset cannot be loaded"):
        read_samples(HubRows(dataset=str(tmp_path / "nowhere")))


def test_f4_bom_crlf_and_blank_lines_change_nothing(tmp_path):
    plain, odd = tmp_path / "plain.jsonl", tmp_path / "odd.jsonl"
    as_jsonl(plain, [ROW])
    line = json.dumps(ROW).encode()
    odd.write_bytes(b"\xef\xbb\xbf\r\n" + line + b"\r\n\r\n")
    assert [s.sample_id for s in read_samples(odd)] == [s.sample_id for s in read_samples(plain)]
    table = tmp_path / "odd.csv"
    table.write_bytes(b"\xef\xbb\xbfprompt,completion\r\nq,a\r\n\r\n")
    assert [s.sample_id for s in read_samples(table)] == [s.sample_id for s in read_samples(plain)]


FAULTS = {
    "f1 empty": ("r.jsonl", b"", "holds no rows"),
    "f1 blank": ("r.jsonl", b"\n \n", "holds no rows"),
    "f1 empty list": ("r.json", b"[]", "holds no rows"),
    "f1 header alone": ("r.csv", b"prompt,completion\n", "holds no rows"),
    "f1 empty table": ("r.csv", b"", "holds no rows"),
    "f2 cut line": (
        "r.jsonl",
        b'{"prompt": "q", "completion": "a"}\n{"pro',
        "r.jsonl:2: not valid",
    ),
    "f2 cut list": ("r.json", b'[\n{"prompt": "q",\n"completion"', "r.json:3: not valid JSON"),
    "f2 cut table": ("r.csv", b'prompt,completion\nq,"a\n', "r.csv:2: not valid CSV"),
    "f2 cut parquet": ("r.parquet", b"PAR1\x00", "cannot be read as Parquet"),
    "f3 latin-1": (
        "r.jsonl",
        b'{"prompt": "\xe9", "completion": "a"}',
        "r.jsonl:1: not UTF-8 at byte",
    ),
    "f3 latin-1 table": ("r.csv", b"prompt,completion\n\xe9,a\n", "r.csv:2: not UTF-8 at byte 18"),
    "f3 latin-1 list": ("r.json", b'[\n{"prompt": "\xe9"}]', "r.json:2: not UTF-8 at byte 14"),
    "f5 surrogate": (
        "r.jsonl",
        b'{"prompt": "\\ud800", "completion": "a"}',
        "r.jsonl:1.*surrogate",
    ),
    "f7 NaN": ("r.jsonl", b'{"prompt": NaN, "completion": "a"}', "r.jsonl:1: not valid JSON: NaN"),
    "f7 NaN list": ("r.json", b'[{"prompt": NaN}]', "r.json: not valid JSON: NaN"),
    "f7 number": (
        "r.jsonl",
        b'{"prompt": "q", "completion": 4}',
        "r.jsonl:1: completion must be text",
    ),
    "f7 no object": ("r.jsonl", b'["q", "a"]', "r.jsonl:1: expected an object, found list"),
    "f7 no objects": (
        "r.json",
        b'[{"prompt": "q", "completion": "a"}, 4]',
        "row 2: expected an obj",
    ),
    "f7 no list": ("r.json", b'{"prompt": "q"}', "expected a list of objects"),
    "f7 messages": ("r.jsonl", b'{"messages": "hi"}', "r.jsonl:1: `messages` must be a list"),
    "f8 other columns": (
        "r.jsonl",
        b'{"prompt": "q", "answer": "4"}',
        "r.jsonl:1.*columns: {prompt",
    ),
    "f8 empty content": ("r.csv", b"prompt,completion\nq,a\nq, \n", "r.csv:3: turn 2"),
    "f8 too many values": ("r.csv", b"prompt,completion\nq,a,b\n", "r.csv:2: 3 values"),
    "f8 a column twice": ("r.csv", b"prompt,prompt\nq,a\n", "names a column twice"),
    "unknown suffix": ("r.xlsx", b"PK", "cannot tell what it holds"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_f1_f2_f3_f5_f7_f8_a_fault_is_named_with_its_place(tmp_path, case):
    name, content, complaint = FAULTS[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=complaint):
        read_samples(tmp_path / name)


def test_a_missing_column_is_named_with_those_that_are_there(tmp_path):
    as_jsonl(tmp_path / "r.jsonl", [{"question": "q", "answer": "a"}])
    with pytest.raises(DataError, match=r"r.jsonl:1: columns.prompt names 'qestion'.*'question'"):
        read_samples(tmp_path / "r.jsonl", Columns(prompt="qestion", completion="answer"))


@pytest.mark.parametrize("suffix", WRITERS)
def test_a_missing_file_is_named(tmp_path, suffix):
    with pytest.raises(DataError, match=rf"nowhere\{suffix}: cannot be read"):
        read_samples(tmp_path / f"nowhere{suffix}")


def test_of_a_relative_path_the_folder_that_was_searched_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("data/stock.jsonl", "stock.parquet"):
        with pytest.raises(DataError) as refused:
            read_samples(Path(name))
        assert str(refused.value) == (
            f"{name}: cannot be read: No such file or directory; check the path, which is looked"
            f" for in {tmp_path}"
        )
    with pytest.raises(DataError, match=r"directory; check the path$"):
        read_samples(tmp_path / "stock.jsonl")


def talk(*roles: str) -> dict:
    return {"messages": [{"role": role, "content": "x"} for role in roles]}


NO_CONVERSATIONS = {
    "unknown role": (talk("user", "robot"), "role must be one of", "unknown_role"),
    "two users in a row": (talk("user", "user", "assistant"), "in turn", "turns_out_of_order"),
    "no assistant": (talk("user"), "ending with assistant", "turns_out_of_order"),
    "system in the middle": (
        talk("user", "assistant", "system", "user", "assistant"),
        "an optional system turn, then",
        "turns_out_of_order",
    ),
    "empty content": (ROW | {"completion": " "}, "content must be non-empty", "empty_content"),
    "null content": (
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": None}]},
        "content must be non-empty",
        "empty_content",
    ),
    "no completion": ({"prompt": "q"}, "expected `messages`, or", "no_conversation"),
    "a number": (
        ROW | {"completion": 4},
        "completion must be text, got the number 4: quote it",
        "not_text",
    ),
    "a truth": (ROW | {"prompt": True}, "prompt must be text, got True", "not_text"),
    "a surrogate": (ROW | {"prompt": "\ud800"}, "lone surrogate", "not_text"),
}


@pytest.mark.parametrize("case", NO_CONVERSATIONS)
def test_f8_a_trusted_row_that_is_no_conversation_is_refused_with_file_and_line(tmp_path, case):
    row, complaint, _ = NO_CONVERSATIONS[case]
    as_jsonl(tmp_path / "r.jsonl", [ROW, row])
    with pytest.raises(DataError, match=rf"r.jsonl:2: .*{complaint}"):
        read_samples(tmp_path / "r.jsonl")


@pytest.mark.parametrize("case", NO_CONVERSATIONS)
def test_f8_a_candidate_that_is_no_conversation_is_left_out_and_counted(tmp_path, case):
    row, complaint, reason = NO_CONVERSATIONS[case]
    as_jsonl(tmp_path / "r.jsonl", [ROW, row, ROW, row])
    read = read_candidates(tmp_path / "r.jsonl")
    assert [sample.completion for sample in read.samples] == ["a", "a"]
    assert read.refused == {reason: 2}
    assert re.match(rf".*r.jsonl:2: .*{complaint}", read.first_refused)
    assert reason in REASONS
    as_jsonl(tmp_path / "r.jsonl", [row] * 3)
    with pytest.raises(DataError, match=rf"none of 3 rows can be used, .*r.jsonl:1: .*{complaint}"):
        read_candidates(tmp_path / "r.jsonl")


@pytest.mark.parametrize("case", [case for case in FAULTS if case < "f5" or "f7 NaN" in case])
def test_f8_a_file_of_candidates_that_cannot_be_read_is_refused_all_the_same(tmp_path, case):
    name, content, complaint = FAULTS[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=complaint):
        read_candidates(tmp_path / name)


def test_f6_odd_characters_are_content_and_composed_twins_are_one_row(tmp_path):
    odd = [
        "nul \u0000",
        "zero \u200b width",
        "\u202e override",
        "\U0001f469\u200d\U0001f680",
        "plain",
    ]
    as_jsonl(tmp_path / "r.jsonl", [ROW | {"prompt": text} for text in odd])
    found = read_samples(tmp_path / "r.jsonl")
    assert [s.prompt for s in found] == odd
    assert len({s.sample_id for s in found}) == len(odd)
    as_jsonl(tmp_path / "r.jsonl", [ROW | {"prompt": text} for text in ("caf\u00e9", "cafe\u0301")])
    composed, decomposed = read_samples(tmp_path / "r.jsonl")
    assert composed.sample_id == decomposed.sample_id


def test_f10_a_very_long_row_and_very_many_equal_ones_are_read(tmp_path):
    as_csv(tmp_path / "r.csv", [ROW | {"prompt": "word " * 200_000}])
    assert len(read_samples(tmp_path / "r.csv")[0].prompt) == 1_000_000
    (tmp_path / "many.jsonl").write_text((json.dumps(ROW) + "\n") * 100_000)
    assert len({s.sample_id for s in read_samples(tmp_path / "many.jsonl")}) == 1


def test_f14_content_is_what_a_row_is_known_by_whatever_ids_the_user_gave(tmp_path):
    rows = [ROW | {"id": 1}, {"prompt": "other", "completion": "a", "id": 1}, ROW | {"id": 2}]
    as_jsonl(tmp_path / "r.jsonl", rows)
    one, other, again = (s.sample_id for s in read_samples(tmp_path / "r.jsonl"))
    assert one == again != other


def test_a_group_of_nought_is_a_group_and_null_is_none(tmp_path):
    as_jsonl(tmp_path / "r.jsonl", [ROW | {"group": 0, "subtask": 0}, ROW | {"group": None}])
    first, second = read_user_rows(tmp_path / "r.jsonl")
    assert (first.group, first.sample.subtask, second.group) == ("0", "0", "")


def test_only_what_makes_a_conversation_must_be_there_in_every_row(tmp_path):
    rows = [ROW | {"s": "Be brief.", "kind": "x"}, ROW | {"s": None, "kind": None}, ROW]
    as_jsonl(tmp_path / "r.jsonl", rows)
    found = read_samples(tmp_path / "r.jsonl", Columns(system="s", subtask="kind"))
    assert [len(sample.messages) for sample in found] == [3, 2, 2]
    assert [sample.subtask for sample in found] == ["x", "", ""]


@pytest.mark.parametrize(
    "row", [{"q": "x", "a": None}, {"q": "x", "a": -1}, {"q": "x", "a": "not a number"}]
)
def test_a_template_makes_no_answer_out_of_nothing(tmp_path, row):
    as_jsonl(tmp_path / "r.jsonl", [row])
    for completion in ("{{ 'ABCD'[a] }}", "{{ a }}")[: 1 + (row["a"] is None)]:
        with pytest.raises(DataError, match=r"r.jsonl:1: columns.completion"):
            read_samples(tmp_path / "r.jsonl", Columns(prompt="q", completion=completion))


def test_line_breaks_that_are_none_of_csvs_stay_in_their_value(tmp_path):
    (tmp_path / "r.csv").write_text("prompt,completion\na\u2028b\x0cc,d\u0085e\n", encoding="utf-8")
    [found] = read_samples(tmp_path / "r.csv")
    assert (found.prompt, found.completion) == ("a\u2028b\x0cc", "d\u0085e")


def test_a_split_that_a_saved_dataset_has_not_is_refused(tmp_path):
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "one")
    assert len(read_samples(HubRows(dataset=str(tmp_path / "one")))) == 2
    for split in ("test", "train[:1]"):
        with pytest.raises(DataError, match="its splits are train"):
            read_samples(HubRows(dataset=str(tmp_path / "one"), split=split))


@pytest.mark.parametrize("name", ["r.jsonl", "r.json"])
def test_brackets_without_end_are_refused(tmp_path, name):
    (tmp_path / name).write_text("[" * 100_000)
    with pytest.raises(DataError, match=r"not valid JSON"):
        read_samples(tmp_path / name)


def test_prompts_are_read_with_an_answer_and_without(tmp_path):
    rows = [
        {"prompt": "q", "system": "be brief"},
        {"prompt": "q", "completion": "a"},
        {"messages": [{"role": "user", "content": "q"}]},
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
    ]
    as_jsonl(tmp_path / "canaries.jsonl", rows)
    found = read_prompts(tmp_path / "canaries.jsonl")
    assert [row.prompt for row in found] == ["be brief\nq", "q", "q", "q"]
    assert [row.completion for row in found] == [UNANSWERED, "a", UNANSWERED, "a"]
    as_csv(tmp_path / "canaries.csv", [{"prompt": "q", "completion": ""}])
    assert [row.prompt for row in read_prompts(tmp_path / "canaries.csv")] == ["q"]
    as_csv(tmp_path / "canaries.csv", [{"ticket": "q"}])
    [row] = read_prompts(tmp_path / "canaries.csv", Columns(prompt="ticket", completion="queue"))
    assert (row.prompt, row.completion) == ("q", UNANSWERED)


@pytest.mark.parametrize("row", [{"completion": "a"}, {"messages": []}, {"messages": "q"}])
def test_a_prompt_that_asks_nothing_is_named_with_its_line(tmp_path, row):
    as_jsonl(tmp_path / "canaries.jsonl", [ROW, row])
    with pytest.raises(DataError, match=r"canaries.jsonl:2: "):
        read_prompts(tmp_path / "canaries.jsonl")
