"""Law: who computes the gradients does not show in them, whatever happens to the workers.

A real Ray on this machine, with two workers.
"""

import importlib.util
import os
import secrets
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from evoselect_pipeline.commands.context import read_line_config
from evoselect_pipeline.config import LineConfig
from evoselect_pipeline.core.gradients import GradientBatch, concatenate
from evoselect_pipeline.core.records import Sample
from evoselect_pipeline.errors import ConfigError, DataError
from evoselect_pipeline.generation.playground import PlaygroundGenerator
from evoselect_pipeline.playground.tasks import task_rows
from evoselect_pipeline.progress import listening
from evoselect_pipeline.rounds import crew, distributed
from evoselect_pipeline.rounds.data import target_set
from evoselect_pipeline.rounds.line import Line
from evoselect_pipeline.rounds.representation import compute_gradients, store_gradients
from evoselect_pipeline.rounds.stages import STAGES
from evoselect_pipeline.stores.home import Home
from evoselect_pipeline.training.models import load_encoder, load_proxy
from evoselect_pipeline_tests.integration.process import TINY

pytestmark = pytest.mark.slow

NUM_ROWS, NUM_TARGETS, DIM = 300, 6, 128
FINGERPRINT, SPAN = "a" * 16, "b" * 16
SETTINGS = TINY | {
    "seed": 3,
    "gradients.dim": DIM,
    "gradients.batch_tokens": 512,
    "task.num_targets": NUM_TARGETS,
}
ENGINE = {
    "engine.kind": "ray",
    "engine.num_workers": 2,
    "engine.cpus_per_worker": 1,
    "engine.rows_per_shard": 20,
}
ALONE = ENGINE | {"engine.num_workers": 1}  # quicker to start, where two make no difference


def configured(*settings: dict) -> LineConfig:
    tree = {key: value for part in (SETTINGS, *settings) for key, value in part.items()}
    return read_line_config(None, [f"{key}={value}" for key, value in tree.items()])


@pytest.fixture(scope="module")
def cluster():
    """A Ray of this test's own; the engine uses the one that its process has joined."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed: pip install 'evoselect-pipeline[ray]'")
    ray = crew.import_ray()
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # or Ray puts one in the home
    # The workers find the package, but not this file.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    ray.init(
        "local",
        num_cpus=2,
        object_store_memory=100 * 2**20,
        include_dashboard=False,
        log_to_driver=False,
    )
    yield ray
    ray.shutdown()


@pytest.fixture(scope="module")
def targets() -> list[Sample]:
    return task_rows("stories", num_targets=NUM_TARGETS, num_validation=1, num_test=1).targets


@pytest.fixture(scope="module")
def rows(targets) -> list[Sample]:
    written = PlaygroundGenerator("stories", "weak").generate(targets, NUM_ROWS, 3)
    return list({row.sample_id: row for row in [*written, *targets]}.values())


def stream(rows, targets, config, present=frozenset()):
    """What the stage does, less its artifact."""
    proxy = load_proxy(config.model, None, config.lora, config.seed)
    encoder, cluster = load_encoder(config.model), distributed.cluster_of(config, None)
    return compute_gradients(
        *(rows, targets, proxy, encoder, config.gradients, config.seed),
        present=present,
        cluster=cluster,
    )


@pytest.fixture(scope="module")
def local(rows, targets) -> tuple[list[GradientBatch], np.ndarray]:
    found = stream(rows, targets, configured())
    return list(found.batches), found.folded


def assert_same_bits(batch: GradientBatch, others: list[GradientBatch]) -> None:
    """The same rows, each once, with the same numbers."""
    other = concatenate(others)
    place_of = {sample_id: place for place, sample_id in enumerate(other.sample_ids)}
    assert sorted(batch.sample_ids) == sorted(place_of)
    twin = other.take([place_of[sample_id] for sample_id in batch.sample_ids])
    for name in ("vectors", "coordinates", "norms", "losses", "num_tokens"):
        assert np.array_equal(getattr(batch, name), getattr(twin, name)), name


def workers() -> list[int]:
    """Processes of the workers that this process's own Ray has started."""
    found, front = [], [os.getpid()]
    while front:
        for task in Path(f"/proc/{front.pop()}/task").glob("*/children"):
            front += (children := [int(pid) for pid in task.read_text().split()])
            found += [pid for pid in children if b"ray::ShardWorker" in command_of(pid)]
    return found


def command_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # it has ended meanwhile
        return b""


def killing_one(batches: Iterator[GradientBatch], killed: list[int]) -> Iterator[GradientBatch]:
    """Kill a worker after the first shard came back."""
    for batch in batches:
        if not killed:
            killed += workers()[:1]
            os.kill(killed[0], signal.SIGKILL)
        yield batch


def test_a_worker_is_killed_and_the_bits_are_those_of_one_process(
    cluster, rows, targets, local, tmp_path, caplog
):
    here, folded = local
    found = stream(rows, targets, configured(ENGINE))
    assert np.array_equal(found.folded, folded)
    store = Line(configured(), Home(tmp_path)).store
    seen, told, killed = [], [], []

    def watched():
        for batch in killing_one(found.batches, killed):
            seen.append(batch)
            yield batch

    with listening(lambda *what: told.append(what)):
        assert store_gradients(store, FINGERPRINT, SPAN, watched()) == []
    assert told == sorted(told)
    assert told[-1] == ("gradients", len(rows), len(rows))
    assert "a worker was lost" in caplog.text
    assert killed and not Path(f"/proc/{killed[0]}").exists()
    assert_same_bits(concatenate(seen), here)
    for name in (f"gradients_{DIM}", f"coordinates_{NUM_TARGETS}"):
        stored = store.tables.read(name, "true", ["sample_id"])["sample_id"].to_pylist()
        assert sorted(stored) == sorted(row.sample_id for row in rows)


def test_rows_that_are_present_are_not_computed_again(cluster, rows, targets, local):
    here, _ = local
    done, missing = here[::2], here[1::2]
    present = frozenset(sample_id for batch in done for sample_id in batch.sample_ids)
    found = stream(rows, targets, configured(ALONE), present)
    assert_same_bits(concatenate(list(found.batches)), missing)


def test_the_engine_is_no_input_of_a_stage(cluster, tmp_path):
    artifacts = []
    for name, engine in (("here", {}), ("there", ALONE)):
        line = Line(configured(engine), Home(tmp_path / name))
        target_set(line)
        stages = [stage.name for stage in STAGES]
        for stage in STAGES[: stages.index("projected_gradients") + 1]:
            artifact = stage.run(line, 0)
        artifacts.append(artifact)
    assert artifacts[0].digest == artifacts[1].digest
    assert artifacts[0].inputs == artifacts[1].inputs


class Fragile:
    """A worker that needs no model, dies of one job and refuses another."""

    def load(self) -> None:
        """Nothing to load."""

    def double(self, number: int) -> int:
        if number == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        if number == 100:
            raise ConfigError("what the worker says")
        return 2 * number


@pytest.fixture
def few(cluster):
    kind = cluster.remote(num_cpus=1)(Fragile)

    def start():
        actor = kind.remote()
        return actor, actor.load.remote()

    few = crew.Crew(start, 2, "1 CPU")
    yield few
    few.dismiss()


def jobs(*numbers: int) -> list[crew.Job]:
    return [crew.Job("double", (number,), f"number {number}") for number in numbers]


def test_a_job_that_workers_die_of_is_given_up_with_its_name(few):
    done = []
    with pytest.raises(DataError, match="3 workers were lost at number 3; what is stored is kept"):
        for result in few.work(jobs(*range(12))):
            done.append(result)
            in_hand = sum(len(worker.in_hand) for worker in few._workers)
            assert in_hand <= 2 * crew.JOBS_IN_HAND
    assert len(done) == len(set(done))
    assert set(done) <= {2 * number for number in range(12)} - {6}


def test_what_a_worker_refuses_is_told_in_its_own_words(few):
    with pytest.raises(ConfigError, match=r"^what the worker says$"):
        list(few.work(jobs(1, 100)))


@pytest.mark.parametrize(
    ("changed", "message"),
    [("software", "install the same versions on every node"), ("proxy", "is not the driver's")],
)
def test_a_worker_with_other_software_or_another_proxy_refuses_to_work(
    changed, message, monkeypatch
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # set by `load`; restored afterwards
    expected = "others" if changed == "software" else distributed.software()
    with pytest.raises(ConfigError, match=message):
        distributed.ShardWorker().load((configured(), None), 1, expected, "0" * 16)


def test_the_short_form_stays_when_further_keys_are_set():
    short = read_line_config(None, ["engine=ray", "engine.num_workers=3"]).engine
    assert (short.kind, short.num_workers) == ("ray", 3)


def test_without_ray_the_message_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install 'evoselect-pipeline\[ray\]'"):
        distributed.cluster_of(configured(ENGINE), None)
    assert distributed.cluster_of(configured(), None) is None
