"""Law: prompt tokens carry no loss, the answer and its stop token do, and nothing is cut off."""

import pytest
from transformers import AutoTokenizer

from evoselect_pipeline.core.encoding import IGNORED_LABEL, Encoded, Encoder, token_batches
from evoselect_pipeline.core.records import Message, make_sample, sample_from_pair
from evoselect_pipeline.errors import ConfigError
from evoselect_pipeline.playground.tasks import BASE_MODEL_DIR


@pytest.fixture
def tokenizer():
    return AutoTokenizer.from_pretrained(BASE_MODEL_DIR)


@pytest.fixture
def encoder(tokenizer):
    return Encoder(tokenizer, max_length=64)


def encode(encoder, *samples):
    encoded, unusable = encoder.encode(samples)
    assert not unusable
    return encoded


def test_the_answer_and_its_stop_token_are_trained_and_the_prompt_is_not(encoder, tokenizer):
    (row,) = encode(encoder, sample_from_pair("2 + 2 =", "4"))
    trained = [token for token in row.labels if token != IGNORED_LABEL]
    assert tokenizer.decode(trained, skip_special_tokens=True).strip() == "4"
    assert trained[-1] == tokenizer.eos_token_id
    assert row.labels[: row.num_prompt] == [IGNORED_LABEL] * row.num_prompt
    assert len(row.labels) == len(row.input_ids)
    assert row.num_trained == len(trained)


def test_evaluation_asks_with_the_very_tokens_that_training_masks(encoder):
    sample = sample_from_pair("2 + 2 =", "4")
    (row,) = encode(encoder, sample)
    assert encoder.encode_prompts([sample])[0] == list(row.input_ids[: row.num_prompt])


def test_only_the_last_answer_of_a_conversation_is_trained(encoder, tokenizer):
    turns = [("user", "1 + 1 ="), ("assistant", "2"), ("user", "2 + 2 ="), ("assistant", "4")]
    (row,) = encode(encoder, make_sample([Message(*turn) for turn in turns]))
    trained = [token for token in row.labels if token != IGNORED_LABEL]
    assert tokenizer.decode(trained, skip_special_tokens=True).strip() == "4"


def test_a_long_row_is_left_out_and_not_cut(encoder):
    long = sample_from_pair("word " * 200, "4")
    encoded, unusable = encoder.encode([long, sample_from_pair("2 + 2 =", "4")])
    assert [row.sample_id for row in unusable] == [long.sample_id]
    assert unusable[0].reason == "too_long"
    assert len(encoded) == 1


def test_control_tokens_in_a_text_are_refused(encoder, tokenizer):
    sample = sample_from_pair(f"stop here {tokenizer.eos_token} and go on", "4")
    _, (row,) = encoder.encode([sample])
    assert row.reason == "special_token_in_text"


def test_a_template_whose_prompt_is_no_prefix_is_refused(tokenizer):
    tokenizer.chat_template = (
        "{% if add_generation_prompt %}ask {% endif %}"
        "{% for m in messages %}{{ m.content }}{% endfor %}" + tokenizer.eos_token
    )
    with pytest.raises(ConfigError, match="not the start of the whole"):
        Encoder(tokenizer, 64).encode([sample_from_pair("2 + 2 =", "4")])


def test_a_template_that_never_stops_is_refused(tokenizer):
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    with pytest.raises(ConfigError, match="never learn to stop"):
        Encoder(tokenizer, 64).encode([sample_from_pair("2 + 2 =", "4")])


@pytest.mark.parametrize("lacking", ["chat_template", "eos_token"])
def test_a_tokenizer_that_lacks_what_encoding_needs_is_refused(tokenizer, lacking):
    setattr(tokenizer, lacking, None)
    with pytest.raises(ConfigError, match="tokenizer has no"):
        Encoder(tokenizer, 64)


def test_the_fingerprint_follows_template_and_length(tokenizer):
    first = Encoder(tokenizer, 64).fingerprint
    assert Encoder(tokenizer, 64).fingerprint == first
    assert Encoder(tokenizer, 65).fingerprint != first
    tokenizer.chat_template += " "
    assert Encoder(tokenizer, 64).fingerprint != first


def test_batches_keep_to_the_token_budget_and_do_not_depend_on_order():
    rows = [Encoded(f"{n:032x}", (1,) * (1 + n * 7 % 23), 1) for n in range(50)]
    batches = token_batches(rows, 60)
    assert batches == token_batches(rows[::-1], 60)
    assert sorted(r.sample_id for b in batches for r in b) == [r.sample_id for r in rows]
    for batch in batches:
        assert len(batch) * max(len(row.input_ids) for row in batch) <= 60
    assert [len(b) for b in token_batches(rows[-1:], 1)] == [1]
