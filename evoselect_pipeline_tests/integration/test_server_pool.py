"""What a server writes passes the gates like any other row: nothing of the evaluation gets in."""

import json

from evoselect_pipeline.config_file import parse_config
from evoselect_pipeline.rounds.candidates import candidates
from evoselect_pipeline.rounds.line import Line, read_json
from evoselect_pipeline.rounds.verdicts import no_evaluation_row_among_candidates
from evoselect_pipeline.stores.home import Home
from evoselect_pipeline_tests.integration.fake_llm import fake_llm, rows

PARTS = {"targets": "plums", "validation": "pears", "test": "quinces"}


def question(fruit: str, number: int) -> str:
    return f"How many of the {number} {fruit} are ripe?"


def test_e11_questions_of_the_evaluation_are_kept_out_though_a_server_wrote_them(tmp_path):
    for split, fruit in PARTS.items():
        pairs = ({"prompt": question(fruit, n), "completion": "1"} for n in range(100, 104))
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(p) + "\n" for p in pairs))

    def reply(number, body):
        leaked = (question(fruit, 101) for fruit in PARTS.values())
        leaks = [*leaked, question("quinces", 102).upper(), f" {question('pears', 103)}\n"]
        return rows((question("grapes", number), "2"), (leaks[number % len(leaks)], "3"))

    with fake_llm(reply) as server:
        tree = {
            "task": {"kind": "files"} | {split: f"{tmp_path}/{split}.jsonl" for split in PARTS},
            "generator": {
                "kind": "server",
                "base_url": server.address,
                "model": "fake",
                "num_candidates": 10,
                "rows_per_request": 2,
            },
        }
        line = Line(parse_config(tree, "test"), Home(tmp_path / "home"))
        pool = candidates(line, 0)
    stages = [row["stage"] for row in read_json(pool.path / "rejected.json")]
    assert stages == ["leaks_evaluation"] * 5
    passed = line.store.get_samples(read_json(pool.path / "ids.json"))
    assert {row.prompt for row in passed} == {question("grapes", n) for n in range(5)}
    assert no_evaluation_row_among_candidates(line, 0).passed
