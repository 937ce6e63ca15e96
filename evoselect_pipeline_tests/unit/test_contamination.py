"""Law: a candidate that holds an evaluation row's text is caught; one of the same kind is not."""

import random
from pathlib import Path

import pytest

from evoselect_pipeline.config_rows import Columns
from evoselect_pipeline.core.contamination import EvaluationText
from evoselect_pipeline.core.gates import gate
from evoselect_pipeline.core.records import Message, make_sample, sample_from_pair
from evoselect_pipeline.core.settings import GateSettings
from evoselect_pipeline.core.text_keys import prompt_key
from evoselect_pipeline.generation.playground import WORLDS, PlaygroundGenerator
from evoselect_pipeline.playground.tasks import TASKS, task_rows
from evoselect_pipeline.stores.rows import read_samples

GSM8K = Path(__file__).parents[3] / "shared" / "data" / "gsm8k"
QUESTION = (
    "Rosa bakes 24 loaves on Monday, sells a third of them before noon and gives two to the"
    " neighbour whose oven broke in March. How many loaves does she carry home?"
)


def rows(*prompts: str):
    return [sample_from_pair(prompt, "14") for prompt in prompts]


def kind_of(prompt: str, trusted=(QUESTION,), answer: str = "x") -> str | None:
    hit = EvaluationText(rows(*trusted)).hit(sample_from_pair(prompt, answer))
    return hit and hit.kind


def test_a_prompt_within_any_text_is_found_whole():
    assert kind_of(f"Solve this step by step: {QUESTION.upper()} Think first.") == "whole"
    assert kind_of("Any old question?", answer=f"Let me ask you: {QUESTION}") == "whole"
    assert kind_of("please tell me what is 3 + 4 in words", ("What is 3 + 4?",)) == "whole"


def test_thirteen_words_in_a_row_betray_a_row_and_twelve_do_not():
    words = QUESTION.split()
    assert kind_of(" ".join(["so", *words[5:18], "then"])) == "ngram"
    assert kind_of(" ".join(["so", *words[5:17], "then"])) is None


def test_a_copy_with_a_few_words_put_in_is_near():
    words = QUESTION.split()
    for place in (20, 10):
        words.insert(place, "indeed")
    assert kind_of(" ".join(words)) == "near_copy"
    for place in (26, 16, 5):
        words.insert(place, "indeed")
    assert kind_of(" ".join(words)) is None


def test_text_without_blanks_is_searched_by_its_characters():
    story = "小明在山上养了十二只山羊春天又来了七只"
    assert kind_of(f"你好{story}", (story,)) == "whole"


def test_what_the_rows_have_in_common_is_wording_and_betrays_nothing():
    instruction = (
        "Read the list of words below with care and then write all of them again in the order of"
        " the alphabet, one blank between any two of them:"
    )
    trusted = [f"{instruction} {words}" for words in ("fig elm oak", "ant bee cow", "red tan sky")]
    assert kind_of(f"{instruction} pen cup jar", trusted) is None
    assert kind_of(f"Hello. {trusted[1]}", trusted) == "whole"


def test_a_system_turn_hides_nothing():
    asked = Message("user", "Why do young cats purr?")
    trusted = make_sample([Message("system", "Be kind. " * 30), asked, Message("assistant", "x")])
    candidates = rows("why do young cats purr", "Well: why do young cats purr?")
    found = gate(candidates, [trusted], GateSettings())
    assert [r.stage for r in found.rejected] == ["leaks_evaluation", "resembles_evaluation"]


def test_a_question_without_its_options_or_with_others_is_found():
    options = "\n(A) a hen\n(B) a kite\nAnswer with the letter of the right option."
    trusted = [
        f"Which of these {k} things can fly by night?{options}" for k in ("two", "ten", "odd")
    ]
    assert kind_of("Which of these ten things can fly by night?", trusted) == "whole"
    swapped = "Which of these ten things can fly by night?\n(A) a kite\n(B) a hen"
    assert kind_of(swapped, trusted) == "whole"
    assert kind_of(f"Which of these green things can swim?{options}", trusted) is None


def test_marks_and_letters_that_cannot_be_seen_hide_nothing():
    for disguise in (
        "W\u200bhat isn\u2019t a fish",
        "\u00bfWhat isn't\u2026 a fish\u3002",
        "what isn\u2019t a f\u00adish",
    ):
        assert prompt_key(rows(disguise)[0]) == prompt_key(rows("What isn't a fish?")[0])


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("task", TASKS)
def test_rows_of_the_narrow_templates_of_the_playground_are_no_copies(task, world):
    found = task_rows(task)
    text = EvaluationText([*found.targets, *found.validation, *found.test])
    candidates = PlaygroundGenerator(task, world).generate(found.targets, 2000, 3)
    assert not [row.prompt for row in candidates if text.hit(row)]


@pytest.mark.skipif(not GSM8K.is_dir(), reason=f"GSM8K is not at {GSM8K}")
def test_f15_planted_copies_of_gsm8ks_test_rows_are_all_caught_and_few_others():
    columns = Columns(prompt="question", completion="answer")
    train, test = (read_samples(GSM8K / f"{name}.jsonl", columns) for name in ("train", "test"))
    draw = random.Random(0)
    disguises = (
        lambda text: text,
        str.upper,
        lambda text: f"Here is a nice one for you.\n\n{text}\n\nShow all your steps, please.",
    )
    planted = [
        sample_from_pair(disguises[number % 3](row.prompt), row.completion)
        for number, row in enumerate(draw.sample(test, 100))
    ]
    clean = draw.sample(train, 4900)
    found = gate([*clean, *planted], test, GateSettings())
    left_out = {rejection.sample_id for rejection in found.rejected}
    assert all(row.sample_id in left_out for row in planted)
    false_alarms = sum(row.sample_id in left_out for row in clean)
    print(f"{false_alarms} of {len(clean)} clean training rows are quarantined")
    assert false_alarms < 0.02 * len(clean)
