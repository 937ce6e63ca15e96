"""A function of the user's own writes rows: whatever is wrong with it is said with its name."""

import importlib
import sys

import pytest

from evoselect_pipeline.config_rows import FunctionSource
from evoselect_pipeline.core.records import sample_from_pair
from evoselect_pipeline.errors import ConfigError, DataError
from evoselect_pipeline.generation.base import Assignment
from evoselect_pipeline.generation.function import OwnFunction

TARGETS = [sample_from_pair(f"add {n} and 1", str(n + 1)) for n in range(3)]
MODULE = '''
from itertools import count

not_a_function = 3

def write_rows(targets, round_number, seed, weights, step=1):
    """Both forms of a row, for ever."""
    for n in count(0, step):
        target = max(targets, key=lambda t: weights.get(t.sample_id, 1.0))
        yield {
            "prompt": f"round {round_number}, seed {seed}: {n}?",
            "completion": target.completion,
            "parents": [target.sample_id],
        }
        user = {"role": "user", "content": f"and {n}?"}
        assistant = {"role": "assistant", "content": "so"}
        yield {"messages": [user, assistant], "source": "by hand"}

def forgets(targets, round_number, seed, weights):
    pass

def fails(targets, round_number, seed, weights):
    yield {"prompt": "a", "completion": "b"}
    raise KeyError("my own trouble")

def is_cut_off(targets, round_number, seed, weights):
    raise ConnectionError("try later")

def writes(targets, round_number, seed, weights, row):
    return [{"prompt": "a", "completion": "b"}, row]

def only(targets, round_number, seed, weights, row):
    return [row, row]

def too_few(targets):
    return []
'''


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "my_rows.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "my_rows.py"
    sys.modules.pop("my_rows", None)


def own(name="write_rows", module="my_rows", **changes) -> OwnFunction:
    return OwnFunction(FunctionSource(kind="function", function=f"{module}:{name}", **changes))


def write(generator):
    return generator.generate(Assignment(TARGETS, 2, seed=7, weights={TARGETS[1].sample_id: 3.0}))


@pytest.mark.usefixtures("module")
def test_rows_are_taken_as_many_as_are_asked_for_though_the_function_never_ends():
    """E9: never more, and nothing is made up."""
    first, second, third = write(own(num_candidates=3, options={"step": 5})).samples
    assert (first.prompt, first.completion) == ("round 2, seed 7: 0?", "2")
    assert (first.source, first.parents) == ("my_rows:write_rows", (TARGETS[1].sample_id,))
    assert (second.prompt, second.source, second.parents) == ("and 0?", "by hand", ())
    assert third.prompt.endswith(" 5?")


@pytest.mark.usefixtures("module")
@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("gone", {}, "cannot be imported: AttributeError: .* put its folder on PYTHONPATH"),
        ("f", {"module": "no_such.module"}, "cannot be imported: ModuleNotFoundError: No module"),
        ("not_a_function", {}, "expected a function, found int"),
        (
            "too_few",
            {},
            r"cannot be called with \(targets, round_number, seed, weights\): too many",
        ),
        ("write_rows", {"options": {"stepp": 1}}, "cannot be called with .* unexpected keyword"),
    ],
)
def test_a_function_that_cannot_be_called_is_refused_by_the_first_look(name, changes, said):
    with pytest.raises(ConfigError, match=rf"generator.function \S+:{name}: {said}"):
        own(name, **changes).fingerprint(0)
    with pytest.raises(ConfigError, match=said):
        write(own(name, **changes))


@pytest.mark.usefixtures("module")
@pytest.mark.parametrize(
    ("name", "row", "said"),
    [
        ("forgets", None, "TypeError: it returned NoneType, expected rows"),
        ("fails", None, "KeyError: 'my own trouble'"),
        ("writes", 5, "row 2: expected a mapping, found int"),
        ("writes", {"prompt": "a", "completion": "b", "parents": "p"}, "row 2: `parents` must be"),
    ],
)
def test_what_is_wrong_with_the_rows_is_said_with_the_row_or_in_the_functions_words(
    name, row, said
):
    generator = own(name, options={"row": row} if name == "writes" else {})
    with pytest.raises(DataError, match=rf"generator.function my_rows:{name}: {said}") as error:
        write(generator)
    if name == "fails":
        assert isinstance(error.value.__cause__, KeyError)


@pytest.mark.usefixtures("module")
@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "a"}, "no_conversation"),
        ({"prompt": "a", "completion": ""}, "empty_content"),
        ({"messages": [{"role": "user", "content": "a"}]}, "turns_out_of_order"),
        ({"messages": [{"role": "robot", "content": "a"}]}, "unknown_role"),
    ],
)
def test_f8_what_is_no_conversation_is_left_out_and_counted(row, reason):
    generated = write(own("writes", options={"row": row}))
    assert [sample.prompt for sample in generated.samples] == ["a"]
    assert generated.facts == {"refused_rows": {reason: 1}}
    with pytest.raises(DataError, match=r"none of 2 rows can be used, the first: .*:only: row 1: "):
        write(own("only", options={"row": row}))


@pytest.mark.usefixtures("module")
def test_a_connection_that_failed_is_let_through_because_it_may_come_back():
    """E1: Dagster tries again what may pass."""
    with pytest.raises(ConnectionError, match="try later"):
        write(own("is_cut_off"))


def test_the_fingerprint_follows_the_modules_source_and_the_options(module):
    before = own().fingerprint(0)
    assert own().fingerprint(1) == before
    assert own(options={"step": 2}).fingerprint(0) != before
    module.write_text(MODULE.replace("and {n}?", "then {n}?"))
    importlib.invalidate_caches()
    sys.modules.pop("my_rows")
    assert own().fingerprint(0) != before


@pytest.mark.parametrize("name", ["write_rows", "my_rows:", "my rows:f", "my_rows:f:g", ":f"])
def test_a_name_that_is_none_is_refused_by_the_configuration(name):
    with pytest.raises(ValueError, match=r"expected package\.module:name"):
        FunctionSource(kind="function", function=name)
