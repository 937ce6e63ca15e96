"""Gradient features from the workers of a Ray cluster, each with a model of its own.

The driver cuts the batches that a single process would cut, hands them out in shards and is the
only one that writes. So results do not depend on who computes them, and a dead worker costs what
it had in hand. Neither Ray nor torch is imported before there is work.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evoselect_pipeline import __version__
from evoselect_pipeline.core.encoding import Encoded, token_batches
from evoselect_pipeline.errors import ConfigError
from evoselect_pipeline.rounds.crew import Crew, Job, connect, import_ray, resources_told
from evoselect_pipeline.rounds.representation import gradient_fingerprint, make_extractor

if TYPE_CHECKING:
    from evoselect_pipeline.config import EngineSettings, LineConfig, ModelSettings
    from evoselect_pipeline.core.gradients import GradientBatch
    from evoselect_pipeline.core.target_span import TargetSpan

Shard = list[list[Encoded]]  # whole batches


def cluster_of(config: LineConfig, adapter: Path | None) -> Cluster | None:
    """The configured cluster; None where this process computes everything itself.

    `adapter` is worn by the proxy.
    """
    if config.engine.kind == "local":
        return None
    import_ray()  # what is missing is told before a model is loaded
    return Cluster(config, adapter)


@dataclass(frozen=True)
class Cluster:
    """Workers as a line's configuration asks for them, and what they make their proxies of."""

    config: LineConfig
    adapter: Path | None

    def extract(
        self,
        rows: Sequence[Encoded],
        targets: Sequence[Encoded],
        fingerprint: str,
        present: frozenset[str],
    ) -> tuple[TargetSpan | None, Iterator[GradientBatch]]:
        """Features of the rows that are not present, a shard at a time, as shards are done.

        Returns
        -------
        span : TargetSpan or None
            The span of the targets; None without targets.
        batches : iterator of GradientBatch
            The workers end with it.
        """
        engine, gradients = self.config.engine, self.config.gradients
        shards = cut_shards(rows, gradients.batch_tokens, present, engine.rows_per_shard)
        if not shards and not targets:
            return None, iter(())
        crew = self._crew(fingerprint, most=max(1, len(shards)))
        if not targets:
            return None, _features(crew, shards, None)
        try:
            job = Job("find_span", (list(targets), gradients.batch_tokens), "the targets")
            (span,) = crew.work([job])
        except BaseException:
            crew.dismiss()
            raise
        return span, _features(crew, shards, import_ray().put(span))

    def _crew(self, fingerprint: str, most: int) -> Crew:
        engine = self.config.engine
        ray, cpus = connect(engine.address), cpus_of(engine)
        kind = ray.remote(
            num_cpus=cpus, num_gpus=engine.gpus_per_worker, scheduling_strategy="SPREAD"
        )(ShardWorker)
        shared = ray.put((with_absolute_paths(self.config), _absolute(self.adapter)))

        def start() -> tuple[Any, Any]:
            actor = kind.remote()
            return actor, actor.load.remote(shared, cpus, software(), fingerprint)

        size = engine.num_workers or room(ray.cluster_resources(), engine, cpus)
        return Crew(start, min(size, most), f"{cpus} CPUs and {engine.gpus_per_worker:g} GPUs")


class ShardWorker:
    """One process of the cluster: its own proxy, and the features of the shards it is given."""

    def load(
        self, shared: tuple[LineConfig, Path | None], cpus: int, expected: str, fingerprint: str
    ) -> None:
        """Load the proxy, which must be the driver's to the last bit."""
        config, adapter = shared
        if not config.engine.gpus_per_worker:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Ray hides no GPU from those that asked none
        import torch

        from evoselect_pipeline.training.models import load_encoder, load_proxy

        torch.set_num_threads(cpus)
        settings = config.proxy or config.model
        if software() != expected:
            raise ConfigError(
                f"engine: a worker has {software()}, expected the driver's {expected}; install the"
                " same versions on every node"
            )
        proxy = load_proxy(settings, adapter, config.lora, config.seed)
        encoder = load_encoder(settings)
        if gradient_fingerprint(proxy, encoder, config.gradients, config.seed) != fingerprint:
            raise ConfigError(
                f"engine: a worker's copy of the proxy {settings.name!r} is not the driver's; put"
                " the same files on every node, or name the hub's model and its revision"
            )
        self.extractor = make_extractor(proxy, encoder, config.gradients, config.seed)

    def find_span(self, targets: Sequence[Encoded], batch_tokens: int) -> TargetSpan:
        """The targets' span, with its basis on the CPU, for all workers."""
        from evoselect_pipeline.core.gradients import find_target_span

        span = find_target_span(self.extractor, targets, batch_tokens=batch_tokens)
        return replace(span, basis_MW=span.basis_MW.cpu())

    def extract(self, shard: Shard, span: TargetSpan | None) -> GradientBatch:
        """The features of a shard's rows."""
        from evoselect_pipeline.core.gradients import concatenate

        if span is not None:
            span = replace(span, basis_MW=span.basis_MW.to(self.extractor.causal.device))
        return concatenate([self.extractor(batch, span) for batch in shard])


def _features(crew: Crew, shards: Sequence[Shard], span_ref: Any | None) -> Iterator[GradientBatch]:
    jobs = [
        Job("extract", (shard, span_ref), _what(number, len(shards), shard))
        for number, shard in enumerate(shards, 1)
    ]
    try:
        yield from crew.work(jobs)
    finally:
        crew.dismiss()


def _what(number: int, total: int, shard: Shard) -> str:
    rows = sum(len(batch) for batch in shard)
    longest = len(shard[-1][-1].input_ids)
    return (
        f"shard {number} of {total} ({rows} rows of up to {longest} tokens, from"
        f" {shard[0][0].sample_id} to {shard[-1][-1].sample_id})"
    )


def cut_shards(
    rows: Sequence[Encoded], batch_tokens: int, present: frozenset[str], rows_per_shard: int
) -> list[Shard]:
    """The batches that miss a row, in shards of about so many rows.

    Batches are cut from all rows, as `gradients.extract_gradients` does, so that every row is
    computed in the same company wherever that is.
    """
    shards: list[Shard] = []
    room_left = 0
    for batch in token_batches(rows, batch_tokens):
        if all(row.sample_id in present for row in batch):
            continue
        if room_left <= 0:
            shards.append([])
            room_left = rows_per_shard
        shards[-1].append(batch)
        room_left -= len(batch)
    return shards


def cpus_of(engine: EngineSettings) -> int:
    """Cores of a worker: without a GPU as many as this process uses, for the same bits."""
    import torch

    if engine.cpus_per_worker is not None:
        return engine.cpus_per_worker
    return 1 if engine.gpus_per_worker else torch.get_num_threads()


def room(resources: Mapping[str, float], engine: EngineSettings, cpus: int) -> int:
    """For how many workers the cluster has room."""
    workers = resources.get("CPU", 0.0) // cpus
    if engine.gpus_per_worker:
        workers = min(workers, resources.get("GPU", 0.0) / engine.gpus_per_worker)
    if workers < 1:
        raise ConfigError(
            f"engine: a worker needs {cpus} CPUs and {engine.gpus_per_worker:g} GPUs, the cluster"
            f" has {resources_told(resources)}. Name engine.num_workers if nodes start on demand"
        )
    return int(workers)


def software() -> str:
    """What must be the same on every node, besides the proxy; builds of torch may differ."""
    import torch
    import transformers

    versions = (__version__, torch.__version__.partition("+")[0], transformers.__version__)
    return "evoselect-pipeline {}, torch {}, transformers {}".format(*versions)


def with_absolute_paths(config: LineConfig) -> LineConfig:
    """The configuration as a process that works in another folder must read it."""
    models = {"model": config.model, "proxy": config.proxy}
    return config.model_copy(
        update={name: _found(model) for name, model in models.items() if model is not None}
    )


def _found(model: ModelSettings) -> ModelSettings:
    from evoselect_pipeline.training.model_files import model_path

    found: dict[str, Any] = {"chat_template": _absolute(model.chat_template)}
    folder = Path(model_path(model.name))
    # The shipped model lies elsewhere on another node.
    if str(folder) == model.name and folder.is_dir():
        found["name"] = str(folder.resolve())
    return model.model_copy(update=found)


def _absolute(path: Path | None) -> Path | None:
    return path and path.resolve()
