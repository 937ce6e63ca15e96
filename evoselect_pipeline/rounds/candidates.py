"""The stage in which a generator writes a round's candidates, and the gates look at them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from evoselect_pipeline.config import LineConfig
from evoselect_pipeline.config_rows import (
    FunctionSource,
    ModelSource,
    PlaygroundSource,
    ServerSource,
)
from evoselect_pipeline.core.contamination import Hit
from evoselect_pipeline.core.gates import gate
from evoselect_pipeline.core.records import Sample, digest
from evoselect_pipeline.generation.base import Assignment, DroppedFiles, Generator, Playground
from evoselect_pipeline.generation.function import OwnFunction
from evoselect_pipeline.generation.local import LocalModel
from evoselect_pipeline.generation.playground import PlaygroundGenerator
from evoselect_pipeline.generation.server import Server
from evoselect_pipeline.rounds.data import SPLITS, published_target_set, selected_before, split_rows
from evoselect_pipeline.rounds.line import FACTS, Line, entering, made_from, write_json
from evoselect_pipeline.rounds.pressure import pressure
from evoselect_pipeline.stores.artifacts import Artifact, find, open_artifact, publish

HITS = "hits.json"  # evaluation rows whose text candidates hold
ANSWERS = "answers.jsonl"  # in a round's folder: what an LLM's answers were, before all gates


def load_generator(config: LineConfig) -> Generator:
    """The generator that a configuration names."""
    source = config.generator
    if isinstance(source, PlaygroundSource):
        author = PlaygroundGenerator(config.task.name, source.world)  # type: ignore[union-attr]
        return Playground(author, source.num_candidates)
    if isinstance(source, ServerSource):
        return Server(source)
    if isinstance(source, ModelSource):
        return LocalModel(source)
    if isinstance(source, FunctionSource):
        return OwnFunction(source)
    return DroppedFiles(source)


def candidates(line: Line, round_number: int) -> Artifact:
    """Generate a round's candidates and put those that pass the gates into the store."""
    targets_digest = published_target_set(line).digest
    entering(line, round_number)
    source, generator = line.config.generator, load_generator(line.config)
    before = selected_before(line, round_number)
    weights = pressure(line, round_number) if generator.heeds_weights else {}
    inputs = made_from(
        line,
        {"kind": source.kind, "gates": asdict(line.config.gates)},
        generator=generator.fingerprint(round_number),
        target_set=targets_digest,
        selected_before=digest(sorted(before)),
        pressure=digest(sorted(weights.items())),
    )
    directory = line.stage_dir(round_number, "candidates")
    if found := find(directory, inputs):
        return found
    generated = generator.generate(
        Assignment(
            targets=split_rows(line, "targets"),
            round_number=round_number,
            seed=line.round_seed(round_number, "generate"),
            weights=weights,
            log_file=line.home.round_dir(line.name, round_number) / ANSWERS,
        )
    )
    trusted = [row for split in SPLITS for row in split_rows(line, split)]
    passage = gate(generated.samples, trusted, line.config.gates, frozenset(before))
    hits = hit_list(passage.hits, line)
    line.store.put_samples(generated.samples, line.name, round_number)
    if generated.truth is not None:
        _publish_truth(line, round_number, generated.samples, generated.truth, inputs)
    with publish(directory, inputs=inputs) as folder:
        write_json(folder / "ids.json", [s.sample_id for s in passage.passed])
        write_json(folder / "rejected.json", [asdict(one) for one in passage.rejected])
        write_json(folder / HITS, hits)
        write_json(
            folder / FACTS,
            {
                "num_generated": len(generated.samples),
                "num_candidates": len(passage.passed),
                "num_rejected": len(passage.rejected),
                "num_prompts": len({s.prompt_id for s in passage.passed}),
                "num_evaluation_rows_hit": len(hits),
                **generated.facts,
            },
        )
    return open_artifact(directory)


def hit_list(hits: Mapping[str, Hit], line: Line) -> list[dict[str, Any]]:
    """Each evaluation row whose text candidates hold, those with the most candidates first."""
    split_of = {row.sample_id: split for split in SPLITS for row in split_rows(line, split)}
    by_row: dict[str, list[tuple[str, Hit]]] = defaultdict(list)
    for sample_id, hit in hits.items():
        by_row[hit.evaluation_id].append((sample_id, hit))
    found = [
        {
            "evaluation_id": row,
            "split": split_of[row],
            "num_candidates": len(held),
            "kinds": dict(Counter(hit.kind for _, hit in held)),
            "sample_id": held[0][0],
            "evidence": held[0][1].evidence,
        }
        for row, held in by_row.items()
    ]
    return sorted(found, key=lambda row: (-row["num_candidates"], row["evaluation_id"]))


def has_answers(pool: Artifact) -> bool:
    """Whether candidates were read out of an LLM's answers, which are kept and counted."""
    return pool.inputs["settings"]["kind"] in ("model", "server")


def _publish_truth(
    line: Line, round_number: int, samples: list[Sample], truth: list[str], inputs: dict
) -> None:
    """Keep what the built-in generator did on purpose beside the round, for measuring only."""
    kinds = {sample.sample_id: kind for sample, kind in zip(samples, truth, strict=True)}
    with publish(line.stage_dir(round_number, "hidden_truth"), inputs=inputs) as folder:
        write_json(folder / "truth.json", kinds)
