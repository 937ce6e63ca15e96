"""Law: an artifact or a log of answers is as it was written, or refused, whatever became of it."""

import json
from contextlib import contextmanager
from dataclasses import asdict, replace

import pytest
from hypothesis import strategies as st

from evoselect_pipeline.errors import ArtifactError
from evoselect_pipeline.stores.answer_log import Answer, AnswerLog
from evoselect_pipeline.stores.artifacts import find, open_artifact, publish
from evoselect_pipeline.stores.manifests import MANIFEST, SEAL
from evoselect_pipeline_tests.fuzz.fuzzing import ANY_TEXT, JSON_VALUES, damaged, fuzz

INPUTS = {"line": "sums", "seed": 3, "settings": {"ratio": 0.5, "name": "\u00fc"}, "upstream": None}
ANSWERS = [
    Answer(f"r{i % 3}", i // 3, f"\u00e4 {i}", "stop", 10 + i, 5, False, 0.5) for i in range(6)
]
LINES = "".join(json.dumps(asdict(answer)) + "\n" for answer in ANSWERS).encode()


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores") / "stage"
    with publish(folder, inputs=INPUTS) as inside:
        (inside / "facts.json").write_text("{}\n")
        (inside / "adapter").mkdir()
        (inside / "adapter" / "weights").write_bytes(bytes(range(256)))
    return open_artifact(folder)


@contextmanager
def holding(file, content):
    """Another content of a file for a while."""
    whole = file.read_bytes()
    file.write_bytes(content)
    try:
        yield
    finally:
        file.write_bytes(whole)


@fuzz(examples=50, data=st.data(), is_sealed=st.booleans())
def test_a_damaged_manifest_is_refused_or_says_what_it_said(artifact, data, is_sealed):
    manifest = dict(artifact.manifest)
    if not is_sealed:  # as manifests of old
        del manifest[SEAL]
    text = json.dumps(manifest, indent=2, sort_keys=True).encode()
    changed = data.draw(damaged(text) | JSON_VALUES.map(lambda value: json.dumps(value).encode()))
    with holding(artifact.path / MANIFEST, changed):
        try:
            found = open_artifact(artifact.path)
        except ArtifactError:
            return
        assert not is_sealed or found == artifact
        assert found.manifest["files"] == artifact.manifest["files"]
        assert isinstance(found.digest, str)


@fuzz(examples=50, name=st.sampled_from(["facts.json", "adapter/weights"]), data=st.data())
def test_a_damaged_file_of_an_artifact_is_refused_and_counts_as_absent(artifact, name, data):
    file = artifact.path / name
    changed = data.draw(damaged(file.read_bytes()))
    if changed == file.read_bytes():
        return
    with holding(file, changed):
        with pytest.raises(ArtifactError, match="damaged"):
            open_artifact(artifact.path)
        assert find(artifact.path, INPUTS) is None
    assert find(artifact.path, INPUTS) == artifact


ENTRIES = st.fixed_dictionaries(
    {},
    optional={name: JSON_VALUES | st.just(value) for name, value in asdict(ANSWERS[0]).items()},
)
OTHER = st.lists(ENTRIES | JSON_VALUES, max_size=3).map(
    lambda entries: "".join(json.dumps(entry) + "\n" for entry in entries).encode()
)


@fuzz(examples=100, content=damaged(LINES) | OTHER | st.binary(), text=ANY_TEXT)
def test_a_damaged_log_of_answers_is_refused_or_goes_on(content, text, tmp_path_factory):
    file = tmp_path_factory.getbasetemp() / "answers.jsonl"
    file.write_bytes(content)
    try:
        log = AnswerLog(file)
    except ArtifactError as error:
        assert str(error).startswith(str(file))
        return
    attempt = log.next_attempt("new")
    new = replace(ANSWERS[0], request="new", attempt=attempt, text=text)
    kept, before = log.answers_to("r0"), log.spent
    log.append([new])
    again = AnswerLog(file)
    assert again.spent == log.spent
    assert again.spent.num_tokens == before.num_tokens + 15
    assert again.answers_to("r0") == kept
    assert again.answers_to("new")[-1] == new
