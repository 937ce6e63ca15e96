"""What a selection is asked for: how much may be chosen, and how EvoSelect weighs and rounds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NoReturn, get_args

import numpy as np

from evoselect_pipeline.errors import ConfigError, DataError

Rounding = Literal["plan_quota", "capped", "topk"]
Energy = Literal["linear", "squared"]
ROUNDINGS: tuple[str, ...] = get_args(Rounding)
ENERGIES: tuple[str, ...] = get_args(Energy)


def _described(text: str) -> dict[str, str]:
    """Metadata of a field that the schema of a line's configuration shows."""
    return {"description": text}


@dataclass(frozen=True)
class EvoSelectSettings:
    """How candidates are weighted against the targets, and how k rows are taken from the weights.

    What each field means stands beside it, and in docs/configuration.md.
    """

    epsilon: float = field(
        default=0.05,
        metadata=_described("Entropic regularisation, in units of cost (1 - cosine); above 0."),
    )
    num_updates: int = field(
        default=30, metadata=_described("Most exponentiated weight updates; 1 or more.")
    )
    sinkhorn_iterations: int = field(
        default=20,
        metadata=_described("Warm-started Sinkhorn iterations between two updates; 1 or more."),
    )
    step_size: float = field(
        default=0.3,
        metadata=_described(
            "Step of the exponentiated update, per standard deviation of the score; above 0."
        ),
    )
    diversity: float = field(
        default=0.3,
        metadata=_described(
            "Final weight of the diversity energy against the transport potential; 0 or more."
        ),
    )
    diversity_ramp: int = field(
        default=10,
        metadata=_described("Updates over which `diversity` grows from zero; 0 or more."),
    )
    memory: float = field(
        default=0.5,
        metadata=_described(
            "Weight of similarity to earlier rounds' rows inside the energy; 0 or more."
        ),
    )
    dedup_cosine: float = field(
        default=1.0,
        metadata=_described(
            "Two rows with a cosine above this are near-duplicates; 1 or more switches the check"
            " off: gradients of one template may be all but equal whatever the rows ask, and"
            " copies are found by their words."
        ),
    )
    reach: float | None = field(
        default=None,
        metadata=_described(
            "Largest cost, above 0 and at most 2, at which a row may serve a target; derived from"
            " the targets if not given."
        ),
    )
    tolerance: float = field(
        default=1e-3,
        metadata=_described(
            "L1 marginal error allowed in the final plan, and the change at which updates stop;"
            " above 0."
        ),
    )
    norm_quarantine: float = field(
        default=10.0,
        metadata=_described(
            "Rows whose gradient norm exceeds this many pool medians are set aside; above 1."
        ),
    )
    rounding: Rounding = field(
        default="plan_quota",
        metadata=_described(
            "From weights to rows: `plan_quota` (targets take turns), `capped` (exact transport"
            " with whole units) or `topk` (the largest weights; the published rule)."
        ),
    )
    energy: Energy = field(
        default="linear",
        metadata=_described(
            "`linear`, the length of the mean gradient, or `squared`, that of the mean outer"
            " product."
        ),
    )
    quality_floor: float = field(
        default=0.5,
        metadata=_described(
            "Rows whose answers are less plausible than this, at least 0 and below 1, are not"
            " chosen; 0 chooses them last."
        ),
    )
    weigh_whole_up_to: int = field(
        default=20_000,
        metadata=_described(
            "Of a pool of more rows than this, a transport holds four for each row to choose, and"
            " only they are weighed; 0 or more. Not where that is more than a quarter of the pool,"
            " nor with `max_tokens`, `source_share`, `topk` or a `dedup_cosine` below 1."
        ),
    )
    partial: bool = field(
        default=True,
        metadata=_described(
            "Leave targets that no admissible row reaches out of the transport, instead of"
            " letting them pull mass to rows that may not serve them."
        ),
    )

    def __post_init__(self) -> None:
        positive = ("epsilon", "num_updates", "sinkhorn_iterations", "step_size", "tolerance")
        for name in (*positive, "dedup_cosine"):
            if not getattr(self, name) > 0:
                self._refuse(name, "must be above 0")
        for name in ("diversity", "diversity_ramp", "memory", "weigh_whole_up_to"):
            if not getattr(self, name) >= 0:
                self._refuse(name, "must be 0 or more")
        if not self.norm_quarantine > 1:
            self._refuse("norm_quarantine", "must be above 1")
        if self.reach is not None and not 0 < self.reach <= 2:
            self._refuse("reach", "is a cost 1 - cosine in (0, 2]")
        if not 0 <= self.quality_floor < 1:
            self._refuse("quality_floor", "must be in [0, 1)")
        for name, known in (("rounding", ROUNDINGS), ("energy", ENERGIES)):
            if getattr(self, name) not in known:
                self._refuse(name, f"must be one of {', '.join(known)}")

    def _refuse(self, name: str, rule: str) -> NoReturn:
        raise ConfigError(f"selection.evoselect.{name} {rule}, got {getattr(self, name)!r}")


@dataclass(frozen=True)
class GateSettings:
    """What candidates must pass before selection looks at them."""

    overlap: Literal["quarantine", "off"] = field(
        default="quarantine",
        metadata=_described(
            "`quarantine`: rows that hold text of a target, validation or test row are kept out and"
            " listed. Rows with its very prompt are kept out in any case."
        ),
    )
    ngram: int = field(
        default=13,
        metadata=_described("So many words in a row that one evaluation row alone has betray it."),
    )
    near_copy: float = field(
        default=0.8,
        metadata=_described(
            "Share of an evaluation row's own word triples from which on a row nearly copies it;"
            " above 0, at most 1."
        ),
    )
    secrets: Literal["drop", "keep"] = field(
        default="drop", metadata=_described("What to do with rows that hold an API or private key.")
    )
    emails: Literal["drop", "keep"] = field(
        default="keep", metadata=_described("What to do with rows that hold an e-mail address.")
    )
    min_answer_chars: int = field(
        default=1, metadata=_described("Fewest characters of an answer; 1 or more.")
    )
    max_chars: int = field(
        default=100_000,
        metadata=_described("Most characters of a row; longer ones are not even tokenized."),
    )
    max_per_source: int | None = field(
        default=None,
        metadata=_described("Most candidates that one source may bring into a round; 1 or more."),
    )

    def __post_init__(self) -> None:
        for name, least in (("ngram", 5), ("min_answer_chars", 1), ("max_chars", 1)):
            if getattr(self, name) < least:
                self._refuse(name, f"must be {least} or more")
        if not 0 < self.near_copy <= 1:
            self._refuse("near_copy", "must be above 0 and at most 1")
        if self.max_per_source is not None and self.max_per_source < 1:
            self._refuse("max_per_source", "must be 1 or more")

    def _refuse(self, name: str, rule: str) -> NoReturn:
        raise ConfigError(f"gates.{name} {rule}, got {getattr(self, name)!r}")


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
                f"selection.source_share must be above 0 and at most 1, got {self.source_share}"
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
                f" candidates has {shortest}; raise selection.max_tokens"
                + (" or selection.source_share" if room != self.tokens else "")
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
