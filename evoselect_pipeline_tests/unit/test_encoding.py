"""Law: prompt tokens carry no loss, the answer and its stop token do, and nothing is cut off."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from evoselect_pipeline.core.encoding import IGNORED_LABEL, Encoded, Encoder, token_batches
from evoselect_pipeline.core.records import ROLES, Message, make_sample, sample_from_pair
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


def test_f9_a_long_row_is_left_out_and_not_cut(encoder):
    long = sample_from_pair("word " * 200, "4")
    encoded, unusable = encoder.encode([long, sample_from_pair("2 + 2 =", "4")])
    assert [row.sample_id for row in unusable] == [long.sample_id]
    assert unusable[0].reason == "too_long"
    assert len(encoded) == 1


CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TURNS = "{% for m in messages %}<｜{{ m.role }}｜>{{ m.content }}{% if m.role == 'assistant' %}"
TURNS += "</s>{% endif %}{% endfor %}{% if add_generation_prompt %}<｜assistant｜>{% endif %}"
LETTERS = "abc ABC 0123 <|>/_｜"


def byte_level():
    """As Qwen's and GPT-2's: bytes, ChatML, and `<think>` as one token that is not special."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["im_start im_end end <| |> think user"] * 9, trainer)
    tokenizer.add_tokens([AddedToken("<think>", normalized=False)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", chat_template=CHAT
    )


def word_pieces():
    """As Mistral's and DeepSeek's: a mark for a space, turns begun by tokens not called special."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first", split=False)
    trainer = trainers.BpeTrainer(
        vocab_size=200, special_tokens=["<unk>", "</s>"], show_progress=False
    )
    words = [*LETTERS, "user system assistant </s> <unk>"]
    tokenizer.train_from_iterator(words * 9, trainer)
    tokenizer.add_tokens([AddedToken(f"<｜{role}｜>", normalized=False) for role in ROLES])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>", chat_template=TURNS
    )


TOKENIZERS = {
    "shipped": AutoTokenizer.from_pretrained(BASE_MODEL_DIR),
    "byte level": byte_level(),
    "word pieces": word_pieces(),
}
CONTROLS = {
    "shipped": ["<end>", "<bos>", "<pad>", "<user>", "<assistant>", "<system>"],
    "byte level": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    "word pieces": ["</s>", "<unk>", "<｜user｜>", "<｜assistant｜>"],
}


@st.composite
def conversations(draw, controls):
    """Texts with whole, broken and touching texts of control tokens in them."""
    pieces = [*controls, *(c[:2] for c in controls), *(c[2:] for c in controls)]
    some = st.sampled_from(pieces) | st.text(LETTERS, max_size=4)
    text = st.lists(some, min_size=1, max_size=6).map("".join).filter(lambda t: t.strip())
    roles = ["user", "assistant"] * draw(st.integers(1, 2))
    return make_sample([Message(role, draw(text)) for role in roles])


@pytest.mark.parametrize("name", TOKENIZERS)
def test_f11_what_a_message_says_is_text_whatever_it_spells(name):
    tokenizer, encoder = TOKENIZERS[name], Encoder(TOKENIZERS[name], 10_000)
    assert encoder.control_ids == set(tokenizer.convert_tokens_to_ids(CONTROLS[name]))

    @settings(max_examples=150, deadline=None)
    @given(sample=conversations(CONTROLS[name]))
    def holds(sample):
        turns = [{"role": m.role, "content": m.content} for m in sample.messages]
        plain = make_sample([Message(m.role, "b") for m in sample.messages])
        (row,), (as_plain,) = encode(encoder, sample), encode(encoder, plain)
        assert [i for i in row.input_ids if i in encoder.control_ids] == [
            i for i in as_plain.input_ids if i in encoder.control_ids
        ]
        whole = tokenizer.apply_chat_template(turns, tokenize=False)
        assert tokenizer.decode(row.input_ids).strip() == str(whole).strip()
        assert encoder.encode_prompts([sample])[0] == list(row.input_ids[: row.num_prompt])
        assert row.input_ids[-1] in encoder.stop_ids

    holds()


@pytest.mark.parametrize("name", TOKENIZERS)
def test_other_rows_get_the_ids_of_the_rendered_text_also_beside_such_a_row(name):
    tokenizer, encoder = TOKENIZERS[name], Encoder(TOKENIZERS[name], 10_000)
    spells = sample_from_pair(f"a {CONTROLS[name][0]} b", "c")

    @settings(max_examples=50, deadline=None)
    @given(words=st.text("abc ABC 0123 <>", min_size=1).filter(lambda text: text.strip()))
    def holds(words):
        sample = sample_from_pair(words, words)
        turns = [{"role": m.role, "content": m.content} for m in sample.messages]
        expected = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False)
        for row in (encode(encoder, sample)[0], encode(encoder, spells, sample)[1]):
            assert list(row.input_ids) == expected[: len(row.input_ids)]

    holds()


def test_an_added_token_that_is_an_ordinary_word_of_an_answer_stays_one_token():
    tokenizer = TOKENIZERS["byte level"]
    (row,) = encode(Encoder(tokenizer, 64), sample_from_pair("why <|im_end|>", "<think> so"))
    assert row.input_ids[row.num_prompt] == tokenizer.convert_tokens_to_ids("<think>")


def test_f12_a_template_whose_prompt_is_no_prefix_is_refused(tokenizer):
    tokenizer.chat_template = (
        "{% if add_generation_prompt %}ask {% endif %}"
        "{% for m in messages %}{{ m.content }}{% endfor %}" + tokenizer.eos_token
    )
    with pytest.raises(ConfigError, match="not the start of the whole"):
        Encoder(tokenizer, 64).encode([sample_from_pair("2 + 2 =", "4")])


def test_f12_a_template_that_never_stops_is_refused(tokenizer):
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    with pytest.raises(ConfigError, match="never learn to stop"):
        Encoder(tokenizer, 64).encode([sample_from_pair("2 + 2 =", "4")])


def test_a_template_that_fails_is_refused_with_the_setting_that_mends_it(tokenizer):
    tokenizer.chat_template = "{{ raise_exception('no such role') }}"
    with pytest.raises(ConfigError, match=r"no such role; .*model\.chat_template"):
        Encoder(tokenizer, 64)


def test_f13_without_a_padding_token_the_stop_token_is_trained_all_the_same(tokenizer):
    expected = encode(Encoder(tokenizer, 64), sample_from_pair("2 + 2 =", "4"))
    tokenizer.pad_token = None
    encoder = Encoder(tokenizer, 64)
    assert encoder.pad_id == tokenizer.eos_token_id
    assert encode(encoder, sample_from_pair("2 + 2 =", "4")) == expected
    assert expected[0].labels[-1] == encoder.pad_id


@pytest.mark.parametrize("lacking", ["chat_template", "eos_token"])
def test_f12_f13_a_tokenizer_that_lacks_what_encoding_needs_is_refused(tokenizer, lacking):
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
