"""Law: a configuration is read whole or refused with the key, the value and the nearest name."""

from pathlib import Path

import pytest
import yaml

from evoselect_pipeline.config import LineConfig
from evoselect_pipeline.config_file import load_config, parse_config
from evoselect_pipeline.errors import ConfigError


def test_nothing_given_is_the_playground():
    assert parse_config(None, "nowhere") == LineConfig()


def test_a_defs_yaml_is_a_configuration_file(tmp_path):
    path = tmp_path / "defs.yaml"
    path.write_text(yaml.safe_dump({"type": "x.EvolutionLine", "attributes": {"seed": 3}}))
    assert load_config(path).seed == 3


def test_of_a_file_that_is_not_there_the_folder_that_was_searched_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as refused:
        load_config(Path("mine.yaml"))
    said = "mine.yaml: cannot be read: No such file or directory; check the path, which is looked"
    assert str(refused.value) == f"{said} for in {tmp_path}"


def test_overrides_win_and_are_read_as_yaml():
    config = parse_config(
        {"selection": {"ratio": 0.5, "method": "random"}},
        "f",
        ["selection.ratio=0.1", "train.epochs=2.5", "selection.evoselect.epsilon=0.2"],
    )
    assert (config.selection.ratio, config.selection.method) == (0.1, "random")
    assert config.train.epochs == 2.5
    assert config.selection.evoselect.epsilon == 0.2


OWN_TASK = {"kind": "files", "rows": "rows.jsonl"}
OWN_FILES = {"kind": "files", "pattern": "r{round}.jsonl"}


@pytest.mark.parametrize(
    ("tree", "complaint"),
    [
        ({"selecton": {}}, r"f: unknown key 'selecton'; did you mean 'selection'\?"),
        ({"train": {"leraning_rate": 1}}, r"train.leraning_rate'; did you mean 'learning_rate'"),
        ({"selection": {"evoselect": {"epsilom": 1}}}, r"did you mean 'epsilon'"),
        ({"train": {"learning_rate": -1}}, r"train.learning_rate: .*greater than 0, found -1"),
        ({"selection": {"ratio": "much"}}, r"selection.ratio: .*found 'much'"),
        ({"selection": {"evoselect": {"epsilon": 0}}}, "epsilon must be above 0"),
        ({"selection": {"method": "best"}}, "selection.method"),
        ({"model": {"name": "a/b", "trust_remote_code": True}}, r"model: .*all 40 digits of it"),
        (
            {"model": {"name": "a/b", "trust_remote_code": True, "revision": "main"}},
            "revision is 'main'",
        ),
        ({"model": {"quantization": "int8"}}, "model.quantization: .*'none' or 'nf4'"),
        ({"line": "../../x"}, "line '../../x': a name is"),
        ({"line": "My-Stock"}, "^f: line 'My-Stock': a name is"),
        ({"generator": {"kind": "files", "pattern": "x"}}, "both be playground, or neither"),
        ({"generator": {"kind": "file"}}, r"generator.kind: .* 'file'; did you mean 'files'\?$"),
        ({"task": {"kind": [1]}}, r"^f: task.kind: expected one of playground, files, found"),
        ({"task": "files"}, "^f: task: expected .* its kind one of playground, files; found 'f"),
        ({"task": OWN_TASK | {"rows": [1]}, "generator": OWN_FILES}, "f: task.rows: .*found"),
        ({"model": {"chat_template": {}}}, "f: model.chat_template: .*path"),
        ({"train": {"rank": 1}}, "unknown key 'train.rank' here; it belongs into lora$"),
        ({"lora": {"seed": 1}}, "unknown key 'lora.seed' here; it belongs into the top level$"),
        ([1], "expected keys and values"),
    ],
)
def test_f17_what_cannot_be_used_is_refused_by_name(tree, complaint):
    with pytest.raises(ConfigError, match=complaint):
        parse_config(tree, "f")


def told(tree: dict, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as refused:
        parse_config(tree, "f", overrides)
    return str(refused.value).splitlines()


def test_a_key_like_none_of_its_section_is_answered_with_those_that_are_there():
    [said] = told({}, "train.lr=1")
    assert said.startswith("f: unknown key 'train.lr'; the keys of train are steps, epochs, ")
    [said] = told({}, "zzz=1")
    assert said.startswith("f: unknown key 'zzz'; the keys of the top level are line, seed, ")
    [said] = told({"task": OWN_TASK, "generator": OWN_FILES}, "task.metric.knd=exact")
    assert said == "f: unknown key 'task.metric.knd'; did you mean 'kind'?"


@pytest.mark.parametrize(
    ("tree", "missing"),
    [
        ({"task": {"rows": "a.jsonl"}}, "'task.rows'; `task.kind: files` is missing"),
        ({"task": {"test": "a.jsonl"}}, "'task.test'; `task.kind: files` is missing"),
        (
            {"generator": {"pattern": "x"}},
            "'generator.pattern'; `generator.kind: files` is missing",
        ),
        ({"generator": {"base_url": "x"}}, "'generator.base_url'; `generator.kind: server` is"),
        ({"generator": {"function": "x"}}, "'generator.function'; `generator.kind: function` is"),
        ({"generator": {"top_p": 1}}, "'generator.top_p'; `generator.kind: model or server` is"),
    ],
)
def test_a_kind_that_was_left_out_is_named_by_its_keys(tree, missing):
    [said] = told(tree)
    assert said.startswith(f"f: unknown key {missing}")


def test_kinds_that_do_not_go_together_are_told_before_the_keys_that_suffer_from_it():
    first, second = told({"task": OWN_TASK, "generator": OWN_FILES}, "generator.kind=playground")
    assert "must both be playground, or neither; the task's is files, the generator's" in first
    assert second == (
        "f: unknown key 'generator.pattern' of kind playground; `generator.kind: files` has it"
    )
    first, *others = told({"task": {"rows": "a.jsonl"}, "generator": OWN_FILES})
    assert "must both be playground" in first and "one that is left out is playground" in first
    assert others == ["f: unknown key 'task.rows'; `task.kind: files` is missing"]
    # Said once where nothing else is wrong, and not of a kind that is misspelt.
    assert len(told({"task": OWN_TASK})) == 1
    [said] = told({"task": {"kind": "file"}})
    assert "did you mean 'files'?" in said


def test_of_a_dataset_its_own_mistake_is_told_and_nothing_of_paths():
    rows = {"dataset": "a/b", "splt": "train"}
    assert told({"task": OWN_TASK | {"rows": rows}, "generator": OWN_FILES}) == [
        "f: unknown key 'task.rows.splt'; did you mean 'split'?"
    ]


BOUNDS = {
    **dict.fromkeys(("epsilon", "num_updates", "sinkhorn_iterations", "step_size"), 0),
    **dict.fromkeys(("tolerance", "dedup_cosine", "reach"), 0),
    **dict.fromkeys(("diversity", "diversity_ramp", "memory"), -1),
    "norm_quarantine": 1,
    "quality_floor": 1,
}
OF_GATES = {"ngram": 4, "min_answer_chars": 0, "max_chars": 0, "near_copy": 0, "max_per_source": 0}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *((f"selection.evoselect.{name}", value) for name, value in BOUNDS.items()),
        *((f"gates.{name}", value) for name, value in OF_GATES.items()),
    ],
)
def test_a_message_names_the_key_by_which_the_value_can_be_set(key, value):
    with pytest.raises(ConfigError, match=rf"{key} (must be|is a) .*, got {value}"):
        parse_config({}, "f", [f"{key}={value}"])


@pytest.mark.parametrize(
    "model", [{"name": "a/b", "revision": "0123456789abcdef" * 2 + "01234567"}, {"name": "."}]
)
def test_code_of_a_model_is_trusted_at_a_commit_or_in_a_folder(model):
    assert parse_config({"model": model | {"trust_remote_code": True}}, "f").model.trust_remote_code


@pytest.mark.parametrize("override", ["selection.ratio", "=1", "seed=[1"])
def test_a_malformed_override_is_refused(override):
    with pytest.raises(ConfigError, match="--set"):
        parse_config({}, "f", [override])


@pytest.mark.parametrize("content", ["a: [", "!!python/object/apply:os.getcwd []"])
def test_f17_what_is_not_plain_yaml_is_refused(tmp_path, content):
    path = tmp_path / "line.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config(path)


def test_the_configuration_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        LineConfig().seed = 1  # type: ignore[misc]
