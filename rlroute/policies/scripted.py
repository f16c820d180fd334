"""Text policies without a model: they write the chunks of a multi-round episode by a rule.

A `ScriptedPlanner` plays the relations world. Knowing the sequence of relations from the query's
metadata, it asks one hop after the other, with the last reply as the next entity:

    <think>boss</think><search>alpha:boss of Ada</search>
    <think>coach</think><search>small:coach of Kit</search>
    <think>done</think><answer>Zoe</answer>

Its mode says who may be asked for a hop, one at random where there are several:

    random      any candidate
    knowing     any candidate that knows the relation
    thrifty     the same, cheap ones the more often the greater the episode's cost weight is
    optimal     the plan of `RelationsWorld.find_optimum` at the episode's cost weight
    always ID   the candidate ID

Where no name comes back ("unknown", or no reply as the call was too dear), another one of them is
asked; when none or no call is left, the answer is the last entity known, a guess. A
`DelegatingPlanner` plays any questions: it hands the whole question to one candidate and answers
with the reply.

Both start one agent per episode, for `rlroute.rollout.engine.run_episode`; equal seeds, queries and
episode numbers give equal texts. `rlroute.rollout.demonstrations` plays whole sets of queries.

What they leave out: tokens and log-probabilities (their decisions have none).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from rlroute.parsing import BLOCK, get_shown_name
from rlroute.pool.relations import UNKNOWN, RelationsWorld, write_sub_query
from rlroute.pool.relations_optimum import Optimum
from rlroute.seeding import draw_uniform
from rlroute.types import Candidate, Query, RLRouteError, TextDecision, TextObservation

ALWAYS = "always "
MODES = ("random", "knowing", "thrifty", "optimal")
THRIFT = (
    3.0  # at cost weight 1 the dearest candidate is chosen exp(-THRIFT) times as often as a free
)


class ScriptedAgent(Protocol):
    """One episode of a scripted policy."""

    async def decide(self, observation: TextObservation) -> tuple[str, TextDecision]:
        """Return the next chunk and the decision that holds it."""


class Planner(Protocol):
    """A scripted policy."""

    def start(self, query: Query, episode: int = 0) -> ScriptedAgent:
        """Return the agent of one episode; `episode` numbers those of the same query."""


class ScriptedPlanner:
    """A rule for the relations world.

    Args:
        world: the questions and who may be asked.
        mode: see the module.
        seed: of the random choices.
        max_calls: calls after which the agent answers in any case: the environment's limit.
        combination: of the reward that mode "optimal" is best for, gated or additive.

    Raises:
        RLRouteError: an unknown mode or candidate.
    """

    def __init__(
        self,
        world: RelationsWorld,
        mode: str,
        *,
        seed: int = 0,
        max_calls: int = 4,
        combination: str = "gated",
    ) -> None:
        ids = [candidate.id for candidate in world.candidates]
        named = mode.removeprefix(ALWAYS) if mode.startswith(ALWAYS) else None
        if named is None and mode not in MODES:
            raise RLRouteError(f"scripted mode '{mode}': must be {', '.join(MODES)} or 'always ID'")
        if named is not None and named not in ids:
            raise RLRouteError(f"scripted mode '{mode}': must name one of {', '.join(ids)}")
        self.world, self.mode, self.seed, self.named = world, mode, seed, named
        self.max_calls, self.combination = max_calls, combination
        self.shown_names = {
            candidate.id: get_shown_name(candidate) for candidate in world.candidates
        }
        self.optima: dict[float, Optimum] = {}

    def start(self, query: Query, episode: int = 0) -> RelationsAgent:
        """Return the agent of one episode; `episode` numbers those of the same query.

        Raises:
            RLRouteError: the query is not of the relations world.
        """
        relations = tuple(query.metadata.get("relations", "").split(","))
        if "entity" not in query.metadata or not set(relations) <= set(self.world.relations):
            raise RLRouteError(f"query '{query.id}': not a question of this relations world")
        return RelationsAgent(self, query, episode, relations, query.metadata["entity"])

    def list_options(
        self, relations: tuple[str, ...], hop: int, cost_weight: float
    ) -> tuple[str, ...]:
        """Return the candidates that may be asked for a hop; none where it is best to guess."""
        if self.named is not None:
            return (self.named,)
        if self.mode == "optimal":
            if cost_weight not in self.optima:
                found = self.world.find_optimum(cost_weight, self.combination)
                self.optima[cost_weight] = found
            return self.optima[cost_weight].plans[relations][hop : hop + 1]
        known = self.world.accuracy
        return tuple(
            candidate.id
            for candidate in self.world.candidates
            if self.mode == "random" or known[candidate.id][relations[hop]] > 0
        )

    def weigh_options(self, options: Sequence[str], cost_weight: float) -> list[float]:
        """Return how often each of the candidates is chosen, up to a factor."""
        if self.mode != "thrifty":
            return [1.0] * len(options)
        charges = self.world.charge_usd
        dearest = max(charges.values())
        return [math.exp(-THRIFT * cost_weight * charges[name] / dearest) for name in options]


@dataclass
class RelationsAgent:
    """One episode of a `ScriptedPlanner`: at `hop`, with `entity` as the last name known."""

    planner: ScriptedPlanner
    query: Query
    episode: int
    relations: tuple[str, ...]
    entity: str
    hop: int = 0
    calls: int = 0
    asked: set[str] = field(default_factory=set)

    async def decide(self, observation: TextObservation) -> tuple[str, TextDecision]:
        """Read the reply to the last call, and write the next call or the answer."""
        if self.asked:
            self.take_reply(extract_reply(observation.text))
        return make_decision(self.write_chunk(observation.cost_weight))

    def take_reply(self, reply: str | None) -> None:
        """Go on to the next hop if a name came back; None is a call that was not made."""
        self.calls += reply is not None
        if reply is not None and reply != UNKNOWN:
            self.entity = reply
            self.hop += 1
            self.asked.clear()

    def write_chunk(self, cost_weight: float) -> str:
        """Return the next chunk."""
        candidate_id = self.choose(cost_weight)
        if candidate_id is None:
            return write_answer("done", self.entity)
        self.asked.add(candidate_id)
        relation = self.relations[self.hop]
        name = self.planner.shown_names[candidate_id]
        return write_call(relation, name, write_sub_query(relation, self.entity))

    def choose(self, cost_weight: float) -> str | None:
        """Return whom to ask now; None where an answer is due."""
        if self.hop == len(self.relations) or self.calls == self.planner.max_calls:
            return None
        options = self.planner.list_options(self.relations, self.hop, cost_weight)
        left = [option for option in options if option not in self.asked]
        if not left:
            return None
        where = ("scripted", self.planner.seed, self.query.id, self.episode)
        draw = float(draw_uniform(*where, self.hop, len(left)))
        liking = self.planner.weigh_options(left, cost_weight)
        reached = 0.0
        for option, weight in zip(left, liking, strict=True):
            reached += weight / sum(liking)
            if draw < reached:
                return option
        return left[-1]  # what rounding left over


class DelegatingPlanner:
    """Hands the whole question to one candidate, drawn at random, and answers with its reply.

    Raises:
        RLRouteError: a candidate has no name that can be called.
    """

    def __init__(self, candidates: Sequence[Candidate], *, seed: int = 0) -> None:
        self.names, self.seed = [get_shown_name(candidate) for candidate in candidates], seed

    def start(self, query: Query, episode: int = 0) -> DelegatingAgent:
        """Return the agent of one episode; `episode` numbers those of the same query."""
        draw = draw_uniform("delegating", self.seed, query.id, episode)
        return DelegatingAgent(self.names[int(draw * len(self.names))], query)


@dataclass
class DelegatingAgent:
    """One episode of a `DelegatingPlanner`."""

    name: str
    query: Query
    asked: bool = False

    async def decide(self, observation: TextObservation) -> tuple[str, TextDecision]:
        """Ask, then answer with the reply; "unknown" where there is none."""
        if not self.asked:
            self.asked = True
            return make_decision(write_call("delegate", self.name, self.query.text))
        reply = extract_reply(observation.text) or UNKNOWN
        return make_decision(write_answer("done", reply))


def make_decision(chunk: str) -> tuple[str, TextDecision]:
    """Return a chunk as action and decision."""
    return chunk, TextDecision(chunk, environment_ids=(), token_ids=(), logps=())


def write_call(thought: str, name: str, query: str) -> str:
    """Return the chunk that calls a candidate."""
    return f"<think>{thought}</think><search>{name}:{query}</search>"


def write_answer(thought: str, answer: str) -> str:
    """Return the chunk that ends an episode."""
    return f"<think>{thought}</think><answer>{answer}</answer>"


def extract_reply(text: str) -> str | None:
    """Return what the last information block of an observation holds, None where there is none."""
    replies = [content.strip() for tag, content in BLOCK.findall(text) if tag == "information"]
    return replies[-1] if replies else None
