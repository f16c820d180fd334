"""What tool graphs are made of: tools and sizes, graphs drawn from coordinates, shortest ways.

What it is: the config of `rlroute.worlds.tool_graph`, whose text says what the shapes are;
`draw_graph`, a pure function of the config and of the coordinates of a task; and `find_frontiers`,
the shortest ways to the goal. Axes of arrays: `_N` nodes, `_U` tools, the cheapest first.

What it leaves out: episodes.

How to use: `draw_graph(ToolGraphConfig(), "dag", 5, ("my tasks", 7)).targets[0]`.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from rlroute.config import StrictModel
from rlroute.seeding import draw_uniform, mix
from rlroute.types import BoolArray

Shape: TypeAlias = Literal["chain", "dag", "fan_out"]
Usd: TypeAlias = Annotated[float, Field(gt=0, allow_inf_nan=False)]

SHAPES: tuple[Shape, ...] = ("chain", "dag", "fan_out")
ESCALATE = "escalate"


class ToolSpec(StrictModel):
    """A tool: USD per call, the share of failures, how it fails, positions it leads on in a dag."""

    price_usd: Usd
    failure_rate: float = Field(default=0.0, ge=0, lt=1)
    failure: Literal["transient", "outage"] = "transient"
    span: int = Field(default=1, ge=1)


def make_tools() -> dict[str, ToolSpec]:
    """Return the default tools: the cheap ones fail often or lead only one position on."""
    return {
        "cache": ToolSpec(price_usd=0.0005, failure_rate=0.5, failure="transient"),
        "lookup": ToolSpec(price_usd=0.001, failure_rate=0.35, failure="outage"),
        "search": ToolSpec(price_usd=0.002, failure_rate=0.15, failure="transient"),
        "fetch": ToolSpec(price_usd=0.003, failure_rate=0.1, failure="outage"),
        "extract": ToolSpec(price_usd=0.004, failure_rate=0.3, failure="transient", span=2),
        "query": ToolSpec(price_usd=0.006, failure_rate=0.2, failure="outage", span=2),
        "solve": ToolSpec(price_usd=0.008, failure_rate=0.02, failure="transient", span=2),
        "crawl": ToolSpec(price_usd=0.01, failure_rate=0.05, failure="outage", span=3),
    }


class ToolGraphConfig(StrictModel):
    """A world of tool graphs; `train`, `val` and `test` are numbers of tasks.

    The shapes take turns. A task has a length (nodes of a chain or of a branch after the start,
    positions of a dag) from `min_length` to `max_length`; nodes offer `min_tools` to `max_tools`
    tools, the start of a fan-out one per branch. `escalate_usd` is the price of `escalate`. `seed`
    decides the graphs.
    """

    kind: Literal["tool_graph"] = "tool_graph"
    tools: dict[str, ToolSpec] = Field(default_factory=make_tools, min_length=2)
    escalate_usd: Usd = 0.05
    shapes: tuple[Shape, ...] = Field(default=SHAPES, min_length=1)
    min_length: int = Field(default=4, ge=2)
    max_length: int = Field(default=7, ge=2)
    min_tools: int = Field(default=2, ge=1)
    max_tools: int = Field(default=3, ge=1, le=5)
    width: int = Field(default=2, ge=1)
    branches: int = Field(default=3, ge=2, le=5)
    horizon: int = Field(default=7, ge=2)
    train: int = Field(default=300, ge=1)
    val: int = Field(default=100, ge=1)
    test: int = Field(default=200, ge=1)
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def check_sizes(self) -> ToolGraphConfig:
        """Refuse sizes that do not fit together, and an `escalate` that is not the dearest."""
        if self.min_length > self.max_length:
            raise ValueError(f"min_length: must be at most max_length ({self.max_length})")
        if self.max_length > self.horizon:
            raise ValueError(f"max_length: must be at most the horizon ({self.horizon})")
        if self.min_tools > self.max_tools:
            raise ValueError(f"min_tools: must be at most max_tools ({self.max_tools})")
        if max(self.max_tools, self.branches) > len(self.tools):
            raise ValueError(f"max_tools, branches: there are only {len(self.tools)} tools")
        if ESCALATE in self.tools:
            raise ValueError(f"tools: '{ESCALATE}' is the name of the executor that finishes")
        if max(tool.price_usd for tool in self.tools.values()) >= self.escalate_usd:
            raise ValueError("escalate_usd: must be above the price of every tool")
        return self


@dataclass(frozen=True)
class ToolGraph:
    """The graph of a task: `targets[node][tool]` is where a tool leads; node 0 is the start."""

    shape: Shape
    targets: tuple[dict[int, int], ...]

    @property
    def goal(self) -> int:
        """The goal, which is the last node."""
        return len(self.targets) - 1


def draw_graph(
    config: ToolGraphConfig, shape: Shape, length: int, coordinates: tuple[int | str, ...]
) -> ToolGraph:
    """Draw a graph of a shape and length; the coordinates name the task."""
    spans = [tool.span for tool in sort_tools(config).values()]
    nodes = {
        "chain": length + 1,
        "dag": 2 + (length - 1) * config.width,
        "fan_out": 2 + (length - 1) * config.branches,
    }[shape]
    node_N, tool_U = np.arange(nodes), np.arange(len(spans))
    order_NU = mix(*coordinates, "order", node_N[:, None], tool_U).argsort(axis=1, kind="stable")
    choices = config.max_tools - config.min_tools + 1
    count_N = config.min_tools + np.floor(draw_uniform(*coordinates, "count", node_N) * choices)
    place_NU = np.floor(
        draw_uniform(*coordinates, "place", node_N[:, None], tool_U) * config.width
    ).astype(np.int64)

    def find_target(node: int, tool: int, rank: int) -> int:
        """Return where a tool of a node leads; `rank` numbers the tools of the node."""
        if shape == "chain":
            return node + 1
        if shape == "fan_out":
            # branch b has the nodes 1 + b, 1 + b + branches, ...
            step = 1 + rank if node == 0 else config.branches
            return min(node + step, nodes - 1)
        position = 0 if node == 0 else 1 + (node - 1) // config.width
        reached = position + spans[tool]
        if reached >= length:
            return nodes - 1
        return 1 + (reached - 1) * config.width + int(place_NU[node, tool])

    targets = []
    for node in range(nodes - 1):
        count = config.branches if shape == "fan_out" and node == 0 else int(count_N[node])
        offered = order_NU[node, :count].tolist()
        targets.append({tool: find_target(node, tool, i) for i, tool in enumerate(offered)})
    return ToolGraph(shape, (*targets, {}))


def sort_tools(config: ToolGraphConfig) -> dict[str, ToolSpec]:
    """Return the tools in the order of their prices, the cheapest first."""
    return dict(sorted(config.tools.items(), key=lambda item: item[1].price_usd))


def find_frontiers(
    graph: ToolGraph, price_U: npt.NDArray[np.float64], closed_NU: BoolArray
) -> list[list[tuple[int, float]]]:
    """Return for every node the ways to the goal that are worth taking, as (calls, cost in USD).

    Dijkstra's algorithm from the goal backwards. A node is settled first with its cheapest way, and
    again for every dearer way of fewer calls; so each list has rising costs and falling calls, and
    its first entry is the ordinary shortest path. Empty where no open way leads to the goal.
    """
    incoming: list[list[tuple[int, int]]] = [[] for _ in graph.targets]
    for node, targets in enumerate(graph.targets):
        for tool, target in targets.items():
            if not closed_NU[node, tool]:
                incoming[target].append((node, tool))
    frontiers: list[list[tuple[int, float]]] = [[] for _ in graph.targets]
    queue = [(0.0, 0, graph.goal)]
    while queue:
        cost, calls, node = heapq.heappop(queue)
        if frontiers[node] and frontiers[node][-1][0] <= calls:
            continue  # a cheaper way takes no more calls
        frontiers[node].append((calls, cost))
        for source, tool in incoming[node]:
            heapq.heappush(queue, (cost + float(price_U[tool]), calls + 1, source))
    return frontiers


def find_cheapest(frontier: list[tuple[int, float]], calls: int) -> float:
    """Return the cost in USD of the cheapest way of at most so many calls; infinity for none."""
    return next((cost for needed, cost in frontier if needed <= calls), math.inf)


def describe_tool(spec: ToolSpec) -> str:
    """Return what a policy is told of a tool, in words."""
    how = "is down in" if spec.failure == "outage" else "fails at"
    where = "episodes" if spec.failure == "outage" else "calls"
    return f"leads {spec.span} on in a dag; {how} {spec.failure_rate:.0%} of {where}"
