"""Law: `evoselect preview` shows what the encoder gives to training, and writes nothing."""

import json

import pytest
from transformers import AutoTokenizer

from evoselect_pipeline.config import LineConfig
from evoselect_pipeline.playground.tasks import BASE_MODEL_DIR
from evoselect_pipeline.rounds.data import load_task
from evoselect_pipeline.training.models import load_encoder

TASK = "task={kind: files, targets: targets.jsonl, validation: validation.jsonl, test: test.jsonl}"
FILES = ("--set", TASK, "--set", "generator={kind: files, pattern: 'r{round}.jsonl'}")
TRICKY = "say [bold]<end>[/bold]\x1b[31m and\n\u202estop"


@pytest.fixture
def files(tmp_path):
    """A task whose target rows are one with markup and controls, and one that is too long."""
    contents = {
        "targets": [(TRICKY, "no"), ("word " * 200, "yes")],
        "validation": [("add 30 and 1", "31")],
        "test": [("add 40 and 1", "41")],
    }
    for split, pairs in contents.items():
        rows = [json.dumps({"prompt": prompt, "completion": done}) for prompt, done in pairs]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(rows), encoding="utf-8")
    return tmp_path


def test_json_holds_the_ids_and_labels_of_training(evoselect):
    found = json.loads(evoselect("preview", "--rows", 4, "--format", "json").out)
    config = LineConfig()
    task = load_task(config)
    rows, _ = load_encoder(config.model).encode(task.targets)
    trained = {row.sample_id: row for row in rows}
    assert len(found["rows"]) == 4
    for shown in found["rows"]:
        row = trained[shown["sample_id"]]
        assert tuple(token["id"] for token in shown["tokens"]) == row.input_ids
        assert [token["trained"] for token in shown["tokens"]] == [x >= 0 for x in row.labels]
        assert (shown["num_prompt"], shown["num_trained"]) == (row.num_prompt, row.num_trained)
        assert shown["stop_is_trained"]
    subtask_of = {sample.sample_id: sample.subtask for sample in task.targets}
    assert len({subtask_of[shown["sample_id"]] for shown in found["rows"]}) == 4
    assert found["longest"] == max(len(row.input_ids) for row in rows)


def test_the_texts_of_the_tokens_are_the_row(evoselect, files):
    [row, *_] = json.loads(evoselect("preview", *FILES, "--format", "json").out)["rows"]
    tokenizer = AutoTokenizer.from_pretrained(BASE_MODEL_DIR)
    text = "".join(token["text"] for token in row["tokens"])
    assert text == tokenizer.decode([token["id"] for token in row["tokens"]])
    assert text == f"<bos><user>{TRICKY}<end><assistant>no<end>"


def test_samples_are_shown_as_they_are_and_steer_no_terminal(evoselect, files):
    before = sorted(files.rglob("*"))
    ended = evoselect("preview", *FILES, "--set", "model.max_length=100", "--home", "no_home")
    assert ended.code == 0
    shown = ended.out.replace("│", "")
    assert r"say [bold]<end>[/bold]\x1b[31m and\n\u202estop" in shown
    assert "\x1b" not in ended.out
    assert "\u202e" not in ended.out
    assert "stop token trained:  yes" in shown
    assert sorted(files.rglob("*")) == before


def test_target_rows_that_cannot_be_trained_on_are_counted_with_the_reason(evoselect, files):
    limited = (*FILES, "--set", "model.max_length=100")
    found = json.loads(evoselect("preview", *limited, "--format", "json").out)
    assert (found["unusable"]["num_rows"], found["unusable"]["share"]) == (1, 0.5)
    assert found["unusable"]["reasons"]["too_long"]["num_rows"] == 1
    # The other target row, then those of the further splits.
    assert len(found["rows"]) == 3
    shown = evoselect("preview", *limited).out
    assert "Unusable target rows: 1 (50.0%)" in shown
    assert "more than 100)" in shown


@pytest.mark.parametrize(
    ("arguments", "sayings"),
    [
        (("--set", "model.chat_template=no.jinja"), ["model.chat_template no.jinja", "cannot"]),
        (("--set", "model.name=./no_model"), ["./no_model", "safetensors"]),
        (("--rows", "0"), ["--rows"]),
    ],
)
def test_bad_input_is_refused_in_one_message(evoselect, arguments, sayings):
    ended = evoselect("preview", *arguments)
    assert (ended.code, ended.out) == (2, "")
    assert all(saying in ended.err for saying in sayings)
