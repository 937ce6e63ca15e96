"""Law: no text becomes part of a query: what goes in is of digits and plain names, or refused."""

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from evoselect_pipeline.core.records import ID_LENGTH, digest, sample_from_pair
from evoselect_pipeline.errors import ConfigError, DataError
from evoselect_pipeline.stores.home import Home, line_name
from evoselect_pipeline.stores.lance import LanceStore
from evoselect_pipeline.stores.tables import hex_fingerprint, hex_id, lookups, of_round

ATTACKS = [
    "' OR '1'='1",
    "'; DROP TABLE samples; --",
    "x') OR sample_id IN ('y",
    "0' UNION SELECT * FROM samples --",
    "\\' OR true",
    "%",
    "sums\n' OR 1=1",
]
SAFE = re.compile(r"[0-9a-z_= ,'()]*")
ID = digest("row")[:ID_LENGTH]


def attacks(text: st.SearchStrategy[str]):
    """Any text, and these ones always."""

    def decorated(test):
        for attack in ATTACKS:
            test = example(attack)(test)
        return given(text)(test)

    return decorated


@attacks(st.text() | st.text("0123456789abcdef' %-_;)\n", max_size=40))
@settings(max_examples=200)
def test_g8_whatever_is_given_for_an_id_or_a_name_is_plain_or_refused(text):
    for made in (
        lambda: list(lookups([text, ID], f"fingerprint = '{hex_fingerprint(digest(text))}'")),
        lambda: [f"fingerprint = '{hex_fingerprint(text)}'"],
        lambda: [f"sample_id = '{hex_id(text)}'"],
        lambda: [of_round(text, 3).replace("AND", "")],
        lambda: [line_name(text)],
    ):
        try:
            queries = made()
        except (DataError, ConfigError):
            continue
        assert all(SAFE.fullmatch(re.sub("IN|AND", "", query)) for query in queries)
        assert all(query.count("'") % 2 == 0 for query in queries)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    found = LanceStore(Home(tmp_path_factory.mktemp("queries")))
    found.put_samples([sample_from_pair("kept", "kept")], "sums", 0)
    return found


@pytest.mark.parametrize("attack", ATTACKS)
def test_g8_a_rows_words_are_kept_and_found_as_they_are(store, attack):
    row = sample_from_pair(attack, attack, subtask=attack, source=attack, prompt_id=attack)
    before = store.tables.open("samples").count_rows()
    assert store.put_samples([row], "sums", 0) == 1
    assert store.get_samples([row.sample_id]) == [row]
    assert store.find_sample(row.sample_id[:12]) == row.sample_id
    assert store.tables.open("samples").count_rows() == before + 1
