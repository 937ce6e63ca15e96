"""Law: rows come back as written, and every fault is named with file and line."""

import json

import pytest

from evoselect_pipeline.core.records import sample_from_pair
from evoselect_pipeline.errors import DataError
from evoselect_pipeline.stores.jsonl import read_samples, write_samples

ROW = {"prompt": "q", "completion": "a"}


def test_samples_survive_a_round_trip(tmp_path):
    samples = [
        sample_from_pair("q\u00e9 1", "a", subtask="s", source="f"),
        sample_from_pair("2", "b"),
    ]
    write_samples(tmp_path / "rows.jsonl", samples)
    assert read_samples(tmp_path / "rows.jsonl") == samples


def test_bom_crlf_and_blank_lines_change_nothing(tmp_path):
    plain, odd = tmp_path / "plain.jsonl", tmp_path / "odd.jsonl"
    line = json.dumps(ROW)
    plain.write_text(f"{line}\n")
    odd.write_bytes(b"\xef\xbb\xbf\r\n" + line.encode() + b"\r\n\r\n")
    assert [s.sample_id for s in read_samples(odd)] == [s.sample_id for s in read_samples(plain)]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "holds no rows"),
        (b"\n \n", "holds no rows"),
        (b'{"prompt": "q", "completion": "a"}\n{"prompt": ', r"rows.jsonl:2: not valid JSON"),
        (b'{"prompt": "\xe9", "completion": "a"}', r"rows.jsonl:1: not UTF-8 at byte 12"),
        (b'["q", "a"]', r"rows.jsonl:1: expected an object, found list"),
        (b'{"prompt": NaN, "completion": "a"}', r"rows.jsonl:1: not valid JSON: NaN"),
        (b'{"prompt": "q", "completion": 4}', r"rows.jsonl:1: turn 2"),
        (b'{"prompt": "q", "answer": "4"}', r"rows.jsonl:1: expected `messages`"),
    ],
)
def test_a_fault_is_named_with_its_place(tmp_path, content, complaint):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=complaint):
        read_samples(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.jsonl: cannot be read"):
        read_samples(tmp_path / "nowhere.jsonl")
