"""What an adapter's model card says, as Markdown with the Hub's front matter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from evoselect_pipeline.report.facts import Promotion
from evoselect_pipeline.report.page import promotion_sentence
from evoselect_pipeline.report.reasons import in_order, in_words
from evoselect_pipeline.report.text import number, percent, plain, table

PROJECT = "evoselect-pipeline"
MOST_SOURCES = 10


@dataclass(frozen=True)
class Base:
    """The model under the adapter: `path` is its name for other machines."""

    name: str
    path: str
    revision: str | None
    on_hub: bool
    whereabouts: str
    dtype: str
    fingerprint: str


@dataclass(frozen=True)
class Merge:
    """How near the merged model is to base and adapter, on `num_rows` target rows."""

    difference: float
    tolerance: float
    num_tokens: int
    num_same: int
    num_rows: int


@dataclass(frozen=True)
class Adapter:
    """All that a card tells of an adapter. Facts and settings are those of the round's stages."""

    line: str
    task: str
    round: int
    base: Base
    promotion: Promotion
    accuracy: Mapping[str, tuple[float, float, float]]  # share of the test rows, low, high
    metric: str
    num_test: int
    generator: str
    generated: Mapping[str, Any]
    selected: Mapping[str, Any]
    trained: Mapping[str, Any]
    settings: Mapping[str, Mapping[str, Any]]
    versions: Mapping[str, str]
    lineage_digest: str
    rows_of_round: Mapping[int, int]
    rows_of_source: Mapping[str, int]  # most rows first

    @property
    def num_rows(self) -> int:
        """Rows behind the adapter, those of the rounds before included."""
        return sum(self.rows_of_round.values())


def model_card(told: Adapter, merge: Merge | None) -> str:
    """The card of an adapter, or of the model that it was merged into."""
    what = "Merged model" if merge else "LoRA adapter"
    parts = [
        f"---\n{_front_matter(told, merged=merge is not None)}\n---",
        f"# {what} of round {told.round} of line {plain(told.line)}",
        _intro(told, merged=merge is not None),
        f"**{promotion_sentence(told.promotion)}**",
        _accuracy(told),
        "## How to load it",
        _loading_merged(told) if merge else _loading_adapter(told),
        _merging(merge) if merge else "",
        "## Training",
        _training(told),
        "## Selection",
        _selection(told),
        "## Data lineage",
        _lineage(told),
        "## Limits",
        _limits(),
        "## Versions",
        table(("package", "version"), [(plain(n), plain(v)) for n, v in told.versions.items()]),
    ]
    return "\n\n".join(part.rstrip() for part in parts if part) + "\n"


def _front_matter(told: Adapter, *, merged: bool) -> str:
    from huggingface_hub import ModelCardData

    return ModelCardData(
        # Only a hub's name means the same model to everybody.
        base_model=told.base.name if told.base.on_hub else None,
        library_name="transformers" if merged else "peft",
        pipeline_tag="text-generation",
        tags=["evoselect", "lora", *(["merged"] if merged else [])],
    ).to_yaml()


def _intro(told: Adapter, *, merged: bool) -> str:
    base = told.base
    revision = ""
    if base.on_hub:
        revision = f", revision {plain(base.revision)}" if base.revision else ", revision not given"
    how = "with a LoRA adapter merged into its weights" if merged else "under a LoRA adapter"
    return (
        f"{plain(base.name)} ({base.whereabouts}{revision}, {base.dtype}) {how} that was trained"
        f" for one task, {plain(told.task)}, by rounds of generating candidates, selecting the few"
        f" that teach the task, and training on them ({PROJECT}). Fingerprint of the base model:"
        f" `{base.fingerprint}`."
    )


def _accuracy(told: Adapter) -> str:
    heads = {
        "base": "the base model",
        "before": "what the round started from",
        "after": "this adapter",
    }
    rows = [
        (head, percent(mean), f"{percent(low)} to {percent(high)}")
        for name, head in heads.items()
        for mean, low, high in [told.accuracy[name]]
    ]
    found = table(("model", "accuracy", "95 % interval"), rows, "lrr")
    return (
        f"Accuracy (`{told.metric}`) on {number(told.num_test)} test rows, which are only reported"
        f" and decide nothing:\n\n{found}"
    )


def _loading_adapter(told: Adapter) -> str:
    where = (
        "which is fetched from the hub."
        if told.base.on_hub
        else "which is on no hub: `adapter_config.json` names it by the path of a folder,"
        f" {plain(told.base.path)}, seen from where the adapter is loaded. Put a copy of the base"
        " model there, or change `base_model_name_or_path` to where yours is."
    )
    imports = "from peft import AutoPeftModelForCausalLM\nfrom transformers import AutoTokenizer"
    return (
        f"`DIR` is this folder, `BASE` the base model, {where}\n\n"
        f"{_python(imports, 'AutoPeftModelForCausalLM', told.base.dtype)}\n\n"
        "```bash\n"
        f"vllm serve BASE --enable-lora --lora-modules {told.line}=DIR\n"
        "python convert_lora_to_gguf.py --base BASE DIR    # of llama.cpp; BASE as a folder\n"
        "```\n\n"
        "Ollama takes the GGUF file as `ADAPTER` of a Modelfile whose `FROM` is the base model."
    )


def _loading_merged(told: Adapter) -> str:
    imports = "from transformers import AutoModelForCausalLM, AutoTokenizer"
    return (
        "`DIR` is this folder; the base model is not needed.\n\n"
        f"{_python(imports, 'AutoModelForCausalLM', told.base.dtype)}\n\n"
        "```bash\n"
        "vllm serve DIR\n"
        "python convert_hf_to_gguf.py DIR    # of llama.cpp\n"
        "```\n\n"
        "Ollama takes the GGUF file as `FROM` of a Modelfile."
    )


def _python(imports: str, loader: str, dtype: str) -> str:
    return f"""```python
{imports}

model = {loader}.from_pretrained("DIR", dtype="{dtype}")
tokenizer = AutoTokenizer.from_pretrained("DIR")
turns = [{{"role": "user", "content": "Your question"}}]
inputs = tokenizer.apply_chat_template(
    turns, add_generation_prompt=True, return_dict=True, return_tensors="pt"
)
output = model.generate(**inputs, max_new_tokens=64)
answer = output[0, inputs["input_ids"].shape[1] :]
print(tokenizer.decode(answer, skip_special_tokens=True))
```"""


def _merging(merge: Merge) -> str:
    return (
        "The saved folder was loaded again and compared with base and adapter at"
        f" {number(merge.num_tokens)} answer tokens of {number(merge.num_rows)} target rows: the"
        f" largest difference of a logit is {merge.difference:.3g} ({merge.tolerance:.3g} are"
        f" tolerated), {number(merge.num_same)} of the greedy tokens are the same"
        + ("." if merge.num_same == merge.num_tokens else " and the others tie.")
    )


def _training(told: Adapter) -> str:
    facts, lora, train = told.trained, told.settings["lora"], told.settings["train"]
    targets = lora["targets"]
    rows = [
        ("rows", number(facts["num_rows"])),
        ("answer tokens in them", number(facts["num_trained_tokens"])),
        ("steps", number(facts["num_steps"])),
        ("rows in a step", number(train["batch_size"] * train["accumulation"])),
        ("loss, first and last step", f"{facts['first_loss']:.3f}, {facts['last_loss']:.3f}"),
        ("learning rate", f"{train['learning_rate']:g}, warm-up of {train['warmup']} steps"),
        ("weight decay", f"{train['weight_decay']:g}"),
        ("precision", "bfloat16, mixed" if train["bf16"] else "as the model's"),
        ("LoRA", f"rank {lora['rank']}, alpha {lora['alpha']:g}, dropout {lora['dropout']:g}"),
        ("LoRA layers", plain(targets if isinstance(targets, str) else ", ".join(targets))),
    ]
    return f"In round {told.round}:\n\n{table(('', ''), rows)}"


def _selection(told: Adapter) -> str:
    rejected = told.selected["rejected"]
    left_out = [(f"left out: {in_words(stage)}", rejected[stage]) for stage in in_order(rejected)]
    rows = [
        ("generator", f"`{told.generator}`"),
        *_bill(told.generated),
        ("candidates", number(told.generated["num_generated"])),
        ("chosen", f"{number(told.selected['num_selected'])} by `{told.selected['method']}`"),
        *((reason, number(count)) for reason, count in left_out),
    ]
    return f"In round {told.round}:\n\n{table(('', ''), rows)}"


def _bill(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a generator's server was asked for, if the round had one."""
    if "num_requests" not in facts:
        return []
    return [
        ("its bill", f"{number(facts['num_requests'])} requests, {number(facts['num_tokens'])}"
         f" tokens, {facts['cost']:.4g} at the configured prices")
    ]  # fmt: skip


def _lineage(told: Adapter) -> str:
    rounds = [(number(at), number(count)) for at, count in told.rows_of_round.items()]
    sources = [(plain(name), number(count)) for name, count in told.rows_of_source.items()]
    more = f"\nand {len(sources) - MOST_SOURCES} other sources\n" if sources[MOST_SOURCES:] else ""
    return (
        f"{number(told.num_rows)} rows are behind this adapter, through all rounds that it builds"
        f" on. Data lineage digest: `{told.lineage_digest}`, a hash of each row's round and id.\n\n"
        f"{table(('round', 'rows'), rounds, 'rr')}\n"
        f"{table(('written by', 'rows'), sources[:MOST_SOURCES], 'lr')}{more}\n"
        "The home where this was trained tells from what each row was written and why it was"
        f" chosen: `evoselect lineage --adapter {told.round}`, with the line's `--config` or"
        " `--line`."
    )


def _limits() -> str:
    return (
        "The figures are of one task's own rows; nothing else was measured, safety least of all."
        " The rows that it learned from come from a generator, with whatever that gets wrong. The"
        " base model's licence holds for this as well, and so may the terms of the generator."
    )
