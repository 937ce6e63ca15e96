"""An adapter leaves the home as a folder that other tools load, and its card tells the truth."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import peft
import pytest
import torch
from huggingface_hub import ModelCard
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer

from evoselect_pipeline.commands.context import read_line_config
from evoselect_pipeline.core.records import digest
from evoselect_pipeline.errors import ArtifactError
from evoselect_pipeline.playground.tasks import BASE_MODEL_DIR
from evoselect_pipeline.report.card import model_card
from evoselect_pipeline.rounds.adaptation import promoted_adapter
from evoselect_pipeline.rounds.champion import appoint, champion
from evoselect_pipeline.rounds.data import split_rows
from evoselect_pipeline.rounds.export import export_round, without_folders
from evoselect_pipeline.rounds.line import Line, read_facts, read_json
from evoselect_pipeline.stores.artifacts import publish
from evoselect_pipeline.stores.home import Home
from evoselect_pipeline.training.merge import agreement, answer_logits
from evoselect_pipeline.training.models import load_encoder, load_merged
from evoselect_pipeline_tests.integration.forked import run_rounds
from evoselect_pipeline_tests.integration.in_dagster import tiny
from evoselect_pipeline_tests.integration.process import overrides

KEY = "sk-a-key-that-must-stay-here"
SETTINGS = overrides(quality__prior="none")


@pytest.fixture(scope="module")
def line(tmp_path_factory) -> Line:
    """Two tiny rounds: the first is promoted, the second builds on it and is not."""
    root = tmp_path_factory.mktemp("export") / "home"
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("OPENAI_API_KEY", KEY)
        run_rounds(root, SETTINGS, rounds=2)
    strict = tiny(quality__prior="none", promotion__tolerance=0)
    promoted_adapter(Line(strict, Home(root)), 1)
    found = Line(read_line_config(None, SETTINGS[1::2]), Home(root))
    assert champion(found).trained_in == 0
    return found


@pytest.fixture
def own(line, tmp_path) -> Line:
    """A copy of it to change."""
    shutil.copytree(line.home.root, tmp_path / "home")
    return Line(line.config, Home(tmp_path / "home"))


@pytest.fixture
def export(evoselect, line, monkeypatch):
    """Call `evoselect export --out out` and hold that it leaves all of the folder or nothing."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)

    def call(*arguments, at: Line = line, out="out"):
        before = set(Path.cwd().iterdir())
        ended = evoselect("export", "--home", at.home.root, "--out", out, *arguments)
        made = set(Path.cwd().iterdir()) - before
        assert made == ({Path.cwd() / out} if ended.code == 0 else set())
        return ended

    return call


def logits_of(model, line: Line) -> torch.Tensor:
    rows, _ = load_encoder(line.config.model).encode(split_rows(line, "targets"))
    return answer_logits(model, rows)


def logits_of_round(line: Line, number: int) -> torch.Tensor:
    adapter = line.artifact(number, "lora_checkpoint").path / "adapter"
    return logits_of(load_merged(line.config.model, adapter, line.config.lora), line)


def snippet(card: str) -> str:
    [found] = re.findall(r"^```python\n(.*?)^```", card, re.MULTILINE | re.DOTALL)
    return found.replace("DIR", "out")


@pytest.mark.slow
def test_the_champions_adapter_loads_elsewhere_and_answers_as_the_line_does(line, export, capsys):
    told = json.loads(export("--format", "json").out)
    assert (told["round"], told["promoted"], told["merged"]) == (0, True, False)
    assert told["max_logit_difference"] is None
    config = json.loads(Path("out/adapter_config.json").read_text())
    # A bare name would be looked for on the hub.
    assert config["base_model_name_or_path"] == "./playground"
    shutil.copytree(BASE_MODEL_DIR, "playground")
    loaded = AutoPeftModelForCausalLM.from_pretrained("out", dtype="float32")
    assert torch.allclose(logits_of(loaded, line), logits_of_round(line, 0), atol=1e-3)
    own, base = AutoTokenizer.from_pretrained("out"), AutoTokenizer.from_pretrained(BASE_MODEL_DIR)
    assert (own.chat_template, own.get_vocab()) == (base.chat_template, base.get_vocab())
    capsys.readouterr()
    exec(snippet(Path("out/README.md").read_text()), {})
    assert capsys.readouterr().out


@pytest.mark.slow
def test_the_merged_model_needs_no_peft_and_answers_as_the_line_does(line, export, capsys):
    told = json.loads(export("--merged", "--round", 1, "--format", "json").out)
    assert (told["round"], told["promoted"], told["merged"]) == (1, False, True)
    assert 0 < told["max_logit_difference"] < 1e-3
    assert f"{told['max_logit_difference']:.3g}" in Path("out/README.md").read_text()
    assert not list(Path("out").glob("adapter*"))
    assert Path("out/generation_config.json").is_file()
    loaded = AutoModelForCausalLM.from_pretrained("out", dtype="auto")
    assert not [name for name, _ in loaded.named_parameters() if "lora" in name]
    assert torch.allclose(logits_of(loaded, line), logits_of_round(line, 1), atol=1e-6)
    capsys.readouterr()
    exec(snippet(Path("out/README.md").read_text()), {})
    assert capsys.readouterr().out


@pytest.mark.slow
def test_a_card_has_the_rounds_figures_the_digest_of_all_rows_and_no_row(line, export, evoselect):
    ended = export("--round", 1, "--format", "json")
    told = json.loads(ended.out)
    assert "It was not promoted" in " ".join(ended.err.split())
    card = ModelCard.load("out/README.md")
    assert card.data.to_dict() == {
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["evoselect", "lora"],
    }
    rows = json.loads(
        evoselect("lineage", "--adapter", 1, "--format", "json", "--home", line.home.root).out
    )
    assert {row["round"] for row in rows} == {0, 1}
    assert told["num_rows"] == len(rows)
    assert told["lineage_digest"] == digest([[row["round"], row["sample_id"]] for row in rows])

    scores = read_facts(line.artifact(1, "evaluation"))
    subset = read_facts(line.artifact(1, "selected_subset"))
    shares = [scores[name] for name in ("base_test", "before_test", "after_test_high")]
    for figure in (
        told["lineage_digest"],
        "adapter of round 0000 stays champion",
        *(f"{share:.1%}".replace("%", " %") for share in shares),
        *(f"| {count} |" for count in subset["rejected"].values()),
        "| steps | 5 |",
        f"| playground-weak | {len(rows)} |",
        line.artifact(1, "lora_checkpoint").inputs["base"],
    ):
        assert figure in card.text
    samples = line.store.get_samples([row["sample_id"] for row in rows])
    assert not [s for s in samples if s.prompt in card.content]


@pytest.mark.slow
def test_a_base_on_the_hub_is_claimed_and_what_a_server_was_paid_is_told(line, tmp_path):
    told = export_round(line, 0, tmp_path / "out", merged=False).told
    base = replace(told.base, name="org/a_model", revision="1234", on_hub=True)
    bill = {"num_requests": 50, "num_tokens": 12_345, "cost": 0.0123}
    card = ModelCard(
        model_card(replace(told, base=base, generated=told.generated | bill), merge=None)
    )
    assert card.data.base_model == "org/a_model"
    assert r"org/a\_model" in card.text
    assert "revision 1234" in card.text
    assert "50 requests, 12,345 tokens, 0.0123 at the configured prices" in card.text


@pytest.mark.slow
def test_no_key_and_no_path_of_this_machine_leaves_with_an_export(line, export):
    assert export("--merged").code == export(out="adapter").code == 0
    for file in [*Path("out").iterdir(), *Path("adapter").iterdir()]:
        content = file.read_bytes()
        for private in (KEY, str(line.home.root), str(BASE_MODEL_DIR), str(Path.home())):
            assert private.encode() not in content, file


@pytest.mark.slow
def test_a_merge_that_changes_answers_is_refused_and_leaves_nothing(export, monkeypatch):
    def without_scaling(self, adapter):
        return self.lora_B[adapter].weight @ self.lora_A[adapter].weight

    monkeypatch.setattr(peft.tuners.lora.Linear, "get_delta_weight", without_scaling)
    ended = export("--merged")
    assert ended.code == 2
    assert "does not answer as base and adapter do" in " ".join(ended.err.split())


@pytest.mark.slow
def test_an_export_that_is_interrupted_leaves_nothing(export, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("evoselect_pipeline.training.merge.agreement", interrupt)
    assert export("--merged").code == 130


@pytest.mark.slow
def test_nothing_is_written_over_and_no_parent_made_before_anything_is_read(export, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for out, said in (
        ("full", "there is something already"),
        ("full/mine.txt", "there is something already"),
        ("link", "there is something already"),
        ("no/out", "does not exist; create it first"),
    ):
        ended = export("--round", 99, out=out)
        assert (ended.code, said in " ".join(ended.err.split())) == (2, True), ended.err
    assert (tmp_path / "full/mine.txt").read_text() == "mine"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["--round", "2"], "round 2 of line 'playground' is not finished"),
        (["--set", "model.dtype=bfloat16"], "was trained on"),
        (["--set", "model.name=./elsewhere"], "cannot load the"),
        (["--set", "line=another"], "line 'another' has no finished round"),
    ],
)
def test_what_cannot_be_exported_is_named(export, settings, said):
    ended = export(*settings)
    assert ended.code == 2
    assert said in " ".join(ended.err.split())


@pytest.mark.slow
def test_a_base_model_that_is_champion_is_no_adapter(own, export):
    appoint(own, None, "better than nothing")
    ended = export(at=own)
    assert ended.code == 2
    assert "the champion of line 'playground' is the base model" in " ".join(ended.err.split())


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
def test_a_round_of_which_a_part_was_made_again_has_no_true_card(own, export, number):
    """Of this round or of one that it builds on: the rows told of would not be those behind it."""
    subset = own.artifact(number, "selected_subset")
    facts, picks = read_facts(subset), read_json(subset.path / "picks.json")
    with publish(subset.path, inputs={"made": "again"}) as folder:
        (folder / "facts.json").write_text(json.dumps(facts))
        (folder / "picks.json").write_text(json.dumps(picks[:-1]))
    ended = export("--round", 1, at=own)
    assert ended.code == 2
    assert f"round {number} of line 'playground': selected_subset was made again" in (
        " ".join(ended.err.split())
    )


@pytest.mark.slow
def test_a_damaged_adapter_is_refused(own, export):
    weights = own.artifact(0, "lora_checkpoint").path / "adapter/adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    ended = export(at=own)
    assert ended.code == 2
    assert "damaged" in ended.err


@pytest.mark.slow
def test_a_folders_name_is_no_name_on_the_hub(tmp_path, own, export, monkeypatch):
    """A model in `org/[x](y)`: not claimed to be the hub's, and shown letter by letter."""
    name = "org/[x](y)"
    shutil.copytree(BASE_MODEL_DIR, tmp_path / name)
    assert export("--set", f"model.name={name}", at=own).code == 0
    card = ModelCard.load("out/README.md")
    assert card.data.base_model is None
    assert r"\[x\](y)" in card.text
    assert "a folder of whoever trained this" in card.text
    config = json.loads(Path("out/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == f"./{name}"
    assert AutoPeftModelForCausalLM.from_pretrained("out")


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("/home/me/data/pool/", "pool"),
        ("llm:/home/me/models/big", "llm:big"),
        ("llm:org/model", "llm:org/model"),
        ("playground-weak", "playground-weak"),
    ],
)
def test_who_wrote_a_row_is_told_without_the_folders_of_this_machine(source, shown):
    assert without_folders(source) == shown


def test_models_agree_up_to_rounding_and_greedy_tokens_up_to_ties():
    wanted = torch.tensor([[20.0, 19.9, 0.0], [1.0, 2.0, 3.0]])
    found = wanted + torch.tensor([[-0.1, 0.1, 0.0], [0.0, 0.0, 0.0]])
    told = agreement(wanted, found, "bfloat16")
    assert (told.num_tokens, told.num_same) == (2, 1)
    assert told.difference == pytest.approx(0.1, rel=1e-4)
    assert agreement(wanted, wanted + 1e-5, "float32").num_same == 2


@pytest.mark.parametrize(
    ("moved", "dtype"),
    [(0.01, "float32"), (3.0, "bfloat16"), (float("nan"), "bfloat16"), (1.5, "bfloat16")],
)
def test_models_that_differ_by_more_do_not_agree(moved, dtype):
    wanted = torch.tensor([[20.0, 19.0, 0.0]])
    with pytest.raises(ArtifactError, match="does not answer as base and adapter"):
        agreement(wanted, wanted + torch.tensor([[0.0, moved, 0.0]]), dtype)
