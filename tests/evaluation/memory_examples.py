"""A small synthetic tier tree whose right choices are known, and an evaluation of it."""

from __future__ import annotations

import itertools

import numpy as np

from rlroute.evaluation.memory_measures import MemoryFrame, MemoryPlays, measure_memory
from rlroute.evaluation.memory_results import MemoryEvaluation, MemoryModule
from rlroute.evaluation.memory_table import TierTable, find_reference, play_leaves
from rlroute.evaluation.metrics import make_one_hot
from rlroute.policies.tier_baselines import fit_tier_baselines, play_baseline

TIERS = ("Low", "Mid", "High")
MODULES = tuple(
    MemoryModule(name, role, TIERS)
    for name, role in (
        ("filter", "filter"),
        ("entity", "extract"),
        ("temporal", "extract"),
        ("topic", "extract"),
        ("summary", "summary"),
    )
)
# The module whose tier decides whether a question of a kind is answered; None: nothing is needed.
NEEDED = {"single": 1, "temporal": 2, "aggregate": 3, "unanswerable": None}
PRICES = np.array([[0.0, 0.0001, 0.002]] * 3 + [[0.0, 0.0001, 0.002]] + [[0.0, 0.0, 0.001]])
WEIGHTS = (0.0, 0.1, 0.3, 0.9)


def make_table(
    questions: int = 120, histories: int = 12, seed: int = 0, failed: float = 0.0
) -> TierTable:
    """Return a tree of five modules in which each kind of question needs one module at High.

    At Low a question of a kind is right in 20 % of the cases, at Mid in 50 %, at High in 95 %. The
    first entries of a question's embedding tell its kind, up to noise.
    """
    random = np.random.default_rng(seed)
    leaf_LM = np.array(list(itertools.product(range(3), repeat=5)))
    kinds = list(NEEDED)
    kind_Q = [kinds[q % len(kinds)] for q in range(questions)]
    luck_Q = random.random(questions)
    right_LQ = np.ones((len(leaf_LM), questions))
    for q, kind in enumerate(kind_Q):
        module = NEEDED[kind]
        if module is not None:
            right_LQ[:, q] = luck_Q[q] < np.array([0.2, 0.5, 0.95])[leaf_LM[:, module]]
    cost_L = PRICES[np.arange(5), leaf_LM].sum(axis=1)
    cost_QL = cost_L * random.uniform(0.8, 1.2, (questions, 1))
    score_QL = right_LQ.T.copy()
    answer_QL = np.full_like(cost_QL, 0.0003)
    hole_QL = random.random(cost_QL.shape) < failed
    for array in (score_QL, cost_QL, answer_QL):
        array[hole_QL] = np.nan
    query_QE = random.normal(0, 0.15, (questions, 12))
    query_QE[np.arange(questions), [kinds.index(kind) for kind in kind_Q]] += 1
    return TierTable(
        score_QL=score_QL,
        cost_usd_QL=cost_QL,
        answer_cost_usd_QL=answer_QL,
        kind_Q=tuple(kind_Q),
        history_Q=tuple(f"history {q * histories // questions}" for q in range(questions)),
        query_QE=query_QE.astype(np.float32),
        leaf_tier_LM=leaf_LM,
        modules=MODULES,
    )


def make_frame(
    table: TierTable, reference_usd: float, bootstrap: int = 100, **settings: object
) -> MemoryFrame:
    """Return the frame of a comparison on a table."""
    return MemoryFrame(
        data="generated",
        modules=table.modules,
        kind_Q=table.kind_Q,
        history_Q=table.history_Q,
        cost_weights=WEIGHTS,
        reference_usd=reference_usd,
        bootstrap=bootstrap,
        **settings,  # type: ignore[arg-type]
    )


def make_policy(table: TierTable) -> MemoryPlays:
    """Return a policy that takes what each kind needs while the weight is below 0.5."""
    plays = []
    for weight in WEIGHTS:
        tier_QM = np.zeros((len(table.kind_Q), 5), dtype=int)
        for q, kind in enumerate(table.kind_Q):
            module = NEEDED[kind]
            if module is not None:
                tier_QM[q, module] = 2 if weight < 0.5 else 1
            if weight == 0:
                tier_QM[q, 4] = 2
        leaf_Q = np.ravel_multi_index(tuple(tier_QM.T), (3,) * 5)
        plays.append(play_leaves(table, make_one_hot(leaf_Q, table.leaves)))
    return MemoryPlays("routed", "policy", tuple(plays))


def make_evaluation(
    questions: int = 120, bootstrap: int = 100, failed: float = 0.0
) -> MemoryEvaluation:
    """Return the comparison of the policy with all baselines on a test split."""
    train, val = make_table(200, 20, 1, failed), make_table(60, 6, 2, failed)
    test = make_table(questions, 12, 3, failed)
    reference = find_reference(train)
    baselines = fit_tier_baselines(train, val, reference)
    plays = [play_baseline(one, test, WEIGHTS) for one in baselines]
    frame = make_frame(test, reference, bootstrap, update=40)
    return measure_memory([make_policy(test), *plays], frame, test)
