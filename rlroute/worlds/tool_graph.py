"""Tool graphs: find the way from a start to a goal through tools that cost money and may fail.

What it is: a task is a directed graph without cycles. Each edge is a call of a tool; the tools
(names, prices, failure rates) are the same in all tasks, and the tools that a node offers lead to
other nodes. `escalate` is a dear executor that finishes the task from anywhere. Three shapes:

- chain: every node offers one or more tools that all lead to the next node;
- dag: nodes stand at positions in a row, `width` abreast; a tool of span s leads s positions on;
- fan_out: the start offers one tool per branch; the branches are chains that meet at the goal.

A failed call is charged, changes no place and closes its edge for the rest of the episode. The seed
decides which calls fail: a tool of failure "outage" is down for the whole episode or not at all
(after one failure all its edges are closed), a tool of failure "transient" fails at each edge for
itself. So every failure is answered by another tool (a reroute) or by `escalate` (an escalation),
unless the episode ends first: `failures == reroutes + escalations + open_failures`.

The score is 1 at the goal, else 0; an episode ends at the goal or after `horizon` calls.

| feature           | what                                                                       |
| ----------------- | -------------------------------------------------------------------------- |
| steps_left        | calls left, as a share of the horizon                                      |
| steps_spare       | calls left beyond the fewest that lead to the goal, as a share of the      |
|                   | horizon (one call below 0 where they do not suffice); -1 where no way does |
| failed            | 1 if the last call failed                                                  |
| failures          | failures so far, as a share of the horizon                                 |
| shape_<name>      | 1 for the shape of the task                                                |
| plan_<tool>       | cost of the cheapest way to the goal that begins with this tool and keeps  |
|                   | to open edges and to the calls left, in prices of `escalate`, at most 2; 2 |
|                   | where there is none                                                        |

Features of an executor: `describe_executors`, its failure rate, 1 if it fails by outages, its
number as a one-hot.

`advise_observed` replans with Dijkstra's algorithm after each failure, knowing only the failures
that were seen (the self-healing router); `advise` also knows those to come; `find_optimum` is the
cost of the cheapest way for one seed.

Means over the default test tasks, seeds 0 to 4 (score, USD per episode):

| policy                                          | score | USD    |
| ----------------------------------------------- | ----- | ------ |
| cheapest executor that may act                  | 0.715 | 0.0186 |
| dearest tool that may act, else `escalate`      | 0.923 | 0.0346 |
| `escalate` at once                              | 1.000 | 0.0500 |
| `advise_observed`                               | 0.933 | 0.0268 |
| `advise`                                        | 1.000 | 0.0160 |

Between the last two lies what can be learnt: to plan with failure rates, and for the last calls.

What it leaves out: tools that run side by side, and what tools return. Source: the idea of
cost-weighted tool graphs of the Self-Healing Router; shapes, prices and failure rates are ours.

How to use:
    world = ToolGraphWorld(ToolGraphConfig())
    state = world.reset(world.list_tasks("train")[0], seed=0)
    step = world.step(world.advise_observed(), None)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, Self, TypeAlias

import numpy as np

from rlroute.seeding import draw_uniform
from rlroute.types import (
    SPLITS,
    BoolArray,
    Call,
    Candidate,
    FloatArray,
    Prices,
    Query,
    Reply,
    RLRouteError,
    SplitName,
    Usage,
)
from rlroute.worlds.base import WorldState, WorldStep, describe_executors
from rlroute.worlds.tool_graph_tasks import (
    ESCALATE,
    SHAPES,
    Shape,
    ToolGraph,
    ToolGraphConfig,
    describe_tool,
    draw_graph,
    find_cheapest,
    find_frontiers,
    sort_tools,
)

Remedy: TypeAlias = Literal["reroute", "escalation"]

PLAN_CEILING = 2.0  # of the feature plan_<tool>; one price of `escalate` is already no good plan
NO_USAGE = Usage(0, 0)


@dataclass(frozen=True)
class ToolFailure:
    """One failed call, and what was done about it; None where nothing has been done yet."""

    step: int
    node: int
    tool: str
    remedy: Remedy | None = None


class ToolGraphWorld:
    """One lane of tool graphs, a `World`; see the module's text.

    `failure_log` holds the failures of the episode in order.
    """

    def __init__(self, config: ToolGraphConfig, origin: ToolGraphWorld | None = None) -> None:
        self.config = config
        self.name = "tool_graph"
        self.horizon = config.horizon
        self.tools = sort_tools(config)
        specs = list(self.tools.values())
        self.tool_names = list(self.tools)
        self.price_U = np.array([spec.price_usd for spec in specs])
        self.rate_U = np.array([spec.failure_rate for spec in specs])
        self.outage_U = np.array([spec.failure == "outage" for spec in specs])
        self.escalate = len(specs)  # the last executor
        self.executors = (
            *(
                Candidate(name, Prices(0.0, 0.0, spec.price_usd), "tool", describe_tool(spec))
                for name, spec in self.tools.items()
            ),
            Candidate(
                ESCALATE, Prices(0.0, 0.0, config.escalate_usd), "model", "always finishes the task"
            ),
        )
        own_KD = np.column_stack(
            [np.append(self.rate_U, 0), np.append(self.outage_U, 0), np.eye(len(self.executors))]
        )
        self.executor_features_KD = np.concatenate(
            [describe_executors(self.executors), own_KD.astype(np.float32)], axis=1
        )
        self.feature_names = (
            *("steps_left", "steps_spare", "failed", "failures"),
            *(f"shape_{shape}" for shape in SHAPES),
            *(f"plan_{name}" for name in self.tool_names),
        )
        self.graphs: dict[str, ToolGraph] = {} if origin is None else origin.graphs
        self.tasks: dict[SplitName, tuple[Query, ...]] = (
            self._draw_tasks() if origin is None else origin.tasks
        )
        self.done = True

    def _draw_tasks(self) -> dict[SplitName, tuple[Query, ...]]:
        """Draw the tasks of all splits, and their graphs."""
        config = self.config
        counts = dict(zip(SPLITS, (config.train, config.val, config.test), strict=True))
        lengths = config.max_length - config.min_length + 1
        tasks: dict[SplitName, tuple[Query, ...]] = {}
        for split, count in counts.items():
            where = (config.seed, "tool graph", split)
            length_Q = config.min_length + np.floor(
                draw_uniform(*where, "length", np.arange(count)) * lengths
            ).astype(np.int64)
            queries = []
            for number, length in enumerate(length_Q.tolist()):
                shape = config.shapes[number % len(config.shapes)]
                task_id = f"tool-graph-{config.seed}-{split}-{number}"
                self.graphs[task_id] = draw_graph(config, shape, length, (*where, number))
                metadata = {"split": split, "length": str(length)}
                queries.append(
                    Query(task_id, self._write_task(shape), shape, self.name, metadata=metadata)
                )
            tasks[split] = tuple(queries)
        return tasks

    def _write_task(self, shape: Shape) -> str:
        """Return the text of a task."""
        return (
            f"Tool graph ({shape.replace('_', '-')}): reach the goal within {self.horizon} calls. "
            f"A failed call closes its way. {ESCALATE} always finishes, at "
            f"{format_price(self.config.escalate_usd)}. Per tool: price (cheapest plan), in $0.001."
        )

    def list_tasks(self, split: SplitName) -> tuple[Query, ...]:
        """Return the tasks of a split; `Query.task` is the shape."""
        return self.tasks[split]

    def fork(self) -> Self:
        """Return another lane over the same tasks."""
        return type(self)(self.config, self)

    def reset(self, task: Query, seed: int) -> WorldState:
        """Start a task.

        Raises:
            RLRouteError: the task is not one of this world.
        """
        self.graph = self._find_graph(task)
        self.fails_NU = self._draw_failures(task, seed)
        self.closed_NU = np.zeros_like(self.fails_NU)
        self.failure_log: list[ToolFailure] = []
        self.node, self.steps, self.done, self.escalated = 0, 0, False, False
        self.frontiers = find_frontiers(self.graph, self.price_U, self.closed_NU)
        return self._show(task.text)

    def _find_graph(self, task: Query) -> ToolGraph:
        """Return the graph of a task, or refuse the task."""
        if task.id not in self.graphs:
            raise RLRouteError(f"task '{task.id}': not a task of this world (see list_tasks)")
        return self.graphs[task.id]

    def _draw_failures(self, task: Query, seed: int) -> BoolArray:
        """Return which calls fail [N, U] in the episode of a seed."""
        graph, tool_U = self._find_graph(task), np.arange(len(self.price_U))
        node_N = np.arange(len(graph.targets))
        # an outage is drawn once for the tool, a transient failure at every edge
        place_NU = np.where(self.outage_U, 0, 1 + node_N[:, None])
        draw_NU = draw_uniform("tool graph failure", task.id, seed, place_NU, tool_U)
        return draw_NU < self.rate_U

    def bound_cost_usd(self, executor: int) -> float:
        """Return what the executor's next step costs, in USD: it is known before."""
        return self.executors[executor].prices.per_call

    def request(self, executor: int) -> Call | None:
        """Return None: tools act by themselves."""
        return None

    def step(self, executor: int, reply: Reply | None) -> WorldStep:
        """Call a tool, or escalate.

        Raises:
            ValueError: the node does not offer the tool or its edge is closed, or the episode is
                done.
        """
        if self.done or not 0 <= executor <= self.escalate or not self.find_legal()[executor]:
            raise ValueError(f"executor {executor} cannot act here")
        self._settle_failure("escalation" if executor == self.escalate else "reroute")
        name = self.executors[executor].id
        failed = executor != self.escalate and bool(self.fails_NU[self.node, executor])
        if failed:
            self._fail(executor)
            note = f"{name} failed."
        else:
            self.escalated = executor == self.escalate
            self.node = (
                self.graph.goal if self.escalated else self.graph.targets[self.node][executor]
            )
            note = f"{name} done."
        self.steps += 1
        reached = self.node == self.graph.goal
        self.done = reached or self.steps == self.horizon
        return WorldStep(
            state=self._show(note, failed),
            usage=NO_USAGE,
            cost_usd=self.bound_cost_usd(executor),
            done=self.done,
            score=float(reached),
            note=note,
        )

    def _settle_failure(self, remedy: Remedy) -> None:
        """Enter the next call as the remedy of the last failure, where that still has none."""
        if self.failure_log and self.failure_log[-1].remedy is None:
            self.failure_log[-1] = replace(self.failure_log[-1], remedy=remedy)

    def _fail(self, tool: int) -> None:
        """Log a failure, close its edge (all edges of a tool that is down) and plan anew."""
        self.failure_log.append(ToolFailure(self.steps, self.node, self.tool_names[tool]))
        self.closed_NU[slice(None) if self.outage_U[tool] else self.node, tool] = True
        self.frontiers = find_frontiers(self.graph, self.price_U, self.closed_NU)

    @property
    def failures(self) -> int:
        """The number of failed calls of the episode."""
        return len(self.failure_log)

    @property
    def reroutes(self) -> int:
        """The number of failures that were followed by a call of another tool."""
        return sum(failure.remedy == "reroute" for failure in self.failure_log)

    @property
    def escalations(self) -> int:
        """The number of failures that were followed by `escalate`: at most 1."""
        return sum(failure.remedy == "escalation" for failure in self.failure_log)

    @property
    def open_failures(self) -> int:
        """The number of failures that nothing followed (yet): at most 1."""
        return sum(failure.remedy is None for failure in self.failure_log)

    def find_legal(self) -> BoolArray:
        """Return which executors may act [K]; at the end only `escalate` is left in the mask."""
        legal_K = np.zeros(len(self.executors), dtype=np.bool_)
        legal_K[self.escalate] = True
        for tool in self.graph.targets[self.node] if not self.done else ():
            legal_K[tool] = not self.closed_NU[self.node, tool]
        return legal_K

    def _plan(self, frontiers: list[list[tuple[int, float]]], closed_NU: BoolArray) -> list[float]:
        """Return for each executor the cost in USD of finishing by way of it; inf where it cannot.

        Plans keep to the edges that are not closed and to the calls that are left.
        """
        calls = self.horizon - self.steps - 1
        plan_K = [math.inf] * self.escalate + [self.config.escalate_usd]
        for tool, target in self.graph.targets[self.node].items():
            if not closed_NU[self.node, tool]:
                plan_K[tool] = float(self.price_U[tool]) + find_cheapest(frontiers[target], calls)
        return plan_K

    def _show(self, before: str, failed: bool = False) -> WorldState:
        """Return what is seen now, after a text."""
        legal_K = self.find_legal()
        plan_K = self._plan(self.frontiers, self.closed_NU)
        features_W = self._describe_state(plan_K, failed)
        if self.done:
            return WorldState(before, features_W, legal_K)
        options = [
            f"{self.tool_names[tool]} {format_price(self.price_U[tool])} "
            f"({format_price(plan_K[tool])})"
            for tool in np.flatnonzero(legal_K[:-1])
        ]
        offer = ", ".join(options) or f"only {ESCALATE}"
        text = f"{before} Calls left {self.horizon - self.steps}: {offer}."
        return WorldState(text, features_W, legal_K)

    def _describe_state(self, plan_K: list[float], failed: bool) -> FloatArray:
        """Return the features [W] of the current state."""
        left, frontier = self.horizon - self.steps, self.frontiers[self.node]
        spare = max(left - frontier[-1][0], -1) if frontier else -1
        shares = [left / self.horizon, spare / self.horizon if frontier else -1.0]
        shares += [float(failed), self.failures / self.horizon]
        shape = [float(self.graph.shape == shape) for shape in SHAPES]
        plan_U = [min(usd / self.config.escalate_usd, PLAN_CEILING) for usd in plan_K[:-1]]
        return np.array([*shares, *shape, *plan_U], dtype=np.float32)

    def find_optimum(self, task: Query, seed: int) -> float:
        """Return the cost in USD of the cheapest way to score 1, for one who knows all failures.

        Raises:
            RLRouteError: the task is not one of this world.
        """
        frontiers = find_frontiers(
            self._find_graph(task), self.price_U, self._draw_failures(task, seed)
        )
        return min(self.config.escalate_usd, find_cheapest(frontiers[0], self.horizon))

    def advise(self) -> int | None:
        """Return the next executor of the cheapest way, all failures known; None at the end."""
        if self.done:
            return None
        frontiers = find_frontiers(self.graph, self.price_U, self.fails_NU)
        return int(np.argmin(self._plan(frontiers, self.fails_NU)))

    def advise_observed(self) -> int | None:
        """Return the next executor of the cheapest way, only past failures known; None at the end.

        It is Dijkstra's algorithm on the edges that are still open, with `escalate` where no way
        is cheaper.
        """
        if self.done:
            return None
        return int(np.argmin(self._plan(self.frontiers, self.closed_NU)))


def format_price(usd: float) -> str:
    """Return a price in thousandths of a USD with three digits; "none" for no way at all."""
    return f"{usd * 1000:.3g}" if math.isfinite(usd) else "none"
