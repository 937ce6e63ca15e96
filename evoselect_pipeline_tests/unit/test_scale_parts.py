"""The parts of `bench scale` that need no measurement."""

import os
import platform
import subprocess
import sys

import numpy as np
import pytest

from evoselect_pipeline.bench.adaptation import machine
from evoselect_pipeline.bench.scale import (
    ScaleRequest,
    check_request,
    exponent,
    scale_notes,
    scale_table,
    write_problem,
)
from evoselect_pipeline.errors import ConfigError

SMALL = ScaleRequest((3000,), num_targets=9, dim=32, num_rows=20, seed=5)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_problem_is_of_unit_rows_with_copies_and_the_same_for_the_same_seed(tmp_path, dtype):
    request = ScaleRequest((3000,), 9, 32, 20, dtype, 5)
    written = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        written.append([np.load(p) for p in write_problem(request, 3000, tmp_path / name)])
    for one, other in zip(*written, strict=True):
        np.testing.assert_array_equal(one, other)
    vectors, targets = (matrix.astype(np.float32) for matrix in written[0])
    assert (vectors.shape, targets.shape) == ((3000, 32), (9, 32))
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=2e-3)
    beside = (vectors[1:] * vectors[:-1]).sum(axis=1)
    assert 0.02 < (beside > 0.98).mean() < 0.08


@pytest.mark.parametrize(
    ("changes", "saying"),
    [
        ({"sizes": (20,)}, "--n 20: expected more candidates than the 20 rows"),
        ({"sizes": (10**9,)}, "at most 100000000"),
        ({"sizes": (3000, 3000)}, "all differ"),
        ({"sizes": ()}, "all differ"),
        ({"dtype": "int8"}, "float32, float16"),
        ({"sizes": (10**8,), "dim": 10**6}, "GB left"),
    ],
)
def test_sizes_that_make_no_problem_are_refused(changes, saying):
    check_request(SMALL)
    with pytest.raises(ConfigError, match=saying):
        check_request(ScaleRequest(**{"sizes": (3000,), "num_rows": 20, **changes}))


def test_the_exponent_of_a_power_law_is_its_power():
    results = [
        {"n": n, "what": "capped_transport", "seconds": 3e-6 * n**0.9} for n in (10, 100, 5000)
    ]
    assert exponent(results, "capped_transport") == pytest.approx(0.9, abs=1e-3)
    assert exponent(results[:1], "capped_transport") is None


def test_the_table_tells_cost_a_row_and_the_notes_tell_what_was_left_out():
    row = {"n": 10, "seconds": 0.5, "ratio_to_similarity_pass": 1.25, "repeats": 5}
    memory = {"peak_mb": 250.0, "peak_before_mb": 200.0}
    report = {
        "results": [
            {**row, **memory, "what": "similarity_pass"},
            {**row, **memory, "what": "capped_transport", "cost": 3.0, "num_chosen": 4},
        ],
        "exponents": {"similarity_pass": 1.0, "capped_transport": None},
        "largest_cost_difference": 2e-9,
        "staged_overlaps": {"10": 0.5},
        "skipped": [{"n": 10**6, "what": "evolve_weights", "needs_gb": 20.5}],
        "run": {"num_targets": 9, "dim": 32, "dtype": "float32", "num_rows": 4, "seed": 7},
        "versions": machine(),
    }
    table = scale_table(report)
    assert [len(line) for line in table.rows] == [len(table.columns)] * 2
    assert table.rows[1][1:7] == ["capped transport", "0.500", "1.25", "250", "50", "0.750000"]
    notes = "\n".join(scale_notes(report))
    for saying in (
        "similarity_pass 1.00",
        "2.0e-09",
        "n 10: 50.0%",
        "evolve_weights at n 1000000",
        "20.5 GB",
        "Seed 7",
        f"numpy {np.__version__}",
    ):
        assert saying in notes


def test_the_kernels_that_a_variable_chose_are_told_with_the_machine():
    said = "from evoselect_pipeline.bench.adaptation import machine; print(machine()['machine'])"
    told = [
        subprocess.run(
            [sys.executable, "-c", said],
            env=os.environ | {"OPENBLAS_CORETYPE": core},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for core in ("Haswell", "Sandybridge")
    ]
    if "openblas" not in told[0] or platform.machine() != "x86_64":
        pytest.skip(f"needs numpy on OpenBLAS and an x86 processor; here: {told[0].strip()}")
    assert ["numpy on openblas Haswell" in told[0], "openblas Sandybridge" in told[1]] == [True] * 2
