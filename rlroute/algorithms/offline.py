"""Offline learning of sessions under a total budget: relabelling, losses, and the inference sweep.

What it is: pure functions. `relabel_budgets` (hindsight budget relabelling) replays logged sessions
as if each had had a given total budget; `compute_conservative_loss` is discrete conservative
Q-learning towards `compute_bootstrapped_targets`; `compute_cloning_loss` imitates the log; and
`choose_at_cost_weight` trades score for cost after training.

What it leaves out: networks, minibatches and files (`rlroute.trainers.session_run`). Losses are
sums over rows; the trainer divides.

Sources: SeqRoute (arXiv 2605.25424) for relabelling, penalty and sweep; Kumar et al. (2020) for
conservative Q-learning.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RelabelledSessions:
    """S sessions replayed under M total budgets; arrays [S, M, T], money in the log's unit.

    `balance_SMT` is what is left before a turn, `reward_SMT` the turn's quality, less the penalty
    where it led to bankruptcy, `valid_SMT` says which turns are reached, `last_SMT` which of them
    end the session. `bankrupt_SM` says whether the balance fell below zero; `final_balance_SM` is
    the balance at the end.
    """

    balance_SMT: Tensor
    reward_SMT: Tensor
    valid_SMT: Tensor
    last_SMT: Tensor
    bankrupt_SM: Tensor
    final_balance_SM: Tensor


def relabel_budgets(
    cost_ST: Tensor, quality_ST: Tensor, valid_ST: Tensor, budgets_M: Tensor, penalty: float
) -> RelabelledSessions:
    """Replay logged sessions under each budget, deducting the logged costs.

    The turn that takes the balance below zero is the last one: it is paid and keeps its quality,
    less `penalty`. A balance of exactly zero is no bankruptcy. Turns stand at the front of a row
    of `valid_ST`. Sums are in float64.
    """
    paid_ST = torch.where(valid_ST, cost_ST.double(), 0.0)
    before_ST = paid_ST.cumsum(dim=1) - paid_ST
    balance_SMT = budgets_M.double()[None, :, None] - before_ST[:, None, :]
    after_SMT = balance_SMT - paid_ST[:, None, :]
    valid_SMT = valid_ST[:, None, :] & (balance_SMT >= 0)
    broke_SMT = valid_SMT & (after_SMT < 0)
    reached_SMT = torch.zeros_like(valid_SMT)
    reached_SMT[..., :-1] = valid_SMT[..., 1:]
    last_SMT = valid_SMT & ~reached_SMT
    reward_SMT = torch.where(
        valid_SMT, quality_ST.double()[:, None, :] - penalty * broke_SMT.double(), 0.0
    )
    return RelabelledSessions(
        balance_SMT=balance_SMT,
        reward_SMT=reward_SMT,
        valid_SMT=valid_SMT,
        last_SMT=last_SMT,
        bankrupt_SM=broke_SMT.any(dim=2),
        final_balance_SM=torch.where(last_SMT, after_SMT, 0.0).sum(dim=2),
    )


def compute_discounted_return(reward_T: Tensor, discount: float) -> Tensor:
    """Return the sum over the last axis of discount^t times the reward of turn t (from 0)."""
    powers_T = discount ** torch.arange(reward_T.shape[-1], dtype=reward_T.dtype)
    return (reward_T * powers_T).sum(dim=-1)


def compute_bootstrapped_targets(
    reward_N: Tensor, next_score_NK: Tensor, last_N: Tensor, discount: float
) -> Tensor:
    """Return reward + discount * max over executors of the target network's next scores.

    Where `last_N` is True the session ends, and the reward is all; no gradient flows.
    """
    with torch.no_grad():
        best_N = next_score_NK.max(dim=-1).values
        return reward_N + discount * torch.where(last_N, 0.0, best_N)


@dataclass(frozen=True)
class ConservativeLoss:
    """The loss of conservative Q-learning and its two terms, each summed over rows."""

    total: Tensor
    squared_error: Tensor
    conservative: Tensor


def compute_conservative_loss(
    score_NK: Tensor, action_N: Tensor, target_N: Tensor, alpha: float
) -> ConservativeLoss:
    """Return the loss of discrete conservative Q-learning, summed over N rows.

        loss = (Q(s, a) - y)^2 + alpha * (logsumexp over a' of Q(s, a') - Q(s, a))

    The second term lowers the scores of executors that the log did not choose.
    """
    chosen_N = score_NK.gather(1, action_N[:, None]).squeeze(1)
    squared_error = ((chosen_N - target_N) ** 2).sum()
    conservative = (score_NK.logsumexp(dim=1) - chosen_N).sum()
    return ConservativeLoss(squared_error + alpha * conservative, squared_error, conservative)


def compute_cloning_loss(score_NK: Tensor, action_N: Tensor) -> Tensor:
    """Return the cross-entropy of the logged executors under a softmax of scores, summed over N."""
    return torch.nn.functional.cross_entropy(score_NK, action_N, reduction="sum")


def choose_at_cost_weight(score_NK: Tensor, cost_K: Tensor, cost_weight: float) -> Tensor:
    """Return the executor with the greatest score - cost weight * cost for each row [N].

    `cost_K` is what a turn of each executor costs on average; the cost weight is in score per unit
    of cost. Executors stand cheapest first, and the first of equals is taken.
    """
    worth_NK = score_NK.double() - cost_weight * cost_K.double()
    return worth_NK.argmax(dim=-1)


def blend_towards(target: torch.nn.Module, online: torch.nn.Module, rate: float) -> None:
    """Move a target network's parameters by `rate` of the way to the online ones (Polyak)."""
    with torch.no_grad():
        for slow, fast in zip(target.parameters(), online.parameters(), strict=True):
            slow.lerp_(fast, rate)
