"""Law: a configuration is read whole or refused with the key, the value and the nearest name."""

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


def test_overrides_win_and_are_read_as_yaml():
    config = parse_config(
        {"selection": {"ratio": 0.5, "method": "random"}},
        "f",
        ["selection.ratio=0.1", "train.epochs=2.5", "selection.evoselect.epsilon=0.2"],
    )
    assert (config.selection.ratio, config.selection.method) == (0.1, "random")
    assert config.train.epochs == 2.5
    assert config.selection.evoselect.epsilon == 0.2


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
        ({"generator": {"kind": "files", "pattern": "x"}}, "both be playground, or neither"),
        ([1], "expected keys and values"),
    ],
)
def test_f17_what_cannot_be_used_is_refused_by_name(tree, complaint):
    with pytest.raises(ConfigError, match=complaint):
        parse_config(tree, "f")


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
