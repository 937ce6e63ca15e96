"""A machine without a network makes rounds of what lies on it (E13)."""

import json
import shutil

import pytest

from evoselect_pipeline.playground.tasks import BASE_MODEL_DIR
from evoselect_pipeline_tests.browser.serving import free_port
from evoselect_pipeline_tests.integration.process import finish

pytestmark = pytest.mark.slow


def test_e13_without_a_hub_a_round_is_made_of_models_and_rows_in_folders(
    tmp_path, home, monkeypatch
):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "empty"))
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{free_port()}")
    shutil.copytree(BASE_MODEL_DIR, tmp_path / "model")
    (tmp_path / "rows").mkdir()
    pairs = ({"prompt": f"add {n} and {n * n}", "completion": f"{n + n * n}"} for n in range(30))
    (tmp_path / "rows" / "train.jsonl").write_text("".join(json.dumps(p) + "\n" for p in pairs))
    (tmp_path / "prompt.jinja").write_text("{{ examples[0].prompt }}, {{ number }}")
    tree = {
        "line": "offline",
        "task": {"kind": "files", "rows": {"dataset": str(tmp_path / "rows")}},
        "model": {"name": str(tmp_path / "model")},
        "generator": {
            "kind": "model",
            "model": str(tmp_path / "model"),
            "format": "completion",
            "template": f"{tmp_path}/prompt.jinja",
            "num_candidates": 40,
            "max_tokens": 8,
        },
        "gradients": {"dim": 64},
        "quality": {"prior": "none"},
        "selection": {"method": "random"},
        "train": {"steps": 2},
        "evaluation": {"max_new_tokens": 4},
        "promotion": {"tolerance": 2},
    }
    (tmp_path / "offline.yaml").write_text(json.dumps(tree))  # JSON is YAML
    line = ("--config", tmp_path / "offline.yaml", "--home", home.root)
    ended = finish("run", *line, "--rounds", 1, "--format", "json")
    assert ended.returncode == 0, ended.stderr
    [told] = json.loads(ended.stdout)["rounds"]
    assert told["promoted"] and told["num_selected"] > 0
