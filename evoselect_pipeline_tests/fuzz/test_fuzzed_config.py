"""Law: a configuration is read whole, and can be written down again, or a ConfigError says why not.

`--set` is tried with it: its values are YAML as well.
"""

import json
from collections.abc import Iterator

import yaml
from hypothesis import strategies as st

from evoselect_pipeline.config import LineConfig
from evoselect_pipeline.config_file import _sections, load_config, parse_config
from evoselect_pipeline.errors import ConfigError
from evoselect_pipeline_tests.fuzz.fuzzing import ANY_TEXT, JSON_VALUES, damaged, fuzz

FILES = {
    "line": "my_line",
    "task": {
        "kind": "files",
        "rows": "rows.jsonl",
        "targets": {"dataset": "openai/gsm8k", "split": "train[:20]"},
        "columns": {"prompt": "{{ a }}", "completion": "b"},
        "metric": {"kind": "regex", "pattern": "a(b)"},
    },
    "generator": {
        "kind": "function",
        "function": "own:rows",
        "options": {"a": [1, None, {"b": "c"}]},
    },
    "selection": {"ratio": 0.1, "evoselect": {"epsilon": 0.1, "reach": None}},
    "engine": "ray",
}
SERVER = {
    "task": {"kind": "files", "rows": "rows.jsonl"},
    "generator": {
        "kind": "server",
        "base_url": "http://127.0.0.1:8000/v1",
        "model": "m",
        "extra_body": {"seed": None},
    },
    "model": {"name": "Qwen/Qwen2.5-0.5B", "dtype": "bfloat16", "trust_remote_code": False},
    "schedule": {"cron": "0 2 * * *", "timezone": "Europe/Berlin"},
}
DEFS = {"type": "evoselect_pipeline.components.EvolutionLine", "attributes": FILES}
TREES = [FILES, SERVER, DEFS]
LEAVES = [leaf for tree in TREES for leaf in tree.values()]

WORDS = """
& * [ ] { } : , - ? | > ' " # % @ ` << = ~ null true .inf -.nan 0x_ 0o7 1:1 1e9 --- ...
2001-99-99 2001-12-14t21:59:43.10-05:00 &a *a
!!bool !!int !!float !!timestamp !!binary !!set !!omap !!map !!python/name:os ! !x
"""
MARKS = [*WORDS.split(), "\n", "\n  ", " ", "\t", "&a [*a]", "9" * 5000, "[" * 400]
MARKS += ["\ufeff", '"\\ud800"', "\u2028", "\0"]
KEYS = sorted({key for keys in _sections().values() for key in keys})
YAML = st.lists(st.sampled_from(MARKS) | st.sampled_from(KEYS) | ANY_TEXT, max_size=12)
YAML_TEXT = YAML.map(" ".join) | YAML.map("".join)
VALUES = JSON_VALUES | st.sampled_from(LEAVES) | st.integers(-2, 2) | st.floats(0, 1)
NAMES = st.sampled_from(KEYS) | ANY_TEXT
ANY_TREE = st.dictionaries(
    NAMES, VALUES | st.dictionaries(NAMES, VALUES | st.dictionaries(NAMES, VALUES, max_size=3))
)


def leaves_of(tree: dict, before: str = "") -> Iterator[tuple[str, object]]:
    for key, value in tree.items():
        yield before + key, value
        yield from leaves_of(value, f"{before}{key}.") if isinstance(value, dict) else ()


DEFAULTS = list(leaves_of(LineConfig().model_dump(exclude={"task", "generator"})))
PATHS = st.sampled_from([path for path, _ in DEFAULTS]) | st.lists(
    NAMES, min_size=1, max_size=3
).map(".".join)
NUMBERS = st.sampled_from([pair for pair in DEFAULTS if isinstance(pair[1], int | float)])
CHANGES = st.sampled_from(DEFAULTS) | st.tuples(PATHS, VALUES)
CHANGES |= st.tuples(NUMBERS, st.floats() | st.integers(0, 3)).map(
    lambda drawn: (drawn[0][0], drawn[0][1] * drawn[1])
)
OVERRIDES = st.lists(st.tuples(PATHS, YAML_TEXT).map("=".join) | ANY_TEXT, max_size=3)


def check(read, where: str) -> None:
    try:
        config = read()
    except ConfigError as error:
        assert str(error).startswith((f"{where}: ", "--set "))
        return
    text = json.dumps(config.model_dump(mode="json"), ensure_ascii=False, allow_nan=False)
    assert parse_config(json.loads(text.encode("utf-8")), "again") == config


@fuzz(examples=50, tree=ANY_TREE | JSON_VALUES, overrides=OVERRIDES)
def test_any_tree_with_any_overrides_is_a_configuration_or_refused(tree, overrides):
    check(lambda: parse_config(tree, "f", overrides), "f")


@fuzz(examples=60, tree=st.sampled_from(TREES), changes=st.lists(CHANGES, max_size=4))
def test_any_change_of_a_good_configuration_is_a_configuration_or_refused(tree, changes):
    overrides = [f"{path}={json.dumps(value)}" for path, value in changes]
    check(lambda: parse_config(tree, "f", overrides), "f")


@fuzz(examples=50, text=YAML_TEXT)
def test_any_text_is_a_configuration_or_refused(text, tmp_path_factory):
    file = tmp_path_factory.getbasetemp() / "f.yaml"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    check(lambda: load_config(file), str(file))


@fuzz(examples=60, content=st.sampled_from(TREES).flatmap(lambda t: damaged(yaml.dump(t).encode())))
def test_a_damaged_file_is_a_configuration_or_refused(content, tmp_path_factory):
    file = tmp_path_factory.getbasetemp() / "f.yaml"
    file.write_bytes(content)
    check(lambda: load_config(file), str(file))
