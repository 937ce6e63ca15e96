"""The chain stops at the target, the budget or the end of patience, and says which."""

import pytest

from evoselect_pipeline.config import ChainSettings
from evoselect_pipeline.rounds.chain import Progress, reason_to_stop

OPEN = ChainSettings(max_rounds=10, patience=2, target=0.9, max_hours=5)


def reason(promoted=(), accuracy=None, hours=0.0, settings=OPEN):
    return reason_to_stop(Progress(promoted, accuracy, hours), settings)


@pytest.mark.parametrize(
    ("promoted", "accuracy", "hours"),
    [((), None, 0.0), ((True,), 0.89, 4.9), ((False, True, False), 0.5, 1.0), ((True,) * 9, 0, 0)],
)
def test_the_chain_goes_on_below_every_limit(promoted, accuracy, hours):
    assert reason(promoted, accuracy, hours) is None


@pytest.mark.parametrize(
    ("promoted", "accuracy", "hours", "said"),
    [
        ((True,), 0.9, 0.0, "target reached: the champion answers 90.0%"),
        ((True,) * 10, 0.5, 0.0, "budget of rounds spent: 10 are done"),
        ((True,), 0.5, 5.0, "budget of time spent: the rounds took 5.0 hours"),
        ((True, False, False), 0.5, 0.0, "patience at its end: the last 2 rounds promoted no"),
        ((False, False), 0.3, 0.0, "patience at its end"),
    ],
)
def test_each_limit_stops_the_chain_and_is_named(promoted, accuracy, hours, said):
    assert said in reason(promoted, accuracy, hours)


def test_limits_that_are_not_set_never_stop_it():
    settings = ChainSettings(max_rounds=10_000, patience=None)
    assert reason((False,) * 500, 1.0, 1e6, settings) is None
