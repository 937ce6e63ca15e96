"""What a selection is asked for: how much may be chosen, and how EvoSelect weighs and rounds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evoselect_pipeline.errors import ConfigError, DataError

ROUNDINGS = ("plan_quota", "capped", "topk")
ENERGIES = ("linear", "squared")


@dataclass(frozen=True)
class EvoSelectSettings:
    """How candidates are weighted against the targets, and how k rows are taken from the weights.

    Attributes
    ----------
    epsilon : float
        Entropic regularisation, in units of cost (1 - cosine).
    num_updates : int
        Most exponentiated weight updates.
    sinkhorn_iterations : int
        Warm-started Sinkhorn iterations between two updates.
    step_size : float
        Step of the exponentiated update, per standard deviation of the score.
    diversity : float
        Final weight of the diversity energy against the transport potential.
    diversity_ramp : int
        Updates over which `diversity` grows from zero.
    memory : float
        Weight of similarity to earlier rounds' rows inside the energy.
    dedup_cosine : float
        Two rows with a cosine above this are near-duplicates; 1, the default, switches the check
        off: gradients of one template may be all but equal whatever the rows ask, and copies are
        found by their words.
    reach : float or None
        Largest cost at which a row may serve a target; None derives it from the targets.
    tolerance : float
        L1 marginal error allowed in the final plan, and the change at which updates stop.
    norm_quarantine : float
        Rows whose gradient norm exceeds this many pool medians are set aside.
    rounding : str
        `plan_quota` (targets take turns), `capped` (exact transport with whole units) or `topk`
        (the largest weights; the published rule).
    energy : str
        `linear`, the length of the mean gradient, or `squared`, that of the mean outer product.
    quality_floor : float
        Rows whose answers are less plausible than this are not chosen; 0 chooses them last.
    partial : bool
        Leave targets that no admissible row reaches out of the transport, instead of letting them
        pull mass to rows that may not serve them.
    """

    epsilon: float = 0.05
    num_updates: int = 30
    sinkhorn_iterations: int = 20
    step_size: float = 0.3
    diversity: float = 0.3
    diversity_ramp: int = 10
    memory: float = 0.5
    dedup_cosine: float = 1.0
    reach: float | None = None
    tolerance: float = 1e-3
    norm_quarantine: float = 10.0
    rounding: str = "plan_quota"
    energy: str = "linear"
    quality_floor: float = 0.5
    partial: bool = True

    def __post_init__(self) -> None:
        positive = ("epsilon", "num_updates", "sinkhorn_iterations", "step_size", "tolerance")
        for name in (*positive, "dedup_cosine"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"select.{name} must be above 0, got {getattr(self, name)}")
        for name in ("diversity", "diversity_ramp", "memory"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"select.{name} must be 0 or more, got {getattr(self, name)}")
        if not self.norm_quarantine > 1:
            raise ConfigError(f"select.norm_quarantine must be above 1, got {self.norm_quarantine}")
        if self.reach is not None and not 0 < self.reach <= 2:
            raise ConfigError(f"select.reach is a cost 1 - cosine in (0, 2], got {self.reach}")
        if not 0 <= self.quality_floor < 1:
            raise ConfigError(f"select.quality_floor must be in [0, 1), got {self.quality_floor}")
        for name, known in (("rounding", ROUNDINGS), ("energy", ENERGIES)):
            if getattr(self, name) not in known:
                raise ConfigError(
                    f"select.{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}"
                )


@dataclass(frozen=True)
class Budget:
    """How much may be selected; at least one of `rows` and `tokens` is given.

    Attributes
    ----------
    rows : int or None
        Rows to choose.
    tokens : int or None
        Most tokens that the chosen rows may have together.
    source_share : float or None
        Largest share of the budget that rows of one source may take: of the rows, or of the tokens
        where only tokens are given. A share of the rows lets every source give at least one.
    """

    rows: int | None = None
    tokens: int | None = None
    source_share: float | None = None

    def __post_init__(self) -> None:
        if self.rows is None and self.tokens is None:
            raise ConfigError("budget needs a number of rows or of tokens, got neither")
        if self.rows is not None and self.rows < 1:
            raise ConfigError(f"budget must be at least 1 row, got {self.rows}")
        if self.tokens is not None and self.tokens < 1:
            raise ConfigError(f"budget must be at least 1 token, got {self.tokens}")
        if self.source_share is not None and not 0 < self.source_share <= 1:
            raise ConfigError(
                f"budget: source_share must be above 0 and at most 1, got {self.source_share}"
            )

    def check(self, num_candidates: int, num_tokens: np.ndarray) -> None:
        """Refuse a budget that the pool, or its usable rows of `num_tokens` each, cannot meet."""
        if self.rows is not None and self.rows > num_candidates:
            raise DataError(
                f"budget of {self.rows} rows is above the pool of {num_candidates} candidates;"
                " lower the budget or generate more rows"
            )
        room, shortest = self.tokens, int(np.min(num_tokens))
        if room is not None and self.rows is None and self.source_share is not None:
            room = int(self.source_share * room)
        if room is not None and room < shortest:
            raise DataError(
                f"budget: a source may give {room} tokens, the shortest of {len(num_tokens)} usable"
                f" candidates has {shortest}; raise the budget"
                + (" or its source_share" if room != self.tokens else "")
            )

    def num_rows(self, num_tokens: np.ndarray) -> int:
        """Rows to expect from a pool of rows with `num_tokens` [N] each: between 1 and N.

        `rows`, or `tokens` / mean tokens per row, whichever is less.
        """
        expected = float(len(num_tokens))
        if self.rows is not None:
            expected = min(expected, self.rows)
        if self.tokens is not None:
            expected = min(expected, self.tokens / max(float(np.mean(num_tokens)), 1e-9))
        return max(1, int(expected))
