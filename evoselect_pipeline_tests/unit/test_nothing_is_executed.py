"""Law: rows, answers and stored files are data: nothing of them is ever run."""

import ast
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from evoselect_pipeline.config import LoraSettings, ModelSettings
from evoselect_pipeline.errors import ArtifactError
from evoselect_pipeline.training.lora import seal
from evoselect_pipeline.training.models import load_base, with_adapter
from evoselect_pipeline_tests.faults.test_training_that_ends_early import STEPS, at_step
from evoselect_pipeline_tests.invariants.test_equivalence import train

PACKAGE = Path(__file__).parents[2] / "evoselect_pipeline"
MODEL, LORA = ModelSettings(), LoraSettings(rank=2)
# What makes code of text or of bytes, or lets a shell read them.
RUNS = {
    "eval", "exec", "compile", "__import__",
    "os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput",
    "pickle.load", "pickle.loads", "dill.load", "dill.loads", "joblib.load", "marshal.loads",
    "torch.load", "shelve.open", "yaml.load", "yaml.unsafe_load", "runpy.run_path",
}  # fmt: skip


def name_of(node: ast.AST) -> str:
    """A name with its dots, as `torch.load`."""
    if isinstance(node, ast.Attribute):
        return f"{name_of(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def suspects(text: str) -> Iterator[str]:
    """Calls in a source that could run what they are given."""
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Call):
            continue
        keywords = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
        if name_of(node.func) in RUNS or keywords.get("shell") is True:
            yield f"{node.lineno}: {name_of(node.func)}"
        # numpy refuses an array of objects, which is a pickle, unless it is told not to.
        if keywords.get("allow_pickle", False) is not False:
            yield f"{node.lineno}: {name_of(node.func)}"


def test_no_call_of_the_package_runs_what_it_is_given():
    found = {
        str(path.relative_to(PACKAGE)): calls
        for path in PACKAGE.rglob("*.py")
        if (calls := list(suspects(path.read_text(encoding="utf-8"))))
    }
    assert not found


@pytest.mark.parametrize(
    "call",
    [
        "eval(x)",
        "torch.load(p)",
        "np.load(p, allow_pickle=True)",
        "subprocess.run(c, shell=True)",
        "pickle.loads(b)",
    ],
)
def test_such_a_call_is_found(call):
    assert list(suspects(call))
    assert not list(suspects("np.load(p, allow_pickle=False); json.loads(t); model.eval()"))


class Trap:
    """What a pickle of this does when it is read: it touches a file."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


def test_g2_an_adapter_that_is_a_pickle_is_refused(tmp_path):
    folder = tmp_path / "adapter"
    with_adapter(load_base(MODEL), None, LORA, 0).save_pretrained(str(folder))
    weights = load_file(folder / "adapter_model.safetensors")
    (folder / "adapter_model.safetensors").unlink()
    for content in (weights, weights | {"trap": Trap(tmp_path / "ran")}):
        torch.save(content, folder / "adapter_model.bin")
        with pytest.raises(ArtifactError, match=r"no adapter_model\.safetensors"):
            with_adapter(load_base(MODEL), folder, LORA, 0)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "file", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"]
)
def test_g2_a_checkpoint_that_is_a_trap_does_not_spring(tmp_path, monkeypatch, file):
    def interrupt():
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        at_step(patched, 3, interrupt)
        train(tmp_path, **STEPS)
    torch.save(Trap(tmp_path / "ran"), tmp_path / "work/checkpoint-2" / file)
    seal(tmp_path / "work/checkpoint-2")  # who can plant it can do that as well
    kept = tmp_path / "kept"
    shutil.copytree(tmp_path / "work", kept)
    if file == "training_args.bin":  # nobody reads it
        train(tmp_path, **STEPS)
    else:
        with pytest.raises(Exception, match="Weights only load failed"):
            train(tmp_path, **STEPS)
    assert not (tmp_path / "ran").exists()
