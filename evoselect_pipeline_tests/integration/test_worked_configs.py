"""The worked configurations load, and pass `evoselect check` on rows of their datasets' form."""

import json

import pytest
import yaml

from evoselect_pipeline.config_file import load_config
from evoselect_pipeline.playground.kinds import normalised
from evoselect_pipeline.rounds.data import load_task
from evoselect_pipeline_tests.integration.fake_llm import Reply, fake_llm
from evoselect_pipeline_tests.integration.process import REPOSITORY

EXAMPLES = REPOSITORY / "docs" / "examples"
NAMES = sorted(file.stem for file in EXAMPLES.glob("*.yaml"))
STOCK = EXAMPLES / "stock"  # the one whose rows are shipped
PLACES = ("Oslo", "Lima", "Rome", "Cairo")


def school_sum(number: int) -> dict:
    """A row as GSM8K has them."""
    return {
        "question": f"A farmer in {PLACES[number % 4]} has {number} cows and buys {number * 3} more"
        f" on day {number + 40}. How many cows does she have?",
        "answer": f"She has {number}+{number * 3} = <<{number}+{number * 3}={number * 4}>>"
        f"{number * 4} cows.\n#### {number * 4}",
    }


def quiz(number: int) -> dict:
    """A row as ARC has them; some of its rows number their options."""
    labels = ["A", "B", "C", "D"] if number % 3 else ["1", "2", "3", "4"]
    return {
        "id": f"row {number}",
        "question": f"In year {number}, {number * 17} boats left {PLACES[number % 4]}. Where to?",
        "choices": {"text": [f"port {number * k}" for k in range(1, 5)], "label": labels},
        "answerKey": labels[number % 4],
    }


ROWS = {"gsm8k": school_sum, "multiple_choice": quiz}


@pytest.fixture
def on_local_rows(tmp_path):
    """Make a worked configuration one whose datasets and models are here."""

    def write(name: str):
        tree = yaml.safe_load((EXAMPLES / f"{name}.yaml").read_text(encoding="utf-8"))
        if name in ROWS:
            numbers = iter(range(10**6))
            for split, size in (("rows", 500), ("validation", 40), ("test", 40)):
                if split in tree["task"]:
                    folder = tmp_path / split
                    folder.mkdir()
                    rows = [ROWS[name](next(numbers)) for _ in range(size)]
                    text = "".join(json.dumps(row) + "\n" for row in rows)
                    (folder / "train.jsonl").write_text(text)
                    tree["task"][split] = {"dataset": str(folder)}
        if name == "own_files":
            tickets = "".join(f"Where is parcel {n} of {n * 7}?,delivery\n" for n in range(60))
            (tmp_path / "tickets.csv").write_text(f"ticket,queue\n{tickets}")
            (tmp_path / "c0000.jsonl").write_text(json.dumps({"prompt": "q", "completion": "a"}))
            tree["task"]["rows"] = str(tmp_path / "tickets.csv")
            tree["generator"]["pattern"] = f"{tmp_path}/c{{round}}.jsonl"
        if name in ROWS:
            for model in {"model", "proxy"} & tree.keys():
                tree[model] = {"max_length": tree[model]["max_length"]}
        file = tmp_path / f"{name}.yaml"
        file.write_text(yaml.safe_dump(tree))
        return file

    return write


def test_there_are_these():
    assert NAMES == ["gsm8k", "multiple_choice", "own_files", "playground"]


@pytest.mark.parametrize("name", NAMES)
def test_a_worked_configuration_loads(name):
    config = load_config(EXAMPLES / f"{name}.yaml")
    assert config.line in (name, f"{name}_example", "arc_challenge")


@pytest.mark.parametrize("name", NAMES)
def test_a_worked_configuration_passes_the_check_on_rows_of_its_form(
    name, on_local_rows, evoselect, tmp_path
):
    file = on_local_rows(name)
    with fake_llm(lambda number, body: Reply({}, 500)) as server:
        at = ("--set", f"generator.base_url={server.address}") if name in ROWS else ()
        checked = evoselect("check", "--config", file, "--home", tmp_path / "home", *at)
    assert not server.asked  # the list of models alone, which costs nothing
    assert checked.code == 0, checked.err
    assert "nothing is wrong" in checked.out
    assert not (tmp_path / "home").exists()


def test_the_example_in_files_passes_the_check_as_it_is_shipped(evoselect, monkeypatch, tmp_path):
    monkeypatch.chdir(REPOSITORY)
    file = (STOCK / "line.yaml").relative_to(REPOSITORY)
    checked = evoselect("check", "--config", file, "--home", tmp_path / "home")
    assert checked.code == 0, checked.err
    assert "rows: 70 targets, 70 validation, 70 test" in checked.out
    assert "round 0 reads 600 rows of docs/examples/stock/candidates_0000.jsonl" in checked.out
    assert not (tmp_path / "home").exists()


def test_the_example_in_files_says_where_it_runs_and_asks_nobody():
    assert (
        "evoselect run --config docs/examples/stock/line.yaml" in (STOCK / "line.yaml").read_text()
    )
    config = load_config(STOCK / "line.yaml")
    assert (config.line, config.generator.kind, config.proxy) == ("stock", "files", None)
    assert config.model.name == "playground"


def test_the_example_s_candidates_are_new_in_each_round_and_ask_no_labelled_row():
    names = ("labelled", "candidates_0000", "candidates_0001")
    texts = [(STOCK / f"{name}.jsonl").read_text(encoding="utf-8") for name in names]
    rows = [[json.loads(line) for line in text.splitlines()] for text in texts]
    assert [len(some) for some in rows] == [210, 600, 600]
    assert all(row.keys() == {"prompt", "completion"} for some in rows for row in some)
    prompts = [{normalised(row["prompt"]) for row in some} for some in rows]
    assert not (prompts[0] & prompts[1] or prompts[0] & prompts[2] or prompts[1] & prompts[2])
    assert sum(map(len, texts)) < 250_000, "a checkout carries it"


def test_questions_and_options_become_the_paper_s_prompts(on_local_rows):
    rows = load_task(load_config(on_local_rows("multiple_choice"))).test
    [row] = [row for row in rows if row.prompt.startswith("In year 540,")]
    assert row.prompt == (
        "In year 540, 9180 boats left Oslo. Where to?\n(A) port 540\n(B) port 1080\n(C) port 1620\n"
        "(D) port 2160\nAnswer with the letter of the right option."
    )
    assert row.completion == "(A)"


def test_school_sums_are_drawn_with_the_numbers_that_count(on_local_rows):
    rows = load_task(load_config(on_local_rows("gsm8k")))
    assert (len(rows.targets), len(rows.validation), len(rows.test)) == (64, 400, 40)
