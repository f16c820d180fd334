"""What an exported step router says of itself: training, test numbers, and the card for people.

The card is `step_model_card.md` with its blanks filled in; its example runs as it stands. Costs are
mean USD per task, successes mean scores in [0, 1]; an `Interval` holds 95 % of the resamples.

What it leaves out: the comparison with all baselines (the run's report), and everything that the
router needs to decide (`rlroute.export.step_bundle`).

How to use: `summary["test"] = summarise_step_test(evaluation)`, `render_step_card(...)`.
"""

from __future__ import annotations

import importlib.resources
from collections.abc import Mapping, Sequence
from string import Template
from typing import Any

from pydantic import Field

import rlroute
from rlroute.config import StrictModel
from rlroute.envs.step_budget import StepBudgetConfig
from rlroute.export.model_card import UNKNOWN, format_number, render_interval, render_table
from rlroute.export.summary import Count, Interval, Number
from rlroute.types import Candidate

CARD_TEMPLATE = "step_model_card.md"
TASKS_PER_PRICE = 1000
CASCADE_READING = """\
- **The query**, as text: the encoder lies in this folder.
- **Each answer's look**: what it cost, how many tokens it has, and whether it passed the check,
  where the policy was trained with one. The answer to give is that of `episode.hand`."""
STEP_TOKENS = (3000, 200)  # what the example takes for the most that a step reads and writes


class StepBestSummary(StrictModel):
    """The update whose weights were chosen, the val metric that chose them, and its two metrics."""

    update: Count
    metric: str
    reward: Number
    success: Number


class StepPointSummary(StrictModel):
    """The policy on the test tasks under one cap and cost weight.

    `calls` are counted ones per task; `success_kept` and `cost_ratio` relate to the dearest
    executor alone without a cap; `lead` is the success above the best baseline's there.
    """

    cap: float | None
    cost_weight: float
    success: Interval | None
    cost_usd: Interval | None
    calls: Number
    success_kept: Interval | None
    cost_ratio: Interval | None
    failed: Count
    violations: Count
    best_baseline: str
    baseline_success: Number
    lead: Interval | None


class StepTestSummary(StrictModel):
    """The policy on the test tasks, each played `rollouts` times."""

    tasks: int = Field(ge=1)
    rollouts: int = Field(ge=1)
    points: tuple[StepPointSummary, ...]


class StepSummary(StrictModel):
    """What was trained on what; `test` is null where these weights were not evaluated.

    `base_model` is what a language model was trained from; null for a small network.
    """

    world: str
    tasks: Count
    policy: str
    base_model: str | None
    algorithm: str
    seed: int
    updates: Count
    best: StepBestSummary
    test: StepTestSummary | None = None


def summarise_step_test(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """Return the test numbers of an evaluation (plain data), the shape of `StepTestSummary`."""
    by_name = {policy["name"]: policy["points"] for policy in evaluation["policies"]}
    points = []
    for place, point in enumerate(evaluation["policies"][0]["points"]):
        name = evaluation["best_baselines"][place]
        baseline = by_name[name][place]
        keys = ("cap", "cost_weight", "success", "cost_usd", "calls", "success_kept")
        points.append(
            {key: point[key] for key in (*keys, "cost_ratio", "failed", "violations")}
            | {
                "best_baseline": name,
                "baseline_success": baseline["success"] and baseline["success"]["value"],
                "lead": baseline["lead"],
            }
        )
    return {
        "tasks": evaluation["test_tasks"],
        "rollouts": evaluation["rollouts"],
        "points": points,
    }


# --- Card -----------------------------------------------------------------------------------------


SESSION_READING = (
    "- **The query.** A session is a list of queries under one budget. At every step give the text "
    "of the query that is to be answered next; what is left of time and budget is added by the "
    "episode. (`features` takes them ready-made, where the queries are embedded elsewhere.)"
)


def render_step_card(
    summary: StepSummary,
    executors: Sequence[Candidate],
    feature_names: Sequence[str],
    horizon: int,
    environment: StepBudgetConfig,
    instructions: str | None,
    *,
    cascade: bool = False,
    sessions: bool = False,
) -> str:
    """Return the card as Markdown; `instructions` are what a language model reads first.

    `cascade` says that the steps are looks at answers to a query, `sessions` that they are queries.
    """
    template = importlib.resources.files("rlroute.export").joinpath(CARD_TEMPLATE)
    reading = instructions is not None
    package = "'rlroute[text]'" if reading else "rlroute"
    return Template(template.read_text(encoding="utf-8")).substitute(
        world=summary.world,
        executor_count=len(executors),
        version=rlroute.__version__,
        example=write_cascade_example(environment)
        if cascade
        else write_example(executors, horizon, environment, reading or sessions),
        install=f"`pip install {package}`.",
        reads=CASCADE_READING
        if cascade
        else SESSION_READING
        if sessions
        else describe_reading(feature_names, instructions),
        budget=describe_budget(environment),
        weights=describe_weights(environment),
        horizon=horizon,
        counted=describe_counted(environment),
        executors=render_executors(executors),
        numbers=render_step_numbers(summary.test),
        training=render_training(summary),
    )


def write_example(
    executors: Sequence[Candidate], horizon: int, environment: StepBudgetConfig, reading: bool
) -> str:
    """Return a program that takes a step; it runs once the folder's name is filled in."""
    read, written = STEP_TOKENS
    dollars = environment.budget.unit == "usd"
    bounds = [one.prices.compute_cost(read, written) for one in executors]
    stated = [cap for cap in environment.budget.caps if cap]
    cap = horizon * max(bounds) if dollars else max(stated, default=horizon)
    shown = (
        'text="The task, in few words."'
        if reading
        else "features=dict.fromkeys(router.feature_names, 0.0)"
    )
    lines = [
        "from rlroute import StepRouter",
        "",
        'router = StepRouter.load("path/to/this/folder")',
        f"episode = router.start(cap={format_number(cap)}, "
        f"cost_weight={environment.cost_weight.min:g})",
    ]
    if dollars:
        shown += ", bounds_usd=bounds"
        lines += [
            f"# what a step costs at most: {read:,} tokens read and {written:,} written",
            f"bounds = {{one.id: one.prices.compute_cost({read}, {written}) "
            "for one in router.executors}",
        ]
    lines += [
        f"step = episode.choose({shown})",
        "step.executor       # who takes the step",
        "step.probabilities  # of everyone who could",
        "step.budget_left    # before the step",
        "episode.settle(cost_usd=0.0012)  # what it really cost",
    ]
    return "\n".join(lines)


def write_cascade_example(environment: StepBudgetConfig) -> str:
    """Return a program that answers a query; `ask` is the reader's own."""
    return "\n".join(
        [
            "from rlroute import CascadeRouter",
            "",
            'router = CascadeRouter.load("path/to/this/folder")',
            'episode = router.start("How many primes are below 100?", '
            f"cost_weight={environment.cost_weight.min:g})",
            "while (name := episode.choose().executor) != router.stop:",
            "    cost_usd, tokens, passed = 0.0012, 100, True  # ask `name`, check its answer",
            "    episode.observe(cost_usd=cost_usd, completion_tokens=tokens, passed=passed)",
            "    if episode.done:",
            "        break",
            "episode.hand  # whose answer to give",
        ]
    )


def describe_reading(feature_names: Sequence[str], instructions: str | None) -> str:
    """Say what the policy reads of the world, as an item of a list."""
    if instructions is None:
        names = ", ".join(f"`{name}`" for name in feature_names)
        return (
            f"- **Features** of the state before a step, by name or in this order: {names}. What "
            "they mean, the world's documentation says. Those of time and budget are added by the "
            "episode."
        )
    indented = "\n".join(f"      {line}" for line in instructions.splitlines())
    return (
        "- **Text.** At the first step the task, in few words; at every later one only what is new "
        "since. What is left of the budget is added by the episode. The policy reads it after\n\n"
        f"{indented}\n"
    )


def describe_budget(environment: StepBudgetConfig) -> str:
    """Say what a cap counts and which caps were trained with."""
    budget = environment.budget
    stated = ", ".join("none" if cap is None else f"{cap:g}" for cap in dict.fromkeys(budget.caps))
    if budget.unit == "calls":
        return f"A cap counts calls. Caps in training: {stated}."
    return (
        f"A cap is in USD. Caps in training: {stated}. `bounds_usd` says what the next step of "
        "each executor can cost at most, and `settle` after each step what it did cost."
    )


def describe_weights(environment: StepBudgetConfig) -> str:
    """Say which cost weights the policy was trained for."""
    low, high = environment.cost_weight.min, environment.cost_weight.max
    if low == high:
        return f"This router was trained for **{low:g}** alone and refuses others."
    return f"This router was trained for **{low:g} to {high:g}** and refuses others."


def describe_counted(environment: StepBudgetConfig) -> str:
    """Say what of the executors a budget counts."""
    budget = environment.budget
    if budget.unit == "usd":
        return "What counts is what their steps cost."
    return f"Counted are calls of {', '.join(f'`{name}`' for name in budget.counted or ())}."


def render_executors(executors: Sequence[Candidate]) -> str:
    """Return the table of executors with their prices."""
    header = ["executor", "what it is", "USD per million tokens in", "out", "USD per call"]
    rows = [
        [
            executor.id,
            executor.description or executor.kind,
            format_number(executor.prices.input),
            format_number(executor.prices.output),
            format_number(executor.prices.per_call),
        ]
        for executor in executors
    ]
    return render_table(header, rows, text_columns=2)


def render_step_numbers(test: StepTestSummary | None) -> str:
    """Return the test numbers with intervals, or say that there are none."""
    if test is None:
        return "Not evaluated: these weights were exported before they met the test tasks."
    header = ["cap", "cost weight", "success", "of the dearest's", "USD per 1,000 tasks"]
    header += ["of the dearest's cost", "counted calls", "best baseline on val", "lead over it"]
    rows = [
        [
            "none" if point.cap is None else f"{point.cap:g}",
            f"{point.cost_weight:g}",
            render_estimate(point.success),
            render_estimate(point.success_kept),
            render_estimate(point.cost_usd, factor=TASKS_PER_PRICE),
            render_estimate(point.cost_ratio),
            UNKNOWN if point.calls is None else f"{point.calls:.2f}",
            point.best_baseline
            + ("" if point.baseline_success is None else f" ({point.baseline_success:.3f})"),
            render_estimate(point.lead, sign="+"),
        ]
        for point in test.points
    ]
    failed = sum(point.failed for point in test.points)
    passed = sum(point.violations for point in test.points)
    return "\n\n".join(
        [
            f"Measured greedily on the {test.tasks:,} test tasks (rollouts of each: "
            f"{test.rollouts}), which neither training nor the choice of weights has seen; 95 % "
            "intervals by paired bootstrap over tasks. The dearest is the dearest executor alone, "
            "without a cap. The success of the best baseline stands in brackets.",
            render_table(header, rows, text_columns=1),
            f"Episodes that passed their cap: {passed}; with a failed call: {failed}.",
        ]
    )


def render_estimate(interval: Interval | None, factor: float = 1.0, sign: str = "") -> str:
    """Return a value with its interval, "-" where there is none."""
    return UNKNOWN if interval is None else render_interval(interval, factor, sign)


def render_training(summary: StepSummary) -> str:
    """Return what was trained on what, as a list."""
    best = summary.best
    value = best.reward if best.metric == "reward" else best.success
    reached = "" if value is None else f", where it was {value:.4f}"
    network = "a small network"
    if summary.base_model is not None:
        network = f"a language model, from `{summary.base_model}`"
    lines = [
        f"World: `{summary.world}`, {summary.tasks:,} train tasks. Policy: {network}.",
        f"Algorithm: {summary.algorithm}, seed {summary.seed}, {summary.updates} updates. These "
        f"are the weights of update {best.update}, chosen by {best.metric} on the val "
        f"tasks{reached}.",
        "Every setting stands in `recipe.yaml`.",
    ]
    return "\n".join(f"- {line}" for line in lines)
