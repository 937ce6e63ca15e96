"""Law: centring takes out what all rows share, and leaves unit rows and broken rows as they are."""

import numpy as np

from evoselect_pipeline.core.features import Features, selection_problem
from evoselect_pipeline.core.records import sample_from_pair


def features_of(vectors):
    vectors = np.asarray(vectors, np.float32)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
    count = len(vectors)
    ones = np.ones(count, np.float32)
    return Features(unit, np.where(lengths[:, 0] > 0, ones, 0), ones, np.full(count, 4))


def rows(count, name):
    return [sample_from_pair(f"{name} {number}", "x") for number in range(count)]


def problem_of(candidates, targets, **settings):
    return selection_problem(
        rows(len(candidates), "row"),
        features_of(candidates),
        rows(len(targets), "target"),
        features_of(targets),
        **settings,
    )


def test_a_shared_direction_no_longer_hides_the_difference():
    draw = np.random.default_rng(0)
    shared = 10 * np.eye(1, 8)[0]
    groups = [shared + draw.normal(size=(20, 8)) * 0.1 + sign * np.eye(8)[1] for sign in (1, -1)]
    problem = problem_of(np.concatenate(groups), groups[0][:4] + 1e-3)
    cosines = problem.candidates.gradients @ problem.targets.gradients.T
    assert cosines[:20].min() > 0 > cosines[20:].max()
    raw = problem_of(np.concatenate(groups), groups[0][:4] + 1e-3, centre=False)
    assert (raw.candidates.gradients @ raw.targets.gradients.T).min() > 0.9


def test_rows_stay_unit_and_rows_without_a_gradient_stay_zero():
    candidates = np.array([[1.0, 2.0, 0.5], [0.0, 0.0, 0.0], [2.0, 1.0, 3.0]])
    problem = problem_of(candidates, [[1.0, 0.0, 0.0]])
    lengths = np.linalg.norm(problem.candidates.gradients, axis=1)
    np.testing.assert_allclose(lengths, [1, 0, 1], atol=1e-6)
    assert list(problem.candidates.usable) == [True, False, True]


def test_history_is_centred_like_the_pool():
    candidates = np.random.default_rng(1).normal(size=(5, 4)) + 3
    problem = selection_problem(
        rows(5, "row"),
        features_of(candidates),
        rows(2, "target"),
        features_of(candidates[:2]),
        history_vectors=features_of(candidates[3:4]).vectors,
        history_ids=["earlier"],
    )
    np.testing.assert_allclose(problem.history[0], problem.candidates.gradients[3], atol=1e-6)
    assert problem.history_ids == ("earlier",)


def test_near_copies_of_earlier_rows_are_known_by_their_text():
    words = "a long row that says what is said again and again by its copies"
    earlier = sample_from_pair(words, "x")
    pool = [sample_from_pair(f"{start} {words}", "x") for start in ("well", "so", "quite another")]
    pool.append(sample_from_pair("something else that nobody has said before now", "x"))
    features = features_of(np.random.default_rng(0).normal(size=(4, 3)))
    problem = selection_problem(
        pool,
        features,
        rows(4, "target"),
        features,
        trained=[earlier],
        near_text=0.7,
    )
    known = [key in problem.history_text_keys for key in problem.candidates.text_keys]
    assert known == [True, True, True, False]


def test_above_1_not_even_equal_text_makes_a_copy():
    pool = [sample_from_pair("The  same words", "x"), sample_from_pair("the same words", "x")]
    features = features_of(np.eye(2))
    for near_text, num_keys, num_known in ((1.0, 1, 1), (2.0, 2, 0)):
        problem = selection_problem(
            pool, features, rows(2, "target"), features, trained=pool[:1], near_text=near_text
        )
        assert len(set(problem.candidates.text_keys)) == num_keys
        assert len(problem.history_text_keys) == num_known


def test_targets_weigh_as_their_subtasks_do():
    targets = [sample_from_pair(f"{n}", "x", subtask="ab"[n % 2]) for n in range(4)]
    features = features_of(np.eye(4))
    problem = selection_problem(
        rows(4, "row"), features, targets, features, subtask_weights={"b": 3.0}
    )
    np.testing.assert_allclose(problem.targets.weights, [0.125, 0.375, 0.125, 0.375])
