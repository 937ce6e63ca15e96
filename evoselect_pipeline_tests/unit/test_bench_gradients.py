"""Laws of `bench gradients`: the peer's gradient is ours, and features are as true as we claim."""

import sys

import numpy as np
import pytest
import torch

from evoselect_pipeline.bench.bergson_peer import Bergson
from evoselect_pipeline.bench.gradients import (
    BATCH_ONE,
    BERGSON,
    REFRESHED,
    YARDSTICK,
    GradientsRequest,
    fidelity,
    peak_mb,
    prepare,
    run_of,
    variants,
)
from evoselect_pipeline.bench.less_peer import BatchOne
from evoselect_pipeline.bench.reference import LONGEST, SHORTEST, reference_rows
from evoselect_pipeline.config import GradientSettings
from evoselect_pipeline.errors import ConfigError

REQUEST = GradientsRequest(
    model="playground",
    num_rows=12,
    num_targets=12,
    num_fidelity=60,
    dim=2048,
    prompt_weight=0.0,
    batch_tokens=1024,
    repeats=1,
    seed=0,
)


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    return prepare(REQUEST, tmp_path_factory.mktemp("bench"))


def test_rows_have_the_lengths_they_say_and_are_the_same_again(subject):
    lengths = [len(row.input_ids) for row in subject.judged]
    assert min(lengths) >= SHORTEST and max(lengths) <= LONGEST and np.ptp(lengths) > 100
    again = reference_rows(subject.encoder, 72, REQUEST.seed)
    assert [row.sample_id for row in again[:60]] == [row.sample_id for row in subject.judged]
    assert not {row.sample_id for row in subject.judged} & {r.sample_id for r in subject.targets}


@pytest.mark.parametrize("refreshed", [False, True])
def test_the_peers_gradient_is_the_one_that_is_sketched(subject, refreshed):
    subject = subject.refreshed() if refreshed else subject
    peer = BatchOne(subject, 8)
    extractor = subject.extractor(GradientSettings(prompt_weight=0.0))
    _, norms, _ = extractor.wide(subject.rows[:4])
    expected = torch.stack([peer.gradient(row).norm() for row in subject.rows[:4]])
    torch.testing.assert_close(norms, expected, rtol=1e-3, atol=0)


def test_default_features_follow_exact_cosines_and_the_target_span_all_but_equals_them(subject):
    found = variants(REQUEST.dim, REQUEST.prompt_weight)
    truth = fidelity(subject, found)
    assert truth["lora"]["spearman"] >= 0.83
    assert truth["lora, refreshed proxy"]["spearman"] >= 0.83
    assert truth["lora, target span"]["spearman"] >= 0.98
    assert truth["lora, target span"]["spearman"] > truth["lora"]["spearman"]
    assert truth["lora, target span"]["spearman_rows"] > truth["lora"]["spearman_rows"] - 0.01
    both = [variant for variant in found if variant.name in ("lora", "lora, target span")]
    trained = fidelity(subject.refreshed(), both)
    assert trained["lora, target span"]["spearman_rows"] > trained["lora"]["spearman_rows"]
    assert truth["lora"]["spearman"] >= truth[BATCH_ONE]["spearman"] - 0.02
    assert truth["lora"]["spearman"] > truth["hidden"]["spearman"]


def test_factor_a_has_a_gradient_in_a_refreshed_proxy_alone(subject):
    names = {}
    for worn in (subject, subject.refreshed()):
        extractor, seen = worn.extractor(GradientSettings()), names.setdefault(worn.adapter, set())
        extractor.measure(
            extractor.causal,
            worn.rows[:2],
            lambda name, piece, seen=seen: seen.add(name.rpartition(".")[2]),
        )
    assert names == {None: {"up"}, subject.trained_adapter: {"up", "down"}}


def test_a_pass_runs_over_all_rows_and_its_memory_is_its_own(subject):
    found = {variant.name: variant for variant in variants(REQUEST.dim, 0.0)}
    for name in (YARDSTICK, "lora"):
        run_of(subject, found[name])()
    assert 1 < peak_mb(subject, found[YARDSTICK]) < 2000


def test_bergson_is_a_variant_only_where_it_is_asked_for_and_its_absence_is_said(
    subject, monkeypatch
):
    names = {variant.name for variant in variants(REQUEST.dim, 0.0, with_bergson=True)}
    others = {variant.name for variant in variants(REQUEST.dim, 0.0)}
    assert names - others == {BERGSON, f"{BERGSON}{REFRESHED}"}
    monkeypatch.setitem(sys.modules, "bergson", None)
    with pytest.raises(ConfigError, match=r"pip install evoselect-pipeline bergson==2\.5\.1"):
        Bergson(subject, 8)
