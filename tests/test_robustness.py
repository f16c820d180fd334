"""`rlroute robustness`: equal picks before and after rewording, and what is said about them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rlroute import Router
from rlroute.cli import app
from rlroute.data.rewordings import Rewording
from rlroute.export.bundle import BundleContents, write_bundle
from rlroute.robustness import describe_robustness, measure_robustness, run_robustness
from rlroute.types import RLRouteError


@dataclass(frozen=True)
class Pick:
    """All of a route that is read."""

    candidate_id: str


class WordRouter:
    """Routes a text to the candidate that is its last word, and notes the cost weights."""

    def __init__(self) -> None:
        self.weights: list[float] = []

    def route_many(self, texts: Sequence[str], *, cost_weight: float = 0.0) -> list[Pick]:
        """Return the last words as picks."""
        self.weights.append(cost_weight)
        return [Pick(text.split()[-1]) for text in texts]


def make_pairs(*picks: str) -> list[Rewording]:
    """Return rewordings of "first second" words: the pick before and after."""
    pairs = [pick.split() for pick in picks]
    return [Rewording(f"{n} {one}", f"again {n} {other}") for n, (one, other) in enumerate(pairs)]


def test_the_share_of_equal_picks_has_an_exact_interval_and_what_chance_would_give():
    router = WordRouter()
    pairs = make_pairs("large large", "large small", "large large", "small small")
    found = measure_robustness(router, pairs, cost_weight=0.3)
    assert router.weights == [0.3, 0.3]
    assert (found.queries, found.same.value) == (4, 0.75)
    assert found.same.low == pytest.approx(0.1941, abs=5e-5)  # Clopper and Pearson, 3 of 4
    assert found.same.high == pytest.approx(0.9937, abs=5e-5)
    assert found.by_chance == pytest.approx(0.75 * 0.5 + 0.25 * 0.5)
    assert found.shares == (("large", 0.75), ("small", 0.25))
    assert found.changes == (("large", "small", 1),)
    text = " ".join(describe_robustness(found))
    assert "stays the same on 3 of 4 reworded queries: robustness 0.750 [0.194, 0.994]" in text
    assert "always picks one candidate has 1.000" in text
    assert "draws blindly with the same shares 0.500" in text
    assert "Picks of the queries: large 75%, small 25%." in text
    assert "Most frequent changes: large to small 1." in text


def test_a_constant_router_has_one_and_its_interval_is_no_point():
    found = measure_robustness(WordRouter(), make_pairs(*["small small"] * 3))
    assert (found.same.value, found.same.high, found.by_chance, found.changes) == (1, 1, 1, ())
    assert found.same.low == pytest.approx(0.025 ** (1 / 3))
    assert "changes" not in " ".join(describe_robustness(found))


def test_the_most_frequent_changes_come_first_and_picks_that_never_stay_have_zero():
    picks = ["a b", "b a", "b a", "c a"]
    found = measure_robustness(WordRouter(), make_pairs(*picks))
    assert found.changes == (("b", "a", 2), ("a", "b", 1), ("c", "a", 1))
    assert (found.same.value, found.same.low) == (0, 0)
    assert found.same.high == pytest.approx(1 - 0.025 ** (1 / 4))


def test_no_rewordings_are_refused():
    with pytest.raises(RLRouteError, match="one pick per query"):
        measure_robustness(WordRouter(), [])


@pytest.fixture(scope="module")
def folder(router_contents: BundleContents, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("robustness") / "router"
    write_bundle(router_contents, path)
    return path


@pytest.fixture
def reworded(tmp_path: Path) -> Path:
    subjects = ("birds", "hills", "primes", "rivers", "verbs", "sums")
    rows = [{"query": f"how many {s} are there", "reworded": f"name three {s}"} for s in subjects]
    path = tmp_path / "reworded.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_an_exported_router_is_measured_by_its_own_routes(folder: Path, reworded: Path) -> None:
    router = Router.load(folder)
    rows = [json.loads(line) for line in reworded.read_text(encoding="utf-8").splitlines()]
    for weight in (0.0, 1.0):
        same = [
            len({router.route(row[key], cost_weight=weight).candidate_id for key in row}) == 1
            for row in rows
        ]
        found = run_robustness(
            folder, reworded, cost_weight=weight, endpoint=None, model_folder=None
        )
        assert found.same.value == sum(same) / 6
        assert found.cost_weight == weight


def test_the_command_prints_what_it_found(folder: Path, reworded: Path) -> None:
    words = ["robustness", str(folder), "--reworded", str(reworded), "--cost-weight", "0.5"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    text = " ".join(done.output.split())
    assert "of 6 reworded queries: robustness " in text
    assert "at cost weight 0.5." in text


def test_what_cannot_be_measured_is_refused_in_one_line(
    folder: Path, reworded: Path, tmp_path: Path
) -> None:
    cases = {
        "absent.jsonl: cannot be read": (folder, tmp_path / "absent.jsonl", 0.0),
        "no-router": (tmp_path / "no-router", reworded, 0.0),
        "outside what this router was trained for": (folder, reworded, 99.0),
    }
    for message, (router, path, weight) in cases.items():
        with pytest.raises(RLRouteError, match=message) as error:
            run_robustness(router, path, cost_weight=weight, endpoint=None, model_folder=None)
        assert "\n" not in str(error.value)
