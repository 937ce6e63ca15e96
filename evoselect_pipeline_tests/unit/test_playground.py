"""The playground's laws: splits never meet, hidden truth is true, provenance tells none of it."""

from __future__ import annotations

import re
import subprocess
import sys
import warnings
from collections import Counter
from functools import cache

import pytest

from evoselect_pipeline.errors import ConfigError, DataError
from evoselect_pipeline.generation.playground import TRUTHS, WORLDS, PlaygroundGenerator
from evoselect_pipeline.playground import compose, lookup, stories
from evoselect_pipeline.playground.kinds import is_reserved, normalised
from evoselect_pipeline.playground.skills import SKILLS
from evoselect_pipeline.playground.tasks import BASE_MODEL_DIR, TASKS, task_rows

NUM = 3_000
EVERY_WORLD = [(task, world) for task in TASKS for world in WORLDS]


@cache
def rows_of(task):
    return task_rows(task)


@cache
def pool_of(task, world, seed=1):
    targets = rows_of(task).targets
    return PlaygroundGenerator(task, world).generate_with_truth(targets, NUM, seed)


def all_rows(rows):
    return [*rows.targets, *rows.validation, *rows.test]


def solve_story(prompt: str) -> str:
    """Decide by wording, not by template: which words mean that something goes away."""
    numbers = [int(number) for number in re.findall(r"\d+", prompt)]
    goes = r"drops|broke|fewer|taken|now has .* after finding|read \d+ of|lost|gave away|bad|wants"
    total = numbers[0] - numbers[1] if re.search(goes, prompt) else sum(numbers)
    return str(abs(total))


def solve_compose(prompt: str) -> str:
    """Follow the wording from left to right, on the list it holds."""
    listed = re.search(r"(\w+), (\w+), (\w+)", prompt)
    x, y, z = listed.groups()
    text = prompt.replace(listed[0], "").lower()
    steps = {
        "backwards": lambda w: w[::-1],
        "reverse": lambda w: w[::-1],
        "move the first word to the end": lambda w: w[1:] + w[:1],
        "keep the first word": lambda w: [w[0]],
        "keep the last word": lambda w: [w[len(w) - 1]],
        "say the first word": lambda w: [w[0]],
        "drop the first word": lambda w: w[1:],
        "without its first word": lambda w: w[1:],
        "drop the last word": lambda w: w[: len(w) - 1],
        "twice": lambda w: sorted(w + w, key=w.index),
    }
    found = sorted((text.index(words), words) for words in steps if words in text)
    result = [x, y, z]
    for _, words in found:
        result = steps[words](result)
    return ", ".join(result)


# Where the answer stands for each way of asking; "%" is the word the question names.
LOOKUP_RULES = (
    (r"Meet \w+, a \w+ from (\w+)\. Home town\?", None),
    (r"Meet \w+, a (\w+) from \w+\. How does", None),
    (r"The (\w+) belongs to (\w+) and the (\w+) to (\w+)\. Who owns the (\w+)\?", "after"),
    (r"\w+ painted the (\w+) door (\w+), the (\w+) door (\w+)\. (\w+)\?", "after"),
    (r"Ages: (\w+) (\w+), (\w+) (\w+)\. And (\w+)\?", "after"),
    (r"\w+ sees \w+ on (\w+) in", None),
    (r"\w+ likes \w+ and lives in (\w+)\. Where does", None),
    (r"\w+ likes (\w+) and lives in \w+\. What does", None),
    (r"\w+ lives in (\w+) and likes \w+\. Name the city", None),
    (r"\w+ is a \w+ and has a (\w+)\. Name the animal", None),
    (r"From (\w+) came \w+, a \w+\. Where", None),
    (r"On (\w+), \w+ eats \w+ in \w+\. Which day", None),
    (r"On \w+, \w+ eats (\w+) in \w+\. What does", None),
    (r"With a \w+ \w+ came \w+, the (\w+)\. What is the job", None),
    (r"\w+ the \w+ painted the wall of the \w+ (\w+)\. What color", None),
    (r"A letter from \w+ in (\w+), sent", None),
    (r"The zoo of \w+ bought a \w+ (\w+) on", None),
    (r"Table \d+ \((\w+)\) ordered (\w+); table \d+ ordered \w+\. (\w+)\?", "after"),
    (r"(\w+) \| \w+ \| (\w+)\n(\w+) \| \w+ \| (\w+)\nAnimal of (\w+)\?", "after"),
    (r"(\w+) \| (\w+) \| \w+\n(\w+) \| (\w+) \| \w+\nPlace of (\w+)\?", "after"),
    (r"(\w+) wears (\w+) and (\w+) wears (\w+)\. Who is in (\w+)\?", "before"),
    (r"Badge (\w+): (\w+), \w+\. Badge (\w+): (\w+), \w+\. Badge of (\w+)\?", "before"),
)


def solve_lookup(prompt: str) -> str:
    """Find the pair that holds the word asked for, and give the other half of it."""
    trades = re.match(r"(\w+) and (\w+) are (\w+) and (\w+), in that order\. (\w+)'s", prompt)
    if trades:
        first, _, one, two, asked = trades.groups()
        return one if asked == first else two
    for pattern, side in LOOKUP_RULES:
        found = re.match(pattern, prompt)
        if found and side is None:
            return found[1]
        if found:
            *values, asked = found.groups()
            left, right = values[0::2], values[1::2]
            keys, answers = (left, right) if side == "after" else (right, left)
            return answers[keys.index(asked)]
    raise AssertionError(f"no rule for {prompt!r}")


SOLVERS = {
    "stories": solve_story,
    "compose": solve_compose,
    "lookup": solve_lookup,
}


@pytest.mark.parametrize("task", TASKS)
def test_task_rows_are_the_same_for_the_same_seed_only(task):
    again = task_rows(task)
    assert [s.sample_id for s in all_rows(again)] == [s.sample_id for s in all_rows(rows_of(task))]
    other = task_rows(task, seed=1)
    assert {s.sample_id for s in other.targets}.isdisjoint(s.sample_id for s in again.targets)


@pytest.mark.parametrize("task", TASKS)
def test_splits_have_their_sizes_and_never_share_an_id_or_a_normalised_prompt(task):
    rows = rows_of(task)
    assert [len(rows.targets), len(rows.validation), len(rows.test)] == [64, 200, 600]
    assert len({s.sample_id for s in all_rows(rows)}) == 864
    assert len({normalised(s.prompt) for s in all_rows(rows)}) == 864
    assert len({s.subtask for s in rows.targets}) >= 10


def test_rows_do_not_depend_on_the_process():
    code = (
        "from evoselect_pipeline.playground.tasks import task_rows as t;"
        "from evoselect_pipeline.generation.playground import PlaygroundGenerator as G;"
        "r=t('stories').targets;"
        "print(r[7].sample_id, G('stories','weak').generate(r,9,3)[8].sample_id)"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert runs[0] == runs[1] != ""


@pytest.mark.parametrize("task", TASKS)
def test_answers_of_trusted_rows_are_right(task):
    for sample in all_rows(rows_of(task)):
        assert sample.completion == SOLVERS[task](sample.prompt), sample


@pytest.mark.parametrize(("task", "world"), EVERY_WORLD)
def test_hidden_truth_is_true(task, world):
    for sample, truth in zip(*pool_of(task, world), strict=True):
        if truth == "good":
            assert sample.completion == SOLVERS[task](sample.prompt), sample
        elif truth == "wrong_answer":
            assert sample.completion != SOLVERS[task](sample.prompt), sample
        elif truth == "wrong_format":
            right = SOLVERS[task](sample.prompt)
            assert right in sample.completion
            assert right != sample.completion


@pytest.mark.parametrize(("task", "world"), EVERY_WORLD)
def test_truths_come_in_the_worlds_shares_and_rows_in_the_number_asked_for(task, world):
    samples, truths = pool_of(task, world)
    assert len({s.sample_id for s in samples}) == len(samples) == len(truths) == NUM
    for truth, number in Counter(truths).items():
        assert abs(number - WORLDS[world].shares[truth] * NUM) <= 1
    assert set(truths) == set(TRUTHS)


@pytest.mark.parametrize("num_candidates", [1, 2, 7, 101])
def test_small_pools_have_exactly_the_number_asked_for(num_candidates):
    targets = rows_of("compose").targets
    samples = PlaygroundGenerator("compose", "weak").generate(targets, num_candidates, 0)
    assert len({s.sample_id for s in samples}) == len(samples) == num_candidates


@pytest.mark.parametrize(("task", "world"), EVERY_WORLD)
def test_no_candidate_is_an_evaluation_row_of_any_seed(task, world):
    samples, _ = pool_of(task, world)
    assert not any(is_reserved(s.prompt) for s in samples)
    for name in TASKS:
        for seed in range(3):
            trusted = {normalised(s.prompt) for s in all_rows(task_rows(name, seed=seed))}
            assert trusted.isdisjoint(normalised(s.prompt) for s in samples)


@pytest.mark.parametrize("task", TASKS)
def test_same_seed_gives_the_same_pool_and_another_seed_fresh_rows(task):
    samples, truths = pool_of(task, "weak")
    generator = PlaygroundGenerator(task, "weak")
    again = generator.generate(rows_of(task).targets, NUM, 1)
    assert again == samples
    fresh, fresh_truths = pool_of(task, "weak", 2)
    good = {s.prompt for s, t in zip(samples, truths, strict=True) if t in ("good", "near_copy")}
    new = [s.prompt in good for s, t in zip(fresh, fresh_truths, strict=True) if t == "good"]
    assert sum(new) < 0.1 * len(new)


@pytest.mark.parametrize(("task", "world"), EVERY_WORLD)
def test_provenance_does_not_depend_on_the_truth(task, world):
    samples, truths = pool_of(task, world)
    assert {s.source for s in samples} == {f"playground-{world}"}
    assert all(s.subtask == "" for s in samples)
    targets = [t.sample_id for t in rows_of(task).targets]
    for sample in samples:
        place = int(sample.prompt_id.rsplit("-", 1)[1])
        assert sample.prompt_id == f"{task}-{world}-seed-{place:03d}"
        assert sample.parents == (targets[place],)
    # Every truth draws its parents evenly: mean place 31.5, standard error below 18.5 / sqrt(n).
    for truth in TRUTHS:
        places = [
            targets.index(s.parents[0]) for s, t in zip(samples, truths, strict=True) if t == truth
        ]
        assert abs(sum(places) / len(places) - 31.5) < 5 * 18.5 / len(places) ** 0.5


@pytest.mark.parametrize("task", TASKS)
def test_near_copies_say_what_few_seeds_say(task):
    samples, truths = pool_of(task, "weak")
    copies = [s for s, t in zip(samples, truths, strict=True) if t == "near_copy"]
    assert len({s.completion for s in copies}) <= WORLDS["weak"].num_seeds
    assert len({s.prompt for s in copies}) == len(copies)


def test_tasks_ask_in_ways_the_base_model_was_not_taught():
    taught = {text for _, text in (*stories.SEEN, *lookup.SEEN_TEXTS)}
    asked = {text for _, _, text in (*stories.NEW, *lookup.NEW_TEXTS)}
    assert taught.isdisjoint(asked)
    pairs = {(first, second) for first, second, text in compose.NEW if text is None}
    assert pairs.isdisjoint(compose.SEEN_PAIRS)
    assert len({kind.name for kind in SKILLS}) == len(SKILLS)


def test_unknown_names_and_empty_requests_are_refused():
    with pytest.raises(ConfigError, match=", ".join(TASKS)):
        task_rows("poems")
    with pytest.raises(ConfigError, match="unknown task 'poems'"):
        PlaygroundGenerator("poems", "weak")
    with pytest.raises(ConfigError, match="weak, strong"):
        PlaygroundGenerator("stories", "mean")
    generator = PlaygroundGenerator("stories", "weak")
    with pytest.raises(ConfigError, match="at least 1"):
        generator.generate(rows_of("stories").targets, 0, 0)
    with pytest.raises(DataError, match="no target rows"):
        generator.generate([], 5, 0)


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(BASE_MODEL_DIR)


def test_prompt_is_an_exact_token_prefix_and_the_answer_ends_with_eos(tokenizer):
    for task in TASKS:
        for sample in rows_of(task).targets[:12]:
            turns = [{"role": m.role, "content": m.content} for m in sample.messages]
            full = tokenizer.apply_chat_template(
                turns, return_dict=True, return_assistant_tokens_mask=True
            )
            ids, mask = full["input_ids"], full["assistant_masks"]
            prompt = tokenizer.apply_chat_template(
                turns[:-1], add_generation_prompt=True, return_dict=True
            )["input_ids"]
            assert ids[: len(prompt)] == prompt
            assert mask == [0] * len(prompt) + [1] * (len(ids) - len(prompt))
            assert ids[-1] == tokenizer.eos_token_id
            assert tokenizer.decode(ids[len(prompt) : -1]) == sample.completion


def test_tokenizer_keeps_every_text_and_splits_digits(tokenizer):
    texts = [
        "Which one?\nOptions:\n(A) 12/25/1937\n\t(B)  two  spaces",
        "naïve — 你好 🙂",
        "[ < ( ) > ]",
    ]
    for text in texts:
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert len(tokenizer("90210")["input_ids"]) == 5
    assert len(tokenizer) == 1024


def test_base_model_loads_without_a_warning_and_answers_what_it_was_taught(tokenizer):
    from transformers import AutoModelForCausalLM

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = AutoModelForCausalLM.from_pretrained(BASE_MODEL_DIR)
    assert model.config.eos_token_id == tokenizer.eos_token_id
    prompt = [{"role": "user", "content": "What is 12 plus 7?"}]
    inputs = tokenizer.apply_chat_template(
        prompt, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    output = model.generate(**inputs, max_new_tokens=8)
    answer = output[0, inputs["input_ids"].shape[1] :]
    assert tokenizer.decode(answer, skip_special_tokens=True) == "19"
    assert answer[-1] == tokenizer.eos_token_id
