"""`evoselect bench lineage` from the command line, in a home of three small rounds."""

import json

import pytest

from evoselect_pipeline.bench import lineage
from evoselect_pipeline.bench.lineage import LineageRequest, measure_lineage


@pytest.mark.slow
def test_the_report_holds_every_question_with_the_seconds_of_each_answer(evoselect):
    ended = evoselect(
        *("bench", "lineage", "--rounds", 3, "--rows", 20, "--asked", 2, "--format", "json")
    )
    assert ended.code == 0, ended.err
    report = json.loads(ended.out)
    assert report["num_decisions"] == 60
    asked = {row["question"]: row["seconds"] for row in report["results"]}
    assert [len(seconds) for seconds in asked.values()] == [2, 2, 3]
    assert all(second > 0 for seconds in asked.values() for second in seconds)


@pytest.mark.slow
def test_what_is_timed_answers_with_the_rows_and_the_adapters_they_trained(monkeypatch):
    told, behind = [], []
    with monkeypatch.context() as patched:
        story, rows_behind = lineage.story, lineage.rows_behind
        patched.setattr(lineage, "story", lambda *a: told.append(story(*a)))
        patched.setattr(lineage, "rows_behind", lambda *a: behind.append(rows_behind(*a)))
        measure_lineage(LineageRequest(num_rounds=3, num_rows=20, num_asked=3, seed=0))
    chosen, rejected = told[:3], told[3:]
    for number, row in enumerate(chosen):
        assert [a["round"] for a in row["adapters"]] == list(range(number, 3))
        assert row["gradients"][0]["num_tokens"] == 64
    assert [row["adapters"] for row in rejected] == [[]] * 3
    assert [len(rows) for rows in behind] == [12] * 3
