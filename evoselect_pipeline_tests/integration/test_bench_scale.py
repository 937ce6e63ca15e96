"""`evoselect bench scale` from the command line, on problems of no size."""

import json

import pytest

from evoselect_pipeline.bench.scale_worker import MEASURES, YARDSTICK
from evoselect_pipeline_tests.integration.process import finish

TINY = ("--n", 1500, "--targets", 8, "--dim", 16, "--k", 50, "--repeats", 2)


@pytest.mark.slow
def test_the_report_holds_every_measurement_in_its_own_process():
    ended = finish("bench", "scale", *TINY, "--format", "json")
    assert ended.returncode == 0, ended.stderr
    report = json.loads(ended.stdout)
    rows = {(row["n"], row["what"]): row for row in report["results"]}
    assert rows.keys() == {(1500, what) for what in (YARDSTICK, *MEASURES)}
    for row in rows.values():
        assert row["seconds"] >= 0
        assert row["ratio_to_similarity_pass"] > 0
        assert row["peak_mb"] > row["peak_before_mb"] > 10
        assert row.get("num_chosen", 50) == 50
    assert rows[1500, YARDSTICK]["ratio_to_similarity_pass"] == 1
    assert report["largest_cost_difference"] < 1e-6
    assert report["exponent"] is None  # a line through one point
    assert 0 < report["staged_overlaps"]["1500"] <= 1
    assert (report["run"]["seed"], report["run"]["threads"]) == (0, 1)
    assert "capped_transport, 1500 rows" in ended.stderr


@pytest.mark.parametrize(
    ("options", "saying"),
    [
        (("--n", 1000), "more candidates than the 1024 rows"),
        (("--n", 0), "more candidates"),
        (("--k", 0), "--k"),
        (("--dtype", "int8"), "float32, float16"),
        (("--targets", 0), "--targets"),
    ],
)
def test_nonsense_is_refused_at_once(evoselect, options, saying):
    ended = evoselect("bench", "scale", *options)
    assert ended.code == 2
    assert ended.out == ""
    assert saying in ended.err
