import subprocess
import sys
import threading
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import lancedb
import numpy as np
import polars as pl
import pytest

from evoselect_pipeline.core.records import Message, Sample, digest, sample_from_pair
from evoselect_pipeline.errors import ArtifactError, ConfigError, DataError, NumericsError
from evoselect_pipeline.stores import lance, lance_tables
from evoselect_pipeline.stores.home import Home
from evoselect_pipeline.stores.lance import LanceStore
from evoselect_pipeline.stores.tables import LAYOUT, LAYOUT_VERSION, schema_of

D = 16
REPOSITORY = Path(__file__).parents[2]
PROXY, OTHER = digest("proxy"), digest("other")


def samples(num, start=0):
    return [sample_from_pair(f"question {i}", f"answer {i}") for i in range(start, start + num)]


def ids_of(num, start=0):
    return [sample.sample_id for sample in samples(num, start)]


def features(ids, dim=D):
    """Gradients that depend on the id alone, so that any order and batching gives the same."""
    rows = [np.random.default_rng(int(i[:8], 16)).standard_normal(dim) for i in ids]
    vectors = np.array(rows, np.float32).reshape(len(ids), dim)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    scale = np.array([int(i[:4], 16) + 1 for i in ids])
    return SimpleNamespace(
        sample_ids=tuple(ids),
        vectors=vectors,
        norms=scale.astype(np.float32),
        losses=(scale / 7).astype(np.float32),
        num_tokens=scale.astype(np.int32),
        coordinates=vectors[:, :3].copy(),
    )


@pytest.fixture
def store(tmp_path):
    return LanceStore(Home(tmp_path))


def test_samples_come_back_equal_and_in_the_order_asked_for(store):
    stored = [
        *samples(50),
        Sample(
            (Message("system", "be \u00fc"), Message("user", "a'b\n"), Message("assistant", "c")),
            subtask="add",
            source="generator",
            prompt_id="p1",
            parents=("x", "y"),
        ),
    ]
    assert store.put_samples(stored, "sums", 3, num_tokens=range(51)) == 51
    asked = stored[::-1] + stored[:2]
    assert store.get_samples([sample.sample_id for sample in asked]) == asked
    assert store.get_samples([]) == []


def test_the_first_sight_of_a_sample_keeps_its_provenance(store):
    first = sample_from_pair("q", "a", source="one")
    again = sample_from_pair("q", "a", source="two")
    assert store.put_samples([first, again], "sums", 1, num_tokens=[5, 6]) == 1
    assert store.put_samples([again], "other", 2) == 0
    row = store.sample_row(first.sample_id)
    assert [row[k] for k in ("source", "first_line", "first_round", "num_tokens")] == [
        "one",
        "sums",
        1,
        5,
    ]


def test_missing_samples_are_counted_and_named(store):
    store.put_samples(samples(2), "sums", 0)
    with pytest.raises(ArtifactError, match="3 samples are not stored"):
        store.get_samples(ids_of(5))


def test_a_unique_prefix_finds_a_sample_and_an_ambiguous_one_lists_them(store, monkeypatch):
    monkeypatch.setattr(lance, "SHORTEST_PREFIX", 1)
    ids = ids_of(40)
    store.put_samples(samples(40), "sums", 0)
    for sample_id in ids[:5]:
        assert store.find_sample(sample_id) == sample_id
        assert store.find_sample(sample_id[:12]) == sample_id
    crowded = max(([i for i in ids if i[0] == digit] for digit in "0123456789abcdef"), key=len)
    assert len(crowded) > 1
    with pytest.raises(DataError, match="ambiguous") as error:
        store.find_sample(crowded[0][0])
    assert all(i in str(error.value) for i in crowded[:10])
    with pytest.raises(DataError, match="no stored sample"):
        store.find_sample("0" * 31)


@pytest.mark.parametrize("text", ["", "x" * 8, "' OR 1=1 --", "%", "A" * 8, "a" * 33, "abcd\n"])
def test_text_that_is_not_an_id_never_reaches_a_query(store, text):
    for use in (store.find_sample, store.decisions_of, store.scores_of, store.sample_row):
        with pytest.raises(DataError):
            use(text)
    for use in (store.get_samples, lambda ids: store.read_gradients(ids, PROXY, D)):
        with pytest.raises((DataError, ArtifactError)):
            use([text])
    with pytest.raises(DataError):
        store.present(text + "'", D)
    with pytest.raises(ConfigError):
        store.read_decisions(text + "'")


@pytest.mark.parametrize("scan_ratio", [0, 1000])
def test_gradients_come_back_in_the_order_asked_for(store, monkeypatch, scan_ratio):
    monkeypatch.setattr(lance_tables, "SCAN_RATIO", scan_ratio)
    ids = ids_of(300)
    for start in range(0, 300, 100):
        store.put_gradients(PROXY, features(ids[start : start + 100]))
    asked = ids[::-3] + ids[:1]
    stored, expected = store.read_gradients(asked, PROXY, D), features(asked)
    assert stored.vectors.dtype == np.float32
    np.testing.assert_allclose(stored.vectors, expected.vectors, atol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(stored.vectors, axis=1), 1, atol=1e-6)
    for name in ("norms", "losses", "num_tokens"):
        np.testing.assert_array_equal(getattr(stored, name), getattr(expected, name))


def test_a_row_is_placed_among_targets_before_its_gradient_counts_as_stored(store):
    ids = ids_of(9)
    store.put_gradients(PROXY, features(ids[:4]), span=OTHER)
    store.put_gradients(PROXY, features(ids[4:]))
    assert store.present(PROXY, D) == set(ids) and store.placed(OTHER, 3) == set(ids[:4])
    asked = [ids[2], ids[0], ids[2]]
    stored = store.read_coordinates(asked, OTHER, 3)
    np.testing.assert_allclose(stored, features(asked).vectors[:, :3], atol=1e-3)
    with pytest.raises(ArtifactError, match="1 coordinates under fingerprint"):
        store.read_coordinates(ids[:5], OTHER, 3)
    broken = features(ids)
    broken.coordinates[2, 1] = np.inf
    with pytest.raises(NumericsError, match="coordinates: expected finite"):
        store.put_gradients(PROXY, broken, span=OTHER)


def test_gradients_of_another_fingerprint_or_width_are_never_mixed_in(store):
    ids = ids_of(10)
    store.put_gradients(PROXY, features(ids))
    store.put_gradients(OTHER, features(ids[:4]))
    store.put_gradients(PROXY, features(ids[:2], dim=8))
    assert store.present(PROXY, D) == set(ids)
    assert store.present(OTHER, D) == set(ids[:4])
    assert store.present(PROXY, 8) == set(ids[:2])
    with pytest.raises(ArtifactError, match="6 gradients"):
        store.read_gradients(ids, OTHER, D)


def test_a_repeated_id_is_stored_once_within_and_across_batches(store):
    ids = ids_of(5)
    assert store.put_gradients(PROXY, features([*ids, *ids])) == 5
    assert store.put_gradients(PROXY, features(ids)) == 0
    assert store.put_samples(samples(5) + samples(5), "sums", 0) == 5
    assert store.tables.open("gradients_16").count_rows() == 5


def broken(field, value):
    def change(batch):
        getattr(batch, field)[2] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        *(broken("vectors", value) for value in (np.nan, np.inf, 1e6, 0.0, 0.9)),
        *(broken("norms", value) for value in (np.nan, np.inf, 0.0, -1.0)),
        *(broken("losses", value) for value in (np.nan, np.inf)),
        lambda batch: setattr(batch, "vectors", batch.vectors[:3]),
        lambda batch: setattr(batch, "norms", batch.norms[:3]),
    ],
)
def test_rows_that_are_not_numbers_are_refused_whole(store, change):
    batch = features(ids_of(4))
    change(batch)
    with pytest.raises(NumericsError):
        store.put_gradients(PROXY, batch)
    assert store.present(PROXY, D) == set()


def decisions(num, **columns):
    return pl.DataFrame({"sample_id": ids_of(num), "selected": [True] * num, **columns})


def test_decisions_of_a_round_are_replaced_and_other_rounds_kept(store):
    store.put_decisions("sums", 0, decisions(10, rank=range(10)))
    store.put_decisions("sums", 1, decisions(10))
    store.put_decisions("words", 1, decisions(3))
    store.put_decisions("sums", 1, decisions(4, reason=["near"] * 4, transport_mass=[0.5] * 4))
    assert store.read_decisions("sums", 0)["rank"].sum() == 45
    again = store.read_decisions("sums", 1)
    assert again["sample_id"].to_list() == sorted(ids_of(4))
    assert again["transport_mass"].to_list() == [0.5] * 4
    assert again["cost"].is_null().all()
    assert store.read_decisions("sums").height == 14
    assert store.decisions_of(ids_of(1)[0]).select("line", "round").rows() == [
        ("sums", 0),
        ("sums", 1),
        ("words", 1),
    ]
    store.put_decisions("sums", 1, decisions(0))
    assert store.read_decisions("sums", 1).is_empty()
    assert store.read_decisions("words").height == 3


def test_scores_are_kept_by_line_and_round(store):
    ids = ids_of(3)
    store.put_scores("sums", 0, pl.DataFrame({"sample_id": ids, "weight": [0.1, 0.2, 0.7]}))
    assert store.read_scores("sums", 0)["weight"].sum() == pytest.approx(1)
    assert store.scores_of(ids[0])["weight"].to_list() == [0.1]


@pytest.mark.parametrize(
    ("frame", "error"),
    [
        (pl.DataFrame({"sample_id": ids_of(1) * 2, "selected": [True, False]}), DataError),
        (decisions(1, colour=["red"]), DataError),
        (decisions(1).drop("sample_id"), DataError),
        (decisions(1, rank=["first"]), DataError),
        (decisions(1, cost=[float("nan")]), NumericsError),
        (decisions(1).with_columns(sample_id=pl.lit("x'; --")), DataError),
    ],
)
def test_decisions_that_cannot_be_right_are_refused(store, frame, error):
    with pytest.raises(error):
        store.put_decisions("sums", 0, frame)
    assert store.read_decisions("sums").is_empty()


def test_reading_an_empty_home_writes_nothing(store, tmp_path):
    assert store.present(PROXY, D) == set()
    assert store.read_decisions("sums").is_empty()
    assert store.versions() == {}
    with pytest.raises(ArtifactError, match="1 gradients"):
        store.read_gradients(ids_of(1), PROXY, D)
    assert not list(tmp_path.rglob("*.lance"))


@pytest.mark.filterwarnings("ignore:optimize:UserWarning")
def test_a_tag_keeps_what_a_round_read_through_compaction_until_it_is_pruned(store, monkeypatch):
    store.put_decisions("sums", 0, decisions(10))
    tagged = store.tag_round("sums", 0)
    assert store.tag_round("sums", 0) == tagged
    monkeypatch.setattr(lance_tables, "COMPACT_FRAGMENTS", 2)
    for round_number in range(1, 6):
        store.put_decisions("sums", round_number, decisions(5))
    assert store.versions()["decisions"] > 7  # five commits, and compactions between them
    table = store.tables.open("decisions")
    table.checkout("sums-r0000")
    assert table.count_rows() == 10
    store.prune(timedelta(microseconds=1))
    assert store.tables.open("decisions").tags.list() == {}
    assert len(store.tables.open("decisions").list_versions()) == 1
    assert store.read_decisions("sums").height == 35


def test_versions_are_kept_until_the_oldest_is_twice_as_old_as_asked(store):
    for round_number in range(3):
        store.put_decisions("sums", round_number, decisions(5))
        store.tag_round("sums", round_number)
    before = store.versions()
    store.prune(timedelta(days=1))
    table = store.tables.open("decisions")
    assert store.versions() == before
    assert len(table.list_versions()) > 3
    assert sorted(table.tags.list()) == ["sums-r0000", "sums-r0001", "sums-r0002"]


def test_a_table_of_a_newer_version_is_refused_and_named(store):
    schema = schema_of("decisions").with_metadata({LAYOUT: str(LAYOUT_VERSION + 1)})
    lancedb.connect(str(store.directory)).create_table("decisions", schema=schema)
    for use in (
        lambda: store.read_decisions("sums"),
        lambda: store.put_decisions("sums", 0, decisions(1)),
    ):
        with pytest.raises(ArtifactError, match=r"table decisions: layout version '2'.*upgrade"):
            use()


def test_every_table_says_its_layout_and_one_without_has_the_first(store):
    store.put_decisions("sums", 0, decisions(1))
    assert store.tables.open("decisions").schema.metadata[LAYOUT] == b"1"
    old = schema_of("samples").remove_metadata()
    lancedb.connect(str(store.directory)).create_table("samples", schema=old)
    assert store.put_samples(samples(3), "sums", 0) == 3


def test_small_files_are_joined_before_they_are_many(store, monkeypatch):
    monkeypatch.setattr(lance_tables, "COMPACT_FRAGMENTS", 5)
    for start in range(0, 60, 2):
        store.put_gradients(PROXY, features(ids_of(2, start)))
    assert store.tables.open("gradients_16").stats()["fragment_stats"]["num_fragments"] < 20
    assert store.present(PROXY, D) == set(ids_of(60))


def test_a_reader_sees_rows_whole_while_a_writer_commits_and_compacts(store, monkeypatch, tmp_path):
    monkeypatch.setattr(lance_tables, "COMPACT_FRAGMENTS", 3)
    ids = ids_of(200)
    store.put_gradients(PROXY, features(ids[:10]))

    def write():
        for start in range(10, 200, 10):
            store.put_gradients(PROXY, features(ids[start : start + 10]))

    writer, reader, reads = threading.Thread(target=write), LanceStore(Home(tmp_path)), 0
    writer.start()
    while writer.is_alive() or not reads:
        stored = reader.read_gradients(ids[:10], PROXY, D)
        np.testing.assert_allclose(stored.vectors, features(ids[:10]).vectors, atol=1e-3)
        reads += 1
    writer.join()
    assert reader.present(PROXY, D) == set(ids)


WRITE = """
import sys
from evoselect_pipeline.stores.home import Home
from evoselect_pipeline.stores.lance import LanceStore
from evoselect_pipeline_tests.unit.test_lance import PROXY, features, ids_of, samples
store = LanceStore(Home(sys.argv[1]))
for start in range(0, 60, 20):
    store.put_samples(samples(30, start), "sums", 0)
    store.put_gradients(PROXY, features(ids_of(30, start)))
"""


def test_three_processes_with_overlapping_rows_leave_each_row_once(store, tmp_path):
    children = [
        subprocess.Popen(
            [sys.executable, "-c", WRITE, tmp_path],
            cwd=REPOSITORY,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    errors = [child.communicate()[1] for child in children]
    assert [child.returncode for child in children] == [0, 0, 0], errors
    for name in ("samples", "gradients_16"):
        found = store.tables.read(name, "true", ["sample_id"])["sample_id"].to_pylist()
        assert sorted(found) == sorted(ids_of(70))


FULL_DISK = """
import resource, signal, sys
from evoselect_pipeline.errors import ArtifactError
from evoselect_pipeline.stores.home import Home
from evoselect_pipeline.stores.lance import LanceStore
from evoselect_pipeline_tests.unit.test_lance import PROXY, features, ids_of
store = LanceStore(Home(sys.argv[1]))
store.put_gradients(PROXY, features(ids_of(5), 512))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
try:
    store.put_gradients(PROXY, features(ids_of(500), 512))
except ArtifactError as error:
    assert "gradients_512" in str(error), error
else:
    raise SystemExit("the write should have failed")
assert store.present(PROXY, 512) == set(ids_of(5))
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
assert store.put_gradients(PROXY, features(ids_of(500), 512)) == 495
"""


def test_a_full_disk_leaves_the_table_as_it_was_and_the_next_write_works(tmp_path):
    result = subprocess.run(
        [sys.executable, "-c", FULL_DISK, tmp_path],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr


def test_nothing_may_be_stored_and_read(store):
    assert store.put_samples([], "sums", 0) == 0
    assert store.put_gradients(PROXY, features([])) == 0
    assert store.read_gradients([], PROXY, D).vectors.shape == (0, D)
