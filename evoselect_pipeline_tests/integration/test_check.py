"""Law: `evoselect check` tells what is odd in rows that are fit to use, and passes all the same."""

import json

import pytest
from transformers import AutoTokenizer

from evoselect_pipeline.commands.check import refuse_bad_input
from evoselect_pipeline.config import ModelSettings
from evoselect_pipeline.config_file import parse_config
from evoselect_pipeline.errors import ConfigError
from evoselect_pipeline.rounds.line import Line
from evoselect_pipeline.stores.home import Home
from evoselect_pipeline.training.models import load_encoder

SPLITS = ("targets", "validation", "test")
TASK = "task={kind: files, targets: targets.jsonl, validation: validation.jsonl, test: test.jsonl}"
FILES = ("--set", TASK, "--set", "generator={kind: files, pattern: 'r{round}.jsonl'}")
STORY = "Anna keeps {} grey goats on the hill behind her house, how many goats does she keep there"


def write(path, *rows: tuple[str, str]) -> None:
    text = "".join(json.dumps({"prompt": q, "completion": a}) + "\n" for q, a in rows)
    path.write_text(text, encoding="utf-8")


@pytest.fixture
def rows(tmp_path):
    """Two good rows for each split, and for round 0."""
    for name in (*SPLITS, "r0000"):
        write(tmp_path / f"{name}.jsonl", (f"add {name} and 1", "2"), (f"why {name} too", "3"))
    return tmp_path


def many(number: int, word: str = "number") -> list[tuple[str, str]]:
    """Rows of which no two are alike."""
    return [(f"{word}{n} is{n} what{n}", "2") for n in range(number)]


@pytest.fixture
def notes(evoselect):
    """The notes of a check that passes."""

    def notes(*options) -> list[str]:
        ended = evoselect("check", *FILES, "--format", "json", *options)
        assert (ended.code, json.loads(ended.out)["problems"]) == (0, [])
        return json.loads(ended.out)["notes"]

    return notes


def test_the_sizes_are_told_and_of_good_rows_nothing_else(rows, notes):
    for split, number in zip(SPLITS, (16, 50, 50), strict=True):
        write(rows / f"{split}.jsonl", *many(number, split))
    assert notes() == [
        "rows: 16 targets, 50 validation, 50 test",
        "candidates: round 0 reads 2 rows of r0000.jsonl",
    ]


def test_splits_too_small_to_tell_anything_are_told_with_what_they_could_tell(rows, notes):
    for split, number in zip(SPLITS, (15, 49, 1), strict=True):
        write(rows / f"{split}.jsonl", *many(number, split))
    assert notes()[1:4] == [
        "few targets: 15 rows hardly say what the task asks, and selection follows them alone; 64"
        " are a good start",
        # 196 * sqrt(0.5 / 49) = 19.8, and 196 * sqrt(0.5 / 200) = 9.8
        "few validation rows: with 49 a gain of less than 20 percentage points cannot be told from"
        " chance; with 200, a good start, 10 points can",
        "few test rows: with 1 a gain of less than 100 percentage points cannot be told from"
        " chance; with 200, a good start, 10 points can",
    ]


def test_rows_that_are_in_no_split_are_counted(rows, notes):
    write(rows / "all.jsonl", *many(200))

    def told(**task) -> list[str]:
        given = {"kind": "files", "rows": "all.jsonl"} | task
        return [n for n in notes("--set", f"task={json.dumps(given)}") if "are not used" in n]

    [note] = told()
    assert note.startswith("2 of 200 distinct rows are not used: ")
    [note] = told(num_targets=20, num_validation=60, num_test=100)
    assert note.startswith("20 of 200 distinct rows are not used: ")
    assert not told(num_targets=80, num_validation=60)
    [note] = told(test="test.jsonl", num_targets=60, num_validation=60, num_test=1)
    assert note.startswith("81 of 202 distinct rows are not used: ")


def test_notes_stand_below_the_verdict_and_steer_no_terminal(rows, evoselect):
    write(rows / "test.jsonl", ("add [bold]\x1b[31m and 1", "2"))
    ended = evoselect("check", *FILES)
    assert ended.code == 0
    verdict, *told = ended.out.splitlines()
    assert verdict.startswith("Line playground: nothing is wrong")
    assert told[0] == "  rows: 2 targets, 2 validation, 1 test"
    assert any("[bold]" in note for note in told)
    assert "\x1b" not in ended.out


def test_a_playground_has_notes_of_its_size_alone(evoselect):
    told = json.loads(evoselect("check", "--format", "json").out)["notes"]
    assert told == [
        "rows: 64 targets, 200 validation, 600 test",
        "candidates: the playground's weak world writes 6000 a round",
    ]


def test_near_copies_between_files_of_the_user_are_counted_and_the_first_pair_is_named(rows, notes):
    write(rows / "targets.jsonl", ("what else", "1"), (STORY.format(12), "12"))
    copies = [(f"Now: {STORY.format(12)}", "12"), (STORY.format(12) + ", please", "12")]
    write(rows / "test.jsonl", *copies, ("something that nobody else asks", "1"))
    [note] = [text for text in notes() if "nearly ask" in text]
    assert note.startswith("2 rows nearly ask what a row of another split asks, as targets row ")
    assert note.count("Anna keeps 12 grey goats") == 2
    assert "share 70% of their word triples" in note
    assert not [text for text in notes("--set", "task.near_text=1") if "nearly ask" in text]
    # Rows that are alike within a split are nobody's leak.
    write(rows / "targets.jsonl", ("what else", "1"))
    assert not [text for text in notes() if "nearly ask" in text]


def test_answers_that_cannot_be_given_in_full_are_counted_with_what_to_set(rows, notes):
    answer = "one two three four five"
    write(rows / "validation.jsonl", ("add 1 and 2", "3"), ("say it", answer))
    tokenizer = load_encoder(ModelSettings()).tokenizer
    length = len(tokenizer(answer, add_special_tokens=False)["input_ids"])

    def told(most: int) -> list[str]:
        return [n for n in notes("--set", f"evaluation.max_new_tokens={most}") if "longer" in n]

    assert not told(length)
    [note] = told(length - 1)
    said = f"1 of 4 reference answers are longer than evaluation.max_new_tokens = {length - 1}"
    assert note.startswith(said)
    assert note.endswith(f"has {length} tokens: set evaluation.max_new_tokens to {length + 1}")


def test_f6_rows_with_characters_that_cannot_be_seen_are_flagged_and_kept(rows, notes):
    odd = ("nul \x00 here", "zero\u200bwidth", "\u202eoverride")
    plain = (
        "tab\tand\r\nlines",
        "emoji \U0001f469\u200d\U0001f680",
        "caf\u00e9",
        "\u0645\u06cc\u200c\u062e",
    )
    write(rows / "test.jsonl", *((text, "x") for text in (*plain, *odd)))
    write(rows / "r0000.jsonl", ("fine", "an answer\u2066"), ("fine too", "yes"))
    trusted, candidates = [text for text in notes() if "cannot be seen" in text]
    assert trusted.startswith(
        "3 rows hold characters that cannot be seen, and keep them; the first"
    )
    assert " test row " in trusted and trusted.endswith(" with U+0000")
    assert candidates.startswith("1 rows ")
    assert " candidate row " in candidates and candidates.endswith(" with U+2066")


def test_f8_candidates_that_are_no_conversations_are_told_with_the_first_one(rows, notes):
    with (rows / "r0000.jsonl").open("a") as file:
        file.write('{"prompt": "q", "completion": " "}\n{"messages": []}\n')
    [told] = [text for text in notes() if "left out" in text]
    assert told.startswith(
        "2 further candidates are left out (an empty prompt or answer: 1, turns that"
    )
    assert "; the first: r0000.jsonl:3: turn 2 (assistant): content must be" in told


@pytest.mark.parametrize("strict", [(), ("--strict",)])
def test_a_file_of_the_next_round_that_is_not_there_yet_is_no_problem(rows, notes, home, strict):
    (rows / "r0000.jsonl").unlink()
    told = notes("--home", home.root, *strict)
    assert "the next round has no file yet: round 0 reads r0000.jsonl" in told


def test_a_file_of_the_next_round_that_cannot_be_read_is_one(rows, evoselect, home):
    (rows / "r0000.jsonl").write_text("{")
    ended = evoselect("check", *FILES, "--home", home.root, "--strict", "--format", "json")
    told = json.loads(ended.out)
    assert ended.code == 1
    assert [p["where"] for p in told["problems"]] == ["the next round"]
    assert evoselect("check", *FILES).code == 2


def test_each_tokenizer_is_loaded_once(rows, notes, monkeypatch):
    load, loaded = AutoTokenizer.from_pretrained, []
    monkeypatch.setattr(
        AutoTokenizer, "from_pretrained", lambda name, **o: loaded.append(name) or load(name, **o)
    )
    notes()
    assert len(loaded) == 1
    notes("--set", "proxy.name=playground")
    assert len(loaded) == 3


def test_f17_a_variable_that_is_named_for_the_key_and_not_set_is_refused_before_a_round(
    rows, monkeypatch
):
    server = {"kind": "server", "base_url": "http://127.0.0.1:9/v1", "model": "m"}
    task = {"kind": "files"} | {split: str(rows / f"{split}.jsonl") for split in SPLITS}

    def look(**changes):
        tree = {"task": task, "generator": server | changes}
        refuse_bad_input(Line(parse_config(tree, "f"), Home(rows / "home")), num_rounds=1)

    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("MY_KEY", raising=False)
    look()  # local servers want no key
    for value in (None, " "):
        if value:
            monkeypatch.setenv("MY_KEY", value)
        with pytest.raises(ConfigError, match=r"generator\.api_key_variable: \$MY_KEY is not set"):
            look(api_key_variable="MY_KEY")
    monkeypatch.setenv("MY_KEY", "a-key")
    look(api_key_variable="MY_KEY")
