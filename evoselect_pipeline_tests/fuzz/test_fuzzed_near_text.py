"""Law: whatever rows say, each is compared, kept or left out with a reason, and in bounded time."""

from hypothesis import strategies as st

from evoselect_pipeline.core.gates import gate
from evoselect_pipeline.core.near_text import (
    distinct_overlap,
    near_groups,
    near_pairs,
    near_text_keys,
    words,
)
from evoselect_pipeline.core.private_text import email_in, secret_in, without_secrets
from evoselect_pipeline.core.records import sample_from_pair
from evoselect_pipeline.core.settings import GateSettings
from evoselect_pipeline.core.text_keys import prompt_key, text_key
from evoselect_pipeline_tests.fuzz.fuzzing import ANY_TEXT, fuzz

WORDS = """a b A b, \u4e2d c d\u00e9 e. \ufb01 - +"""
FEW_WORDS = st.lists(st.sampled_from(WORDS.split()), max_size=14)
TEXTS = st.text(max_size=40) | FEW_WORDS.map(" ".join)
SAMPLES = st.lists(
    st.builds(
        sample_from_pair,
        TEXTS.filter(lambda text: text.strip()),
        TEXTS.filter(lambda text: text.strip()),
        source=st.sampled_from(["x", "y"]),
    ),
    max_size=10,
)
THRESHOLDS = st.floats(0.05, 1.0) | st.sampled_from([0.5, 0.7, 1.0])


@fuzz(examples=60, samples=SAMPLES, first=SAMPLES, threshold=THRESHOLDS)
def test_rows_that_say_the_same_share_a_key_and_their_order_shows_in_none(
    samples, first, threshold
):
    keys = near_text_keys(samples, threshold, first)
    assert near_text_keys(samples[::-1], threshold, first[::-1]) == keys[::-1]
    key_of = dict(zip(map(text_key, samples), keys, strict=True))
    assert [key_of[text_key(sample)] for sample in samples] == list(keys)
    leaders = {text_key(sample) for sample in [*samples, *first]}
    assert set(keys) <= leaders
    assert all(key_of.get(key, key) == key for key in keys)
    assert 0 <= distinct_overlap(samples) <= 1


@fuzz(examples=60, texts=st.lists(TEXTS, max_size=10), threshold=THRESHOLDS)
def test_groups_are_what_the_pairs_join(texts, threshold):
    group_of = near_groups(texts, threshold)
    pairs = set(near_pairs(texts, threshold))
    assert all(one < other and group_of[one] == group_of[other] for one, other in pairs)
    joined = {place for pair in pairs for place in pair}
    for place in range(len(texts)):
        alone = list(group_of).count(group_of[place]) == 1
        assert alone == (place not in joined)


@fuzz(examples=60, samples=SAMPLES, trusted=SAMPLES, before=st.booleans(), most=st.integers(1, 3))
def test_every_row_passes_the_gates_or_is_left_out_once_and_none_asks_what_is_evaluated(
    samples, trusted, before, most
):
    known = frozenset(sample.sample_id for sample in samples[:2]) if before else frozenset()
    settings = GateSettings(max_per_source=most, emails="drop", ngram=5, near_copy=0.5)
    passage = gate(samples, trusted, settings, known)
    passed = [sample.sample_id for sample in passage.passed]
    decided = [*passed, *(rejection.sample_id for rejection in passage.rejected)]
    assert sorted(decided) == sorted({sample.sample_id for sample in samples})
    asked = {prompt_key(row) for row in trusted}
    assert not asked & {prompt_key(sample) for sample in passage.passed}
    assert not known & set(passed)
    assert all(rejection.reason for rejection in passage.rejected)


SECRETS = """sk- eyJ . ghp_ AKIA ASIA hf_ xoxb- -----BEGIN PRIVATE KEY----- sig= AccountKey= a@
@ a. 0 glpat- AIza npm_ rk_live_ %2B = -----END"""
LONG = st.tuples(st.sampled_from(SECRETS.split()) | st.text(max_size=3), st.integers(1, 4000))
HELD = st.lists(LONG.map(lambda part: part[0] * part[1]) | TEXTS, max_size=5).map("".join)


@fuzz(examples=50, text=HELD | ANY_TEXT)
def test_any_text_is_looked_through_for_secrets_and_split_into_words(text):
    kind, shown = secret_in(text), without_secrets(text)
    assert (kind is None) == (shown == text)
    assert kind is None or f"[{kind}]" in shown
    assert isinstance(email_in(text), bool)
    assert all(word.strip() == word and word for word in words(text))
