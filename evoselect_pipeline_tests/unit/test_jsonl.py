"""Law: samples come back as they were written."""

from evoselect_pipeline.core.records import sample_from_pair
from evoselect_pipeline.stores.jsonl import read_samples, write_samples


def test_samples_survive_a_round_trip(tmp_path):
    samples = [
        sample_from_pair("q\u00e9 1", "a", subtask="s", source="f"),
        sample_from_pair("2", "b"),
    ]
    write_samples(tmp_path / "rows.jsonl", samples)
    assert read_samples(tmp_path / "rows.jsonl") == samples
