"""What a dispatch world is made of: workflows as finite automata, and executors with their skills.

What it is: the config of `rlroute.worlds.dispatch`, and its defaults: two workflows (hiring, which
is the example that the state-constrained dispatcher SDOF is explained with, and support tickets)
and five executors.

A workflow is an automaton: stages in order, and intents. `stages` of an intent are Lambda(intent),
the stages where it is legal (its precondition), and `leads_to` is the stage after success (its
postcondition; none: the stage stays). A skill says the same of one executor, where it is narrower
or leads elsewhere.

What it leaves out: episodes.

How to use: `make_workflows()["hiring"].allows("evaluate", "new")`.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Annotated, Literal, TypeAlias

from pydantic import Field, field_validator, model_validator

from rlroute.config import StrictModel
from rlroute.pool.pool_file import PricesEntry

Rate: TypeAlias = Annotated[float, Field(ge=0, le=1)]
SKIP = "skip"


class IntentSpec(StrictModel):
    """What a user may want, and how it is said; "{name}" in a template is filled with a name.

    `stages` are those where it is legal (none stated: all), `leads_to` the stage after success.
    An `idle` intent needs nothing: `skip` is right for it.
    """

    templates: tuple[str, ...] = Field(min_length=1)
    stages: tuple[str, ...] | None = Field(default=None, min_length=1)
    leads_to: str | None = None
    idle: bool = False

    @field_validator("templates")
    @classmethod
    def check_templates(cls, templates: tuple[str, ...]) -> tuple[str, ...]:
        """Refuse templates that cannot be filled with a name alone."""
        for template in templates:
            if set(re.findall(r"[{}]", template.replace("{name}", ""))):
                raise ValueError(f"'{template}': {{name}} is the only field of a template")
        return templates

    @model_validator(mode="after")
    def check_idle(self) -> IntentSpec:
        """Refuse an idle intent that changes the stage, or that is illegal somewhere."""
        if self.idle and (self.leads_to is not None or self.stages is not None):
            raise ValueError("idle: needs nothing, so it must have no stages and no leads_to")
        return self


class WorkflowSpec(StrictModel):
    """An automaton: `stages` from the first to the last, `intents`, and wording that distracts."""

    stages: tuple[str, ...] = Field(min_length=2)
    intents: dict[str, IntentSpec]
    distractors: tuple[str, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def check_automaton(self) -> WorkflowSpec:
        """Refuse unknown stages, ways back, and a stage from which no intent leads on."""
        if len(set(self.stages)) < len(self.stages):
            raise ValueError("stages: must be distinct")
        for name, intent in self.intents.items():
            check_stages(f"intents.{name}", self.stages, intent.stages, intent.leads_to)
        for stage, following in pairwise(self.stages):
            if self.find_mover(stage) is None:
                raise ValueError(f"intents: none leads from stage '{stage}' to '{following}'")
        if not any(intent.idle for intent in self.intents.values()):
            raise ValueError("intents: none is idle (there is nothing to skip)")
        return self

    def allows(self, intent: str, stage: str) -> bool:
        """Say whether an intent is legal in a stage."""
        stages = self.intents[intent].stages
        return stages is None or stage in stages

    def find_mover(self, stage: str) -> str | None:
        """Return the first intent that is legal in a stage and leads to the next one."""
        following = self.stages[self.stages.index(stage) + 1]
        movers = (
            name
            for name, intent in self.intents.items()
            if intent.leads_to == following and self.allows(name, stage)
        )
        return next(movers, None)


class SkillSpec(StrictModel):
    """How well an executor serves an intent: the share of successes on plain wording.

    `stages`: where the executor may do it (none stated: wherever the intent is legal); `leads_to`:
    the stage after its success (none stated: what the intent leads to).
    """

    success: Rate
    stages: tuple[str, ...] | None = Field(default=None, min_length=1)
    leads_to: str | None = None


class ExecutorSpec(StrictModel):
    """Who may handle messages: prices, tokens per message besides the message's words, skills.

    Success is multiplied by `distracted` where a message has distracting wording.
    """

    kind: Literal["model", "agent", "tool"] = "model"
    prices: PricesEntry
    prompt_tokens: int = Field(default=0, ge=0)
    completion_tokens: int = Field(default=0, ge=0)
    distracted: Rate = 1.0
    skills: dict[str, SkillSpec] = Field(min_length=1)

    @model_validator(mode="after")
    def check_charge(self) -> ExecutorSpec:
        """Refuse an executor that costs nothing: that is what `skip` is."""
        prices = self.prices.to_prices()
        if prices.compute_cost(self.prompt_tokens, self.completion_tokens) <= 0:
            raise ValueError("prices: an executor must cost something per message")
        return self


def check_stages(
    where: str, known: tuple[str, ...], stages: tuple[str, ...] | None, leads_to: str | None
) -> None:
    """Refuse stages that a workflow does not have, and a way that does not lead on."""
    for stage in (*(stages or ()), *([leads_to] if leads_to else [])):
        if stage not in known:
            raise ValueError(f"{where}: unknown stage '{stage}' (known: {', '.join(known)})")
    if leads_to and (stages is None or known.index(leads_to) <= max(map(known.index, stages))):
        raise ValueError(f"{where}: leads_to '{leads_to}' must come after all of its stages")


def make_hiring() -> WorkflowSpec:
    """Return the hiring workflow: new, screened, interviewed, offered."""
    return WorkflowSpec(
        stages=("new", "screened", "interviewed", "offered"),
        intents={
            "screen": IntentSpec(
                stages=("new",),
                leads_to="screened",
                templates=(
                    "Please check whether {name}'s CV meets our requirements",
                    "{name} has applied, see if the papers fit the post",
                    "Take a first look at {name}'s application",
                ),
            ),
            "interview": IntentSpec(
                stages=("screened",),
                leads_to="interviewed",
                templates=(
                    "Find a time and interview {name}",
                    "Please hold the talk with {name} this week",
                    "{name} should meet the team, arrange the interview",
                ),
            ),
            "evaluate": IntentSpec(
                stages=("screened", "interviewed"),
                templates=(
                    "How strong is {name} compared with the others?",
                    "Write down what speaks for and against {name}",
                    "Give me your judgement of {name} so far",
                ),
            ),
            "offer": IntentSpec(
                stages=("interviewed",),
                leads_to="offered",
                templates=(
                    "Send {name} the contract at the agreed salary",
                    "Let us hire {name}, prepare the letter",
                    "Make {name} an offer today",
                ),
            ),
            "question": IntentSpec(
                templates=(
                    "How many days of leave do we grant?",
                    "Which documents must {name} bring?",
                    "What is the probation period here?",
                ),
            ),
            "chat": make_chat(),
        },
        distractors=(
            "the offer to another applicant went out",
            "last week's interview is forgotten already",
            "no CV needs a check from my side",
            "ignore the judgement in my older mail",
        ),
    )


def make_support() -> WorkflowSpec:
    """Return the workflow of support tickets: opened, triaged, resolved, closed."""
    return WorkflowSpec(
        stages=("opened", "triaged", "resolved", "closed"),
        intents={
            "triage": IntentSpec(
                stages=("opened",),
                leads_to="triaged",
                templates=(
                    "{name} reports a fault, find out how urgent it is",
                    "New ticket from {name}, sort it please",
                    "Which team should take {name}'s complaint?",
                ),
            ),
            "diagnose": IntentSpec(
                stages=("triaged",),
                templates=(
                    "Why does {name}'s device stop after a minute?",
                    "Find the cause of {name}'s error",
                    "What do the logs of {name} tell us?",
                ),
            ),
            "repair": IntentSpec(
                stages=("triaged",),
                leads_to="resolved",
                templates=(
                    "Please fix the fault for {name}",
                    "Get {name}'s account working again",
                    "Replace the broken part for {name}",
                ),
            ),
            "refund": IntentSpec(
                stages=("triaged", "resolved"),
                templates=("{name} wants the money back, see to it", "Pay {name} the fee back"),
            ),
            "close": IntentSpec(
                stages=("resolved",),
                leads_to="closed",
                templates=(
                    "{name} is content, close the ticket",
                    "We are done with {name}'s case, file it",
                ),
            ),
            "question": IntentSpec(
                templates=(
                    "How long is the guarantee?",
                    "When is the hotline open?",
                    "Does {name}'s plan include spare parts?",
                ),
            ),
            "chat": make_chat(),
        },
        distractors=(
            "the refund of another customer is settled",
            "somebody closed the wrong ticket yesterday",
            "the logs I sent before can be ignored",
            "that old fault is fixed long since",
        ),
    )


def make_chat() -> IntentSpec:
    """Return the intent that needs nothing."""
    return IntentSpec(
        idle=True,
        templates=(
            "Thanks, that was quick",
            "Good morning everyone",
            "Have a nice weekend",
        ),
    )


def make_workflows() -> dict[str, WorkflowSpec]:
    """Return the default workflows."""
    return {"hiring": make_hiring(), "support": make_support()}


def make_skills(**success: float) -> dict[str, SkillSpec]:
    """Return skills without conditions of their own, from shares of successes by intent."""
    return {intent: SkillSpec(success=share) for intent, share in success.items()}


def make_agent(skills: dict[str, SkillSpec]) -> ExecutorSpec:
    """Return an agent at a middle price, which seldom minds distracting wording."""
    return ExecutorSpec(
        kind="agent",
        prices=PricesEntry(input=1.0, output=4.0),
        prompt_tokens=1600,
        completion_tokens=150,
        distracted=0.97,
        skills=skills,
    )


def make_executors() -> dict[str, ExecutorSpec]:
    """Return the default executors: a form filler, a small and a large model, two agents."""
    evaluate = SkillSpec(success=0.97, stages=("interviewed",))  # it judges from its own notes
    large = ("screen", "interview", "evaluate", "offer", "triage", "diagnose", "repair", "refund")
    return {
        "forms": ExecutorSpec(
            kind="tool",
            prices=PricesEntry(input=0, output=0, per_call=2e-4),
            distracted=0.75,
            skills=make_skills(offer=0.9, triage=0.85, close=0.95),
        ),
        "small": ExecutorSpec(
            prices=PricesEntry(input=0.4, output=1.6),
            prompt_tokens=1500,
            completion_tokens=150,
            distracted=0.65,
            skills=make_skills(
                **{"screen": 0.8, "interview": 0.55, "evaluate": 0.6, "offer": 0.8},
                **{"triage": 0.85, "diagnose": 0.5, "repair": 0.55, "refund": 0.8, "close": 0.9},
                **{"question": 0.9, "chat": 0.98},
            ),
        ),
        "recruiter": make_agent({**make_skills(screen=0.96, interview=0.95), "evaluate": evaluate}),
        "technician": make_agent(make_skills(diagnose=0.96, repair=0.95)),
        "large": ExecutorSpec(
            prices=PricesEntry(input=2, output=8),
            prompt_tokens=1500,
            completion_tokens=150,
            distracted=0.98,
            skills=make_skills(**dict.fromkeys((*large, "close", "question", "chat"), 0.96)),
        ),
    }


class DispatchConfig(StrictModel):
    """A dispatch world; `train`, `val` and `test` are numbers of tasks, workflows take turns.

    A task has `min_messages` to `max_messages` messages: those that carry the workflow from its
    first to its last stage, and others in between. Of the others, `idle_rate` need nothing, and
    `illegal_rate` come too early or too late (their intent is not legal where the workflow should
    be by then; `skip` is right). Of all messages, `distraction_rate` have distracting wording.
    `score`: share of messages handled rightly, or 1 if all were, else 0. `advise` weighs costs by
    `cost_weight`. Words of a message are hashed to `word_buckets` features. `seed` decides the
    tasks.
    """

    kind: Literal["dispatch"] = "dispatch"
    workflows: dict[str, WorkflowSpec] = Field(default_factory=make_workflows, min_length=1)
    executors: dict[str, ExecutorSpec] = Field(default_factory=make_executors, min_length=1)
    score: Literal["share", "all"] = "share"
    cost_weight: float = Field(default=0.3, ge=0, allow_inf_nan=False)
    min_messages: int = Field(default=5, ge=1)
    max_messages: int = Field(default=9, ge=1)
    idle_rate: Rate = 0.35
    illegal_rate: Rate = 0.2
    distraction_rate: Rate = 0.35
    word_buckets: int = Field(default=48, ge=1)
    train: int = Field(default=300, ge=1)
    val: int = Field(default=100, ge=1)
    test: int = Field(default=200, ge=1)
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def check_sizes(self) -> DispatchConfig:
        """Refuse numbers of messages that a workflow does not fit in, and rates above 1."""
        if self.min_messages > self.max_messages:
            raise ValueError(f"min_messages: must be at most max_messages ({self.max_messages})")
        for name, workflow in self.workflows.items():
            if self.min_messages < len(workflow.stages) - 1:
                raise ValueError(
                    f"min_messages: workflow '{name}' takes {len(workflow.stages) - 1} messages"
                )
        if self.idle_rate + self.illegal_rate > 1:
            raise ValueError("idle_rate, illegal_rate: must sum to at most 1")
        return self

    @model_validator(mode="after")
    def check_skills(self) -> DispatchConfig:
        """Refuse skills for unknown intents or stages, and intents that nobody can serve."""
        if SKIP in self.executors:
            raise ValueError(f"executors: '{SKIP}' is always there and must not be declared")
        for name, executor in self.executors.items():
            for intent, skill in executor.skills.items():
                where = f"executors.{name}.skills.{intent}"
                having = [flow for flow in self.workflows.values() if intent in flow.intents]
                if not having:
                    raise ValueError(f"{where}: no workflow has this intent")
                for flow in having:
                    stages = skill.stages or flow.intents[intent].stages
                    check_stages(where, flow.stages, stages, skill.leads_to)
        for name, flow in self.workflows.items():
            for intent, spec in flow.intents.items():
                skills = [
                    one.skills[intent] for one in self.executors.values() if intent in one.skills
                ]
                for stage in flow.stages:
                    served = any(skill.stages is None or stage in skill.stages for skill in skills)
                    if flow.allows(intent, stage) and not (served or spec.idle):
                        raise ValueError(
                            f"workflows.{name}.intents.{intent}: no executor serves it in '{stage}'"
                        )
        return self
