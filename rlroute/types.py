"""The map of rlroute: every noun that travels between its packages.

What it is: plain frozen dataclasses, in the order in which a decision meets them. A `Query` is
asked; a `Candidate` may take it; the policy sees an `Observation` and makes a `Decision`; the
environment turns the decision into `Call`s; the pool turns each call into a `Reply`; one such step
is a `Transition`, an episode is a `Trajectory`, and what a trainer learns from is a `Batch`, whose
`group_B` says which episodes (of one query, at one cost weight) are compared with each other.

What it leaves out: behaviour. Nothing here opens a file, draws a number or imports another module
of ours.

Notation of array fields: a suffix names the axes. `_K` candidates, `_F` query features, `_D`
candidate features, `_B` episodes (lanes), `_T` steps of an episode. Money is in USD, time in
seconds, prices in USD per million tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Generic, Literal, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
UsdArray = npt.NDArray[np.float64]  # money that is added up: float32 is off in the seventh digit
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

CandidateKind = Literal["model", "agent", "tool", "pipeline", "tier", "effort"]
ActionKind = Literal[CandidateKind, "subset", "skip"]  # and what stands for several calls, or none
SplitName = Literal["train", "val", "test"]
Finish = Literal["stop", "end", "length"]

SPLITS: tuple[SplitName, ...] = ("train", "val", "test")
TOKENS_PER_PRICE = 1_000_000


class RLRouteError(Exception):
    """A fault that the user can mend; its message says in one line what, where, what is allowed.

    The command line prints the message without a traceback and exits with code 2.
    """


class FailureKind(StrEnum):
    """Why a call has no answer. A failed call is never cheap, never scored, never trained on."""

    TIMEOUT = "timeout"
    RATE_LIMITED = "rate_limited"
    SERVER = "server"
    BAD_REQUEST = "bad_request"
    AUTH = "auth"
    MALFORMED = "malformed"
    TRUNCATED = "truncated"
    REFUSED = "refused"
    BUDGET = "budget"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Prices:
    """What a candidate charges: USD per million tokens, and USD per call.

    `cached_input` is the price of prompt tokens that the server had cached; None where they cost
    as much as others. `date` (YYYY-MM-DD) says when the prices were read; empty where not stated.
    """

    input: float
    output: float
    per_call: float = 0.0
    cached_input: float | None = None
    date: str = ""

    def compute_cost(
        self, prompt_tokens: float, completion_tokens: float, cached_tokens: float = 0
    ) -> float:
        """Return the cost in USD of one call; cached tokens are a part of the prompt tokens."""
        cached_price = self.input if self.cached_input is None else self.cached_input
        tokens = (prompt_tokens - cached_tokens) * self.input + cached_tokens * cached_price
        tokens += completion_tokens * self.output
        return self.per_call + tokens / TOKENS_PER_PRICE


@dataclass(frozen=True, slots=True)
class Limits:
    """Hard limits of a candidate, in tokens; None where it states none."""

    context_tokens: int | None = None
    output_tokens: int | None = None


@dataclass(frozen=True)
class TokenProfile:
    """Mean tokens of a call: over all measured queries, and per cluster of them `_C`."""

    mean_prompt: float
    mean_completion: float
    prompt_C: FloatArray
    completion_C: FloatArray


@dataclass(frozen=True)
class Profile:
    """What was measured of a candidate on the train split, and on nothing else.

    `mean_score` and `mean_cost_usd` are over all its train queries; the `_C` arrays hold the same
    per cluster of queries (shrunk towards the mean as far as chance explains them).
    `latency_seconds` (`_C`: per cluster) is the mean time to a reply, `tokens` is what a call
    uses, for what it costs at other prices; None where they were not measured.
    """

    mean_score: float
    mean_cost_usd: float
    score_C: FloatArray
    cost_usd_C: FloatArray
    latency_seconds: float | None = None
    tokens: TokenProfile | None = None
    latency_seconds_C: FloatArray | None = None


@dataclass(frozen=True, slots=True)
class Member:
    """One call that an action stands for: whom it asks.

    Where the candidate's id is a pair, `model` and `effort` are its parts; else `model` is the id
    and `effort` None.
    """

    candidate_id: str
    model: str
    effort: str | None = None


@dataclass(frozen=True)
class Candidate:
    """Anything that can be chosen to do the next piece of work.

    `members` is None where it is asked itself. A subset has those that it asks side by side, `skip`
    has none (`rlroute.data.actions`). `unseen` says that no policy was trained with it
    (`rlroute.policies.lending`).
    """

    id: str
    prices: Prices
    kind: ActionKind = "model"
    description: str = ""
    limits: Limits = Limits()
    profile: Profile | None = None
    aliases: tuple[str, ...] = ()
    members: tuple[Member, ...] | None = None
    unseen: bool = False

    @property
    def asked(self) -> tuple[Member, ...]:
        """Whom choosing this candidate asks."""
        return (Member(self.id, self.id),) if self.members is None else self.members


@dataclass(frozen=True)
class Query:
    """One thing to solve. `references` hold what an answer is graded against (may be empty)."""

    id: str
    text: str
    task: str = ""
    dataset: str = ""
    references: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens that one call used, as the candidate's own tokenizer counts them.

    `cached_tokens` of the prompt tokens were in the server's cache. `estimated` says that the
    server reported no usage and the tokens were counted here with another tokenizer.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    estimated: bool = False


@dataclass(frozen=True)
class Call:
    """A request to one candidate: the query it concerns and the text that it is sent.

    `sample` numbers the answers that are drawn for one text at a temperature above 0. `episode`
    names whose budget pays; empty where only the run's does. `max_output_tokens` is None where the
    candidate's own limit is meant.
    """

    candidate_id: str
    query: Query
    text: str
    system: str = ""
    temperature: float = 0.0
    sample: int = 0
    max_output_tokens: int | None = None
    episode: str = ""


@dataclass(frozen=True)
class Reply:
    """What came back for a call: an answer with its price, or a typed failure.

    `score` is set by pools that know it (a recording of graded answers); replies of live pools are
    graded by the outcome reward. A failed reply has `failure` set, `score` None, and `cost_usd`
    holds what the failed attempts were billed (which the cost reward never sees). `latency_seconds`
    is None where it was not measured. `attempts` counts the requests that were sent; for a `cached`
    reply none was sent and nothing is billed now, and `cost_usd` is still what the answer costs.
    """

    call: Call
    text: str = ""
    usage: Usage | None = None
    cost_usd: float = 0.0
    latency_seconds: float | None = None
    score: float | None = None
    failure: FailureKind | None = None
    attempts: int = 1
    cached: bool = False


@dataclass(frozen=True)
class Observation:
    """What the policy sees before one decision.

    `features_F` embeds the query, row k of `candidate_features_KD` describes candidate k, and
    `mask_K` is True where candidate k may be chosen. `latency_weight` is there where latency
    counts, `candidate_bias_K` where users favour candidates.
    """

    text: str
    features_F: FloatArray
    candidate_features_KD: FloatArray
    mask_K: BoolArray
    cost_weight: float
    latency_weight: float | None = None
    candidate_bias_K: FloatArray | None = None


@dataclass(frozen=True)
class Decision:
    """One action of the policy with what is needed to learn from it.

    `logp` is the log-probability of `action` under the masked behaviour distribution, `value` the
    critic's estimate of the return, `policy_version` the number of updates behind the weights used.
    """

    action: int
    logp: float
    value: float
    mask_K: BoolArray
    policy_version: int = 0


@dataclass(frozen=True)
class TextObservation:
    """What a text policy reads: the prompt at first, later only what follows its own last text."""

    text: str
    cost_weight: float


@dataclass(frozen=True)
class TextDecision:
    """One piece of text that a policy wrote, as the tokens that were sampled.

    `environment_ids` are the tokens of the observation before it, tokenised once; `token_ids` and
    `logps` (of the tokens, at the sampling temperature) are the policy's own. `finish` says why it
    stopped: at a stop string, at the end-of-text token, or at the limit of tokens.
    """

    text: str
    environment_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    logps: tuple[float, ...]
    finish: Finish = "stop"
    policy_version: int = 0


ObservationT = TypeVar("ObservationT", Observation, TextObservation)
DecisionT = TypeVar("DecisionT", Decision, TextDecision)


@dataclass(frozen=True)
class Transition(Generic[ObservationT, DecisionT]):
    """One step of an episode. A reward term of None is undefined, which is not zero."""

    observation: ObservationT
    decision: DecisionT
    replies: tuple[Reply, ...]
    reward_terms: Mapping[str, float | None]
    terminated: bool
    truncated: bool


@dataclass(frozen=True)
class Trajectory(Generic[ObservationT, DecisionT]):
    """One episode: the query, the coordinates its seed came from, and its steps in order."""

    query: Query
    seed: int
    transitions: tuple[Transition[ObservationT, DecisionT], ...]

    @property
    def failure(self) -> FailureKind | None:
        """The first failure among the replies, or None; a failed trajectory is not learnt from."""
        replies = (reply for step in self.transitions for reply in step.replies)
        return next((reply.failure for reply in replies if reply.failure is not None), None)


TextTrajectory: TypeAlias = Trajectory[TextObservation, TextDecision]


# What an episode is for: compared with its group; compared but not learnt from, since its actions
# were forced; or a static policy's episode that is learnt from without joining the group's mean.
MEMBER, FORCED, REFERENCE = 0, 1, 2


@dataclass(frozen=True)
class EpisodeEnds:
    """How B episodes of many steps ended, and what they are compared with.

    `score_B` in [0, 1] and `cost_usd_B` are NaN where a call failed. `calls_B` counts calls of the
    executors that a budget counts, `cap_B` is the budget (infinite: none), `exhausted_B` says that
    it left nothing affordable. `free_BT` is True where there was a choice: more than one executor
    allowed, and none forced. `role_B` is MEMBER, FORCED or REFERENCE. `reference_BR` are rewards of
    static policies on the same task (NaN: unknown), `solvable_B` whether one of them ever solved
    it, `hard_B` whether the dear one does and the cheap one does not.
    """

    score_B: FloatArray
    cost_usd_B: FloatArray
    calls_B: IntArray
    cap_B: FloatArray
    exhausted_B: BoolArray
    free_BT: BoolArray
    role_B: IntArray
    reference_BR: FloatArray
    solvable_B: BoolArray
    hard_B: BoolArray


@dataclass(frozen=True)
class Conversations:
    """B episodes as a language model read them, padded to L tokens.

    The logits at `position_BT` decided step t; it is -1 where an episode has no such step.
    """

    ids_BL: IntArray
    length_B: IntArray
    position_BT: IntArray


@dataclass(frozen=True)
class Batch:
    """Episodes as arrays, what both rollout drivers hand to the trainer.

    Axes: B episodes, T steps (short episodes are padded, `valid_BT` is False there), K candidates.
    `reward_terms_BT[name]` is NaN where the term is undefined. `group_B` numbers the groups from 0.
    Candidate features are shared by the whole batch. `outcome_terms_BK[name]` is present only under
    full feedback (one-step episodes): the term for every candidate, NaN where undefined. With it
    `log_weight_BK` holds the inverse propensities of a log, 0 where it holds nothing. `ends` and
    `conversations` are there for episodes of many steps, the latter for language models. `role_B`
    (one-step episodes) is MEMBER or FORCED; absent where all are members. `prior_mean_B` is what
    was expected of an episode's reward before it was played, `prior_variance_B` its variance.
    `latency_weight_B` is there where latency counts, `candidate_bias_BK` (utility) where users
    favour candidates.
    """

    features_BTF: FloatArray
    candidate_features_KD: FloatArray
    mask_BTK: BoolArray
    cost_weight_B: FloatArray
    action_BT: IntArray
    logp_BT: FloatArray
    value_BT: FloatArray
    valid_BT: BoolArray
    terminated_B: BoolArray
    reward_terms_BT: Mapping[str, FloatArray]
    query_index_B: IntArray
    group_B: IntArray
    policy_version: int = 0
    dropped: int = 0
    outcome_terms_BK: Mapping[str, FloatArray] | None = None
    log_weight_BK: FloatArray | None = None
    ends: EpisodeEnds | None = None
    conversations: Conversations | None = None
    role_B: IntArray | None = None
    prior_mean_B: FloatArray | None = None
    prior_variance_B: FloatArray | None = None
    latency_weight_B: FloatArray | None = None
    candidate_bias_BK: FloatArray | None = None
