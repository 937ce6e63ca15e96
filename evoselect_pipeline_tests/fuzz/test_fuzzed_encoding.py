"""Law: whatever turns say, the answer and its stop are learned, and no text steers the model."""

import pytest
from hypothesis import strategies as st
from transformers import AutoTokenizer

from evoselect_pipeline.core.encoding import IGNORED_LABEL, MARK, Encoder
from evoselect_pipeline.core.records import Message, make_sample
from evoselect_pipeline.playground.tasks import BASE_MODEL_DIR
from evoselect_pipeline_tests.fuzz.fuzzing import fuzz

CONTROLS = ["<end>", "<bos>", "<pad>", "<user>", "<assistant>", "<system>"]
PIECES = [*CONTROLS, *(c[:3] for c in CONTROLS), *(c[3:] for c in CONTROLS), MARK[:9], "\\", "{{"]
TEXTS = st.lists(st.text(max_size=6) | st.sampled_from(PIECES), min_size=1, max_size=6)
SAID = TEXTS.map("".join).filter(lambda text: text.strip())


@st.composite
def conversations(draw):
    system = [Message("system", draw(SAID))] if draw(st.booleans()) else []
    roles = ["user", "assistant"] * draw(st.integers(1, 3))
    return make_sample([*system, *(Message(role, draw(SAID)) for role in roles)])


@pytest.fixture(scope="module")
def encoder():
    return Encoder(AutoTokenizer.from_pretrained(BASE_MODEL_DIR), max_length=10_000)


@fuzz(examples=60, sample=conversations())
def test_the_labels_are_the_answers_text_and_a_stop_and_no_text_is_a_control_token(encoder, sample):
    (row,), unusable = encoder.encode([sample])
    assert not unusable
    answer = list(row.input_ids[row.num_prompt :])
    assert row.labels == [IGNORED_LABEL] * row.num_prompt + answer
    assert answer[-1] == encoder.tokenizer.eos_token_id
    assert encoder.tokenizer.decode(answer[:-1]) == sample.completion
    plain = make_sample([Message(m.role, "b") for m in sample.messages])
    ((as_plain,), _) = encoder.encode([plain])
    steering = [[i for i in r.input_ids if i in encoder.control_ids] for r in (row, as_plain)]
    assert steering[0] == steering[1]
    assert encoder.encode_prompts([sample]) == [list(row.input_ids[: row.num_prompt])]


@fuzz(examples=20, samples=st.lists(conversations(), max_size=5))
def test_a_row_is_encoded_alike_whatever_rows_it_is_encoded_with(encoder, samples):
    together, _ = encoder.encode(samples)
    assert together == [encoder.encode([sample])[0][0] for sample in samples]
