"""Laws of near-copies: re-worded rows share a key, rows that say something else never do."""

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evoselect_pipeline.core.near_text import (
    MIN_SHINGLES,
    distinct_overlap,
    near_text_keys,
    shingles,
)
from evoselect_pipeline.core.records import Message, make_sample, sample_from_pair
from evoselect_pipeline.core.text_keys import normalised, text_key

THRESHOLD = 0.7
STORY = (
    "Anna keeps 12 goats on the hill behind her house. In spring 7 more goats arrive from the next"
    " village. How many goats does Anna keep now?"
)
few_words = st.lists(st.sampled_from("abcde"), min_size=1, max_size=12).map(" ".join)
rows_of_few_words = st.lists(
    st.builds(sample_from_pair, few_words, st.sampled_from("xyz")), min_size=1, max_size=12
)


def word_runs(sample):
    """Triples of words by definition, for text in one script and without sentence marks."""
    words = " ".join(message.content for message in sample.messages).split()
    return {tuple(words[i : i + 3]) for i in range(max(1, len(words) - 2))}


def jaccard(one, other):
    return len(word_runs(one) & word_runs(other)) / len(word_runs(one) | word_runs(other))


def keys_by_definition(samples, threshold, first=()):
    """Single-pass leader clustering, every row held against every leader."""
    leaders, key_of = {}, {}
    by_id = [sorted(rows, key=lambda row: row.sample_id) for rows in (first, samples)]
    for row in by_id[0] + by_id[1]:
        own = text_key(row)
        if own in key_of:
            continue
        near = [(jaccard(row, other), key) for key, other in leaders.items()]
        overlap, key = max(near, default=(0.0, own))
        if len(word_runs(row)) < MIN_SHINGLES:
            key_of[own] = own
        elif overlap >= threshold:
            key_of[own] = key
        else:
            key_of[own], leaders[own] = own, row
    return tuple(key_of[text_key(row)] for row in samples)


@given(rows_of_few_words, rows_of_few_words, st.sampled_from([0.2, 0.5, 0.6, 0.7, 0.75, 0.99]))
@settings(max_examples=300, deadline=None)
def test_keys_equal_leader_clustering_by_definition(samples, first, threshold):
    expected = keys_by_definition(samples, threshold, first)
    assert near_text_keys(samples, threshold, first) == expected


@given(rows_of_few_words, st.sampled_from([0.3, 0.5, 0.7]))
@settings(max_examples=100, deadline=None)
def test_no_two_leaders_are_near_copies(samples, threshold):
    leading = set(near_text_keys(samples, threshold))
    leaders = {text_key(row): row for row in samples if text_key(row) in leading}
    assert set(leaders) == leading
    long = [row for row in leaders.values() if len(word_runs(row)) >= MIN_SHINGLES]
    assert all(jaccard(one, other) < threshold for one, other in combinations(long, 2))


@given(st.permutations([f"{STORY} {n} {n % 3}" for n in range(9)]))
@settings(max_examples=20, deadline=None)
def test_keys_do_not_depend_on_the_order_of_rows(prompts):
    rows = [sample_from_pair(prompt, "19") for prompt in prompts]
    in_order = sorted(rows, key=lambda row: row.prompt)
    key_of = dict(zip(in_order, near_text_keys(in_order, 0.9), strict=True))
    assert near_text_keys(rows, 0.9) == tuple(key_of[row] for row in rows)


@pytest.mark.parametrize(
    "copy",
    [
        f"Hello! {STORY}",
        f"{STORY} Thank you very much.",
        STORY.replace(" ", "  ").upper(),
        STORY.replace("goats on", "goats up on"),
    ],
)
def test_greetings_blanks_and_small_changes_of_wording_make_copies(copy):
    rows = [sample_from_pair(STORY, "19"), sample_from_pair(copy, "19")]
    assert rows[0].sample_id != rows[1].sample_id
    assert len(set(near_text_keys(rows, THRESHOLD))) == 1


def test_rows_of_one_template_with_other_names_and_numbers_are_no_copies():
    people, places = ("Anna", "Ben", "Chen", "Dora"), ("hill", "field", "farm", "isle")
    rows = [
        sample_from_pair(
            STORY.replace("Anna", people[n]).replace("12", str(20 + n)).replace("hill", places[n]),
            str(27 + n),
        )
        for n in range(4)
    ]
    assert len(set(near_text_keys(rows, THRESHOLD))) == 4


def test_a_row_of_an_earlier_round_leads_whatever_its_id():
    rows = [sample_from_pair(f"{word} {STORY}", "19") for word in ("Well,", "Hello!", "Now:")]
    for earlier in rows:
        assert set(near_text_keys(rows, THRESHOLD, first=[earlier])) == {text_key(earlier)}


def test_rows_of_equal_normalised_text_share_a_key_even_where_leaders_compete():
    ids = "abcdefghij"
    rows = [sample_from_pair(" ".join(ids[i : i + 7]), "x") for i in range(4)]
    rows += [sample_from_pair(row.prompt.upper(), "X") for row in rows]
    keys = near_text_keys(rows, 0.5)
    assert keys[:4] == keys[4:]


def test_text_without_blanks_is_compared_by_its_characters():
    story = "小明在山上养了十二只山羊春天又来了七只请问小明现在一共有多少只山羊"
    copy, other = f"你好{story}", "请写一首关于大海和月亮的短诗要求每行五个字并且押韵"
    rows = [sample_from_pair(prompt, "十九") for prompt in (story, copy, other)]
    keys = near_text_keys(rows, THRESHOLD)
    assert keys[0] == keys[1] != keys[2]
    assert "小 明 在" in shingles(rows[0])


def test_at_threshold_one_only_equal_normalised_text_is_a_copy():
    rows = [sample_from_pair(p, "19") for p in (STORY, STORY.upper(), f"Hello! {STORY}")]
    keys = near_text_keys(rows, 1.0)
    assert keys == tuple(text_key(row) for row in rows)
    assert keys[0] == keys[1] != keys[2]


def test_short_rows_are_copies_only_of_themselves():
    rows = [sample_from_pair(p, "7") for p in ("3 + 4", "3 + 4 ?", "4 + 3", "?")]
    assert all(len(shingles(row)) < MIN_SHINGLES for row in rows)
    assert near_text_keys(rows, 0.1) == tuple(text_key(row) for row in rows)
    assert normalised("3 + 4") == normalised("3 + 4 ?")


def test_every_turn_of_a_conversation_counts():
    turns = [Message("user", STORY), Message("assistant", "19"), Message("user", "and then what")]
    answers = ("she is glad", "nine of them run off to the woods and never come back to the hill")
    rows = [make_sample([*turns, Message("assistant", answer)]) for answer in answers]
    keys = near_text_keys(rows, 0.9)
    assert keys[0] != keys[1] and len(set(near_text_keys(rows, 0.5))) == 1


def test_no_rows_have_no_keys():
    assert near_text_keys([], THRESHOLD) == ()


def test_the_overlap_of_distinct_rows_is_their_largest_one_short_of_a_copy():
    rows = [
        sample_from_pair(f"the {who} told the other that {what} would be late again today", "yes")
        for who in ("cook", "nurse")
        for what in ("she", "he")
    ]
    every = [
        len(shingles(a) & shingles(b)) / len(shingles(a) | shingles(b))
        for a, b in combinations(rows, 2)
    ]
    assert distinct_overlap(rows) == max(every)
    assert distinct_overlap([*rows, rows[0]]) == max(every)
    assert distinct_overlap(rows[:1]) == 0.0
