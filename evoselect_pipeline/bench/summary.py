"""Records of a bench to figures: means over seeds, intervals, and differences on common seeds.

A record is one arm on one task in one world with one seed, as `bench.adaptation` writes it. The
unit that intervals are drawn over is the seed: pool, choice and training differ from seed to seed,
test rows do not. The value of a seed for several tasks is the mean over them, so a seed counts for
a method only once all its tasks are there; every figure says how many seeds it rests on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from evoselect_pipeline.core.metrics import bootstrap_interval, paired_bootstrap

Record = Mapping[str, Any]
Chains = Mapping[int, Sequence[Record]]  # complete seeds of a method: a record for each task

ALL_TASKS = "all"
BASE, ORACLE, RANDOM, REFERENCE = "base", "oracle", "random", "evoselect"
GOOD = "good"  # how a generator that knows calls its flawless rows
BOOTSTRAP_SEED = 0
GEOMETRY = ("ot_distance", "vendi", "near_duplicate_share", "target_coverage")


def summarize(records: Sequence[Record], tasks: Sequence[str]) -> list[dict[str, Any]]:
    """Figures per world, per task and over all tasks, for every method and the base model.

    Parameters
    ----------
    records : sequence of mappings
        What is there, in any order; all with the same number of rounds.
    tasks : sequence of str
        The tasks that were asked for: a seed without one of them is left out of `all`.

    Returns
    -------
    list of dict
        By world, by task with `all` first, then by falling mean (equal means by name); methods
        without a complete seed come last, with None for what cannot be said.
    """
    by_method = _by_method([*records, *_base_records(records)])
    results = []
    for world in dict.fromkeys(record["world"] for record in records):
        for name, its in ((ALL_TASKS, tuple(tasks)), *((task, (task,)) for task in tasks)):
            complete = {
                method: _complete(chains, its)
                for (of, method), chains in by_method.items()
                if of == world
            }
            rows = [
                {"world": world, "task": name, "method": method} | _figures(complete, method)
                for method in complete
            ]
            results += sorted(rows, key=_best_first)
    return results


def _figures(complete: Mapping[str, Chains], method: str) -> dict[str, Any]:
    """Everything that is said of a method beside the others."""
    chains = complete[method]
    values = list(seed_values(chains).values())
    last = [record["rounds"][-1] for record in _records(chains)]
    return {
        "mean": _mean(values),
        **_interval(values),
        "num_seeds": len(chains),
        **_below_base(list(_records(chains))),
        "gap_closed": _gap_closed(complete, method),
        "difference": _difference(complete, method),
        "wins": _wins(complete).get(method),
        "after_rounds": _after_rounds(chains, "test"),
        "validation": _mean([facts["validation"] for facts in last]),
        "champion_mean": _mean([record["champion"]["test"] for record in _records(chains)]),
        "num_selected": _mean_known(last, "num_selected"),
        "good_share": _mean([_good_share(facts["truth"]) for facts in last if "truth" in facts]),
        **{name: _mean_known(last, name) for name in GEOMETRY},
        "seconds_select": _mean_known(last, "seconds_select"),
    }


def seed_values(chains: Chains) -> dict[int, float]:
    """Test accuracy after the last round for each seed: the mean over its tasks."""
    return {
        seed: float(np.mean([record["rounds"][-1]["test"] for record in records]))
        for seed, records in chains.items()
    }


def _interval(values: Sequence[float]) -> dict[str, float | None]:
    """Bootstrap bounds of the mean; none for a single seed, which says nothing about others."""
    if len(values) < 2:
        return {"low": None, "high": None}
    interval = bootstrap_interval(np.array(values), BOOTSTRAP_SEED)
    return {"low": interval.low, "high": interval.high}


def _below_base(records: Sequence[Record]) -> dict[str, Any]:
    """Share of the chains that end below the base model, without and with the promotion gate.

    Beyond noise is below by more than the test rows' own bootstrap interval of the difference.
    """
    shares: dict[str, Any] = {"num_chains": len(records)}
    for prefix, ends in (
        ("", [record["rounds"][-1] for record in records]),
        ("champion_", [record["champion"] for record in records]),
    ):
        pairs = list(zip(records, ends, strict=True))
        shares[f"{prefix}share_below_base"] = _mean(
            [float(end["test"] < record["base"]["test"]) for record, end in pairs]
        )
        shares[f"{prefix}share_below_base_beyond_noise"] = _mean(
            [float(end["gain_over_base_high"] < 0) for end in ends]
        )
    return shares


def _gap_closed(complete: Mapping[str, Chains], method: str) -> float | None:
    """(mean - random) / (oracle - random) on the seeds that all three have.

    None where one of them is missing, or the oracle is no better than random rows.
    """
    if not {method, RANDOM, ORACLE} <= complete.keys():
        return None
    of, floor, top = (seed_values(complete[name]) for name in (method, RANDOM, ORACLE))
    seeds = of.keys() & floor.keys() & top.keys()
    gap = sum(top[seed] - floor[seed] for seed in seeds)
    return sum(of[seed] - floor[seed] for seed in seeds) / gap if gap > 0 else None


def _difference(complete: Mapping[str, Chains], method: str) -> dict[str, Any] | None:
    """The reference's lead over a method with a paired bootstrap interval over common seeds."""
    if method == REFERENCE or REFERENCE not in complete:
        return None
    of, reference = seed_values(complete[method]), seed_values(complete[REFERENCE])
    seeds = sorted(of.keys() & reference.keys())
    if not seeds:
        return None
    before, after = (np.array([values[s] for s in seeds]) for values in (of, reference))
    lead = paired_bootstrap(before, after, BOOTSTRAP_SEED)
    bounds = (lead.low, lead.high) if len(seeds) > 1 else (None, None)
    return {
        "reference": REFERENCE,
        "mean": lead.mean,
        "low": bounds[0],
        "high": bounds[1],
        "num_seeds": len(seeds),
    }


def _wins(complete: Mapping[str, Chains]) -> dict[str, float]:
    """Share of the (task, seed) pairs in which a method is the best; equals share a win.

    Base and oracle do not compete. Pairs that a competitor lacks are left out for all.
    """
    competitors = sorted(complete.keys() - {BASE, ORACLE})
    every_seed = {seed for method in competitors for seed in complete[method]}
    wins, num_pairs = dict.fromkeys(competitors, 0.0), 0
    for seed in sorted(every_seed):
        if not all(seed in complete[method] for method in competitors):
            continue
        for records in zip(*(complete[method][seed] for method in competitors), strict=True):
            scores = [record["rounds"][-1]["test"] for record in records]
            best = [m for m, s in zip(competitors, scores, strict=True) if s == max(scores)]
            num_pairs += 1
            for method in best:
                wins[method] += 1.0 / len(best)
    return {method: won / num_pairs for method, won in wins.items()} if num_pairs else {}


def _after_rounds(chains: Chains, split: str) -> list[float | None]:
    num_rounds = max((len(record["rounds"]) for record in _records(chains)), default=0)
    return [
        _mean([record["rounds"][number][split] for record in _records(chains)])
        for number in range(num_rounds)
    ]


def _by_method(records: Sequence[Record]) -> dict[tuple[str, str], dict[int, dict[str, Record]]]:
    """Records by world and method, then by seed and task."""
    tree: dict[tuple[str, str], dict[int, dict[str, Record]]] = {}
    for record in records:
        seeds = tree.setdefault((record["world"], record["method"]), {})
        seeds.setdefault(record["seed"], {})[record["task"]] = record
    return tree


def _complete(chains: Mapping[int, Mapping[str, Record]], tasks: Sequence[str]) -> Chains:
    """The seeds that have a record for each of the tasks, in order."""
    return {
        seed: [of_task[task] for task in tasks]
        for seed, of_task in sorted(chains.items())
        if all(task in of_task for task in tasks)
    }


def _base_records(records: Sequence[Record]) -> list[Record]:
    """The base model as a method that never changes it, for every task and seed."""
    found = {(r["world"], r["task"], r["seed"]): r for r in records}
    unchanged = {"gain_over_base_low": 0.0, "gain_over_base_high": 0.0}
    return [
        {
            **{name: record[name] for name in ("world", "task", "seed", "base")},
            "method": BASE,
            "rounds": [record["base"] | unchanged] * len(record["rounds"]),
            "champion": record["base"] | unchanged,
        }
        for record in found.values()
    ]


def _records(chains: Chains) -> Iterator[Record]:
    for records in chains.values():
        yield from records


def _good_share(truth: Mapping[str, int]) -> float:
    return truth.get(GOOD, 0) / sum(truth.values())


def _mean_known(rounds: Sequence[Mapping[str, Any]], name: str) -> float | None:
    return _mean([facts[name] for facts in rounds if name in facts])


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _best_first(row: Mapping[str, Any]) -> tuple[bool, float, str]:
    mean = row["mean"]
    return mean is None, -(mean or 0.0), row["method"]
