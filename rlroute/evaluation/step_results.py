"""What an evaluation of step-by-step routing found, as frozen dataclasses that become JSON.

What it is: every policy has a point for each setting (a cap of the budget and a cost weight), with
means over the test tasks; an `Estimate` carries a paired bootstrap interval (95 %) over tasks.
Costs are mean USD per task. An episode with a failed call is counted in `failed` and enters no
mean. Rewards mean the same at one cost weight only; they leave out the bonus on hard tasks, as
those of the validation do.

What it leaves out: how the numbers come about (`step_measures`), words (`step_comparison`), looks
(`step_report`, `step_figures`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from rlroute.evaluation.intervals import Estimate
from rlroute.evaluation.results import make_plain

FORMAT_VERSION = 1
# fmt: off
StepKind = Literal[
    "policy", "sampled", "start", "run",
    "prompted", "static", "random", "sweep", "rule", "bandit", "probe", "optimal",
]
# fmt: on
BASELINES: tuple[StepKind, ...] = (
    *("prompted", "static", "random", "sweep", "rule", "bandit", "probe"),
)


@dataclass(frozen=True)
class StepSetting:
    """What episodes are played under: a cap of the budget (None: without) and a cost weight."""

    cap: float | None
    cost_weight: float


@dataclass(frozen=True)
class StepClassPoint:
    """A policy on the tasks of one class; `dear_share` is that of steps not by the cheapest."""

    tasks: int
    success: float
    cost_usd: float
    dear_share: float


@dataclass(frozen=True)
class StepPoint:
    """A policy under one setting; None where it has no value for any task.

    `calls` are counted ones per task, `steps` per task, `utilisation` is the share of the cap that
    is used, `violations` counts episodes that passed the cap. `success_kept` and `cost_ratio`
    relate to the dearest executor alone without a cap, `gap_recovered` is the part of the way from
    the cheapest one's success to its. `lead` and `reward_lead` are the subject's success and reward
    minus this policy's (None for the subject). `above_baselines` is success minus the height, at
    this cost, of the hull of all baselines under the same cap, picked with hindsight; None where
    there is no hull, and for the baselines themselves.
    """

    cap: float | None
    cost_weight: float
    episodes: int
    failed: int
    violations: int
    success: Estimate | None
    cost_usd: Estimate | None
    reward: Estimate | None
    calls: float | None
    steps: float | None
    utilisation: float | None
    exhausted: float | None
    success_kept: Estimate | None
    cost_ratio: Estimate | None
    gap_recovered: float | None
    share_by_executor: Mapping[str, float]
    by_class: Mapping[str, StepClassPoint]
    lead: Estimate | None
    reward_lead: Estimate | None
    above_baselines: Estimate | None


@dataclass(frozen=True)
class StepPolicyResult:
    """A policy with one point per setting; None where it is not played (a knob without a cap).

    `family` is shared by the settings of one baseline's knob, and else the name.
    """

    name: str
    kind: StepKind
    family: str
    points: tuple[StepPoint | None, ...]


@dataclass(frozen=True)
class StepCurve:
    """The hull of all points of a family and of the cheapest executor's: USD per task, success.

    `area` is its mean height over the common range of cost, `lead` the subject's minus this one's.
    """

    family: str
    kind: StepKind
    cost_usd: tuple[float, ...]
    success: tuple[float, ...]
    area: Estimate
    lead: Estimate | None


@dataclass(frozen=True)
class StepEvaluation:
    """A comparison on the test tasks; `policies[0]` is the subject.

    `shown` names, for each setting, the policies that get a row: of a baseline with a knob the one
    with the best mean reward on val; `best_baselines` names the best of all baselines there.
    `small` and `large` are the static policies without a cap, whose costs bound the `curves`.
    `class_tasks` counts the test tasks of each class. `left_out` says what was not compared, and
    why. `update` is the number of updates behind the subject's weights.
    """

    world: str
    test_tasks: int
    val_tasks: int
    rollouts: int
    executor_ids: tuple[str, ...]
    budget_unit: str
    settings: tuple[StepSetting, ...]
    class_tasks: Mapping[str, int]
    policies: tuple[StepPolicyResult, ...]
    shown: tuple[tuple[str, ...], ...]
    best_baselines: tuple[str, ...]
    small: StepPoint
    large: StepPoint
    curves: tuple[StepCurve, ...]
    left_out: tuple[str, ...]
    update: int
    bootstrap: int
    seed: int
    format_version: int = field(default=FORMAT_VERSION)

    @property
    def subject(self) -> StepPolicyResult:
        """The policy that the evaluation is about."""
        return self.policies[0]

    @property
    def caps(self) -> tuple[float | None, ...]:
        """The caps, each once."""
        return tuple(dict.fromkeys(setting.cap for setting in self.settings))

    def find(self, name: str) -> StepPolicyResult:
        """Return the result of a policy by its name."""
        return next(one for one in self.policies if one.name == name)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data that JSON can hold."""
        plain: dict[str, Any] = make_plain(asdict(self))
        return plain
