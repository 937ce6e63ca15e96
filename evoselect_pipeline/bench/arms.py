"""The arms of a comparison: configurations that differ in how rows are chosen, and only in that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from evoselect_pipeline.config import LineConfig, Method
from evoselect_pipeline.config_file import parse_config
from evoselect_pipeline.errors import ConfigError

ORACLE = "oracle"
METHODS: tuple[str, ...] = get_args(Method)

# Each part of EvoSelect off, or done another way, in turn: the keys that an arm sets. Some set what
# a configuration has already; `ablation_names` leaves those out. `{proxy}` is the model that is the
# proxy anyhow: named as one, it wears no adapter, neither for gradients nor as a judge.
ABLATIONS: dict[str, tuple[str, ...]] = {
    "evoselect": (),
    "centroid": (),
    "no_span": ("gradients.target_span=false",),
    "no_energy": ("selection.evoselect.diversity=0",),
    "no_dedup": ("selection.near_text=2",),
    "dedup_by_gradient": ("selection.evoselect.dedup_cosine=0.99",),
    "topk": ("selection.evoselect.rounding=topk",),
    "plan_quota": ("selection.evoselect.rounding=plan_quota",),
    "capped": ("selection.evoselect.rounding=capped",),
    "no_prior": ("quality.prior=none",),
    "no_refresh": ("proxy={proxy}",),
    "no_prior_no_refresh": ("quality.prior=none", "refresh_proxy=false"),
    "refresh": ("refresh_proxy=true",),
    "refresh_no_prior": ("quality.prior=none", "refresh_proxy=true"),
    "one_shot": (
        "selection.evoselect.num_updates=1",
        "selection.evoselect.step_size=3",
        "selection.evoselect.diversity_ramp=0",
    ),
    "no_floor": ("selection.evoselect.quality_floor=0",),
    "squared_energy": ("selection.evoselect.energy=squared",),
}


@dataclass(frozen=True)
class Arm:
    """One way to choose rows."""

    name: str
    config: LineConfig
    is_oracle: bool = False
    to_centroid: bool = False

    @property
    def needs_features(self) -> bool:
        """Whether rows are chosen by their gradients, and not by the truth or a draw."""
        return not self.is_oracle and self.config.selection.method not in ("all", "random")


def method_arm(name: str, config: LineConfig) -> Arm:
    """The arm of a selector, or of the oracle, which draws among the rows known to be good."""
    if name == ORACLE:
        return Arm(name, config, is_oracle=True)
    if name not in METHODS:
        known = ", ".join((*METHODS, ORACLE))
        raise ConfigError(f"--methods {name!r}: unknown; expected some of {known}")
    return Arm(name, changed(config, (f"selection.method={name}",)))


def ablation_arm(name: str, config: LineConfig) -> Arm:
    """The arm of EvoSelect with one part changed."""
    if name not in ABLATIONS:
        raise ConfigError(f"--arms {name!r}: unknown; expected some of {', '.join(ABLATIONS)}")
    proxy = (config.proxy or config.model).model_dump_json()
    keys = ["selection.method=evoselect"]
    keys += [key.replace("{proxy}", proxy) for key in ABLATIONS[name]]
    return Arm(name, changed(config, keys), to_centroid=name == "centroid")


def ablation_names(config: LineConfig) -> tuple[str, ...]:
    """The arms that differ from each other under a configuration, `evoselect` first."""
    name_of: dict[tuple[str, bool], str] = {}
    for name in ABLATIONS:
        arm = ablation_arm(name, config)
        name_of.setdefault((arm.config.model_dump_json(), arm.to_centroid), name)
    return tuple(name_of.values())


def changed(config: LineConfig, overrides: Sequence[str]) -> LineConfig:
    """The configuration with some keys set, checked like any other."""
    return parse_config(config.model_dump(mode="json"), "the bench", overrides)
