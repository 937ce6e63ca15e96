"""`evoselect lm-eval`: an adapter and its base model on the benchmarks of lm-evaluation-harness."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evoselect_pipeline.commands.console import print_json, print_table, stderr
from evoselect_pipeline.errors import ConfigError
from evoselect_pipeline.rounds.export import champion_round, refuse_unfinished
from evoselect_pipeline.rounds.line import Line


@dataclass(frozen=True)
class Request:
    """What the user asked for: tasks by the harness' names, or by those in a folder of his own."""

    tasks: tuple[str, ...]
    round: int | None = None
    include_path: Path | None = None
    limit: int | None = None
    batch_size: int = 8


def evaluate_tasks(line: Line, request: Request, format: str) -> None:
    """Evaluate base model and adapter on the same rows, and report one beside the other."""
    manager = _task_manager(request)
    number = champion_round(line) if request.round is None else request.round
    refuse_unfinished(line, number)
    adapter = line.artifact(number, "lora_checkpoint").path / "adapter"
    found = {}
    for who, path in (("base", None), (f"round {number}", adapter)):
        stderr.print(f"{who}: {', '.join(request.tasks)}")
        found[who] = _results(line, path, request, manager)
    rows = [
        {"task": task, "metric": metric}
        | {who: results[task][metric] for who, results in found.items()}
        | {"stderr": found[f"round {number}"][task].get(_stderr_of(metric))}
        for task, metric in _scores(found["base"])
    ]
    if format == "json":
        print_json({"line": line.name, "round": number, "limit": request.limit, "results": rows})
        return
    title = f"Line {line.name}" + (f", the first {request.limit} rows" if request.limit else "")
    print_table(title, list(rows[0]), [tuple(row.values()) for row in rows])


def _task_manager(request: Request) -> Any:
    try:
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise ConfigError(
            "lm-eval is not installed; it is an extra: pip install 'evoselect-pipeline[eval]'"
        ) from None
    manager = TaskManager(include_path=request.include_path and str(request.include_path))
    unknown = [task for task in request.tasks if task not in manager.all_tasks]
    if unknown:
        raise ConfigError(
            f"lm-eval knows no task {unknown[0]!r}; `lm-eval ls tasks` lists them, and tasks of"
            " your own are looked for in --include-path"
        )
    return manager


def _results(
    line: Line, adapter: Path | None, request: Request, manager: Any
) -> Mapping[str, Mapping[str, Any]]:
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    from evoselect_pipeline.training.models import load_encoder, load_merged

    # Their decorators hide their signatures from type checkers.
    harness_model: Any = HFLM
    evaluate: Any = simple_evaluate
    config = line.config
    model = harness_model(
        pretrained=load_merged(config.model, adapter, config.lora),
        tokenizer=load_encoder(config.model).tokenizer,
        batch_size=request.batch_size,
    )
    return evaluate(
        model=model,
        tasks=list(request.tasks),
        task_manager=manager,
        limit=request.limit,
        apply_chat_template=True,
        log_samples=False,
    )["results"]


def _scores(results: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """Task and metric of every score; what else the harness reports is no number, or an error."""
    for task, values in results.items():
        for name, value in values.items():
            if isinstance(value, float) and "_stderr" not in name:
                yield task, name


def _stderr_of(metric: str) -> str:
    name, _, filtered = metric.partition(",")
    return f"{name}_stderr,{filtered}"
