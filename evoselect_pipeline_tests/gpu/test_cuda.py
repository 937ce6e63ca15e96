"""On a GPU: bfloat16 features choose the rows that float32 features on the CPU choose.

Skipped where there is no GPU. Run by itself it also prints throughput and memory:
`pytest -s evoselect_pipeline_tests/gpu`.
"""

import json
import os
import subprocess
import sys

import pytest
import torch

from evoselect_pipeline.generation.playground import PlaygroundGenerator
from evoselect_pipeline.playground.tasks import task_rows

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")

NUM_CANDIDATES, BUDGET = 2000, 400
LEAST_OVERLAP = 0.95


def evoselect(*arguments, **environment):
    command = [sys.executable, "-c", "from evoselect_pipeline.cli import main; main()", *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | environment, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def write(path, samples):
    rows = ({"prompt": s.prompt, "completion": s.completion} for s in samples)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def chosen(folder, name, *keys, **environment):
    arguments = [f"--{what}={folder / what}.jsonl" for what in ("candidates", "target")]
    for key in ("quality.prior=none", *keys):
        arguments += ["--set", key]
    out = folder / f"{name}.jsonl"
    evoselect("select", *arguments, f"--out={out}", f"--budget={BUDGET}", **environment)
    return {json.loads(line)["sample_id"] for line in out.read_text().splitlines()}


def test_bfloat16_on_the_gpu_chooses_what_float32_on_the_cpu_chooses(tmp_path):
    targets = task_rows("stories", num_targets=64, num_validation=1, num_test=1).targets
    write(tmp_path / "target.jsonl", targets)
    candidates = PlaygroundGenerator("stories", "weak").generate(targets, NUM_CANDIDATES, seed=0)
    write(tmp_path / "candidates.jsonl", candidates)
    on_cpu = chosen(tmp_path, "cpu", CUDA_VISIBLE_DEVICES="")
    on_gpu = chosen(tmp_path, "gpu", "model.dtype=bfloat16")
    overlap = len(on_cpu & on_gpu) / max(len(on_cpu), len(on_gpu))
    print(f"overlap of chosen rows: {overlap:.3f}")
    assert overlap >= LEAST_OVERLAP


def test_throughput_and_memory_are_printed():
    arguments = ("--model=small", "--rows=200", "--repeats=5", "--batch-tokens=16384")
    report = json.loads(evoselect("bench", "gradients", *arguments, "--format=json"))
    for row in report["results"]:
        told = f"{row['samples_per_s']:.0f} rows/s, {row['peak_mb']:.0f} MB above the model"
        print(row["representation"], told)
        assert row["samples_per_s"] > 0 and row["peak_mb"] > 0
