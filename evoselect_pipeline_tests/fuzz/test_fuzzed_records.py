"""Law: whatever a row holds, it is a sample known by its content, or a DataError says where."""

import json
import unicodedata

from hypothesis import strategies as st

from evoselect_pipeline.core.records import ID_LENGTH, ROLES, content_id, sample_from_row
from evoselect_pipeline.core.text_keys import normalised, prompt_key, text_key
from evoselect_pipeline.errors import DataError
from evoselect_pipeline_tests.fuzz.fuzzing import ANY_TEXT, JSON_VALUES, fuzz

CONTENTS = st.text(min_size=1) | st.text("aA\u00e9e\u0301\u1100\u1161\r\n .,\ufb01", min_size=1)
TURNS = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(ROLES) | JSON_VALUES, "content": CONTENTS | JSON_VALUES}
    ),
    max_size=5,
)
SAID = CONTENTS | TURNS | JSON_VALUES
ROWS = st.fixed_dictionaries(
    {},
    optional={"messages": TURNS | JSON_VALUES}
    | dict.fromkeys(("prompt", "completion", "system"), SAID)
    | {"other": JSON_VALUES},
)


@fuzz(examples=100, row=ROWS)
def test_any_row_is_a_sample_or_is_refused_with_its_place(row):
    try:
        sample = sample_from_row(row, "rows.jsonl:7")
    except DataError as error:
        assert str(error).startswith("rows.jsonl:7: ")
        return
    assert len(sample.sample_id) == ID_LENGTH
    turns = [{"role": m.role, "content": m.content} for m in sample.messages]
    stored = json.loads(json.dumps(turns).encode("utf-8"))
    assert sample_from_row({"messages": stored}, "again") == sample


def other_form(text: str) -> str:
    """The same text, composed in another way and with other line ends."""
    return unicodedata.normalize("NFD", text).replace("\r\n", "\n").replace("\r", "\n")


@fuzz(examples=100, prompt=CONTENTS, completion=CONTENTS)
def test_an_id_follows_the_content_and_not_how_it_is_composed(prompt, completion):
    row = {"prompt": prompt, "completion": completion}
    try:
        sample = sample_from_row(row, "here")
    except DataError:
        assert not (prompt.strip() and completion.strip())
        return
    composed = {key: other_form(text) for key, text in row.items()}
    assert sample_from_row(composed, "here").sample_id == sample.sample_id
    longer = sample_from_row(row | {"completion": completion + "!"}, "here")
    assert longer.sample_id != sample.sample_id == content_id(sample.messages)


@fuzz(examples=100, text=ANY_TEXT)
def test_any_text_has_a_normal_form_that_case_and_blanks_do_not_change(text):
    plain = normalised(text)
    assert plain == plain.strip()
    assert "  " not in plain
    assert normalised(f" {text}\n") == plain


@fuzz(examples=60, prompt=CONTENTS, completion=CONTENTS, system=CONTENTS)
def test_keys_of_a_row_do_not_depend_on_case_and_a_prompts_key_not_on_the_rest(
    prompt, completion, system
):
    try:
        sample = sample_from_row({"prompt": prompt, "completion": completion}, "here")
        under = {"prompt": f" {prompt}\n", "completion": "other", "system": system}
        other = sample_from_row(under, "here")
    except DataError:
        return
    assert prompt_key(other) == prompt_key(sample)
    assert text_key(other) != text_key(sample)
