"""Training on planted trees: exploding targets, failures in validation, what metrics are of."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from planted_tiers import FACTS, PRICES, make_tree, start, train

from rlroute.trainers.memory_problem import MemoryProblem
from rlroute.trainers.targets import compute_targets
from rlroute.trainers.update import update_policy

LEAF_LM = FACTS.list_leaves()
RIGHT_CL = np.ones((1, len(LEAF_LM)))  # the first answers are all right
ORIGINAL = {"floor": 1e-5, "cap": None, "warm_up": 2}
WINDOW: dict[str, Any] = {"kind": "window"}
FEW = {"kind": "ppo", "episodes": 16, "minibatches": 1}


# --- The scale k (5.3, A5 and A9; 11.16) ----------------------------------------------------------


@pytest.mark.parametrize(
    ("alignment", "explodes"), [(ORIGINAL, True), ({}, False), (None, False)]
)  # fmt: skip
def test_the_originals_scale_explodes_and_ours_does_not(alignment, explodes):
    reward = {"form": "code", "cost": WINDOW, "alignment": alignment}
    run = start(make_tree(RIGHT_CL), reward=reward, algorithm=FEW)
    for update in range(4):  # 64 episodes, all of them answered right
        batch = run.problem.collect(run.learner, update)
        target = float(compute_targets(run.learner, batch).return_BT.abs().max())
        metrics = update_policy(run.learner, batch, update)
        metrics |= run.problem.summarise(run.learner, batch)
        assert metrics["reward/outcome/mean"] == 1
        if explodes:
            assert metrics["reward/scale"] > 1000
            assert target > 1000
            assert metrics["policy/value_loss"] > 1e5
        else:
            assert metrics["reward/scale"] <= 10
            assert target < 14  # at most 10 for a right answer, and the cost weight, up to 3
            assert metrics["policy/value_loss"] < 100


def test_the_papers_form_keeps_a_right_answer_worth_one():
    reward = {"form": "paper", "cost": WINDOW, "alignment": ORIGINAL}
    run = start(make_tree(RIGHT_CL), reward=reward, algorithm=FEW)
    for update in range(4):
        targets = compute_targets(run.learner, run.problem.collect(run.learner, update))
        assert float(targets.return_BT.abs().max()) == pytest.approx(1, abs=0.01)


# --- Failures in validation -----------------------------------------------------------------------


def make_problem(failing: np.ndarray, score: float = 0.2) -> Any:
    """Return a run whose val questions fail where `failing` says so, all Low being chosen."""
    tree = make_tree(np.full((1, len(LEAF_LM)), score), questions=len(failing))
    for array_QL in (tree.leaf_score_QL, tree.summary_cost_QL, tree.answer_cost_QL):
        array_QL[failing] = np.nan
    return start(tree)


def validate(run: Any) -> dict[str, float]:
    return run.problem.validate(run.learner)


def test_a_failed_question_is_worth_no_more_than_a_wrong_and_dear_answer():
    none = validate(make_problem(np.zeros(8, dtype=np.bool_)))
    half = validate(make_problem(np.arange(8) < 4))
    assert none["eval/failed"] == 0
    assert none["eval/utility"] == pytest.approx(0.2)  # Low costs nothing
    assert half["eval/failed"] == 0.5
    # half of them 0.2; half 0 at the reference cost, at cost weights 0 and 1
    assert half["eval/utility"] == pytest.approx((0.1 + (0.1 - 0.5)) / 2)
    assert half["eval/aiq"] < none["eval/aiq"]
    assert half["eval/quality"] == pytest.approx(0.2)  # of what did not fail
    assert half["eval/cost"] == 0


def test_an_answer_that_failed_alone_leaves_quality_and_cost():
    run = make_problem(np.zeros(8, dtype=np.bool_))
    tree = run.problem.val
    tree.filter_cost_QK[:4] += 0.5
    tree.leaf_score_QL[:4] = np.nan  # the modules' costs are known
    found = validate(run)
    assert found["eval/cost"] == 0
    assert found["eval/failed"] == 0.5


def test_a_validation_in_which_everything_failed_is_survived_and_is_the_worst():
    run = make_problem(np.zeros(8, dtype=np.bool_))
    dead = make_problem(np.zeros(8, dtype=np.bool_))
    dead.problem.val.leaf_score_QL[:] = np.nan
    found = validate(dead)
    assert found["eval/utility"] == pytest.approx(-0.5)
    assert found["eval/failed"] == 1
    assert np.isnan(found["eval/quality"])
    assert found["eval/utility"] < validate(run)["eval/utility"]


def test_failing_where_questions_are_hard_does_not_choose_the_weights():
    # Kind 1 is never answered; a policy that fails on it must not look better than one that errs.
    score_CL = np.stack([np.ones(len(LEAF_LM)), np.zeros(len(LEAF_LM))])
    honest, failing = (start(make_tree(score_CL, questions=8)) for _ in range(2))
    failing.problem.val.leaf_score_QL[1::2] = np.nan
    assert validate(failing)["eval/quality"] > validate(honest)["eval/quality"]
    assert validate(failing)["eval/utility"] < validate(honest)["eval/utility"]


# --- Metrics --------------------------------------------------------------------------------------


def test_metrics_are_of_the_episodes_that_did_not_fail():
    prices_MK = PRICES.copy()
    prices_MK[3, 1] = np.nan
    run = train(make_tree(RIGHT_CL, prices_MK), updates=1)
    row = run.rows[0]
    assert 40 < row["group/dropped"] < 130
    assert row["reward/outcome/frac_undefined"] == pytest.approx(row["group/dropped"] / 256)
    assert row["reward/outcome/mean"] == 1
    assert row["selection/share/topic/Mid"] == 0
    shares = [row[f"selection/share/topic/{tier}"] for tier in ("Low", "High")]
    assert sum(shares) == pytest.approx(1)
    assert row["cost/usd_per_query"] < 0.002 * 5


def test_the_first_episodes_are_described_with_failures_as_nothing():
    prices_MK = PRICES.copy()
    prices_MK[3, 1] = np.nan
    run = start(make_tree(RIGHT_CL, prices_MK))
    rows = run.problem.describe_episodes(run.problem.collect(run.learner, 0), count=20)
    failed = [row for row in rows if row["topic"].startswith("Mid")]
    assert 0 < len(failed) < 20
    assert all(row["score"] is row["cost_usd"] is row["reward/cost"] is None for row in failed)
    others = [row for row in rows if not row["topic"].startswith("Mid")]
    assert all(row["score"] == 1 and row["cost_usd"] >= 0 for row in others)


def test_all_processes_episodes_join_the_window_in_one_order():
    reward = {"cost": WINDOW, "alignment": {"warm_up": 4}}
    one = start(make_tree(RIGHT_CL), reward=reward, algorithm=FEW)
    whole = one.problem.collect(one.learner, 0)
    history = one.problem.get_state()["reward"]["alignment"]["costs"]
    assert len(history) == 16
    parts = []
    for process in range(2):
        run = start(make_tree(RIGHT_CL), reward=reward, algorithm=FEW)
        run.learner.accelerator = SimpleNamespace(
            process_index=process,
            num_processes=2,
            device=one.learner.accelerator.device,
            unwrap_model=lambda model: model,
            gather=lambda both_B2: gather_with_whole(both_B2, whole),
        )
        batch = run.problem.collect(run.learner, 0)
        assert run.problem.get_state() == one.problem.get_state()
        parts.append(batch.reward_terms_BT["cost"])
    np.testing.assert_array_equal(np.concatenate(parts), whole.reward_terms_BT["cost"])


def gather_with_whole(both_B2: Any, whole: Any) -> Any:
    """Return what all processes have, of which `both_B2` is a part."""
    import torch

    all_B2 = torch.as_tensor(np.stack([whole.ends.score_B, whole.ends.cost_usd_B], axis=1))
    size = len(both_B2)
    assert any(torch.equal(both_B2, all_B2[start : start + size]) for start in (0, size))
    return all_B2


def test_a_problem_takes_up_its_state():
    reward = {"cost": WINDOW, "alignment": {"warm_up": 4}}
    one, two = (start(make_tree(RIGHT_CL), reward=reward, algorithm=FEW) for _ in range(2))
    one.problem.collect(one.learner, 0)
    assert isinstance(two.problem, MemoryProblem)
    two.problem.set_state(one.problem.get_state())
    assert two.problem.reward.scale == one.problem.reward.scale != 1
    batches = [run.problem.collect(run.learner, 1) for run in (one, two)]
    first, second = (batch.reward_terms_BT["cost"] for batch in batches)
    np.testing.assert_array_equal(first, second)
