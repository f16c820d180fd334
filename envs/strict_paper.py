"""The rules of the original Router-R1 for the multi-round environment, its faults included.

| what         | as in the original                                                              |
| ------------ | ------------------------------------------------------------------------------- |
| rounds       | `max_calls` chunks of any kind, then a closing one whose call is not executed   |
| names        | by substring; one that is meant but not in the pool is an unknown name          |
| observation  | the reply as it is, tags included; `None` for an unknown name or a failed call; |
|              | nothing for other unusable chunks. A long one loses its closing tag             |
| charge       | output tokens at the paper's price; input, failures and unknown names are free  |
| format       | judged on all text, replies included: 0 or -1                                   |

It serves comparisons and tests; new work takes `OwnRules`. It leaves out the prompt's wording and
the cut of the context from the left. One thing differs: the original cuts an observation at 600
tokens, here it is cut at `reply_characters`, as no tokenizer is at hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rlroute import router_r1
from rlroute.envs.multi_round_rules import Spent, Turn
from rlroute.envs.prompt import Left
from rlroute.parsing import AnswerAction, CallAction, Fault, ParsedChunk, TextAction, Unusable
from rlroute.types import TOKENS_PER_PRICE, Candidate, Query, Reply, RLRouteError

if TYPE_CHECKING:
    from rlroute.envs.multi_round import MultiRoundConfig


class PaperRules:
    """The original's rules; see the module.

    Raises:
        RLRouteError: a candidate is not of the original's pool (by id or alias).
    """

    survives_failure = True

    def __init__(self, candidates: Sequence[Candidate], config: MultiRoundConfig) -> None:
        self.config = config
        self.id_by_paper_name: dict[str, str] = {}
        for candidate in candidates:
            known = [n for n in (candidate.id, *candidate.aliases) if n in router_r1.PRICES]
            if not known:
                raise RLRouteError(
                    f"strict_paper: candidate '{candidate.id}' is not of Router-R1's pool "
                    f"(allowed as id or alias: {', '.join(router_r1.PRICES)})"
                )
            self.id_by_paper_name[known[0]] = candidate.id
        self.paper_name_by_id = {id_: name for name, id_ in self.id_by_paper_name.items()}

    def read(self, text: str, turns: int, spent: Spent) -> Turn:
        """Cut a chunk behind its first closing tag and read it."""
        text = router_r1.cut_chunk(text)
        found = router_r1.parse_chunk(text)
        action: TextAction = Unusable(Fault.NO_TAG)
        if isinstance(found, router_r1.PaperAnswer):
            action = AnswerAction(found.text)
        elif found is not None:
            candidate_id = self.id_by_paper_name.get(found.name or "")
            action = Unusable(Fault.UNKNOWN_NAME)
            if candidate_id is not None:
                action = CallAction(candidate_id, found.query)
        executed = isinstance(action, CallAction) and turns < self.config.max_calls
        faults = (action.fault,) if isinstance(action, Unusable) else ()
        return Turn(text, ParsedChunk(action, faults), calls=int(executed))

    def charge(self, spent: Spent, replies: Sequence[Reply]) -> Spent:
        """Add the output tokens of replies at the paper's prices; a failed call is free."""
        calls, usd, tokens = spent.calls, spent.usd, spent.reply_tokens
        for reply in replies:
            calls += 1
            if reply.failure is None:
                name = self.paper_name_by_id[reply.call.candidate_id]
                used = reply.usage.completion_tokens if reply.usage else 0
                usd += router_r1.compute_charge(name, used) / TOKENS_PER_PRICE
                tokens += used
        return Spent(calls, usd, tokens)

    def is_last(self, turn: Turn, turns: int) -> bool:
        """Say whether the turn answers, or is the closing one."""
        return isinstance(turn.parsed.action, AnswerAction) or turns >= self.config.max_calls

    def write_observation(
        self, turn: Turn, replies: Sequence[Reply], query: Query, spent: Spent
    ) -> str:
        """Return the reply, `None`, or nothing."""
        texts = [None if reply.failure else reply.text for reply in replies]
        if turn.parsed.action == Unusable(Fault.UNKNOWN_NAME):
            texts = [None]
        text = "".join(router_r1.format_observation(text) for text in texts)
        return text[: self.config.reply_characters]

    def count_left(self, spent: Spent, query: Query) -> Left:
        """Return the rounds of the prompt; the original counts them nowhere else."""
        return Left(calls=self.config.max_calls)

    def score_format(self, turns: Sequence[Turn], answered: bool) -> float:
        """Judge all text of the episode, as the original does."""
        return router_r1.score_format("".join(turn.text + turn.observation for turn in turns))
