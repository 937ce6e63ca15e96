"""`evoselect preview`: rows of the task token by token, as the student is trained on them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from rich.text import Text

from evoselect_pipeline.commands.console import print_json, stdout, visible
from evoselect_pipeline.config import LineConfig
from evoselect_pipeline.core.encoding import Encoded, Encoder, Unusable
from evoselect_pipeline.core.records import Sample
from evoselect_pipeline.report.reasons import in_words
from evoselect_pipeline.rounds.data import load_task

MASKED, TRAINED, CONTROL = "dim", "green", "reverse"
BOUNDARY = "│"


def show_rows(config: LineConfig, num_rows: int, format: str) -> None:
    """Write rows of a line's task, and how many of its target rows are unusable; store nothing."""
    from evoselect_pipeline.training.models import load_encoder

    task = load_task(config)
    encoder = load_encoder(config.model)
    encoded, unusable = encoder.encode(task.targets)
    lengths = [len(row.input_ids) for row in encoded]
    usable = {row.sample_id for row in encoded}
    order = [s for s in _subtasks_in_turn(task.targets) if s.sample_id in usable]
    samples = [*order, *task.validation, *task.test][:num_rows]
    rows, _ = encoder.encode(samples)
    facts = {
        "rows": [_facts(row, encoder) for row in rows],
        "unusable": _counted(unusable, len(task.targets)),
        "longest": max(lengths, default=0),
        "max_length": encoder.max_length,
    }
    if format == "json":
        print_json(facts)
        return
    subtasks = {sample.sample_id: sample.subtask for sample in samples}
    for row in facts["rows"]:
        stdout.print(_shown(row, subtasks[row["sample_id"]], encoder))
    stdout.print(_legend())
    stdout.print(_summary(facts))


def _subtasks_in_turn(samples: Sequence[Sample]) -> list[Sample]:
    """The first row of each subtask, then the second of each, and so on."""
    seen: Counter[str] = Counter()
    turns: list[int] = []
    for sample in samples:
        turns.append(seen[sample.subtask])
        seen[sample.subtask] += 1
    return [samples[place] for place in sorted(range(len(samples)), key=turns.__getitem__)]


def _facts(row: Encoded, encoder: Encoder) -> dict[str, Any]:
    texts = _texts(row.input_ids, encoder)
    tokens = [
        {"id": token, "text": text, "trained": place >= row.num_prompt}
        for place, (token, text) in enumerate(zip(row.input_ids, texts, strict=True))
    ]
    return {
        "sample_id": row.sample_id,
        "tokens": tokens,
        "num_prompt": row.num_prompt,
        "num_trained": row.num_trained,
        "stop_is_trained": row.labels[-1] in encoder.stop_ids,
    }


def _texts(ids: Sequence[int], encoder: Encoder) -> Iterator[str]:
    """The text of each token; a character that is spread over several stands at the last one."""
    start = 0
    for end in range(1, len(ids) + 1):
        text = str(encoder.tokenizer.decode(list(ids[start:end])))
        if text.endswith("\ufffd"):  # what stands for bytes that are no character yet
            yield ""
        else:
            yield text
            start = end


def _counted(unusable: Sequence[Unusable], num_targets: int) -> dict[str, Any]:
    """How many target rows cannot be trained on; of each reason how many, and one of them."""
    counts = Counter(row.reason for row in unusable)
    examples = {row.reason: row for row in reversed(unusable)}
    return {
        "num_rows": len(unusable),
        "share": len(unusable) / num_targets,
        "reasons": {
            reason: {
                "num_rows": count,
                "sample_id": examples[reason].sample_id,
                "detail": examples[reason].detail,
            }
            for reason, count in counts.most_common()
        },
    }


def _shown(row: dict[str, Any], subtask: str, encoder: Encoder) -> Text:
    """One row: two labelled parts, so that it can be read without colour, too."""
    prompt, answer = row["tokens"][: row["num_prompt"]], row["tokens"][row["num_prompt"] :]
    of_subtask = f" ({visible(subtask)})" if subtask else ""
    is_trained = "yes" if row["stop_is_trained"] else "NO"
    return Text.assemble(
        (f"Row {row['sample_id']}{of_subtask}\n", "bold"),
        f"  masked, {len(prompt)} tokens:  ",
        _tokens(prompt, MASKED, encoder),
        f"\n  trained, {len(answer)} tokens:  ",
        _tokens(answer, TRAINED, encoder),
        f"\n  stop token trained:  {is_trained}\n",
    )


def _tokens(tokens: Sequence[dict[str, Any]], style: str, encoder: Encoder) -> Text:
    shown = [
        Text(visible(t["text"]), f"{style} {CONTROL}" if t["id"] in encoder.control_ids else style)
        for t in tokens
    ]
    return Text.assemble((BOUNDARY, MASKED)).join(shown)


def _legend() -> Text:
    return Text.assemble(
        "Legend: ",
        (MASKED, MASKED),
        " tokens carry no loss, ",
        (TRAINED, TRAINED),
        " ones are trained, ",
        (CONTROL, CONTROL),
        f" marks control tokens; {BOUNDARY} parts tokens, \\n is a line break\n",
    )


def _summary(facts: dict[str, Any]) -> Text:
    unusable = facts["unusable"]
    lines = [
        f"Longest usable target row: {facts['longest']} of at most {facts['max_length']} tokens.",
        f"Unusable target rows: {unusable['num_rows']} ({unusable['share']:.1%}).",
    ]
    lines += [
        f"  {in_words(reason)}: {found['num_rows']}, as {found['sample_id']} ({found['detail']})"
        for reason, found in unusable["reasons"].items()
    ]
    return Text("\n".join(lines))
