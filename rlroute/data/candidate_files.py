"""Candidates and feature scales as plain JSON values, the same in run folders and exported routers.

Numbers read back exactly as they were: a float32 is a JSON number that rounds to it.

What it leaves out: the files that hold the values, and `models.csv` (`rlroute.data.prices`), which
knows no profiles.

How to use: `parse_candidates(dump_candidates(candidates), "candidates.json")`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from pydantic import AfterValidator, Field, model_validator

from rlroute.config import StrictModel, parse_config
from rlroute.data.routing_data import (
    LEADING_COLUMNS,
    FeatureScale,
    describe_candidate,
)
from rlroute.types import (
    ActionKind,
    Candidate,
    Limits,
    Member,
    Prices,
    Profile,
    RLRouteError,
    TokenProfile,
)

Finite = Annotated[float, Field(allow_inf_nan=False)]
Score = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Money = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Tokens = Annotated[int, Field(ge=1)]


class PricesEntry(StrictModel):
    """Prices: USD per million tokens, and USD per call; each must be written down."""

    input: Money
    output: Money
    per_call: Money


class LimitsEntry(StrictModel):
    """Limits in tokens; null where the candidate states none."""

    context_tokens: Tokens | None = None
    output_tokens: Tokens | None = None


class TokensEntry(StrictModel):
    """Mean tokens of a call: over all measured queries, and per cluster of them."""

    mean_prompt: Money
    mean_completion: Money
    prompt: list[Money]
    completion: list[Money]

    def to_tokens(self) -> TokenProfile:
        """Return the tokens that the entry describes."""
        return TokenProfile(
            mean_prompt=self.mean_prompt,
            mean_completion=self.mean_completion,
            prompt_C=np.array(self.prompt, dtype=np.float32),
            completion_C=np.array(self.completion, dtype=np.float32),
        )


class ProfileEntry(StrictModel):
    """A measured profile: over all train queries, and per cluster of them."""

    mean_score: Score
    mean_cost_usd: Money
    score: list[Score]
    cost_usd: list[Money]
    latency_seconds: Money | None = None
    tokens: TokensEntry | None = None
    latency_seconds_by_cluster: list[Money] | None = None

    def to_profile(self) -> Profile:
        """Return the profile that the entry describes."""
        return Profile(
            mean_score=self.mean_score,
            mean_cost_usd=self.mean_cost_usd,
            score_C=np.array(self.score, dtype=np.float32),
            cost_usd_C=np.array(self.cost_usd, dtype=np.float32),
            latency_seconds=self.latency_seconds,
            tokens=None if self.tokens is None else self.tokens.to_tokens(),
            latency_seconds_C=None
            if self.latency_seconds_by_cluster is None
            else np.array(self.latency_seconds_by_cluster, dtype=np.float32),
        )

    @model_validator(mode="after")
    def check_clusters(self) -> ProfileEntry:
        """Refuse a profile whose lists are of different length."""
        if len(self.score) != len(self.cost_usd):
            raise ValueError(f"{len(self.score)} scores but {len(self.cost_usd)} costs per cluster")
        tokens = self.tokens
        if tokens and {len(tokens.prompt), len(tokens.completion)} != {len(self.score)}:
            raise ValueError(f"{len(self.score)} scores but other numbers of tokens per cluster")
        seconds = self.latency_seconds_by_cluster
        if seconds is not None and len(seconds) != len(self.score):
            raise ValueError(f"{len(self.score)} scores but {len(seconds)} latencies per cluster")
        return self


class MemberEntry(StrictModel):
    """One call that an action stands for."""

    candidate_id: str = Field(min_length=1)
    model: str = Field(min_length=1)
    effort: str | None = None


class CandidateEntry(StrictModel):
    """One candidate as it stands in a file; `members` only where it is not asked itself.

    `unseen` only where no policy was trained with it.
    """

    id: str = Field(min_length=1)
    kind: ActionKind
    description: str = ""
    prices: PricesEntry
    limits: LimitsEntry = LimitsEntry()
    profile: ProfileEntry | None = None
    members: list[MemberEntry] | None = None
    unseen: bool = False

    @model_validator(mode="after")
    def check_members(self) -> CandidateEntry:
        """Refuse a subset without members, and a skip that asks somebody."""
        if self.kind == "subset" and not self.members:
            raise ValueError(f"'{self.id}' is a subset without members")
        if self.kind == "skip" and self.members != []:
            raise ValueError(f"'{self.id}' is a skip: members must be an empty list")
        return self

    def to_candidate(self) -> Candidate:
        """Return the candidate that the entry describes."""
        return Candidate(
            id=self.id,
            prices=Prices(**self.prices.model_dump()),
            kind=self.kind,
            description=self.description,
            limits=Limits(**self.limits.model_dump()),
            profile=None if self.profile is None else self.profile.to_profile(),
            members=None
            if self.members is None
            else tuple(Member(**member.model_dump()) for member in self.members),
            unseen=self.unseen,
        )


def check_ids(entries: list[CandidateEntry]) -> list[CandidateEntry]:
    """Refuse a list in which an id stands twice."""
    ids = [entry.id for entry in entries]
    twice = sorted({name for name in ids if ids.count(name) > 1})
    if twice:
        raise ValueError(f"candidate '{twice[0]}' is listed twice")
    return entries


CandidateEntries = Annotated[list[CandidateEntry], Field(min_length=1), AfterValidator(check_ids)]


class CandidateList(StrictModel):
    """At least one candidate, no id twice."""

    candidates: CandidateEntries


class LenderEntry(StrictModel):
    """A candidate that lends its description: share of the picks, columns, scores per cluster."""

    share: Positive
    described: list[Finite]
    score: Annotated[list[Score], Field(min_length=1)]


class ScaleEntry(StrictModel):
    """A feature scale as it stands in a file: the unit of cost in USD, and the standardisation.

    `lenders` only where some lend descriptions to candidates that no policy was trained with.
    """

    cost_reference_usd: Positive
    offset: list[Finite]
    scale: list[Positive]
    lenders: Annotated[list[LenderEntry], Field(min_length=1)] | None = None
    latency_reference_seconds: Positive | None = None

    @model_validator(mode="after")
    def check_columns(self) -> ScaleEntry:
        """Refuse a scale whose lists are of different length."""
        if len(self.offset) != len(self.scale):
            raise ValueError(f"{len(self.offset)} offsets but {len(self.scale)} scales")
        lenders = self.lenders or []
        if any(len(one.described) != len(self.scale) for one in lenders):
            raise ValueError(f"lenders: a description has not {len(self.scale)} columns")
        if len({len(one.score) for one in lenders}) > 1:
            raise ValueError("lenders: they have different numbers of query clusters")
        return self


def dump_candidates(candidates: Sequence[Candidate]) -> list[dict[str, Any]]:
    """Return candidates, with profiles where they have them, as plain values for JSON."""
    return [dump_candidate(candidate) for candidate in candidates]


def dump_candidate(candidate: Candidate) -> dict[str, Any]:
    """Return one candidate as plain values."""
    prices, limits = candidate.prices, candidate.limits
    data: dict[str, Any] = {
        "id": candidate.id,
        "kind": candidate.kind,
        "description": candidate.description,
        "prices": {
            "input": prices.input,
            "output": prices.output,
            "per_call": prices.per_call,
        },
        "limits": {
            "context_tokens": limits.context_tokens,
            "output_tokens": limits.output_tokens,
        },
        "profile": None if candidate.profile is None else dump_profile(candidate.profile),
    }
    if candidate.members is not None:
        data["members"] = [dataclasses.asdict(member) for member in candidate.members]
    if candidate.unseen:
        data["unseen"] = True
    return data


def dump_profile(profile: Profile) -> dict[str, Any]:
    """Return one profile as plain values."""
    data: dict[str, Any] = {
        "mean_score": profile.mean_score,
        "mean_cost_usd": profile.mean_cost_usd,
        "score": profile.score_C.tolist(),
        "cost_usd": profile.cost_usd_C.tolist(),
        "latency_seconds": profile.latency_seconds,
    }
    if profile.tokens is not None:
        data["tokens"] = {
            "mean_prompt": profile.tokens.mean_prompt,
            "mean_completion": profile.tokens.mean_completion,
            "prompt": profile.tokens.prompt_C.tolist(),
            "completion": profile.tokens.completion_C.tolist(),
        }
    if profile.latency_seconds_C is not None:
        data["latency_seconds_by_cluster"] = profile.latency_seconds_C.tolist()
    return data


def parse_candidates(data: Any, source: str) -> tuple[Candidate, ...]:
    """Return the candidates of `dump_candidates`; `source` names them in errors.

    Raises:
        RLRouteError: an unknown or missing key, a missing, negative or non-finite number, an
            unknown kind, an id twice, or no candidate at all.
    """
    parsed = parse_config(CandidateList, {"candidates": data}, source)
    return tuple(entry.to_candidate() for entry in parsed.candidates)


def dump_scale(scale: FeatureScale) -> dict[str, Any]:
    """Return a feature scale as plain values for JSON."""
    return scale.to_dict()


def parse_scale(data: Any, source: str) -> FeatureScale:
    """Return the feature scale of `dump_scale`; `source` names it in errors.

    Raises:
        RLRouteError: an unknown or missing key, or a number that is no scale.
    """
    parsed = parse_config(ScaleEntry, data, source)
    return FeatureScale.from_dict(parsed.model_dump())


def check_profiles(candidates: Sequence[Candidate], scale: FeatureScale, source: str) -> None:
    """Check that every candidate has a profile that the scale can turn into features.

    Raises:
        RLRouteError: a candidate has no profile, one with another number of clusters, or none of
            latencies where they count.
    """
    columns = len(scale.offset_D)
    for candidate in candidates:
        if candidate.profile is None:
            raise RLRouteError(f"{source}: candidate '{candidate.id}' has no measured profile")
        found = len(describe_candidate(candidate))
        if found != columns:
            raise RLRouteError(
                f"{source}: the profile of candidate '{candidate.id}' gives "
                f"{found + LEADING_COLUMNS} features, not {columns + LEADING_COLUMNS}: it was "
                "measured on another number of query clusters"
            )
        lenders, clusters = scale.lenders, len(candidate.profile.score_C)
        if lenders is not None and lenders.score_LC.shape[1] != clusters:
            raise RLRouteError(
                f"{source}: lenders have {lenders.score_LC.shape[1]} query clusters, candidate "
                f"'{candidate.id}' has {clusters}"
            )
        timed = candidate.profile.latency_seconds_C is not None
        if scale.latency_reference_seconds is not None and not timed:
            raise RLRouteError(
                f"{source}: the profile of candidate '{candidate.id}' has no latency per query "
                "cluster, and this policy weighs latency"
            )
