"""What a run on sessions learns from and is judged by: encoded turns, outcomes, transitions.

What it is: `build_problem` reads or makes the log, splits it by session, encodes what the router
reads and fits the outcome model on the train split. `make_transitions` relabels the train sessions
with every budget (hindsight budget relabelling) and lays the turns out as rows. `make_chooser`
turns a network into a policy that can be played.

What it leaves out: updates and files of a run (`rlroute.trainers.session_run`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rlroute.algorithms.offline import choose_at_cost_weight, relabel_budgets
from rlroute.data.encoders import Encoder, TfidfConfig, fit_encoder
from rlroute.data.session_world import DrawnSessions, GeneratedSessionsConfig, SessionWorld
from rlroute.data.sessions import (
    SessionArrays,
    SessionLog,
    compute_log_digest,
    make_arrays,
    read_sessions,
    split_sessions,
    stack_features,
)
from rlroute.evaluation.frontier import Float64Array
from rlroute.evaluation.session_replay import (
    Chooser,
    OutcomeModel,
    SessionOutcomes,
    Standing,
    fit_outcome_model,
    impute_outcomes,
)
from rlroute.policies.session_scorer import (
    SessionScorer,
    SessionScorerConfig,
    count_standing,
    describe_standing,
)
from rlroute.trainers.session_recipe import SessionRecipe
from rlroute.types import SPLITS, FloatArray, IntArray, RLRouteError, SplitName


@dataclass(frozen=True)
class SessionPart:
    """The sessions of a split. `imputed` holds the logged outcomes, and estimates of the others."""

    ids: tuple[str, ...]
    features_STF: FloatArray
    logged: SessionArrays
    imputed: SessionOutcomes


@dataclass(frozen=True)
class SessionProblem:
    """A log made ready.

    `cost_K` is the mean cost of a train turn of each executor, what the cost weight weighs.
    `encoder` is None for logs of features; `world` and `drawn` are None for logs that were read.
    """

    log: SessionLog
    digest: str
    encoder: Encoder | None
    parts: dict[SplitName, SessionPart]
    cost_K: Float64Array
    model: OutcomeModel
    world: SessionWorld | None
    drawn: DrawnSessions | None

    @property
    def feature_count(self) -> int:
        """The number of features of a turn."""
        return int(self.parts["train"].features_STF.shape[2])


def build_problem(recipe: SessionRecipe, encoder: Encoder | None = None) -> SessionProblem:
    """Prepare a recipe's log; a run that is read again gives the encoder that it fitted.

    Raises:
        RLRouteError: the log has a fault, an encoder is stated for features, or an executor took no
            turn of the train sessions.
    """
    world, drawn = None, None
    if isinstance(recipe.sessions, GeneratedSessionsConfig):
        world = SessionWorld(recipe.sessions)
        drawn = world.draw()
        log = world.make_log(drawn)
    else:
        log = read_sessions(Path(recipe.sessions.path))
    if log.feature_count and recipe.encoder is not None:
        raise RLRouteError(f"encoder: '{log.name}' holds features; leave the encoder out")
    logs = split_sessions(log)
    if not log.feature_count and encoder is None:
        encoder = fit_encoder(
            recipe.encoder or TfidfConfig(), list_texts(logs["train"]), recipe.seed
        )
    logged = {split: make_arrays(logs[split]) for split in SPLITS}
    features = {
        split: place_features(encode_turns(logs[split], encoder), logged[split]) for split in SPLITS
    }
    model = fit_outcome_model(features["train"], logged["train"], log.executor_ids)
    parts = {
        split: SessionPart(
            ids=tuple(session.id for session in logs[split].sessions),
            features_STF=features[split],
            logged=logged[split],
            imputed=impute_outcomes(model, features[split], logged[split]),
        )
        for split in SPLITS
    }
    cost_K = compute_mean_costs(logged["train"], len(log.executors))
    if cost_K[-1] == 0:
        raise RLRouteError(
            f"{log.name}: executor '{log.executor_ids[-1]}', the dearest, costs nothing on the "
            "train sessions: a budget would never bind"
        )
    return SessionProblem(log, compute_log_digest(log), encoder, parts, cost_K, model, world, drawn)


def list_texts(log: SessionLog) -> list[str]:
    """Return the texts of all turns, session by session."""
    return [turn.text for session in log.sessions for turn in session.turns]


def encode_turns(log: SessionLog, encoder: Encoder | None) -> FloatArray:
    """Return the features [rows, F] of all turns, of about unit variance where they are encoded."""
    if encoder is None:
        return stack_features(log)
    vectors_NF = encoder.encode(list_texts(log))  # of length 1, so the entries are small
    return np.asarray(vectors_NF * np.sqrt(encoder.dimension), dtype=np.float32)


def place_features(rows_NF: FloatArray, logged: SessionArrays) -> FloatArray:
    """Return the features of turns [S, T, F], zero on padding."""
    features_STF = np.zeros((*logged.valid_ST.shape, rows_NF.shape[1]), dtype=np.float32)
    features_STF[logged.valid_ST] = rows_NF
    return features_STF


def compute_mean_costs(logged: SessionArrays, executors: int) -> Float64Array:
    """Return the mean logged cost of a turn of each executor [K]."""
    taken = [logged.valid_ST & (logged.action_ST == k) for k in range(executors)]
    return np.array([logged.cost_ST[taken_ST].mean() for taken_ST in taken])


# --- Learning -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SessionTransitions:
    """N turns under a budget as rows; the turn after row i is row i + 1, unless `last_N`.

    `place_N` is the row of `features_RF` that the turn reads: budgets share the features.
    """

    features_RF: Tensor
    place_N: Tensor
    standing_NP: Tensor
    action_N: Tensor
    reward_N: Tensor
    last_N: Tensor


def make_transitions(problem: SessionProblem, recipe: SessionRecipe) -> SessionTransitions:
    """Relabel the train sessions with every budget and return their turns up to bankruptcy."""
    part = problem.parts["train"]
    logged, budgets_M = part.logged, torch.tensor(recipe.budgets, dtype=torch.float64)
    relabelled = relabel_budgets(
        torch.from_numpy(logged.cost_ST),
        torch.from_numpy(logged.quality_ST),
        torch.from_numpy(logged.valid_ST),
        budgets_M,
        recipe.penalty,
    )
    session_N, budget_N, turn_N = torch.nonzero(relabelled.valid_SMT, as_tuple=True)
    rows = session_N, budget_N, turn_N
    standing_NP = describe_standing(
        relabelled.balance_SMT[rows].numpy(),
        budgets_M[budget_N].numpy(),
        turn_N.numpy(),
        dearest_cost=float(problem.cost_K[-1]),
        max_turns=problem.log.max_turns,
        balance=recipe.policy.balance,
    )
    sessions, turns, width = part.features_STF.shape
    return SessionTransitions(
        features_RF=torch.from_numpy(part.features_STF.reshape(sessions * turns, width)),
        place_N=session_N * turns + turn_N,
        standing_NP=torch.from_numpy(standing_NP),
        action_N=torch.from_numpy(logged.action_ST)[session_N, turn_N],
        reward_N=relabelled.reward_SMT[rows].float(),
        last_N=relabelled.last_SMT[rows],
    )


def make_scorer_config(problem: SessionProblem, recipe: SessionRecipe) -> SessionScorerConfig:
    """Return the shape of the network for a recipe and its log."""
    return SessionScorerConfig(
        features=problem.feature_count,
        standing=count_standing(recipe.policy.balance),
        executors=len(problem.log.executors),
        hidden=recipe.policy.hidden,
    )


def make_chooser(
    scorer: SessionScorer,
    problem: SessionProblem,
    recipe: SessionRecipe,
    split: SplitName,
    cost_weight: float,
) -> Chooser:
    """Return the policy that asks for the greatest score less weighted mean cost."""
    features_STF = problem.parts[split].features_STF
    cost_K = torch.from_numpy(problem.cost_K)

    def choose(standing: Standing) -> IntArray:
        standing_NP = describe_standing(
            standing.balance_N,
            standing.budget_N,
            standing.turn,
            dearest_cost=float(problem.cost_K[-1]),
            max_turns=problem.log.max_turns,
            balance=recipe.policy.balance,
        )
        features_NF = torch.from_numpy(features_STF[standing.session_N, standing.turn])
        with torch.no_grad():
            score_NK = scorer(features_NF, torch.from_numpy(standing_NP))
        chosen_N: IntArray = choose_at_cost_weight(score_NK, cost_K, cost_weight).numpy()
        return chosen_N

    return choose
