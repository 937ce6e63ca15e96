"""What fuzzing has found, by name."""

import json
import time
from dataclasses import asdict
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from evoselect_pipeline.config_file import load_config, parse_config
from evoselect_pipeline.config_rows import MetricSettings
from evoselect_pipeline.core.capped import capped_transport, integer_quotas
from evoselect_pipeline.core.records import sample_from_pair
from evoselect_pipeline.core.transport import sinkhorn
from evoselect_pipeline.errors import ArtifactError, ConfigError, DataError
from evoselect_pipeline.evaluation.metrics import chosen_option, final_number, load_metric
from evoselect_pipeline.stores.answer_log import Answer, AnswerLog
from evoselect_pipeline.stores.artifacts import find, open_artifact, publish
from evoselect_pipeline.stores.manifests import MANIFEST, SEAL
from evoselect_pipeline.stores.rows import read_samples

UNREADABLE = ["2001-99-99", "!!bool x", "!!timestamp x", "!!float x", "0x_", "1" * 5000, "[" * 500]


@pytest.mark.parametrize("text", UNREADABLE, ids=lambda text: text[:10])
def test_what_yaml_takes_for_a_value_and_cannot_convert_is_named(text, tmp_path):
    file = tmp_path / "line.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"line.yaml: is not valid YAML"):
        load_config(file)
    with pytest.raises(ConfigError, match=r"--set 'seed=.*': the value is not valid YAML"):
        parse_config({}, "f", [f"seed={text}"])


OWN = {"task": {"kind": "files", "rows": "r.jsonl"}}
OWN["generator"] = {"kind": "function", "function": "own:rows"}


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (["train.learning_rate=.inf"], r"train.learning_rate: .*finite number"),
        (["selection.evoselect.epsilon=.inf"], r"selection.evoselect.epsilon: .*finite number"),
        (["seed=4294967296"], r"seed: .*less than 4294967296"),
        (["generator.options={a: 2001-01-01}"], r"generator.options: .*what JSON can hold"),
        (['generator.options={a: "\\ud800"}'], r"generator.options: .*what JSON can hold"),
        (["generator.options={a: &x [*x]}"], r"generator.options: .*what JSON can hold"),
        (["task.metric={kind: regex, pattern: '" + "(" * 3000 + "'}"], r"task.metric: .*pattern"),
        (["task.metric={kind: regex, pattern: 'a{99999999999}'}"], r"task.metric: .*too large"),
        (["model.trust_remote_code=true", f"model.name={'a' * 5000}"], r"model: .*needs a folder"),
    ],
    ids=lambda value: value[0][:40] if isinstance(value, list) else "",
)
def test_a_setting_that_would_fail_later_is_refused_at_once(overrides, complaint):
    with pytest.raises(ConfigError, match=complaint):
        parse_config(OWN, "f", overrides)


@pytest.mark.parametrize("attributes", [[1], "text", True])
def test_attributes_that_are_no_keys_and_values_are_refused(attributes):
    with pytest.raises(ConfigError, match="expected keys and values"):
        parse_config({"type": "x", "attributes": attributes}, "f")


def test_a_key_at_the_wrong_place_is_not_proposed_in_its_own_stead():
    with pytest.raises(ConfigError, match="unknown key 'accumulation' here; it belongs into"):
        parse_config({"accumulation": 2}, "f")


BLANKS = ["answer" + " " * 5000 + "!", "\n" * 50_000 + "!", " is A" + " " * 50_000 + "!"]


@pytest.mark.parametrize("answer", BLANKS, ids=["after a word", "lines", "after an option"])
def test_a_crowd_of_blanks_in_an_answer_does_not_hold_up_the_evaluation(answer):
    began = time.process_time()
    assert chosen_option(answer) is None
    assert time.process_time() - began < 1


def test_numbers_that_python_cannot_read_or_hold_are_none():
    assert final_number("so 1.5/2") == Fraction(3, 4)
    for text in ("1e999999999", "1e-999999999", "9" * 5000, "1/" + "9" * 5000):
        assert final_number(f"#### {text}") is None
    score = load_metric(MetricSettings(kind="numeric")).score
    assert score("1e999999999", sample_from_pair("q", "#### 4")) == 0


@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value")
def test_sums_that_overflow_are_no_mass_and_no_shares():
    huge = np.full(4, 1e308)
    with pytest.raises(DataError, match="same mass above 0, got inf"):
        sinkhorn(huge, huge, np.eye(4), epsilon=0.1)
    with pytest.raises(DataError, match="a finite sum above 0"):
        integer_quotas(huge, 3)
    for quotas in (np.array([2**62, 2**62]), np.array([1e300, 0])):
        with pytest.raises(DataError, match="lower the budget"):
            capped_transport(np.eye(2), quotas)


@pytest.mark.parametrize("best", [0, 1])
def test_costs_near_the_largest_number_are_told_apart(best):
    cost = np.full((2, 2), 1.7e308)
    cost[[0, 1], [best, 1 - best]] = 0.0
    assert capped_transport(cost, np.array([1, 1])).targets.tolist() == [best, 1 - best]


def test_a_parquet_file_that_breaks_its_reader_is_named(tmp_path):
    file = tmp_path / "rows.parquet"
    times = pa.array([0], pa.timestamp("us", "Mars/Olympus"))
    parquet.write_table(pa.table({"prompt": ["q"], "completion": ["a"], "at": times}), file)
    with pytest.raises(DataError, match=r"rows.parquet: cannot be read as Parquet.*Mars"):
        read_samples(file)


ANSWER = asdict(Answer("r", 0, "text", "stop", 10, 5, False, 0.5))


@pytest.mark.parametrize(
    "changed",
    [
        {"request": ["r"]},
        {"attempt": "0"},
        {"prompt_tokens": "10"},
        {"completion_tokens": -5},
        {"cost": None},
        {"cost": float("nan")},
        {"estimated": 0},
    ],
    ids=str,
)
def test_an_answer_of_wrong_types_is_named_with_its_line(changed, tmp_path):
    file = tmp_path / "answers.jsonl"
    file.write_text(
        json.dumps(ANSWER) + "\n" + json.dumps(ANSWER | {"attempt": 1} | changed) + "\n"
    )
    with pytest.raises(ArtifactError, match=r"answers.jsonl:2: expected one answer"):
        AnswerLog(file)


def test_an_answer_nested_too_deep_is_named_with_its_line(tmp_path):
    file = tmp_path / "answers.jsonl"
    file.write_text("[" * 5000 + "\n")
    with pytest.raises(ArtifactError, match=r"answers.jsonl:1: expected one answer"):
        AnswerLog(file)


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest["inputs"].update(seed=4),
        lambda manifest: manifest.update(kind="other"),
        lambda manifest: manifest.update(created="yesterday"),
        lambda manifest: manifest.pop("kind"),
        lambda manifest: manifest.pop(SEAL) and manifest.pop("kind"),
        lambda manifest: manifest.update(seam=manifest.pop(SEAL)),
        lambda manifest: manifest.pop(SEAL) and manifest["files"].update({"a": {}}),
    ],
)
def test_a_manifest_that_was_changed_is_damaged(change, tmp_path):
    with publish(tmp_path / "stage", inputs={"seed": 3}) as folder:
        (folder / "a").write_text("a")
    manifest = json.loads((tmp_path / "stage" / MANIFEST).read_text())
    change(manifest)
    (tmp_path / "stage" / MANIFEST).write_text(
        json.dumps(manifest, indent=2, sort_keys=True) + "\n"
    )
    with pytest.raises(ArtifactError, match="damaged"):
        open_artifact(tmp_path / "stage")
    assert find(tmp_path / "stage", {"seed": 3}) is None


def test_a_manifest_of_an_earlier_version_has_no_seal_and_is_read(tmp_path):
    with publish(tmp_path / "stage", inputs={"seed": 3}) as folder:
        (folder / "a").write_text("a")
    whole = open_artifact(tmp_path / "stage")
    manifest = {key: value for key, value in whole.manifest.items() if key != SEAL}
    (tmp_path / "stage" / MANIFEST).write_text(json.dumps(manifest))
    assert open_artifact(tmp_path / "stage").digest == whole.digest
