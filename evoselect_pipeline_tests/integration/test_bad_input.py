"""Bad input ends in one clear message and exit code 2, before anything is computed or written."""

import json
from pathlib import Path

import dagster as dg
import pytest

from evoselect_pipeline.components.evolution_line import line_definitions
from evoselect_pipeline.components.resources import HomeResource
from evoselect_pipeline.config import LineConfig
from evoselect_pipeline_tests.integration.process import finish

ROWS = [{"prompt": f"add {n} and 1", "completion": str(n + 1)} for n in range(10)]
FILE_TASK = "{kind: files, targets: targets.jsonl, validation: validation.jsonl, test: test.jsonl}"
FILES = (
    "--set",
    f"task={FILE_TASK}",
    "--set",
    "generator={kind: files, pattern: 'r{round}.jsonl'}",
)
SELECT = ("select", "--candidates", "rows.jsonl", "--target", "targets.jsonl", "--out", "out.jsonl")


def jsonl(*rows: dict) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def files(tmp_path):
    """Good files, and for each way of being bad one that is."""
    contents = {
        "rows.jsonl": jsonl(*ROWS),
        "r0000.jsonl": jsonl(*ROWS),
        "targets.jsonl": jsonl({"prompt": "add 20 and 1", "completion": "21"}),
        "validation.jsonl": jsonl({"prompt": "add 30 and 1", "completion": "31"}),
        "test.jsonl": jsonl({"prompt": "add 40 and 1", "completion": "41"}),
        "shared.jsonl": jsonl({"prompt": "Add 20  and 1.", "completion": "no"}),
        "broken.jsonl": jsonl(*ROWS[:2]) + "\n" + '{"prompt": "add\n' + jsonl(*ROWS[2:]),
        "no_answer.jsonl": jsonl(ROWS[0], {"prompt": "add 1 and 1", "completion": " "}),
        "other_form.jsonl": jsonl({"question": "1 + 1", "answer": "2"}),
        "not_text.jsonl": '{"prompt": "a\\ud800", "completion": "b"}\n',
        "empty.jsonl": "\n\n",
        "unknown_key.yaml": "trian: {steps: 5}\n",
        "not_a_tree.yaml": "- 1\n",
        "not_yaml.yaml": "train: {steps: 5\n",
        "code.yaml": "seed: !!python/object/apply:os.mkdir [made]\n",
    }
    for name, text in contents.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def contents_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b""
        for path in folder.rglob("*")
    }


# A later option wins over the same one before it.
SELECT_CASES = {
    "missing candidates": (("--candidates", "no.jsonl"), ["no.jsonl", "No such file"]),
    "missing targets": (("--target", "no.jsonl"), ["no.jsonl", "No such file"]),
    "a folder for a file": (("--target", "."), ["Is a directory"]),
    "broken line": (("--candidates", "broken.jsonl"), ["broken.jsonl:4", "not valid JSON"]),
    "blank answer": (("--candidates", "no_answer.jsonl"), ["no_answer.jsonl:2", "non-empty"]),
    "other keys": (("--target", "other_form.jsonl"), ["other_form.jsonl:1", "`prompt`", "answer"]),
    "lone surrogate": (("--candidates", "not_text.jsonl"), ["not_text.jsonl:1", "surrogate"]),
    "no targets": (("--target", "empty.jsonl"), ["empty.jsonl", "holds no rows"]),
    "no candidates": (("--candidates", "empty.jsonl"), ["empty.jsonl", "holds no rows"]),
    "budget above pool": (("--budget", "11"), ["11", "only 10", "lower the budget"]),
    "budget not whole": (("--budget", "2.5"), ["--budget 2.5", "whole number"]),
    "budget zero": (("--budget", "0"), ["--budget 0"]),
    "share of a source": (("--source-share", "2"), ["selection.source_share", "2"]),
    "too few tokens": (("--max-tokens", "1"), ["1 tokens", "raise selection.max_tokens"]),
    "suffix of out": (("--out", "out.csv"), ["out.csv", ".jsonl or .parquet"]),
    "folder of out": (("--out", "no/out.jsonl"), ["no/out.jsonl", "does not exist"]),
    "unknown method": (("--method", "best"), ["--method", "evoselect"]),
    "unknown key": (("--set", "selection.ratoi=0.1"), ["selection.ratoi", "'ratio'"]),
    "unknown model": (("--model", "./no_model"), ["no_model", "safetensors"]),
}
RUN_CASES = {
    "unknown key": (("--config", "unknown_key.yaml"), ["unknown_key.yaml", "'trian'", "'train'"]),
    "missing config": (("--config", "no.yaml"), ["no.yaml", "No such file"]),
    "config is a list": (("--config", "not_a_tree.yaml"), ["not_a_tree.yaml", "list"]),
    "config is not yaml": (("--config", "not_yaml.yaml"), ["not_yaml.yaml", "not valid YAML"]),
    "no value to set": (("--set", "train.steps"), ["'train.steps'", "KEY=VALUE"]),
    "unknown key to set": (("--set", "train.stesp=5"), ["train.stesp", "'steps'"]),
    "wrong type to set": (("--set", "train.steps=many"), ["train.steps", "'many'"]),
    "out of range": (("--set", "selection.ratio=2"), ["selection.ratio", "2"]),
    "unknown task": (("--set", "task.name=storys"), ["'storys'", "stories"]),
    "unknown model": (("--set", "model.name=./no_model"), ["no_model", "safetensors"]),
    "unknown world": (("--set", "generator.world=mild"), ["generator", "'mild'"]),
    "missing canaries": (("--set", "evaluation.canaries=no.jsonl"), ["no.jsonl", "No such file"]),
    "canaries that ask nothing": (
        ("--set", "evaluation.canaries=other_form.jsonl"),
        ["other_form.jsonl:1", "`prompt`", "found ['answer', 'question']"],
    ),
    "line of two words": (("--set", "line=two words"), ["'two words'"]),
    "home of a URI": (("--home", "what?"), ["what?", "MLflow"]),
    "playground rows for files": ((*FILES[:2],), ["both be playground, or neither"]),
    "missing round file": ((*FILES, "--rounds", "2"), ["r0001.jsonl", "No such file"]),
    "rows longer than the model reads": (
        (*FILES, "--set", "model.max_length=8"),
        ["1 targets rows cannot be used", "more than 8", "raise model.max_length"],
    ),
    "missing task file": (
        (*FILES, "--set", f"task={FILE_TASK.replace('test.jsonl', 'no.jsonl')}"),
        ["no.jsonl", "No such file"],
    ),
    "empty targets": (
        (*FILES, "--set", f"task={FILE_TASK.replace('targets.jsonl', 'empty.jsonl')}"),
        ["empty.jsonl", "holds no rows"],
    ),
    "targets and test share a prompt": (
        (*FILES, "--set", f"task={FILE_TASK.replace('test.jsonl', 'shared.jsonl')}"),
        ["targets and test share 1 prompts", "Add 20  and 1."],
    ),
}
SERVER = (
    "{kind: server, base_url: 'http://127.0.0.1:9/v1', model: m, api_key_variable: NO_SUCH_KEY}"
)
F17_CASES = {
    "unknown key": (
        ("run", "--config", "unknown_key.yaml"),
        ["unknown_key.yaml: unknown key 'trian'; did you mean 'train'?"],
    ),
    "unknown key below": (
        ("run", "--set", "train.leraning_rate=1"),
        ["defs.yaml: unknown key 'train.leraning_rate'; did you mean 'learning_rate'?"],
    ),
    "wrong type": (
        ("run", "--set", "train.steps=many"),
        ["defs.yaml: train.steps: ", "valid integer", "found 'many'"],
    ),
    "negative learning rate": (
        ("run", "--set", "train.learning_rate=-1"),
        ["defs.yaml: train.learning_rate: ", "greater than 0", "found -1"],
    ),
    "more rows than the pool": (
        (*SELECT, "--budget", "11"),
        ["--budget 11: rows.jsonl has only 10"],
    ),
    "more than all of the pool": (
        ("run", "--set", "selection.ratio=1.5"),
        ["defs.yaml: selection.ratio: ", "less than or equal to 1", "found 1.5"],
    ),
    "missing variable": (
        ("run", *FILES, "--set", f"generator={SERVER}"),
        ["generator.api_key_variable: $NO_SUCH_KEY is not set"],
    ),
    "YAML that runs code": (
        ("run", "--config", "code.yaml"),
        ["code.yaml: is not valid YAML: could not determine a constructor", "python/object"],
    ),
}
OTHER_CASES = {
    "lineage of nothing": (("lineage",), ["--round 0"]),
    "lineage of both": (("lineage", "abcdef", "--round", "0"), ["--round 0"]),
    "lineage of a word": (("lineage", "row"), ["'row'", "digits"]),
    "lineage of an unknown row": (("lineage", "abcdef"), ["abcdef", "no stored sample"]),
    "lineage of no round": (("lineage", "--round", "0"), ["round 0", "no decisions"]),
    "status of a bad key": (("status", "--set", "lin=a"), ["'lin'", "'line'"]),
    "unknown command": (("slect",), ["slect"]),
}
CASES = {
    **{f"select: {name}": ((*SELECT, *args), say) for name, (args, say) in SELECT_CASES.items()},
    **{f"run: {name}": (("run", *args), say) for name, (args, say) in RUN_CASES.items()},
    **{f"f17: {name}": case for name, case in F17_CASES.items()},
    **OTHER_CASES,
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_ends_in_one_message_with_nothing_written(case, files, evoselect):
    arguments, sayings = CASES[case]
    before = contents_of(files)
    ended = evoselect(*arguments)
    assert ended.code == 2
    assert ended.out == ""
    for saying in sayings:
        assert saying in ended.err
    assert "Traceback" not in ended.err
    assert ended.err.count("evoselect: ") + ended.err.count("Usage: ") == 1
    assert contents_of(files) == before


def test_f10_one_candidate_and_one_target_are_enough(files, evoselect):
    (files / "one.jsonl").write_text(jsonl(ROWS[0]))
    ended = evoselect(*SELECT, "--candidates", "one.jsonl", "--budget", "1")
    assert ended.code == 0, ended.err
    [chosen] = (files / "out.jsonl").read_text().splitlines()
    assert json.loads(chosen)["prompt"] == ROWS[0]["prompt"]


def test_a_process_says_it_on_stderr_with_exit_code_2(files):
    ended = finish("run", "--config", "unknown_key.yaml", cwd=files)
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr == (
        "evoselect: unknown_key.yaml: unknown key 'trian'; did you mean 'train'?\n"
    )


def test_a_round_whose_predecessor_is_missing_is_refused_at_once(tmp_path):
    config = LineConfig()
    definitions = line_definitions(config)
    with dg.instance_for_test() as instance:
        instance.add_dynamic_partitions("playground_rounds", ["0002"])
        result = dg.materialize(
            [*(definitions.assets or ()), *(definitions.asset_checks or ())],  # type: ignore[list-item]
            partition_key="0002",
            instance=instance,
            resources={"home": HomeResource(root=str(tmp_path / "home"))},
            raise_on_error=False,
        )
    assert not result.success
    [failure] = result.get_step_failure_events()
    assert failure.step_key == "playground__incoming_adapter"
    said = failure.step_failure_data.user_failure_data.description
    assert said == (
        "round 2 of line 'playground' cannot start: round 1 has not promoted an adapter."
        " Materialize round 0001 first."
    )
    assert not (tmp_path / "home/lines/playground/0002").exists()
    assert not list((tmp_path / "home/lance").iterdir())
