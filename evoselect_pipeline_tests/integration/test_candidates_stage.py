"""What the stage `candidates` makes of poor pools: few rows, copies, text of evaluation rows."""

import json

import pytest

from evoselect_pipeline.config_file import parse_config
from evoselect_pipeline.rounds.candidates import HITS, candidates
from evoselect_pipeline.rounds.line import Line, read_facts, read_json
from evoselect_pipeline.rounds.verdicts import candidates_distinct, candidates_well_formed
from evoselect_pipeline.stores.home import Home

QUESTION = (
    "Row {} asks how many of the {} grey geese on the pond behind the mill are left when {} of them"
    " have flown south with the first frost of the year"
)


def row(number: int, prompt: str = "{}") -> dict:
    text = QUESTION.format(number, number * 7, number * 3)
    return {"prompt": prompt.format(text), "completion": str(number * 4)}


@pytest.fixture
def line_with(tmp_path):
    """A line on files whose round 0 has these candidates."""

    def make(rows: list[dict], **changes) -> Line:
        parts = {"targets": range(100, 108), "validation": range(108, 116), "test": range(116, 124)}
        files = {name: [row(n) for n in numbers] for name, numbers in parts.items()}
        for name, content in (files | {"r0000": rows}).items():
            text = "".join(json.dumps(r) + "\n" for r in content)
            (tmp_path / f"{name}.jsonl").write_text(text)
        tree = {
            "task": {"kind": "files"} | {name: f"{tmp_path}/{name}.jsonl" for name in parts},
            "generator": {"kind": "files", "pattern": f"{tmp_path}/r{{round}}.jsonl"},
            **changes,
        }
        return Line(parse_config(tree, "test"), Home(tmp_path / "home").init())

    return make


def test_e9_too_few_rows_stop_the_round_and_none_is_made_up(line_with):
    line = line_with([row(n) for n in range(5)] * 40)
    assert read_facts(candidates(line, 0))["num_candidates"] == 5
    verdict = candidates_well_formed(line, 0)
    assert not verdict.passed
    assert "5 usable candidates, fewer than min_candidates = 16" in verdict.sentence


def test_e10_a_generator_that_repeats_itself_is_noticed(line_with):
    spellings = ("{}", "{}.", " {} ", "{}!", "{}?", "{} .", "{},", "{};", '"{}"', "{}...")
    line = line_with([row(n, spelling) for n in range(20) for spelling in spellings])
    candidates(line, 0)
    verdict = candidates_distinct(line, 0)
    assert not verdict.passed
    assert verdict.figures["distinct_share"] == pytest.approx(0.1, abs=0.02)


def test_f15_evaluation_rows_that_were_hit_are_listed_with_their_candidates(line_with):
    leaks = [row(120), row(120, "Now this: {} Well?"), row(121, "Solve: {}")]
    line = line_with([*(row(n) for n in range(20)), *leaks])
    pool = candidates(line, 0)
    hits = read_json(pool.path / HITS)
    told = [(hit["split"], hit["num_candidates"], hit["kinds"]) for hit in hits]
    assert told == [("test", 2, {"same_prompt": 1, "whole": 1}), ("test", 1, {"whole": 1})]
    assert read_facts(pool)["num_evaluation_rows_hit"] == 2
    stages = [r["stage"] for r in read_json(pool.path / "rejected.json")]
    assert sorted(stages) == ["leaks_evaluation", "resembles_evaluation", "resembles_evaluation"]
    assert hits[1]["sample_id"] not in read_json(pool.path / "ids.json")


def test_other_gates_make_the_stage_anew(line_with):
    rows = [row(n) for n in range(20)] + [row(120, "Now this: {} Well?")]
    kept_out = candidates(line_with(rows), 0)
    let_in = candidates(line_with(rows, gates={"overlap": "off"}), 0)
    assert len(read_json(let_in.path / "ids.json")) == 21
    assert kept_out.digest != let_in.digest
