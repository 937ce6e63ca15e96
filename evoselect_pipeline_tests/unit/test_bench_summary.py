"""Figures of a bench against plain loops over hand-made records."""

import json

import numpy as np
import pytest

from evoselect_pipeline.bench.plot import plot
from evoselect_pipeline.bench.report import markdown, tables
from evoselect_pipeline.bench.summary import summarize
from evoselect_pipeline.core.metrics import bootstrap_interval, paired_bootstrap

TASKS = ("stories", "compose")
METHODS = ("evoselect", "round_robin", "random", "oracle")
SEEDS = (3, 4, 5)


def record(method, task, seed, finals, base=0.3, world="weak", **last_facts):
    """A chain with the given test accuracy after each round."""
    rounds = [
        {
            "validation": test - 0.01,
            "test": test,
            "num_selected": 100,
            "truth": {"good": 60 + 10 * n, "near_copy": 40 - 10 * n},
            "gain_over_base_low": test - base - 0.05,
            "gain_over_base_high": test - base + 0.05,
            "seconds_select": 2.0,
        }
        for n, test in enumerate(finals)
    ]
    rounds[-1] |= last_facts
    best = max(base, *finals)
    champion = {"round": 0, "validation": best, "test": best, "gain_over_base_high": best - base}
    return {
        "world": world,
        "task": task,
        "seed": seed,
        "method": method,
        "base": {"validation": base, "test": base},
        "rounds": rounds,
        "champion": champion,
    }


def accuracy(method, task, seed):
    """Some accuracy after the last round, in hundredths so that ties happen."""
    rng = np.random.default_rng([METHODS.index(method), TASKS.index(task), seed])
    return round(0.4 + 0.1 * (method == "oracle") + 0.2 * float(rng.random()), 2)


@pytest.fixture
def records():
    return [
        record(method, task, seed, (0.35, accuracy(method, task, seed)))
        for method in METHODS
        for task in TASKS
        for seed in SEEDS
    ]


def row_of(results, method, task="all", world="weak"):
    [row] = [r for r in results if (r["world"], r["task"], r["method"]) == (world, task, method)]
    return row


def test_a_seed_counts_with_the_mean_over_its_tasks(records):
    results = summarize(records, TASKS)
    for method in METHODS:
        values = [np.mean([accuracy(method, task, seed) for task in TASKS]) for seed in SEEDS]
        row = row_of(results, method)
        interval = bootstrap_interval(np.array(values), 0)
        assert (row["mean"], row["low"], row["high"]) == pytest.approx(tuple(interval))
        assert row["num_seeds"] == 3
        assert row["num_chains"] == 6
        assert row["after_rounds"] == pytest.approx([0.35, np.mean(values)])
        assert row["validation"] == pytest.approx(np.mean(values) - 0.01)
        assert row["good_share"] == pytest.approx(0.7)
        for task in TASKS:
            own = np.mean([accuracy(method, task, seed) for seed in SEEDS])
            assert row_of(results, method, task)["mean"] == pytest.approx(own)


def test_differences_are_paired_by_seed(records):
    results = summarize(records, TASKS)
    values = {
        method: np.array([np.mean([accuracy(method, t, seed) for t in TASKS]) for seed in SEEDS])
        for method in METHODS
    }
    expected = paired_bootstrap(values["random"], values["evoselect"], 0)
    lead = row_of(results, "random")["difference"]
    assert (lead["mean"], lead["low"], lead["high"]) == pytest.approx(tuple(expected))
    assert lead["num_seeds"] == 3
    assert lead["reference"] == "evoselect"
    assert row_of(results, "evoselect")["difference"] is None
    gap = (values["evoselect"] - values["random"]).mean()
    gap /= (values["oracle"] - values["random"]).mean()
    assert row_of(results, "evoselect")["gap_closed"] == pytest.approx(gap)
    assert row_of(results, "random")["gap_closed"] == 0
    assert row_of(results, "oracle")["gap_closed"] == 1


def test_a_seed_without_a_task_counts_for_that_task_only_where_it_is(records):
    def is_missing(r):
        return (r["method"], r["task"], r["seed"]) == ("random", "compose", 4)

    results = summarize([r for r in records if not is_missing(r)], TASKS)
    seeds = (3, 5)
    floor, ours, top = (
        [np.mean([accuracy(method, t, seed) for t in TASKS]) for seed in seeds]
        for method in ("random", "evoselect", "oracle")
    )
    row = row_of(results, "random")
    assert row["num_seeds"] == 2
    assert row["mean"] == pytest.approx(np.mean(floor))
    assert row["difference"]["num_seeds"] == 2
    assert row["difference"]["mean"] == pytest.approx(np.mean(ours) - np.mean(floor))
    # Others keep all their seeds, but are compared with random rows only on the common ones.
    row = row_of(results, "evoselect")
    assert row["num_seeds"] == 3
    gap = (np.mean(ours) - np.mean(floor)) / (np.mean(top) - np.mean(floor))
    assert row["gap_closed"] == pytest.approx(gap)
    assert row_of(results, "random", "stories")["num_seeds"] == 3
    assert row_of(results, "random", "compose")["num_seeds"] == 2


def test_a_difference_on_fewer_seeds_says_so_in_the_table(records):
    fewer = [r for r in records if (r["method"], r["seed"]) != ("evoselect", 5)]
    table = tables(summarize(fewer, TASKS))[0]
    cells = {line[0]: dict(zip(table.columns, line, strict=True)) for line in table.rows}
    assert cells["random"]["evoselect minus it"].endswith("on 2 seeds")
    assert "evoselect (2 seeds)" in cells


def test_a_method_without_a_complete_seed_has_no_figures_and_is_compared_with_none(records):
    half = [r for r in records if (r["method"], r["task"]) != ("round_robin", "compose")]
    results = summarize(half, TASKS)
    row = row_of(results, "round_robin")
    assert row["num_seeds"] == row["num_chains"] == 0
    for name in ("mean", "low", "high", "gap_closed", "difference", "wins", "share_below_base"):
        assert row[name] is None
    assert [r["method"] for r in results if r["task"] == "all"][-1] == "round_robin"
    assert tables(results)[0].rows[-1][0] == "round_robin (0 seeds)"


def test_wins_are_shared_by_equals_and_sum_to_one(records):
    results = summarize(records, TASKS)
    competitors = [method for method in METHODS if method != "oracle"]
    wins = dict.fromkeys(competitors, 0.0)
    for task in TASKS:
        for seed in SEEDS:
            scores = {method: accuracy(method, task, seed) for method in competitors}
            best = [method for method, score in scores.items() if score == max(scores.values())]
            for method in best:
                wins[method] += 1 / len(best) / 6
    for method in competitors:
        assert row_of(results, method)["wins"] == pytest.approx(wins[method])
    assert sum(wins.values()) == pytest.approx(1)
    assert row_of(results, "oracle")["wins"] is row_of(results, "base")["wins"] is None


def test_equals_stand_in_the_order_of_their_names_and_halve_the_wins():
    even = [record(m, "stories", seed, (0.5,)) for m in ("tsds", "all") for seed in SEEDS]
    results = summarize(even, ("stories",))
    methods = [row["method"] for row in results if row["task"] == "all"]
    assert methods == ["all", "tsds", "base"]
    assert row_of(results, "all")["wins"] == row_of(results, "tsds")["wins"] == 0.5


def test_below_base_is_counted_with_and_without_noise_and_gate():
    records = [
        record("random", "stories", 0, (0.40, 0.29)),  # below, but within noise
        record("random", "stories", 1, (0.20, 0.10)),
        record("random", "stories", 2, (0.20, 0.40)),
        record("random", "stories", 3, (0.20, 0.30)),  # equal is not below
    ]
    row = row_of(summarize(records, ("stories",)), "random")
    assert row["share_below_base"] == 0.5
    assert row["share_below_base_beyond_noise"] == 0.25
    assert row["champion_share_below_base"] == 0
    assert row["champion_mean"] == pytest.approx(np.mean([0.4, 0.3, 0.4, 0.3]))
    table = tables(summarize(records, ("stories",)))[0]
    cells = dict(zip(table.columns, table.rows[-1], strict=True))
    assert cells["method"] == "random"
    assert (cells["below base"], cells["gated"]) == ("2/4 (1)", "0/4 (0)")


def test_the_base_model_is_a_row_that_no_round_changes(records):
    row = row_of(summarize(records, TASKS), "base")
    assert row["mean"] == row["low"] == row["high"] == pytest.approx(0.3)
    assert row["after_rounds"] == pytest.approx([0.3, 0.3])
    assert row["share_below_base"] == 0
    assert row["good_share"] is None


def test_one_seed_gives_no_interval():
    records = [record(m, "stories", 0, (0.4,)) for m in ("evoselect", "random")]
    row = row_of(summarize(records, ("stories",)), "random")
    assert row["mean"] == 0.4
    assert row["low"] is row["high"] is None
    assert row["difference"]["low"] is None


def test_no_gap_is_closed_where_the_oracle_is_no_better_than_random_rows():
    records = [record(m, "stories", 0, (0.4,)) for m in ("evoselect", "random", "oracle")]
    assert row_of(summarize(records, ("stories",)), "evoselect")["gap_closed"] is None


def test_worlds_are_kept_apart_and_order_of_records_does_not_matter(records):
    strong = [
        {**r, "world": "strong"} | {"base": {"test": 0.9, "validation": 0.9}} for r in records
    ]
    both = summarize([*records, *strong], TASKS)
    assert [r for r in both if r["world"] == "weak"] == summarize(records, TASKS)
    assert row_of(both, "base", world="strong")["mean"] == pytest.approx(0.9)
    assert summarize(records[::-1], TASKS) == summarize(records, TASKS)


def test_geometry_is_averaged_over_the_chains_that_have_it():
    records = [
        record("evoselect", "stories", 0, (0.4, 0.5), vendi=20.0),
        record("evoselect", "stories", 1, (0.4, 0.5), vendi=30.0),
        record("random", "stories", 0, (0.4, 0.5)),
    ]
    results = summarize(records, ("stories",))
    assert row_of(results, "evoselect")["vendi"] == 25
    assert row_of(results, "random")["vendi"] is None


def test_figures_are_plain_json_and_go_into_every_report(records, tmp_path):
    strong = [{**r, "world": "strong"} for r in records]
    results = summarize([*records, *strong], TASKS)
    assert json.loads(json.dumps(results, allow_nan=False)) == results
    found = tables(results)
    assert [t.title for t in found] == [
        "Weak generator: test accuracy, mean of stories, compose",
        "Weak generator: test accuracy by task",
        "Weak generator: wins, and the rows chosen",
        "Strong generator: test accuracy, mean of stories, compose",
        "Strong generator: test accuracy by task",
        "Strong generator: wins, and the rows chosen",
    ]
    page = markdown("Title", "What was matched.", found)
    for method in METHODS:
        assert page.count(f"| {method} |") == 6
    lines = [line for line in page.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in lines[:7]} == {len(found[0].columns) + 1}
    plot(results, "Title", tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_columns_that_say_nothing_are_left_out():
    records = [record("evoselect", "stories", seed, (0.4,)) for seed in SEEDS]
    methods, chosen = tables(summarize(records, ("stories",)))
    assert "gap closed" not in methods.columns
    assert "below base" in methods.columns
    assert "Vendi" not in chosen.columns


def test_a_picture_needs_no_selector(records, tmp_path):
    oracle = [r for r in records if r["method"] == "oracle"]
    plot(summarize(oracle, TASKS), "Title", tmp_path / "plot.png")
    assert (tmp_path / "plot.png").is_file()
