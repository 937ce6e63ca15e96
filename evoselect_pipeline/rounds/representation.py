"""Gradient features of rows: computed once per content, kept in the store."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from evoselect_pipeline.core.encoding import Encoder, Unusable
from evoselect_pipeline.core.features import Features, join_span
from evoselect_pipeline.core.records import Sample, digest
from evoselect_pipeline.progress import progress

if TYPE_CHECKING:
    from evoselect_pipeline.config import GradientSettings, LineConfig
    from evoselect_pipeline.core.gradients import GradientBatch, GradientExtractor
    from evoselect_pipeline.rounds.distributed import Cluster
    from evoselect_pipeline.stores.lance import LanceStore
    from evoselect_pipeline.training.models import Proxy

ROWS_PER_COMMIT = 500  # small enough to lose little, large enough to keep commits cheap


def gradient_fingerprint(
    proxy: Proxy, encoder: Encoder, settings: GradientSettings, seed: int
) -> str:
    """Identify everything that decides a row's features, besides the row."""
    what = [settings.representation, settings.top_layers]
    loss = ["mean over answer tokens", settings.prompt_weight]
    sketch = ["permuted fold of a wide sketch", settings.dim, seed]
    return digest(what, loss, proxy.fingerprint, encoder.fingerprint, sketch)


def span_fingerprint(fingerprint: str, targets: Sequence[Sample]) -> str:
    """Identify everything that decides a row's coordinates among the targets, besides the row."""
    return digest(fingerprint, sorted(target.sample_id for target in targets))


@dataclass(frozen=True)
class Represented:
    """Rows with their gradient features, and the rows that have none, by sample id.

    `folded` [M, D] is the sketched basis of the targets' span; it has no rows without one.
    """

    place_of: dict[str, int]
    batch: GradientBatch
    unusable: dict[str, Unusable]
    folded: np.ndarray

    def without_span(self) -> Represented:
        """The same rows by their sketches alone."""
        batch = replace(self.batch, coordinates=self.batch.coordinates[:, :0])
        return replace(self, batch=batch, folded=self.folded[:0])

    def of(self, samples: Sequence[Sample]) -> Features:
        """The features of some rows, in their order."""
        part = self.batch.take([self.place_of[sample.sample_id] for sample in samples])
        return as_stored(part, self.folded)


def as_stored(batch: GradientBatch, folded: np.ndarray) -> Features:
    """Features rounded as the store rounds them: rows in memory and read back are chosen alike.

    `folded` [M, D] as in `Represented`.
    """
    vectors = batch.vectors.astype(np.float16).astype(np.float32)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    coordinates = batch.coordinates.astype(np.float16).astype(np.float32)
    joined = join_span(vectors, coordinates, folded)
    return Features(joined, batch.norms, batch.losses, batch.num_tokens)


def represent(
    samples: Sequence[Sample],
    targets: Sequence[Sample],
    config: LineConfig,
    adapter: Path | None = None,
) -> Represented:
    """Compute the features of rows and targets under the configured proxy, in memory.

    `adapter` is worn by the proxy where the configuration refreshes it.
    """
    from evoselect_pipeline.core.gradients import concatenate
    from evoselect_pipeline.rounds.distributed import cluster_of
    from evoselect_pipeline.training.models import load_encoder, load_proxy

    settings = config.proxy or config.model
    worn = adapter if config.wears_adapter else None
    cluster = cluster_of(config, worn)
    proxy, encoder = load_proxy(settings, worn, config.lora, config.seed), load_encoder(settings)
    rows = list({sample.sample_id: sample for sample in [*samples, *targets]}.values())
    found = compute_gradients(
        rows, targets, proxy, encoder, config.gradients, config.seed, cluster=cluster
    )
    batch = concatenate(list(found.batches))
    places = {sample_id: place for place, sample_id in enumerate(batch.sample_ids)}
    unusable = {row.sample_id: row for row in found.unusable}
    return Represented(places, batch, unusable, found.folded)


def join(parts: Sequence[Represented]) -> Represented:
    """The rows of several representations under one proxy and targets; of equal rows the first."""
    from evoselect_pipeline.core.gradients import concatenate

    batch = concatenate([part.batch for part in parts])
    places: dict[str, int] = {}
    for place, sample_id in enumerate(batch.sample_ids):
        places.setdefault(sample_id, place)
    unusable = {sample_id: row for part in parts for sample_id, row in part.unusable.items()}
    return Represented(places, batch, unusable, parts[0].folded)


class Extraction(NamedTuple):
    """Features to come, the rows that will have none, and the sketched basis [M, D] of the span."""

    batches: Iterator[GradientBatch]
    unusable: list[Unusable]
    folded: np.ndarray


def compute_gradients(
    samples: Sequence[Sample],
    targets: Sequence[Sample],
    proxy: Proxy,
    encoder: Encoder,
    settings: GradientSettings,
    seed: int,
    *,
    present: frozenset[str] = frozenset(),
    cluster: Cluster | None = None,
) -> Extraction:
    """Encode rows and stream the features of those that are not present yet.

    With a cluster, its workers compute them, from proxies of their own.
    """
    from evoselect_pipeline.core.gradients import extract_gradients, find_target_span

    rows, unusable = encoder.encode(samples)
    usable = encoder.encode(targets)[0] if settings.target_span else []
    if cluster:
        fingerprint = gradient_fingerprint(proxy, encoder, settings, seed)
        span, batches = cluster.extract(rows, usable, fingerprint, present)
    else:
        extractor = make_extractor(proxy, encoder, settings, seed)
        budget = settings.batch_tokens
        span = find_target_span(extractor, usable, batch_tokens=budget) if usable else None
        batches = extract_gradients(
            extractor, rows, span=span, batch_tokens=budget, present=present
        )
    folded = span.folded if span else np.zeros((0, settings.dim), np.float32)
    return Extraction(_reporting(batches, len(rows), settings), unusable, folded)


def make_extractor(
    proxy: Proxy, encoder: Encoder, settings: GradientSettings, seed: int
) -> GradientExtractor:
    """The extractor of the configured representation."""
    from evoselect_pipeline.core.forward import CausalPass
    from evoselect_pipeline.core.gradients import GradientExtractor
    from evoselect_pipeline.core.representations import (
        HeadGradients,
        LayerGradients,
        PooledStates,
        top_blocks,
        two_sided,
    )

    causal = CausalPass(proxy.model, encoder.pad_id, settings.prompt_weight)
    layers = {name: proxy.factors[name] for name in top_blocks(proxy.factors, settings.top_layers)}
    if settings.representation == "lora":
        measure = LayerGradients(proxy.model, layers)
    elif settings.representation == "two_sided":
        measure = LayerGradients(proxy.model, two_sided(layers, settings.dim, seed))
    elif settings.representation == "lm_head":
        measure = HeadGradients(causal.weight_VH, settings.dim, seed)
    else:
        measure = PooledStates()
    return GradientExtractor(causal, measure, settings.dim, seed)


def store_gradients(
    store: LanceStore, fingerprint: str, span: str | None, batches: Iterable[GradientBatch]
) -> list[Unusable]:
    """Write features in small commits; return the rows whose gradient is of no use, by id."""
    from evoselect_pipeline.core.gradients import concatenate

    useless: list[Unusable] = []
    waiting: list[GradientBatch] = []

    def commit() -> None:
        if waiting:
            store.put_gradients(fingerprint, concatenate(waiting), span)
            waiting.clear()

    for batch in batches:
        finite = np.isfinite(batch.vectors).all(1) & np.isfinite(batch.norms)
        usable = finite & np.isfinite(batch.losses) & (batch.norms > 0)
        for place in np.flatnonzero(~usable):
            detail = f"gradient norm {batch.norms[place]}, loss {batch.losses[place]}"
            useless.append(Unusable(batch.sample_ids[place], "non_finite", detail))
        waiting.append(batch.take(np.flatnonzero(usable)))
        if sum(len(b.sample_ids) for b in waiting) >= ROWS_PER_COMMIT:
            commit()
    commit()
    # Workers of a cluster finish in any order; the record of a round must not show it.
    return sorted(useless, key=lambda row: row.sample_id)


def _reporting(
    batches: Iterator[GradientBatch], total: int, settings: GradientSettings
) -> Iterator[GradientBatch]:
    from evoselect_pipeline.training.memory import memory_bounded_by

    done = 0
    progress("gradients", done, total)
    with memory_bounded_by("gradients.batch_tokens", settings.batch_tokens):
        for batch in batches:
            yield batch
            done += len(batch.sample_ids)
            progress("gradients", done, total)
    if done < total:  # the others were stored already
        progress("gradients", total, total)
