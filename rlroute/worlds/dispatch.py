"""Dispatch: each message of a workflow goes to a model, an agent, a tool, or is skipped.

What it is: a workflow is a finite automaton (`rlroute.worlds.dispatch_workflows`). A task is a
sequence of user messages; each has an intent, which the policy sees by the wording, and in part by
the mask. One executor takes the message. It may, where the intent is legal in the current stage and
the executor's own preconditions hold; everything else is masked. It succeeds with the probability
of its skill, lower on distracting wording for some; then the stage changes as the postcondition
says.
A message that carried the workflow on and was mishandled leaves later ones illegal, so that one
cheap mistake can cost the rest of the task.

`skip` is free and always legal. It is right where nothing needs to be done: the intent is idle
(thanks, greetings), or it is illegal now and would be even if all had gone well so far.

The chance of a message is one draw for all executors: whoever is more skilled succeeds wherever a
less skilled one does. `score` says what counts: the share of messages handled rightly, or all.

| feature            | what                                                                      |
| ------------------ | ------------------------------------------------------------------------- |
| messages_left      | share of the task's messages that are left                                |
| handled            | 1 if the last message was handled rightly, and at the start               |
| handled_share      | messages handled rightly so far, as a share of the task's                 |
| stage_<flow>_<one> | 1 for the workflow and its current stage                                  |
| words_<b>          | 1 if a word of the message is hashed to bucket b                          |

Features of an executor: `describe_executors`, a one-hot of its kind (model, agent, tool), its share
of successes per intent, its factor on distracting wording.

Utility at cost weight w is score - w * cost / reference; the reference of a task is the cost of
giving each message to the dearest executor that may take it if all goes well. `find_optimum` and
`advise` maximise its mean by dynamic programming over (message, stage), for one who knows intents,
wording and skills, but not the draws.

Means over the default test tasks, seeds 0 to 4 (utility at cost weight 0.3, USD per episode):

| policy                                                    | score | USD    | utility |
| --------------------------------------------------------- | ----- | ------ | ------- |
| `skip`, the cheapest executor                             | 0.272 | 0      | 0.272   |
| the cheapest executor that may work, else `skip`          | 0.647 | 0.0038 | 0.603   |
| the dearest executor that may act                         | 0.938 | 0.0250 | 0.643   |
| `advise`                                                  | 0.905 | 0.0084 | 0.805   |

With score "all", in the same order, scores are 0, 0.146, 0.734 and 0.773 (USD 0.0128).

What it leaves out: recognising intents, the work itself, users who ask again. `attempt` stands for
the dispatcher that checks a proposed executor; it blocks and counts, and nothing changes. Source:
the ideas of SDOF (automaton, conditions, joint accuracy, blocking) and of routers over mixed lists
of models and agents (MoMA, AgensFlow); workflows, skills and prices are ours.

How to use:
    world = DispatchWorld(DispatchConfig())
    state = world.reset(world.list_tasks("train")[0], seed=0)
    step = world.step(world.advise(), None)
"""

from __future__ import annotations

import re
import zlib
from typing import Self

import numpy as np

from rlroute.seeding import draw_uniform
from rlroute.types import (
    SPLITS,
    BoolArray,
    Call,
    Candidate,
    FloatArray,
    Query,
    Reply,
    RLRouteError,
    SplitName,
)
from rlroute.worlds.base import WorldState, WorldStep, describe_executors
from rlroute.worlds.dispatch_rules import (
    DispatchOptimum,
    DispatchTask,
    Executor,
    Message,
    check_conditions,
    compute_cost,
    count_tokens,
    draw_task,
    make_prices,
    predict,
    solve,
    sort_executors,
)
from rlroute.worlds.dispatch_workflows import SKIP, DispatchConfig

KINDS = ("model", "agent", "tool")


class DispatchWorld:
    """One lane of dispatch, a `World`; see the module's text.

    `blocked` counts the attempts of the episode that were refused, `handled` its messages that were
    handled rightly.
    """

    def __init__(self, config: DispatchConfig, origin: DispatchWorld | None = None) -> None:
        self.config = config
        self.name = "dispatch"
        self.horizon = config.max_messages
        self.specs: tuple[Executor, ...]
        names, self.specs = zip(*sort_executors(config), strict=True)
        self.executors = tuple(map(make_candidate, names, self.specs))
        self.skip = names.index(SKIP)
        self.intents = tuple(dict.fromkeys(i for f in config.workflows.values() for i in f.intents))
        self.executor_features_KD = self._describe_executors()
        self.places = tuple(
            (name, stage) for name, flow in config.workflows.items() for stage in flow.stages
        )
        self.feature_names = (
            *("messages_left", "handled", "handled_share"),
            *(f"stage_{flow}_{stage}" for flow, stage in self.places),
            *(f"words_{bucket}" for bucket in range(config.word_buckets)),
        )
        self.contents: dict[str, DispatchTask] = {} if origin is None else origin.contents
        self.tasks: dict[SplitName, tuple[Query, ...]] = (
            self._draw_tasks() if origin is None else origin.tasks
        )
        self.done = True

    def _describe_executors(self) -> FloatArray:
        """Return the features [K, D] of the executors."""
        rows = []
        for candidate, spec in zip(self.executors, self.specs, strict=True):
            skills = {} if spec is None else spec.skills
            success = [skills[one].success if one in skills else 0.0 for one in self.intents]
            kind = [float(candidate.kind == kind) for kind in KINDS]
            rows.append([*kind, *success, 1.0 if spec is None else spec.distracted])
        own_KD = np.array(rows, dtype=np.float32)
        return np.concatenate([describe_executors(self.executors), own_KD], axis=1)

    def _draw_tasks(self) -> dict[SplitName, tuple[Query, ...]]:
        """Draw the tasks of all splits, and their messages."""
        config = self.config
        counts = dict(zip(SPLITS, (config.train, config.val, config.test), strict=True))
        flows = list(config.workflows)
        tasks: dict[SplitName, tuple[Query, ...]] = {}
        for split, count in counts.items():
            queries = []
            for number in range(count):
                name = flows[number % len(flows)]
                content = draw_task(config, name, (config.seed, "dispatch", split, number))
                task_id = f"dispatch-{config.seed}-{split}-{number}"
                self.contents[task_id] = content
                text = (
                    f"Workflow {name} ({' > '.join(content.workflow.stages)}), "
                    f"{len(content.messages)} messages. "
                    f"Give each to an executor; {SKIP} what needs nothing."
                )
                queries.append(Query(task_id, text, name, self.name, metadata={"split": split}))
            tasks[split] = tuple(queries)
        return tasks

    def list_tasks(self, split: SplitName) -> tuple[Query, ...]:
        """Return the tasks of a split; `Query.task` is the workflow."""
        return self.tasks[split]

    def fork(self) -> Self:
        """Return another lane over the same tasks."""
        return type(self)(self.config, self)

    def reset(self, task: Query, seed: int) -> WorldState:
        """Start a task.

        Raises:
            RLRouteError: the task is not one of this world.
        """
        self.content = self._find_content(task)
        self.workflow = self.content.workflow
        self.draw_T = draw_uniform(
            "dispatch handling", task.id, seed, np.arange(len(self.content.messages))
        )
        self.stage = self.workflow.stages[0]
        self.number = self.handled = self.blocked = 0
        self.done, self.last_handled = False, True
        self.solved: list[dict[str, DispatchOptimum]] | None = None  # only `advise` needs it
        return self._show(task.text)

    def _find_content(self, task: Query) -> DispatchTask:
        """Return what a task holds, or refuse the task."""
        if task.id not in self.contents:
            raise RLRouteError(f"task '{task.id}': not a task of this world (see list_tasks)")
        return self.contents[task.id]

    @property
    def message(self) -> Message:
        """The message that is to be handled now; after the end, the last one."""
        return self.content.messages[min(self.number, len(self.content.messages) - 1)]

    def bound_cost_usd(self, executor: int) -> float:
        """Return what the executor's next step costs, in USD: it is known before."""
        return compute_cost(self.specs[executor], self.message)

    def request(self, executor: int) -> Call | None:
        """Return None: executors of this world act by themselves."""
        return None

    def judge(self, executor: int) -> tuple[bool, bool]:
        """Return whether an executor fits the intent, and whether it is legal in the stage.

        `skip` fits where it is right, and is always legal; an executor that works fits no idle
        message, though it may be allowed to answer.
        """
        spec, here = self.specs[executor], (self.workflow, self.message, self.stage)
        if spec is None:
            return predict(spec, *here)[0] == 1, True
        fits, legal = check_conditions(spec, *here)
        return fits and not self.workflow.intents[self.message.intent].idle, legal

    def attempt(self, executor: int) -> bool:
        """Return whether an executor may take the message; count it as blocked where it may not.

        Nothing else changes, so another executor can be tried.
        """
        allowed = not self.done and bool(self.find_legal()[executor])
        self.blocked += not allowed
        return allowed

    def step(self, executor: int, reply: Reply | None) -> WorldStep:
        """Let an executor handle the message.

        Raises:
            ValueError: the executor may not act here, or the episode is done.
        """
        in_range = 0 <= executor < len(self.executors)
        if self.done or not in_range or not self.find_legal()[executor]:
            raise ValueError(f"executor {executor} cannot act here")
        spec, message = self.specs[executor], self.message
        success, stage = predict(spec, self.workflow, message, self.stage)
        self.last_handled = bool(self.draw_T[self.number] < success)
        if self.last_handled:
            self.stage = stage
        self.handled += self.last_handled
        self.number += 1
        self.done = self.number == len(self.content.messages)
        outcome = "handled" if self.last_handled else "mishandled"
        return WorldStep(
            state=self._show(f"{outcome.capitalize()}."),
            usage=count_tokens(spec, message),
            cost_usd=compute_cost(spec, message),
            done=self.done,
            score=self._compute_score(),
            note=f"{self.executors[executor].id}: {message.intent} {outcome}, {self.stage}",
        )

    def _compute_score(self) -> float:
        """Return the score if the task ends now."""
        messages = len(self.content.messages)
        if self.config.score == "share":
            return self.handled / messages
        return float(self.handled == messages and self.stage == self.workflow.stages[-1])

    def find_legal(self) -> BoolArray:
        """Return which executors may act [K]; at the end only `skip` is left in the mask."""
        return np.array(
            [
                all(check_conditions(spec, self.workflow, self.message, self.stage))
                and (spec is None or not self.done)
                for spec in self.specs
            ]
        )

    def _show(self, before: str) -> WorldState:
        """Return what is seen now, after a text."""
        messages = len(self.content.messages)
        words_W = np.zeros(self.config.word_buckets)
        text = before
        if not self.done:
            text = f"{before} Stage {self.stage}. User: {self.message.text}"
            words_W[hash_words(self.message.text, self.config.word_buckets)] = 1
        here = (self.content.name, self.stage)
        shares = [1 - self.number / messages, float(self.last_handled), self.handled / messages]
        places = [float(place == here) for place in self.places]
        features_W = np.array([*shares, *places, *words_W], dtype=np.float32)
        return WorldState(text, features_W, self.find_legal())

    def find_optimum(self, task: Query, cost_weight: float) -> DispatchOptimum:
        """Return the best policy's first executor and its mean utility, score and cost (USD).

        Raises:
            RLRouteError: the task is not one of this world.
        """
        content = self._find_content(task)
        table = solve(self.specs, content, self.config.score, cost_weight)
        return table[0][content.workflow.stages[0]]

    def advise(self) -> int | None:
        """Return the best executor at the cost weight of the config; None at the end.

        With score "all", a task that cannot be completed any more is skipped to its end.
        """
        if self.done:
            return None
        if self.config.score == "all" and self.handled < self.number:
            return self.skip
        if self.solved is None:
            self.solved = solve(
                self.specs, self.content, self.config.score, self.config.cost_weight
            )
        return self.solved[self.number][self.stage].executor


def make_candidate(name: str, spec: Executor) -> Candidate:
    """Return what a policy is told of an executor."""
    if spec is None:
        return Candidate(name, make_prices(spec), "tool", "does nothing, for nothing")
    return Candidate(name, make_prices(spec), spec.kind, f"serves {', '.join(spec.skills)}")


def hash_words(text: str, buckets: int) -> list[int]:
    """Return the buckets of the words of a text; case and punctuation do not matter."""
    words = re.findall(r"[a-z']+", text.lower())
    return [zlib.crc32(word.encode("utf-8")) % buckets for word in words]
