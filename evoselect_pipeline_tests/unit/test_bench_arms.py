"""The arms of the ablation bench: each differs from EvoSelect, and from every other arm."""

import pytest

from evoselect_pipeline.bench.arms import ABLATIONS, ablation_arm, ablation_names, changed
from evoselect_pipeline.config import LineConfig
from evoselect_pipeline.errors import ConfigError

SHIPPED = LineConfig(line="arms")
OTHERWISE = changed(SHIPPED, ("refresh_proxy=true", "selection.evoselect.rounding=capped"))


@pytest.mark.parametrize("config", [SHIPPED, OTHERWISE], ids=["shipped", "otherwise"])
def test_no_two_arms_are_the_same(config):
    arms = [ablation_arm(name, config) for name in ablation_names(config)]
    assert arms[0].name == "evoselect"
    assert arms[0].config == changed(config, ("selection.method=evoselect",))
    shown = [(arm.config.model_dump_json(), arm.to_centroid) for arm in arms]
    assert len(set(shown)) == len(shown) >= 12


def test_what_a_configuration_has_already_is_no_arm_and_its_contrary_is():
    kept = set(ablation_names(SHIPPED))
    assert {"capped", "refresh", "no_refresh", "no_prior", "refresh_no_prior"} <= kept
    assert not {"plan_quota", "no_prior_no_refresh"} & kept
    kept = set(ablation_names(OTHERWISE))
    assert {"plan_quota", "no_refresh", "no_prior", "no_prior_no_refresh"} <= kept
    assert not {"capped", "refresh", "refresh_no_prior"} & kept
    assert kept | set(ablation_names(SHIPPED)) == set(ABLATIONS)


def test_without_refresh_the_proxy_is_the_same_model_and_wears_no_adapter():
    config = ablation_arm("no_refresh", OTHERWISE).config
    assert config.proxy == OTHERWISE.model
    assert not config.wears_adapter
    named = changed(SHIPPED, ("proxy.name=playground", "proxy.dtype=bfloat16"))
    assert "no_refresh" not in ablation_names(named)


def test_an_unknown_arm_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"'no_luck'.*no_prior"):
        ablation_arm("no_luck", SHIPPED)
