"""The rules of multi-round routing: how a chunk is read, what follows a reply, what is left.

`Rules` is what the state machine of `rlroute.envs.multi_round` asks; `OwnRules` are ours and
`rlroute.envs.strict_paper` has those of the original. Money is in USD.

The upper bound of a call: a prompt has at most as many tokens as the bytes of its two texts, plus
what a server's template adds; the output at most its limit. A candidate is listed as affordable if
a query as long as the question fits into what is left; whether a call is made is decided by the
query that the policy wrote.

What it leaves out: the wording (`rlroute.envs.prompt`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from rlroute.envs.prompt import Left, write_feedback, write_ledger, write_reply
from rlroute.parsing import (
    AnswerAction,
    CallAction,
    Fault,
    ParsedChunk,
    TextAction,
    Unusable,
    get_shown_name,
    index_names,
    parse_chunk,
)
from rlroute.pool.chat import OVERHEAD_TOKENS
from rlroute.rewards.format import FormatRule, score_format
from rlroute.types import TOKENS_PER_PRICE, Candidate, Query, Reply

if TYPE_CHECKING:
    from rlroute.envs.multi_round import MultiRoundConfig


@dataclass(frozen=True)
class Spent:
    """What an episode has used up so far."""

    calls: int = 0
    usd: float = 0.0
    reply_tokens: int = 0


@dataclass(frozen=True)
class Turn:
    """A chunk of the policy, how it was read, how many calls it makes (0 or 1), what followed."""

    text: str
    parsed: ParsedChunk
    calls: int
    observation: str = ""

    def to_state(self) -> dict[str, Any]:
        """Return the turn as plain JSON values."""
        action = self.parsed.action
        candidate_id = action.candidate_id if isinstance(action, CallAction) else None
        return {
            "text": self.text,
            "kind": type(action).__name__,
            "candidate_id": candidate_id,
            "content": action.fault.name if isinstance(action, Unusable) else action.text,
            "faults": [fault.name for fault in self.parsed.faults],
            "calls": self.calls,
            "observation": self.observation,
        }

    @staticmethod
    def from_state(state: Mapping[str, Any]) -> Turn:
        """Return the turn of `to_state`."""
        content = str(state["content"])
        action: TextAction
        if state["kind"] == CallAction.__name__:
            action = CallAction(str(state["candidate_id"]), content)
        elif state["kind"] == AnswerAction.__name__:
            action = AnswerAction(content)
        else:
            action = Unusable(Fault[content])
        faults = tuple(Fault[name] for name in state["faults"])
        return Turn(
            state["text"], ParsedChunk(action, faults), state["calls"], state["observation"]
        )


class Rules(Protocol):
    """What the state machine leaves to the rules."""

    survives_failure: bool

    def read(self, text: str, turns: int, spent: Spent) -> Turn:
        """Return the turn of a chunk that is written after so many turns."""

    def charge(self, spent: Spent, replies: Sequence[Reply]) -> Spent:
        """Return what is spent after replies."""

    def is_last(self, turn: Turn, turns: int) -> bool:
        """Say whether a turn, written after so many others, ends the task."""

    def write_observation(
        self, turn: Turn, replies: Sequence[Reply], query: Query, spent: Spent
    ) -> str:
        """Return the text that follows a turn."""

    def count_left(self, spent: Spent, query: Query) -> Left:
        """Return what is left of the limits."""

    def score_format(self, turns: Sequence[Turn], answered: bool) -> float:
        """Return the format term of the episode, at most 0."""


class OwnRules:
    """Our rules; see the module."""

    survives_failure = False

    def __init__(
        self,
        candidates: Sequence[Candidate],
        config: MultiRoundConfig,
        format_rule: FormatRule,
        system: str,
    ) -> None:
        self.candidates = {candidate.id: candidate for candidate in candidates}
        self.names = index_names(candidates)
        self.config = config
        self.format_rule = format_rule
        self.system = system

    def read(self, text: str, turns: int, spent: Spent) -> Turn:
        """Parse a chunk; a call beyond a limit becomes unusable, with a fault that says so."""
        parsed = parse_chunk(text, self.names, require_think=self.config.require_think)
        if not isinstance(parsed.action, CallAction):
            return Turn(text, parsed, calls=0)
        candidate = self.candidates[parsed.action.candidate_id]
        fault = self.find_limit(candidate, parsed.action.text, spent)
        if fault is not None:
            return Turn(text, ParsedChunk(Unusable(fault), (fault, *parsed.faults)), calls=0)
        # Nobody would read the reply to the last chunk that the harness allows.
        return Turn(text, parsed, calls=int(turns + 1 < self.config.max_turns))

    def find_limit(self, candidate: Candidate, text: str, spent: Spent) -> Fault | None:
        """Return the limit that a call could break at its upper bound, None where it fits."""
        config = self.config
        if spent.calls >= config.max_calls:
            return Fault.NO_CALLS_LEFT
        tokens = spent.reply_tokens + self.get_output_limit(candidate)
        if config.max_reply_tokens_total is not None and tokens > config.max_reply_tokens_total:
            return Fault.UNAFFORDABLE
        usd = spent.usd + self.bound_cost(candidate, text)
        if config.max_usd is not None and usd > config.max_usd:
            return Fault.UNAFFORDABLE
        return None

    def get_output_limit(self, candidate: Candidate) -> int:
        """Return the most tokens of a reply."""
        limit = candidate.limits.output_tokens
        return self.config.reply_tokens if limit is None else min(limit, self.config.reply_tokens)

    def bound_cost(self, candidate: Candidate, text: str) -> float:
        """Return the most that a call can cost."""
        prices = candidate.prices
        prompt_bytes = (self.system + text).encode(errors="surrogatepass")
        prompt_tokens = len(prompt_bytes) + OVERHEAD_TOKENS
        dearest_input = max(prices.input, prices.cached_input or 0.0)
        tokens_usd = prompt_tokens * dearest_input
        tokens_usd += self.get_output_limit(candidate) * prices.output
        return prices.per_call + tokens_usd / TOKENS_PER_PRICE

    def charge(self, spent: Spent, replies: Sequence[Reply]) -> Spent:
        """Add replies; one without usage counts as long as it may be."""
        for reply in replies:
            if reply.usage is None:
                tokens = self.get_output_limit(self.candidates[reply.call.candidate_id])
            else:
                tokens = reply.usage.completion_tokens
            spent = Spent(spent.calls + 1, spent.usd + reply.cost_usd, spent.reply_tokens + tokens)
        return spent

    def is_last(self, turn: Turn, turns: int) -> bool:
        """Say whether the turn answers, or calls where no call is left."""
        action = turn.parsed.action
        return isinstance(action, AnswerAction) or action == Unusable(Fault.NO_CALLS_LEFT)

    def write_observation(
        self, turn: Turn, replies: Sequence[Reply], query: Query, spent: Spent
    ) -> str:
        """Return the reply in its block, or what was wrong; then what is left."""
        config = self.config
        text = "".join(write_reply(config, reply.text) for reply in replies)
        action = turn.parsed.action
        if isinstance(action, Unusable):
            if not config.feedback:
                return ""
            text = write_feedback(config, action.fault)
        if config.ledger:
            text += write_ledger(config, self.count_left(spent, query))
        return text

    def count_left(self, spent: Spent, query: Query) -> Left:
        """Return what is left; affordable candidates only where money or tokens are limited."""
        config, affordable = self.config, None
        if config.max_usd is not None or config.max_reply_tokens_total is not None:
            affordable = tuple(
                get_shown_name(candidate)
                for candidate in self.candidates.values()
                if self.find_limit(candidate, query.text, spent) is None
            )
        return Left(
            calls=config.max_calls - spent.calls,
            usd=None if config.max_usd is None else config.max_usd - spent.usd,
            reply_tokens=None
            if config.max_reply_tokens_total is None
            else config.max_reply_tokens_total - spent.reply_tokens,
            affordable=affordable,
        )

    def score_format(self, turns: Sequence[Turn], answered: bool) -> float:
        """Grade the faults of form in the policy's own text."""
        return score_format([turn.parsed for turn in turns], answered, self.format_rule)
