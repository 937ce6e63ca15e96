"""Law: a row has a gradient to be chosen by, or a reason why not; what decided it is known."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evoselect_pipeline.config import GradientSettings, LoraSettings, ModelSettings
from evoselect_pipeline.core.encoding import IGNORED_LABEL
from evoselect_pipeline.core.gradients import GradientBatch
from evoselect_pipeline.core.records import digest, sample_from_pair
from evoselect_pipeline.errors import DataError
from evoselect_pipeline.rounds.representation import (
    gradient_fingerprint,
    span_fingerprint,
    store_gradients,
)
from evoselect_pipeline.stores.home import Home
from evoselect_pipeline.stores.lance import LanceStore
from evoselect_pipeline.training.models import load_encoder, load_proxy

D = 8
PROXY = digest("proxy")
LORA = LoraSettings(rank=2)
MODEL = ModelSettings()
SHORT = load_encoder(ModelSettings(max_length=24))


@given(st.text(min_size=1, max_size=40), st.text(min_size=1, max_size=40))
@settings(max_examples=60, deadline=None)
def test_d3_a_row_that_is_encoded_has_something_to_learn(prompt, answer):
    try:
        sample = sample_from_pair(prompt, answer)
    except DataError:  # one of them is blank
        return
    encoded, unusable = SHORT.encode([sample])
    assert len(encoded) + len(unusable) == 1
    assert all(set(row.labels) - {IGNORED_LABEL} and row.num_trained >= 1 for row in encoded)
    assert {row.reason for row in unusable} <= {"too_long"}


def batch_of(norms, losses=None, vectors=None) -> GradientBatch:
    """Rows of unit vectors; a norm of nought comes with a vector of noughts, as in extraction."""
    norms = np.array(norms, np.float32)
    units = np.eye(D, dtype=np.float32)[np.arange(len(norms)) % D]
    return GradientBatch(
        sample_ids=tuple(f"{n:032x}" for n in range(len(norms))),
        vectors=np.where(norms[:, None] == 0, 0, units) if vectors is None else vectors,
        norms=norms,
        losses=np.ones(len(norms), np.float32) if losses is None else np.array(losses, np.float32),
        num_tokens=np.ones(len(norms), np.int32),
        coordinates=np.zeros((len(norms), 0), np.float32),
    )


def test_d4_a_row_whose_gradient_is_of_no_use_is_left_out_with_its_figures(tmp_path):
    store = LanceStore(Home(tmp_path))
    units = np.eye(D, dtype=np.float32)[:6]
    units[4, 0] = np.nan
    batch = batch_of([1, 0, np.nan, np.inf, 1, 1], [1, 1, 1, 1, 1, np.nan], units)
    left_out = store_gradients(store, PROXY, None, [batch])
    assert [row.sample_id for row in left_out] == [f"{n:032x}" for n in range(1, 6)]
    assert {row.reason for row in left_out} == {"non_finite"}
    assert left_out[0].detail == "gradient norm 0.0, loss 1.0"
    assert left_out[4].detail == "gradient norm 1.0, loss nan"
    assert store.present(PROXY, D) == {f"{0:032x}"}


def test_d5_a_gradient_that_float16_could_not_hold_keeps_its_direction_and_its_norm(tmp_path):
    store = LanceStore(Home(tmp_path))
    batch = batch_of([1e-30, 1.0, 1e6, 3e38])
    assert store_gradients(store, PROXY, None, [batch]) == []
    stored = store.read_gradients(list(batch.sample_ids), PROXY, D)
    np.testing.assert_array_equal(stored.vectors, batch.vectors)
    np.testing.assert_array_equal(stored.norms, batch.norms)


@pytest.fixture(scope="module")
def decided():
    """What decides a row's features; each test changes one part."""
    return {
        "proxy": load_proxy(MODEL, None, LORA, 0),
        "encoder": load_encoder(MODEL),
        "settings": GradientSettings(),
        "seed": 0,
    }


CHANGES = {
    "width": lambda: {"settings": GradientSettings(dim=64)},
    "representation": lambda: {"settings": GradientSettings(representation="lm_head")},
    "blocks": lambda: {"settings": GradientSettings(top_layers=0.5)},
    "prompt": lambda: {"settings": GradientSettings(prompt_weight=0.0)},
    "seed of the sketch": lambda: {"seed": 1},
    "start of the adapter": lambda: {"proxy": load_proxy(MODEL, None, LORA, 1)},
    "adapted layers": lambda: {
        "proxy": load_proxy(MODEL, None, LORA.model_copy(update={"targets": ("q_proj",)}), 0)
    },
    "number format": lambda: {"proxy": load_proxy(ModelSettings(dtype="bfloat16"), None, LORA, 0)},
    "length of rows": lambda: {"encoder": SHORT},
}


@pytest.mark.parametrize("change", CHANGES)
def test_d9_whatever_decides_a_feature_changes_its_fingerprint(decided, change):
    assert gradient_fingerprint(**decided | CHANGES[change]()) != gradient_fingerprint(**decided)


def test_d9_what_does_not_decide_a_feature_leaves_its_fingerprint(decided):
    again = load_proxy(MODEL, None, LORA, 0)
    other = {"proxy": again, "settings": GradientSettings(batch_tokens=64, centre=False)}
    assert gradient_fingerprint(**decided | other) == gradient_fingerprint(**decided)


def test_d9_coordinates_are_known_by_the_targets_whatever_their_order():
    rows = [SimpleNamespace(sample_id=f"{n:032x}") for n in range(3)]
    found = span_fingerprint(PROXY, rows)
    assert span_fingerprint(PROXY, rows[::-1]) == found
    assert span_fingerprint(PROXY, rows[:2]) != found
