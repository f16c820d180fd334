"""What a router's own time is: encoding and deciding one query, on a clock that tests move."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from evaluation_examples import build_topics

from rlroute import table_runs
from rlroute.evaluation.report import RouterSeconds

ENCODE = [3.0, 1.0, 2.0]
DECIDE = [10.0, 20.0, 60.0]


class Clock:
    """A clock that stands until something moves it."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now


class SlowEncoder:
    """Takes as long for each query as it was told."""

    def __init__(self, clock, kind):
        self.clock, self.kind, self.texts = clock, kind, []

    def encode(self, texts):
        self.clock.now += ENCODE[len(self.texts)]
        self.texts += texts


class SlowPolicy:
    """Takes as long for each decision as it was told."""

    def __init__(self, clock):
        self.clock, self.decided = clock, 0

    def compute_probabilities(self, data, cost_weight):
        assert len(data.table.queries) == 1
        self.clock.now += DECIDE[self.decided]
        self.decided += 1


@pytest.fixture
def clock(monkeypatch):
    found = Clock()
    monkeypatch.setattr(table_runs, "time", found)
    return found


def make_run(clock, kind):
    prepared = SimpleNamespace(
        encoder=SlowEncoder(clock, kind), splits={"test": build_topics(3, 0)}
    )
    return SimpleNamespace(
        prepared=prepared, recipe=SimpleNamespace(cost_weight=SimpleNamespace(min=0.0))
    )


def test_what_counts_is_the_median_of_encoding_and_deciding_together(clock):
    run = make_run(clock, "tfidf")
    found = table_runs.time_router(run, SlowPolicy(clock))
    assert run.prepared.encoder.texts == ["text 0", "text 1", "text 2"]
    # 13, 21, 62: not the 2 + 20 of the medians apart
    assert found == RouterSeconds(3, 2.0, pytest.approx(2.9), 20.0, pytest.approx(56.0), 21.0)


def test_a_paid_encoder_is_never_called_to_take_its_time(clock):
    run, policy = make_run(clock, "openai"), SlowPolicy(clock)
    assert table_runs.time_router(run, policy) is None
    assert table_runs.has_paid_encoder(run)
    assert (run.prepared.encoder.texts, policy.decided) == ([], 0)
