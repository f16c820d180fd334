"""`rlroute/MultiRound-v0`: one question, several rounds; the policy thinks, calls, and answers.

| part        | what                                                                               |
| ----------- | ---------------------------------------------------------------------------------- |
| observation | text: the whole prompt at first, later only what follows the policy's own last     |
|             | chunk; `cost_weight`. `transcript` is all of it in order                           |
| action      | a chunk of text; its first complete pair of tags decides (`rlroute.parsing`):      |
|             | `<search>NAME:QUERY</search>` calls, `<answer>TEXT</answer>` answers and ends      |
| unusable    | no complete pair, no colon, unknown name, ...: a legal step, no call is made, and  |
|             | by `feedback` the policy reads why                                                 |
| calls       | one per call chunk: `text` is the policy's query, `system` says that a part of a   |
|             | problem was handed over, `max_output_tokens` is `reply_tokens`                     |
| reply       | between information tags, cut to `reply_characters`, tags in it escaped, the block |
|             | always closed; then, by `ledger`, what is left of the limits                       |
| limits      | `max_calls`, `max_usd`, `max_reply_tokens_total`: hard. A call that could break    |
|             | the last two (at its upper bound) is not made; the texts list who is affordable    |
| reward      | {} until the end; then `format` (at most 0), `outcome` (0 to 1, 0 without an       |
|             | answer, None where the question has no references), `charge_usd` (all replies)     |
| failure     | a failed reply ends the episode at once and leaves all three terms undefined       |
| ends        | terminated: an answer, a failed reply, a call when none is left. truncated: after  |
|             | `max_turns` chunks, or by `truncate` (the context is full). Never both             |
| arguments   | candidates (names, prices, profiles: prompt, parser and prices follow from them),  |
|             | `MultiRoundConfig`, and the rule that grades faults of form                        |

The format term judges the policy's own text only. The last chunk before `max_turns` makes no call,
as nothing would read the reply. The cost weight is drawn from `cost_weights` by the episode's seed
and is stated in the prompt when there is more than one.

It leaves out the combination of the terms (`rlroute.rewards.multi_round`), tokens and chat
templates (`rlroute.rollout`). The shape is that of Router-R1 (Zhang et al., 2025); `strict_paper`
plays by its rules, faults included (`rlroute.envs.strict_paper`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from rlroute.config import StrictModel
from rlroute.envs.base import Step
from rlroute.envs.multi_round_rules import OwnRules, Rules, Spent, Turn
from rlroute.envs.prompt import build_prompt, build_system
from rlroute.envs.strict_paper import PaperRules
from rlroute.parsing import AnswerAction, CallAction
from rlroute.rewards.format import FormatRule
from rlroute.rewards.grading import GRADES
from rlroute.seeding import draw_uniform
from rlroute.types import Call, Candidate, Query, Reply, RLRouteError, TextObservation

GradeName = Literal["exact", "f1", "numeric", "choice", "squad_exact", "squad_f1"]
CostWeight = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class MultiRoundConfig(StrictModel):
    """What the policy is told, what limits an episode, and how an answer is graded.

    Attributes:
        prompt: "full" explains the task in prose, "short" is for tiny models.
        profile: what the prompt says of a candidate: its description, what was measured, nothing.
        prices: whether the prompt states prices.
        latency: whether it states the measured latency, where there is one.
        ledger: whether what is left of the limits follows each reply.
        feedback: whether an unusable chunk is answered with what was wrong.
        require_think: whether every chunk must hold a think block before its action.
        max_calls: calls per episode, a part of the task.
        max_turns: chunks per episode, a limit of the harness.
        max_usd: USD that the calls of an episode may cost; None for no limit.
        max_reply_tokens_total: tokens of all replies of an episode; None for no limit.
        reply_tokens: output limit of a call.
        reply_characters: characters of a reply that the policy gets to read.
        cost_weights: the weights that episodes are played at, one each.
        grade: how answers are graded (`rlroute.rewards.grading`).
        strict_paper: the rules of the original for parsing, observations, charges and format.
    """

    prompt: Literal["full", "short"] = "full"
    profile: Literal["text", "structured", "none"] = "structured"
    prices: bool = True
    latency: bool = True
    ledger: bool = True
    feedback: bool = True
    require_think: bool = True
    max_calls: int = Field(default=4, ge=0)
    max_turns: int = Field(default=8, ge=1)
    max_usd: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    max_reply_tokens_total: int | None = Field(default=None, ge=1)
    reply_tokens: int = Field(default=512, ge=1)
    reply_characters: int = Field(default=2400, ge=1)
    cost_weights: tuple[CostWeight, ...] = Field(default=(0.0,), min_length=1)
    grade: GradeName = "exact"
    strict_paper: bool = False

    @model_validator(mode="after")
    def check_limits(self) -> MultiRoundConfig:
        """Refuse limits that contradict each other, or that strict_paper would not obey."""
        if self.max_turns <= self.max_calls:
            raise ValueError(
                f"max_turns ({self.max_turns}) must be above max_calls ({self.max_calls})"
            )
        if self.strict_paper and (self.max_usd or self.max_reply_tokens_total):
            raise ValueError("strict_paper knows neither max_usd nor max_reply_tokens_total")
        return self

    def draw_cost_weight(self, seed: int) -> float:
        """Return the cost weight of the episode with this seed."""
        return self.cost_weights[int(draw_uniform("cost_weight", seed) * len(self.cost_weights))]


class MultiRound:
    """The pure state machine; see the module's table.

    Raises:
        RLRouteError: no candidates, or names that cannot be told apart or called.
    """

    def __init__(
        self,
        candidates: Sequence[Candidate],
        config: MultiRoundConfig,
        format_rule: FormatRule | None = None,
        *,
        cost_weight: float | None = None,
    ) -> None:
        if not candidates:
            raise RLRouteError("a multi-round environment needs at least one candidate")
        self.candidates = tuple(candidates)
        self.config = config
        self.system = build_system(config)
        self.rules: Rules
        if config.strict_paper:
            self.rules = PaperRules(self.candidates, config)
        else:
            self.rules = OwnRules(self.candidates, config, format_rule or FormatRule(), self.system)
        self.query: Query | None = None
        self.fixed_cost_weight = cost_weight
        self.cost_weight = 0.0
        self.turns: list[Turn] = []
        self.pending: Turn | None = None
        self.spent = Spent()
        self.ended = True

    def reset(self, query: Query, seed: int) -> TextObservation:
        """Start the episode of `query`; the seed draws its cost weight where none is fixed."""
        self.query = query
        drawn = self.config.draw_cost_weight(seed)
        self.cost_weight = drawn if self.fixed_cost_weight is None else self.fixed_cost_weight
        self.turns, self.pending, self.spent, self.ended = [], None, Spent(), False
        return self.build_observation()

    def propose(self, action: str) -> tuple[Call, ...]:
        """Return the call that the chunk asks for, if it is usable and within the limits.

        Raises:
            ValueError: the episode is over, or replies are still awaited.
        """
        query = self.check_running()
        turn = self.rules.read(action, len(self.turns), self.spent)
        self.pending = turn
        if not turn.calls:
            return ()
        assert isinstance(turn.parsed.action, CallAction)  # what `calls` says
        return (
            Call(
                candidate_id=turn.parsed.action.candidate_id,
                query=query,
                text=turn.parsed.action.text,
                system=self.system,
                max_output_tokens=self.config.reply_tokens,
            ),
        )

    def observe(self, replies: Sequence[Reply]) -> Step[TextObservation]:
        """Take the reply of the proposed call, or none where none was proposed.

        Raises:
            ValueError: nothing was proposed, or the number of replies does not fit.
        """
        turn = self.pending
        if turn is None:
            raise ValueError("propose an action before its replies are observed")
        if len(replies) != turn.calls:
            raise ValueError(f"{len(replies)} replies to {turn.calls} calls")
        self.pending = None
        if not self.rules.survives_failure and any(reply.failure for reply in replies):
            self.turns.append(turn)
            return self.end(undefined=True)
        self.spent = self.rules.charge(self.spent, replies)
        terminated = self.rules.is_last(turn, len(self.turns))
        if terminated or len(self.turns) + 1 >= self.config.max_turns:
            self.turns.append(turn)
            return self.end(truncated=not terminated)
        text = self.rules.write_observation(turn, replies, self.get_query(), self.spent)
        self.turns.append(dataclasses.replace(turn, observation=text))
        return Step(self.build_observation(), reward_terms={}, terminated=False)

    def truncate(self) -> Step[TextObservation]:
        """End the episode for the harness, where the policy would write next: no answer.

        Raises:
            ValueError: the episode is over, or replies are still awaited.
        """
        self.check_running()
        return self.end(truncated=True)

    def end(self, *, truncated: bool = False, undefined: bool = False) -> Step[TextObservation]:
        """End the episode and compute its reward terms."""
        self.ended = True
        terms: dict[str, float | None] = {"format": None, "outcome": None, "charge_usd": None}
        if not undefined:
            answered = self.find_answer()
            terms["format"] = self.rules.score_format(self.turns, answered is not None)
            terms["outcome"] = self.grade(answered)
            terms["charge_usd"] = self.spent.usd
        return Step(self.build_observation(), terms, terminated=not truncated, truncated=truncated)

    def find_answer(self) -> str | None:
        """Return the answer of the last chunk, None where it did not answer."""
        action = self.turns[-1].parsed.action if self.turns else None
        return action.text if isinstance(action, AnswerAction) else None

    def grade(self, answer: str | None) -> float | None:
        """Return the outcome: 0 without an answer, None where there is nothing to compare with."""
        references = self.get_query().references
        if not references:
            return None
        return 0.0 if answer is None else float(GRADES[self.config.grade](answer, references))

    def check_running(self) -> Query:
        """Return the query, or refuse to go on after the end or before the replies."""
        if self.ended:
            raise ValueError("the episode is over: reset before the next action")
        if self.pending is not None:
            raise ValueError("replies are awaited: observe them before the next action")
        return self.get_query()

    def get_query(self) -> Query:
        """Return the episode's query.

        Raises:
            ValueError: there was no reset yet.
        """
        if self.query is None:
            raise ValueError("reset comes first")
        return self.query

    @property
    def prompt(self) -> str:
        """The first observation of the episode."""
        left = self.rules.count_left(Spent(), self.get_query())
        return build_prompt(self.candidates, self.config, self.get_query(), self.cost_weight, left)

    @property
    def transcript(self) -> str:
        """All text of the episode so far: prompt, chunks and what followed them."""
        return self.prompt + "".join(turn.text + turn.observation for turn in self.turns)

    def build_observation(self) -> TextObservation:
        """Return what the policy reads now: nothing at the end."""
        text = "" if self.ended else self.turns[-1].observation if self.turns else self.prompt
        return TextObservation(text, self.cost_weight)

    def get_state(self) -> dict[str, Any]:
        """Return the state as plain JSON values, between two steps.

        Raises:
            ValueError: replies are awaited, or there was no reset yet.
        """
        if self.pending is not None:
            raise ValueError("replies are awaited: observe them before the state is taken")
        query = self.get_query()
        return {
            "query": {
                **{name: getattr(query, name) for name in ("id", "text", "task", "dataset")},
                "references": list(query.references),
                "metadata": dict(query.metadata),
            },
            "cost_weight": self.cost_weight,
            "turns": [turn.to_state() for turn in self.turns],
            "spent": dataclasses.asdict(self.spent),
            "ended": self.ended,
        }

    def set_state(self, state: Mapping[str, Any]) -> TextObservation:
        """Restore a state of `get_state` and return its observation."""
        query = dict(state["query"])
        self.query = Query(**{**query, "references": tuple(query["references"])})
        self.cost_weight = float(state["cost_weight"])
        self.turns = [Turn.from_state(turn) for turn in state["turns"]]
        self.pending = None
        self.spent = Spent(**state["spent"])
        self.ended = bool(state["ended"])
        return self.build_observation()
