"""An adapter on its way out: a folder that other tools load, with a card that tells its story."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np

from evoselect_pipeline.config import ModelSettings
from evoselect_pipeline.config_rows import PlaygroundTask
from evoselect_pipeline.core.metrics import Interval, bootstrap_interval
from evoselect_pipeline.core.records import digest
from evoselect_pipeline.errors import ArtifactError, DataError
from evoselect_pipeline.report.card import Adapter, Base, Merge, model_card
from evoselect_pipeline.rounds.champion import champion
from evoselect_pipeline.rounds.data import refuse_other_base, split_rows
from evoselect_pipeline.rounds.line import PROMOTED, Line, read_facts, read_json
from evoselect_pipeline.rounds.lineage import ancestry, rows_behind
from evoselect_pipeline.rounds.report import promotion_of
from evoselect_pipeline.stores.artifacts import Artifact
from evoselect_pipeline.stores.home import round_key

if TYPE_CHECKING:
    from evoselect_pipeline.core.encoding import Encoder

CARD = "README.md"  # where the Hub looks for a model card
COMPARED_ROWS = 16
CONTENDERS = ("base", "before", "after")
FOLDERS = re.compile(r"(^|:)/.*/")  # of a path, as in llm:/home/me/models/big


@dataclass(frozen=True)
class Exported:
    """What was written; `merge` is None for an adapter that stayed one."""

    told: Adapter
    merge: Merge | None


def champion_round(line: Line) -> int:
    """The round that trained the champion.

    Raises
    ------
    DataError
        If the champion is the bare base model, or the line has no finished round.
    """
    if line.next_round() == 0:
        raise DataError(
            f"line {line.name!r} has no finished round in {line.home.root}, so there is nothing to"
            f" export; `{line.command('run')}` makes two"
        )
    adapter = champion(line)
    if adapter.trained_in is None:
        raise DataError(
            f"the champion of line {line.name!r} is the base model, so there is no adapter to"
            " export; name a round's with --round"
        )
    return adapter.trained_in


def export_round(line: Line, round_number: int, out: Path, *, merged: bool) -> Exported:
    """Write the adapter of a finished round, or the model that it is merged into, as a folder.

    The folder appears whole or not at all.

    Raises
    ------
    DataError
        If the round is not finished.
    ArtifactError
        If what the round left does not belong together, the base model is not the one that the
        adapter was trained on, or the merged model does not answer as base and adapter do.
    """
    from evoselect_pipeline.training.models import load_encoder

    refuse_unfinished(line, round_number)
    _refuse_mixed(line, round_number)
    encoder = load_encoder(line.config.model)
    adapter = line.artifact(round_number, "lora_checkpoint")
    refuse_other_base(line.config.model, adapter)
    told = _told(line, round_number, adapter)
    with _whole(out) as folder:
        encoder.tokenizer.save_pretrained(str(folder))
        if merged:
            merge = _write_merged(line, adapter.path / "adapter", encoder, folder)
        else:
            merge = None
            _write_adapter(line.config.model, adapter.path / "adapter", folder)
        (folder / CARD).write_text(model_card(told, merge), encoding="utf-8")
    return Exported(told, merge)


@contextmanager
def _whole(out: Path) -> Iterator[Path]:
    """Give a folder to fill; it becomes `out` when the block ends well, else it is gone."""
    try:
        with TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as beside:
            # A folder inside has the rights that any new folder has, the temporary one has not.
            folder = Path(beside) / out.name
            folder.mkdir()
            yield folder
            os.rename(folder, out)
    except OSError as error:
        raise ArtifactError(
            f"{out}: cannot be written ({error.strerror}: {error.filename}); nothing was exported"
        ) from error


def _write_adapter(model: ModelSettings, adapter: Path, folder: Path) -> None:
    shutil.copyfile(adapter / "adapter_model.safetensors", folder / "adapter_model.safetensors")
    config = read_json(adapter / "adapter_config.json")
    config |= {
        "base_model_name_or_path": _name_elsewhere(model),
        "revision": model.revision if _is_on_hub(model) else None,
    }
    text = json.dumps(config, indent=2, sort_keys=True)
    (folder / "adapter_config.json").write_text(text + "\n", encoding="utf-8")


def _name_elsewhere(model: ModelSettings) -> str:
    """The base model's name for other machines.

    A folder's path begins with a dot or a slash: where it is missing, transformers would take a
    bare `models/base` for a name on the hub, and load what somebody else has put there.
    """
    return model.name if _is_on_hub(model) else os.path.join(".", model.name)


def _is_on_hub(model: ModelSettings) -> bool:
    from evoselect_pipeline.training.model_files import model_path

    return not Path(model_path(model.name)).is_dir()


def _write_merged(line: Line, adapter: Path, encoder: Encoder, folder: Path) -> Merge:
    from evoselect_pipeline.training.merge import save_merged

    rows, unusable = encoder.encode(split_rows(line, "targets"))
    if not rows:
        raise DataError(
            "no target row is left to compare the merged model on, the first one because of:"
            f" {unusable[0].detail}; look at model.max_length"
        )
    compared = rows[:COMPARED_ROWS]
    config = line.config
    return Merge(*save_merged(config.model, adapter, config.lora, compared, folder), len(compared))


def refuse_unfinished(line: Line, round_number: int) -> None:
    """Refuse a round without an adapter that was evaluated."""
    if line.has(round_number, PROMOTED):
        return
    last = line.next_round() - 1
    finished = f"finished are rounds 0 to {last}" if last >= 0 else "none is"
    raise DataError(
        f"round {round_number} of line {line.name!r} is not finished in {line.home.root}, so there"
        f" is no adapter of it that was evaluated; {finished}"
    )


def _refuse_mixed(line: Line, round_number: int) -> None:
    """Refuse a round of which a part was made again since: its card would not be true."""
    promotion = line.artifact(round_number, PROMOTED).inputs
    held = [
        (round_number, "lora_checkpoint", promotion["trained"]),
        (round_number, "evaluation", promotion["evaluation"]),
    ]
    for number in ancestry(line, round_number):
        trained = line.artifact(number, "lora_checkpoint").inputs
        held.append((number, "selected_subset", trained["selected_subset"]))
        entered = read_facts(line.artifact(number, "incoming_adapter"))
        if entered["adapter_digest"] != trained["start"]:
            raise _made_again(line, number, "incoming_adapter")
        if entered["trained_in_round"] is not None:
            held.append((entered["trained_in_round"], "lora_checkpoint", trained["start"]))
    for number, stage, then in held:
        if line.artifact(number, stage).digest != then:
            raise _made_again(line, number, stage)


def _made_again(line: Line, round_number: int, stage: str) -> ArtifactError:
    return ArtifactError(
        f"round {round_number} of line {line.name!r}: {stage} was made again after the adapter to"
        f" be exported was trained or judged, so no card of it would be true. Materialize round"
        f" {round_key(round_number)} and those after it again first"
    )


def _told(line: Line, round_number: int, adapter: Artifact) -> Adapter:
    rows = rows_behind(line, round_number)
    sources = Counter(map(without_folders, rows["source"]))
    candidates = line.artifact(round_number, "candidates")
    scored = line.artifact(round_number, "evaluation").path
    answers = {name: read_json(scored / f"{name}.json")["test"] for name in CONTENDERS}
    return Adapter(
        line=line.name,
        task=_task(line),
        round=round_number,
        base=_base(line.config.model, adapter.inputs["base"]),
        promotion=promotion_of(line, round_number),
        accuracy={name: _accuracy(line, correct) for name, correct in answers.items()},
        metric=line.config.task.metric.kind,
        num_test=len(answers["after"]),
        generator=candidates.inputs["settings"]["kind"],
        generated=read_facts(candidates),
        selected=read_facts(line.artifact(round_number, "selected_subset")),
        trained=read_facts(adapter),
        settings=adapter.inputs["settings"],
        versions=adapter.manifest["versions"],
        lineage_digest=digest(rows.select("round", "sample_id").rows()),
        rows_of_round=Counter(rows["round"]),
        rows_of_source=dict(sources.most_common()),
    )


def _accuracy(line: Line, correct: list[float]) -> Interval:
    return bootstrap_interval(np.array(correct), seed=line.config.seed)


def _base(model: ModelSettings, fingerprint: str) -> Base:
    from evoselect_pipeline.training.model_files import PLAYGROUND

    if model.name == PLAYGROUND:
        where = "shipped with evoselect-pipeline in `evoselect_pipeline/playground/base_model`"
    elif _is_on_hub(model):
        where = "on the Hugging Face Hub"
    else:
        where = "a folder of whoever trained this"
    return Base(
        name=model.name,
        path=_name_elsewhere(model),
        revision=model.revision,
        on_hub=_is_on_hub(model),
        whereabouts=where,
        dtype=model.dtype,
        fingerprint=fingerprint,
    )


def _task(line: Line) -> str:
    task = line.config.task
    return f"the playground's {task.name}" if isinstance(task, PlaygroundTask) else line.name


def without_folders(source: str) -> str:
    """Who wrote a row, without the folders that lead there on this machine."""
    return FOLDERS.sub(r"\1", source.rstrip("/"))
