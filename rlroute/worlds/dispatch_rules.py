"""The rules of dispatch: what a task is, who may take a message, what comes of it, what is best.

What it is: pure functions of the config. In all of them an executor is its `ExecutorSpec`, and None
stands for `skip`. `rlroute.worlds.dispatch` says in words what they compute.

What it leaves out: the draws of an episode, features and texts.

How to use: `solve(specs, draw_task(config, "hiring", ("my tasks", 7)), "share", cost_weight=0.3)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from rlroute.seeding import draw_permutation, draw_uniform
from rlroute.types import BoolArray, Prices, Usage
from rlroute.worlds.base import NOMINAL_USAGE
from rlroute.worlds.dispatch_workflows import SKIP, DispatchConfig, ExecutorSpec, WorkflowSpec

Executor: TypeAlias = ExecutorSpec | None

NAMES = ("Ada", "Ben", "Cleo", "Dan", "Eve", "Finn", "Gia", "Hugo", "Ivy", "Jack", "Kai", "Liv")


@dataclass(frozen=True)
class Message:
    """One message: its intent, its text, and the stage of the workflow if all went well so far."""

    intent: str
    text: str
    distracted: bool
    ideal_stage: str


@dataclass(frozen=True)
class DispatchTask:
    """A workflow, its name, the messages, and the unit of costs in the utility (USD)."""

    name: str
    workflow: WorkflowSpec
    messages: tuple[Message, ...]
    reference_usd: float


@dataclass(frozen=True)
class DispatchOptimum:
    """The best executor now, and the means of what the best policy gets from here on."""

    executor: int
    utility: float
    score: float
    cost_usd: float


def draw_task(
    config: DispatchConfig, name: str, coordinates: tuple[int | str, ...]
) -> DispatchTask:
    """Draw a task of a workflow; the coordinates name it."""
    workflow = config.workflows[name]
    messages = draw_messages(config, workflow, coordinates)
    specs = [spec for _, spec in sort_executors(config)]
    return DispatchTask(name, workflow, messages, find_reference(specs, workflow, messages))


def draw_messages(
    config: DispatchConfig, workflow: WorkflowSpec, where: tuple[int | str, ...]
) -> tuple[Message, ...]:
    """Draw the messages of a task; the coordinates `where` name it."""
    lengths = config.max_messages - config.min_messages + 1
    count = config.min_messages + int(draw_uniform(*where, "messages") * lengths)
    movers = set(draw_permutation(count, *where, "movers")[: len(workflow.stages) - 1].tolist())
    name = NAMES[int(draw_uniform(*where, "name") * len(NAMES))]
    draws = {
        purpose: draw_uniform(*where, purpose, np.arange(count))
        for purpose in ("category", "intent", "template", "distracted", "distractor")
    }
    messages, stage = [], workflow.stages[0]
    for number in range(count):
        draw = {purpose: float(values[number]) for purpose, values in draws.items()}
        mover = workflow.find_mover(stage) if number in movers else None
        intent = mover or pick(
            list_extras(config, workflow, stage, draw["category"]), draw["intent"]
        )
        text = pick(workflow.intents[intent].templates, draw["template"]).format(name=name)
        distracted = draw["distracted"] < config.distraction_rate
        if distracted:
            text = f"{text} (PS: {pick(workflow.distractors, draw['distractor'])})"
        messages.append(Message(intent, text, distracted, stage))
        stage = (workflow.intents[mover].leads_to if mover else None) or stage
    return tuple(messages)


def pick(options: tuple[str, ...], draw: float) -> str:
    """Return one of the options by a draw from [0, 1)."""
    return options[int(draw * len(options))]


def list_extras(
    config: DispatchConfig, workflow: WorkflowSpec, stage: str, draw: float
) -> tuple[str, ...]:
    """Return the intents that a message may have which does not carry the workflow on."""
    intents = workflow.intents.items()
    idle = tuple(name for name, intent in intents if intent.idle)
    if draw < config.idle_rate:
        return idle
    if draw < config.idle_rate + config.illegal_rate:
        return tuple(name for name, _ in intents if not workflow.allows(name, stage)) or idle
    staying = tuple(
        name
        for name, intent in intents
        if not intent.idle and intent.leads_to is None and workflow.allows(name, stage)
    )
    return staying or idle


def find_reference(
    specs: Sequence[Executor], workflow: WorkflowSpec, messages: Sequence[Message]
) -> float:
    """Return the cost in USD of the dearest executors that may act, if all goes well."""
    return sum(
        max(
            compute_cost(spec, message)
            for spec in specs
            if all(check_conditions(spec, workflow, message, message.ideal_stage))
        )
        for message in messages
    )


def sort_executors(config: DispatchConfig) -> list[tuple[str, Executor]]:
    """Return `skip` and the executors by name, in the order of their prices."""
    usage = NOMINAL_USAGE

    def price(item: tuple[str, Executor]) -> float:
        return make_prices(item[1]).compute_cost(usage.prompt_tokens, usage.completion_tokens)

    return sorted([(SKIP, None), *config.executors.items()], key=price)


def make_prices(spec: Executor) -> Prices:
    """Return the prices of an executor; `skip` is free."""
    return Prices(0.0, 0.0) if spec is None else spec.prices.to_prices()


def count_tokens(spec: Executor, message: Message) -> Usage:
    """Return the tokens that an executor uses on a message; `skip` uses none."""
    if spec is None:
        return Usage(0, 0)
    return Usage(spec.prompt_tokens + len(message.text.split()), spec.completion_tokens)


def compute_cost(spec: Executor, message: Message) -> float:
    """Return what an executor costs on a message, in USD."""
    usage = count_tokens(spec, message)
    return make_prices(spec).compute_cost(usage.prompt_tokens, usage.completion_tokens)


def check_conditions(
    spec: Executor, workflow: WorkflowSpec, message: Message, stage: str
) -> tuple[bool, bool]:
    """Return whether the executor serves the intent, and whether it may do so in this stage."""
    if spec is None:
        return True, True
    legal = workflow.allows(message.intent, stage)
    skill = spec.skills.get(message.intent)
    if skill is None:
        return False, legal
    return True, legal and (skill.stages is None or stage in skill.stages)


def predict(
    spec: Executor, workflow: WorkflowSpec, message: Message, stage: str
) -> tuple[float, str]:
    """Return the probability that the message is handled rightly, and the stage if it is."""
    intent = workflow.intents[message.intent]
    if spec is None:
        legal = workflow.allows(message.intent, stage)
        due = workflow.allows(message.intent, message.ideal_stage)
        return float(intent.idle or not (legal or due)), stage
    skill = spec.skills[message.intent]
    success = skill.success * (spec.distracted if message.distracted else 1.0)
    return success, skill.leads_to or intent.leads_to or stage


def solve(
    specs: Sequence[Executor],
    task: DispatchTask,
    score_rule: Literal["share", "all"],
    cost_weight: float,
) -> list[dict[str, DispatchOptimum]]:
    """Return the optimum for each message and stage, by dynamic programming from the end.

    With the rule "all" the states are those where all messages so far were handled rightly: in any
    other there is nothing left to gain, and `skip` costs nothing.
    """
    stages, skip = task.workflow.stages, list(specs).index(None)
    share = 0.0 if score_rule == "all" else 1 / len(task.messages)
    lost = DispatchOptimum(skip, 0.0, 0.0, 0.0) if score_rule == "all" else None
    after: dict[str, DispatchOptimum] = {}
    for stage in stages:
        final = float(score_rule == "all" and stage == stages[-1])
        after[stage] = DispatchOptimum(skip, final, final, 0.0)
    table: list[dict[str, DispatchOptimum]] = []
    for message in reversed(task.messages):
        here: dict[str, DispatchOptimum] = {}
        for stage in stages:
            options = []
            for executor, spec in enumerate(specs):
                if not all(check_conditions(spec, task.workflow, message, stage)):
                    continue
                success, following = predict(spec, task.workflow, message, stage)
                good, bad = after[following], lost or after[stage]
                score = success * (share + good.score) + (1 - success) * bad.score
                later = success * good.cost_usd + (1 - success) * bad.cost_usd
                cost = compute_cost(spec, message) + later
                utility = score - cost_weight * cost / task.reference_usd
                options.append(DispatchOptimum(executor, utility, score, cost))
            here[stage] = max(options, key=lambda one: one.utility)  # the cheaper one of equals
        table.append(here)
        after = here
    return table[::-1]


def compute_joint_accuracy(intent_ok_N: BoolArray, stage_ok_N: BoolArray) -> float:
    """Return the share of decisions with both intent and stage right; NaN for none."""
    both_N = np.asarray(intent_ok_N, dtype=np.bool_) & np.asarray(stage_ok_N, dtype=np.bool_)
    return float(both_N.mean()) if len(both_N) else float("nan")


def compute_blocking_precision(illegal_N: BoolArray, blocked_N: BoolArray) -> float:
    """Return the share of the blocked attempts that were illegal; NaN where none was blocked."""
    illegal_N, blocked_N = np.asarray(illegal_N, np.bool_), np.asarray(blocked_N, np.bool_)
    return float(illegal_N[blocked_N].mean()) if blocked_N.any() else float("nan")


def compute_blocking_recall(illegal_N: BoolArray, blocked_N: BoolArray) -> float:
    """Return the share of the illegal attempts that were blocked; NaN where none was illegal."""
    illegal_N, blocked_N = np.asarray(illegal_N, np.bool_), np.asarray(blocked_N, np.bool_)
    return float(blocked_N[illegal_N].mean()) if illegal_N.any() else float("nan")
