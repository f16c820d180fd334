"""What is learnt from a log of sessions, played in the world that made it, whose optimum is known.

The log comes from habits that know no budget. Behaviour cloning takes them over and goes bankrupt;
conservative Q-learning on the relabelled log finds out what each budget allows.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from rlroute.config import load_config
from rlroute.evaluation.session_results import SessionEvaluation
from rlroute.trainers.session_evaluation import evaluate_scorer
from rlroute.trainers.session_problem import build_problem
from rlroute.trainers.session_recipe import SessionRecipe
from rlroute.trainers.session_run import fit_scorer

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "step_budget" / "sessions_cql.yaml"
SETTINGS = ("policy.hidden=[96, 96]", "updates=24", "evaluation.bootstrap=200")
SEEDS = (0, 1, 2)

pytestmark = pytest.mark.slow


def learn(*overrides: str) -> SessionEvaluation:
    """Train as the shipped recipe says, with a smaller network, and play the test sessions."""
    recipe = load_config(SessionRecipe, RECIPE, [*SETTINGS, *overrides])
    problem = build_problem(recipe)
    return evaluate_scorer(recipe, problem, fit_scorer(recipe, problem))


@pytest.mark.parametrize("seed", SEEDS)
def test_conservative_q_learning_beats_cloning_and_always_weak_under_budgets(seed):
    result = learn(f"seed={seed}")
    subject, cloning = result.subject.points, result.find("bc").points
    weak = result.find("always weak").points[0]
    # without a cost weight: near the optimum, and hardly ever bankrupt
    assert subject[0].regret is not None
    assert subject[0].regret.value < 0.25
    assert subject[0].over_cheapest.low > 0.3
    assert subject[0].bankruptcy.value < 0.02
    assert cloning[0].bankruptcy.value > 0.1
    assert result.leads["bc"][0].low > 0.5
    # at some cost weight it costs no more than cloning without one, and earns much more
    cheaper = [point for point in subject if point.cost.value <= cloning[0].cost.value]
    best = max(cheaper, key=lambda point: point.mean_return.value)
    assert best.mean_return.value > cloning[0].mean_return.value + 0.5
    assert best.over_cheapest.low > 0.2
    # the greatest cost weight leaves the control
    assert subject[-1].share_K[0] > 0.95
    assert subject[-1].cost.value == pytest.approx(weak.cost.value, rel=0.1)


def test_a_state_without_the_amount_earns_much_less():
    result = learn("policy.balance=share")
    subject = result.subject.points
    assert subject[0].regret is not None
    assert subject[0].regret.value > 0.35
    assert subject[0].bankruptcy.value < result.find("bc").points[0].bankruptcy.value
