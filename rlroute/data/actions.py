"""Actions beyond one of n: subsets, (model, effort) pairs, skip.

What it is: the `actions` of a recipe. An action that asks several candidates, or none, is one more
candidate of the outcome table, with computed outcomes, so masks, log-probs, advantages, profiles,
baselines, evaluation and export treat it as any other, and exactly.

| kind      | the action                        | score             | cost in USD            |
| --------- | --------------------------------- | ----------------- | ---------------------- |
| `subsets` | asks all members, side by side    | by `combine`      | sum of the members'    |
| `efforts` | an id such as `model@high`, read  | as in the table   | as in the table        |
|           | as model and effort               |                   |                        |
| `skip`    | asks nobody                       | declared          | declared               |

A subset's tokens are added up, its latency is that of the slowest member. A hole in one member is a
hole of the subset. `combine` says what comes of the members' answers:

* `best_of`: the best one. This takes a checker that recognises it (tests, a proof checker, the
  user); without one, it is an upper bound.
* `vote`: right where more than half of the members are. Scores must be 0 or 1, and `tie_score` is
  what a tie is worth. Wrong answers that agree can outvote right ones only by being as many.
* `mean`: one of the answers, picked at random (the expected score).
* `refined`: measured, from the file `outcomes` (`rlroute.data.refined`): what a refiner made of the
  members' answers, and what it cost beside them. Where it was not measured there is a hole.

Size 1 is always the candidate itself. A subset without an outcome on the train split is no action,
since nothing is known of it. Its prices are the sums of its members' (each reads the query).

What it leaves out: actions in turn, where a later one sees an earlier one's answer, and calls.

How to use: `build_actions(table, (SubsetsConfig(kind="subsets", sizes=(1, 2), ...),))`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, Field, model_validator

from rlroute.config import StrictModel
from rlroute.data.refined import JOINT, RefinedOutcomes, Refinement, read_refined
from rlroute.data.table import OutcomeTable, list_arrays
from rlroute.types import Candidate, FloatArray, Limits, Member, Prices, RLRouteError

MOST_ACTIONS = 2000
SKIP = "skip"
Combine = Literal["best_of", "vote", "mean", "refined"]
Score = Annotated[float, Field(ge=0, le=1)]


class EffortsConfig(StrictModel):
    """Candidates named `model@effort` are pairs; others stay what they are."""

    kind: Literal["efforts"]
    separator: str = Field(default="@", min_length=1)


class SubsetsConfig(StrictModel):
    """All subsets of these sizes of the candidates, or of the named ones.

    Without size 1 the candidates of the subsets cannot be picked alone; those not named still can.
    """

    kind: Literal["subsets"]
    sizes: tuple[Annotated[int, Field(ge=1)], ...] = Field(min_length=1)
    combine: Combine
    candidates: tuple[str, ...] = ()
    tie_score: Score | None = None
    outcomes: str | None = None

    @model_validator(mode="after")
    def check_settings(self) -> SubsetsConfig:
        """Refuse settings that `combine` lacks or does not read, and a size named twice."""
        if len(set(self.sizes)) < len(self.sizes):
            raise ValueError("sizes: a size stands twice")
        if (self.outcomes is not None) != (self.combine == "refined"):
            raise ValueError("outcomes (a file) goes with combine: refined, and only with it")
        if self.tie_score is not None and self.combine != "vote":
            raise ValueError("tie_score goes with combine: vote only")
        even = [size for size in self.sizes if size % 2 == 0]
        if self.combine == "vote" and even and self.tie_score is None:
            raise ValueError(f"{even[0]} voters can tie: say what a tie is worth (tie_score: 0)")
        return self


class SkipConfig(StrictModel):
    """One action that asks nobody. Its cost per query has to be written down, 0 too."""

    kind: Literal["skip"]
    cost_usd: float = Field(ge=0, allow_inf_nan=False)
    score: Score = 0.0


ActionConfig = Annotated[EffortsConfig | SubsetsConfig | SkipConfig, Field(discriminator="kind")]


def check_kinds(configs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Refuse a kind that stands twice."""
    kinds = [config.kind for config in configs]
    for kind in kinds:
        if kinds.count(kind) > 1:
            raise ValueError(f"kind '{kind}' stands twice")
    return configs


# What a recipe holds; empty is one of n. However listed, they apply in this order.
ORDER = ("efforts", "subsets", "skip")
Actions = Annotated[tuple[ActionConfig, ...], AfterValidator(check_kinds)]


def build_actions(table: OutcomeTable, configs: Actions) -> OutcomeTable:
    """Return the table whose candidates are the actions that a recipe declares.

    Raises:
        RLRouteError: no candidate is a pair, a named one is unknown, two actions have one id, there
            are more than 2,000, scores are not 0 or 1 where they are voted on, a fault of the file
            of outcomes, or a query for which no action is left.
    """
    for config in sorted(configs, key=lambda config: ORDER.index(config.kind)):
        if isinstance(config, EffortsConfig):
            table = name_efforts(table, config)
        elif isinstance(config, SubsetsConfig):
            table = add_subsets(table, config)
        else:
            table = add_skip(table, config)
    for q in np.flatnonzero(~table.present_QK.any(axis=1))[:1]:
        raise RLRouteError(
            f"table '{table.name}': actions: query '{table.queries[q].id}' has an outcome of no "
            "action: add size 1, or a skip"
        )
    return table


# --- Efforts and skip -----------------------------------------------------------------------------


def name_efforts(table: OutcomeTable, config: EffortsConfig) -> OutcomeTable:
    """Read ids that hold the separator as pairs of model and effort."""
    candidates = []
    for candidate in table.candidates:
        model, found, effort = candidate.id.rpartition(config.separator)
        if found and not (model and effort):
            raise RLRouteError(
                f"table '{table.name}': actions: candidate '{candidate.id}' names no "
                f"{'effort' if model else 'model'} beside '{config.separator}'"
            )
        member = Member(candidate.id, model, effort)
        candidates.append(
            replace(candidate, kind="effort", members=(member,)) if found else candidate
        )
    if not any(candidate.members for candidate in candidates):
        names = ", ".join(candidate.id for candidate in candidates)
        raise RLRouteError(
            f"table '{table.name}': actions: no candidate is named MODEL{config.separator}EFFORT "
            f"(it has: {names})"
        )
    return replace(table, candidates=tuple(candidates))


def add_skip(table: OutcomeTable, config: SkipConfig) -> OutcomeTable:
    """Add the action that asks nobody."""
    skip = Candidate(SKIP, Prices(0.0, 0.0, config.cost_usd), "skip", "asks nobody", members=())
    values = {"score_QK": config.score, "cost_usd_QK": config.cost_usd, "present_QK": True}
    columns = {
        name: np.full((len(table.queries), 1), values.get(name, 0), getattr(table, name).dtype)
        for name in list_arrays()
    }
    return add_candidates(table, (skip,), columns)


def add_candidates(
    table: OutcomeTable, candidates: Sequence[Candidate], columns: dict[str, Any]
) -> OutcomeTable:
    """Add candidates with their columns: array name -> [Q, number of them]."""
    known = {candidate.id for candidate in table.candidates}
    for candidate in candidates:
        if candidate.id in known:
            raise RLRouteError(
                f"table '{table.name}': actions: '{candidate.id}' is a candidate of the table "
                "already; rename that one"
            )
    arrays: dict[str, Any] = {
        name: np.hstack((getattr(table, name), columns[name])) for name in list_arrays()
    }
    return replace(table, candidates=(*table.candidates, *candidates), **arrays)


# --- Subsets --------------------------------------------------------------------------------------


def add_subsets(table: OutcomeTable, config: SubsetsConfig) -> OutcomeTable:
    """Put subsets of candidates beside the candidates, or in their place without size 1."""
    pool = list_pool(table, config)
    refined = None if config.outcomes is None else read_refined(config.outcomes, table)
    subsets = list_subsets(table, pool, config, refined)
    members = [tuple(table.candidates[k] for k in columns) for columns in subsets]
    compounds = [make_compound(one, config.combine) for one in members]
    columns = combine_columns(table, subsets, config, refined)
    train_Q = table.split_Q == "train"
    known = np.flatnonzero(columns["present_QK"][train_Q].any(axis=0)).tolist()
    columns = {name: array_QS[:, known] for name, array_QS in columns.items()}
    wider = add_candidates(table, [compounds[s] for s in known], columns)
    alone = [k for k in range(len(table.candidates)) if 1 in config.sizes or k not in pool]
    kept = [*alone, *range(len(table.candidates), len(wider.candidates))]
    if not kept:
        raise RLRouteError(
            f"table '{table.name}': actions: no subset of sizes {list_sizes(config)} has an "
            "outcome on the train split"
        )
    return replace(
        wider,
        candidates=tuple(wider.candidates[k] for k in kept),
        **{name: getattr(wider, name)[:, kept] for name in list_arrays()},
    )


def list_sizes(config: SubsetsConfig) -> str:
    """Return the sizes as words."""
    return ", ".join(map(str, sorted(config.sizes)))


def list_pool(table: OutcomeTable, config: SubsetsConfig) -> list[int]:
    """Return the columns of the candidates that subsets are made of, in the table's order.

    Raises:
        RLRouteError: a named one is unknown, an id holds "+", or there are fewer than a subset has.
    """
    ids = [candidate.id for candidate in table.candidates]
    where = f"table '{table.name}': actions"
    for name in config.candidates:
        if name not in ids:
            raise RLRouteError(f"{where}: unknown candidate '{name}' (it has: {', '.join(ids)})")
    pool = [k for k, name in enumerate(ids) if name in config.candidates or not config.candidates]
    for k in pool:
        if JOINT in ids[k]:
            raise RLRouteError(
                f"{where}: candidate '{ids[k]}' holds '{JOINT}', which joins the members of a "
                "subset; rename it"
            )
    if max(config.sizes) > len(pool):
        raise RLRouteError(
            f"{where}: sizes: no subset of {max(config.sizes)} of {len(pool)} candidates"
        )
    return pool


def list_subsets(
    table: OutcomeTable,
    pool: Sequence[int],
    config: SubsetsConfig,
    refined: RefinedOutcomes | None,
) -> list[tuple[int, ...]]:
    """Return the subsets of more than one candidate as columns, small ones first.

    Raises:
        RLRouteError: there would be more than 2,000 actions.
    """
    sizes = sorted(size for size in config.sizes if size > 1)
    if refined is not None:
        fit = [c for c in refined.by_columns if len(c) in sizes and set(c) <= set(pool)]
        count = len(fit)
    else:
        count = sum(math.comb(len(pool), size) for size in sizes)
    total = count + len(table.candidates)
    if total > MOST_ACTIONS:
        raise RLRouteError(
            f"table '{table.name}': actions: subsets of sizes {list_sizes(config)} of {len(pool)} "
            f"candidates make {total:,} actions, at most {MOST_ACTIONS:,} are allowed: lower sizes "
            "or name fewer candidates"
        )
    if refined is not None:
        return sorted(fit, key=lambda columns: (len(columns), columns))
    return [one for size in sizes for one in itertools.combinations(pool, size)]


def make_compound(members: Sequence[Candidate], combine: Combine) -> Candidate:
    """Return the candidate that stands for asking all members; it has no profile yet."""
    names = [member.id for member in members]
    prices = [member.prices for member in members]
    limits = [member.limits for member in members]
    return Candidate(
        id=JOINT.join(names),
        prices=Prices(
            input=math.fsum(one.input for one in prices),
            output=math.fsum(one.output for one in prices),
            per_call=math.fsum(one.per_call for one in prices),
        ),
        kind="subset",
        description=f"{', '.join(names)}, side by side; {combine.replace('_', ' ')}",
        limits=Limits(
            context_tokens=min_known([one.context_tokens for one in limits]),
            output_tokens=min_known([one.output_tokens for one in limits]),
        ),
        members=tuple(asked for member in members for asked in member.asked),
    )


def min_known(limits: Sequence[int | None]) -> int | None:
    """Return the least limit of those that are stated."""
    return min((limit for limit in limits if limit is not None), default=None)


def combine_columns(
    table: OutcomeTable,
    subsets: Sequence[tuple[int, ...]],
    config: SubsetsConfig,
    refined: RefinedOutcomes | None,
) -> dict[str, Any]:
    """Return the outcomes of S subsets: array name -> [Q, S], NaN in holes."""
    shape = (len(table.queries), len(subsets))
    columns: dict[str, Any] = {
        name: np.full(shape, np.nan, dtype=np.float32) for name in list_arrays()
    }
    columns["present_QK"] = np.zeros(shape, dtype=np.bool_)
    if config.combine == "vote":
        check_votes(table, sorted({k for columns in subsets for k in columns}))
    for s, members in enumerate(subsets):
        taken = list(members)
        found = add_up(table, taken)
        present_Q = table.present_QK[:, taken].all(axis=1)
        if refined is not None:
            refinement = refined.by_columns[members]
            found = refine(found, refinement)
            present_Q &= refinement.measured_Q
        elif config.combine == "vote":
            found["score_QK"] = take_vote(table.score_QK[:, taken], config.tie_score)
        elif config.combine == "best_of":
            found["score_QK"] = table.score_QK[:, taken].max(axis=1)
        else:
            found["score_QK"] = table.score_QK[:, taken].mean(axis=1, dtype=np.float64)
        columns["present_QK"][:, s] = present_Q
        for name, value_Q in found.items():
            columns[name][:, s] = np.where(present_Q, value_Q, np.nan)
    return columns


def add_up(table: OutcomeTable, columns: Sequence[int]) -> dict[str, Any]:
    """Return cost, tokens and latency [Q] of asking the candidates at `columns` side by side."""
    found: dict[str, Any] = {
        name: getattr(table, name)[:, columns].sum(axis=1, dtype=np.float64)
        for name in ("cost_usd_QK", "prompt_tokens_QK", "completion_tokens_QK")
    }
    return found | {"latency_seconds_QK": table.latency_seconds_QK[:, columns].max(axis=1)}


def refine(found: dict[str, Any], refinement: Refinement) -> dict[str, Any]:
    """Return the outcomes [Q] with the refiner's score, cost and time; its tokens are unknown."""
    return {
        "score_QK": refinement.score_Q,
        "cost_usd_QK": found["cost_usd_QK"] + refinement.extra_cost_usd_Q,
        "latency_seconds_QK": found["latency_seconds_QK"] + refinement.extra_latency_seconds_Q,
    }


def check_votes(table: OutcomeTable, columns: Sequence[int]) -> None:
    """Raise RLRouteError where a score that is voted on is neither 0 nor 1."""
    score_QK = table.score_QK[:, columns]
    for q, k in np.argwhere(table.present_QK[:, columns] & ~np.isin(score_QK, (0, 1)))[:1]:
        raise RLRouteError(
            f"table '{table.name}': actions: combine: vote takes scores of 0 or 1, but query "
            f"'{table.queries[q].id}' has {score_QK[q, k]:g} for "
            f"'{table.candidates[columns[k]].id}' (allowed otherwise: best_of, mean, refined)"
        )


def take_vote(score_QM: FloatArray, tie_score: float | None) -> FloatArray:
    """Return 1 where most of M answers are right [Q], 0 where most are wrong; NaN in a hole."""
    lead_Q = 2 * score_QM.sum(axis=1) - score_QM.shape[1]
    # an odd number of voters never ties, and needs no score for it
    tie = math.nan if tie_score is None else tie_score
    score_Q = np.where(lead_Q == 0, tie, lead_Q > 0)
    return np.where(np.isnan(lead_Q), np.nan, score_Q).astype(np.float32)
