"""The stage in which a generator writes a round's candidates, and the gates look at them."""

from __future__ import annotations

from dataclasses import asdict

from evoselect_pipeline.config import LineConfig
from evoselect_pipeline.config_rows import PlaygroundSource, ServerSource
from evoselect_pipeline.core.gates import evaluation_keys, gate
from evoselect_pipeline.core.records import Sample, digest
from evoselect_pipeline.generation.base import Assignment, DroppedFiles, Generator, Playground
from evoselect_pipeline.generation.playground import PlaygroundGenerator
from evoselect_pipeline.generation.server import Server
from evoselect_pipeline.rounds.data import SPLITS, selected_before, split_rows, target_set
from evoselect_pipeline.rounds.line import FACTS, Line, entering, made_from, write_json
from evoselect_pipeline.rounds.pressure import pressure
from evoselect_pipeline.stores.artifacts import Artifact, find, open_artifact, publish

ANSWERS = "answers.jsonl"  # in a round's folder: what a server's answers were, before all gates


def load_generator(config: LineConfig) -> Generator:
    """The generator that a configuration names."""
    source = config.generator
    if isinstance(source, PlaygroundSource):
        author = PlaygroundGenerator(config.task.name, source.world)  # type: ignore[union-attr]
        return Playground(author, source.num_candidates)
    if isinstance(source, ServerSource):
        return Server(source)
    return DroppedFiles(source.pattern)


def candidates(line: Line, round_number: int) -> Artifact:
    """Generate a round's candidates and put those that pass the gates into the store."""
    targets_digest = target_set(line).digest
    entering(line, round_number)
    source, generator = line.config.generator, load_generator(line.config)
    before = selected_before(line, round_number)
    weights = pressure(line, round_number) if source.kind == "server" else {}
    inputs = made_from(
        line,
        {"kind": source.kind},
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
    passed, rejected = gate(generated.samples, evaluation_keys(trusted), frozenset(before))
    line.store.put_samples(generated.samples, line.name, round_number)
    if generated.truth is not None:
        _publish_truth(line, round_number, generated.samples, generated.truth, inputs)
    with publish(directory, inputs=inputs) as folder:
        write_json(folder / "ids.json", [s.sample_id for s in passed])
        write_json(folder / "rejected.json", [asdict(rejection) for rejection in rejected])
        write_json(
            folder / FACTS,
            {
                "num_generated": len(generated.samples),
                "num_candidates": len(passed),
                "num_rejected": len(rejected),
                "num_prompts": len({s.prompt_id for s in passed}),
                **generated.facts,
            },
        )
    return open_artifact(directory)


def _publish_truth(
    line: Line, round_number: int, samples: list[Sample], truth: list[str], inputs: dict
) -> None:
    """Keep what the built-in generator did on purpose beside the round, for measuring only."""
    kinds = {sample.sample_id: kind for sample, kind in zip(samples, truth, strict=True)}
    with publish(line.stage_dir(round_number, "hidden_truth"), inputs=inputs) as folder:
        write_json(folder / "truth.json", kinds)
