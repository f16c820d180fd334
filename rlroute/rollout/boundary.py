"""Boundary rollouts: what the static policies get on every task, and experts for the hard ones.

    file = RolloutFile(path, world)
    run_boundaries(stage, file, config, "train", 5, seed=0)   5 of the cheapest, 5 of the dearest
    run_sweep(stage, file, config, "train", hard, 10, seed=0) the dear one by chance 1/10 .. 10/10
    expert = select_expert(rollouts, unit)                    the cheapest success of a hard task
    prune(stage, experts, config, "train")                    without the dear steps it can spare

Every rollout is kept as a line of JSON with its task, seed, score, cost and executors, so an
interrupted run goes on where it was, and a rollout can be played again step by step. A file belongs
to one world and one set of settings and is refused for any other.

It leaves out the taxonomy (`rlroute.rewards.boundary`) and learning from the experts
(`rlroute.trainers.imitation`).

Source: Zhang et al., 2026 (BoPO), boundary policies and stratified sweep.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from rlroute.envs.budget import BudgetConfig
from rlroute.envs.single_turn import CostWeightConfig
from rlroute.envs.step_budget import StepBudgetConfig
from rlroute.policies.step_baselines import BernoulliPolicy, ScriptedPolicy
from rlroute.policies.stepwise import StepPolicy
from rlroute.rewards.boundary import Boundary
from rlroute.rollout.stage import Stage
from rlroute.rollout.step_plan import plan_static
from rlroute.seeding import mix
from rlroute.types import Batch, RLRouteError, SplitName

Arm = Literal["small", "large", "sweep", "pruned"]
CHUNK = 4096  # rollouts that are played and written at once
Tell = Callable[[int], None]


@dataclass(frozen=True)
class BoundaryRollout:
    """One rollout: the `number`-th of an arm on a task; `actions` are its executors by index.

    `dear_rate` is the probability of the dearest executor: 0, 1, or k / N of the sweep.
    """

    split: SplitName
    task: str
    arm: Arm
    number: int
    dear_rate: float
    seed: int
    score: float
    cost_usd: float
    calls: int
    actions: tuple[int, ...]

    @property
    def key(self) -> tuple[str, str, str, int]:
        """What tells a rollout from all others of a file."""
        return (self.split, self.task, self.arm, self.number)

    def measure(self, unit: str) -> float:
        """Return its cost in the reward's unit."""
        return float(self.calls) if unit == "calls" else self.cost_usd


class RolloutFile:
    """The rollouts of a world on disk: a header that says which world, then one line each."""

    def __init__(self, path: Path, world: str) -> None:
        self.path = path
        self.header = {"format_version": 1, "world": hashlib.sha256(world.encode()).hexdigest()}
        self.rollouts: dict[tuple[str, str, str, int], BoundaryRollout] = {}
        if path.exists():
            self.read()
        if not path.exists() or not path.stat().st_size:  # new, or its first line was torn
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(self.header) + "\n", encoding="utf-8")

    def read(self) -> None:
        """Read what is there; a last line that was torn is cut off.

        Raises:
            RLRouteError: the file is of another world, or a line cannot be read.
        """
        text = self.path.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            self.path.write_text(whole, encoding="utf-8")
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                values = json.loads(line)
                if number == 1:
                    if values != self.header:
                        raise RLRouteError(
                            f"{self.path}: these rollouts are of another world or other settings; "
                            "choose another folder, or remove the file"
                        )
                    continue
                rollout = BoundaryRollout(**{**values, "actions": tuple(values["actions"])})
            except (ValueError, TypeError, KeyError) as error:
                raise RLRouteError(f"{self.path}, line {number}: no rollout ({error})") from None
            self.rollouts[rollout.key] = rollout

    def append(self, rollouts: Sequence[BoundaryRollout]) -> None:
        """Write rollouts down and keep them."""
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(asdict(one)) + "\n" for one in rollouts)
        self.rollouts |= {one.key: one for one in rollouts}

    def list_of(self, split: SplitName, task: str, arm: Arm) -> list[BoundaryRollout]:
        """Return the rollouts of an arm on a task, by number."""
        found: list[BoundaryRollout] = []
        while (key := (split, task, arm, len(found))) in self.rollouts:
            found.append(self.rollouts[key])
        return found


@dataclass(frozen=True)
class Wanted:
    """A rollout that is to be played."""

    task_index: int
    arm: Arm
    number: int
    dear_rate: float
    seed: int


def make_free_config(config: StepBudgetConfig) -> StepBudgetConfig:
    """Return the settings under which static policies are measured: no cap."""
    budget = BudgetConfig(unit=config.budget.unit, counted=config.budget.counted)
    return config.model_copy(update={"budget": budget, "cost_weight": CostWeightConfig(min=0)})


def run_boundaries(
    stage: Stage,
    file: RolloutFile,
    config: StepBudgetConfig,
    split: SplitName,
    rollouts: int,
    *,
    seed: int,
    tell: Tell | None = None,
) -> None:
    """Play `rollouts` of each static policy on every task of a split, but for those on file."""
    arms: tuple[tuple[Arm, float], ...] = (("small", 0.0), ("large", 1.0))
    wanted = [
        Wanted(index, arm, number, rate, derive_world_seed(seed, split, index, arm, number))
        for index in range(len(stage.tasks[split]))
        for arm, rate in arms
        for number in range(rollouts)
    ]
    play_missing(stage, file, config, split, wanted, tell)


def run_sweep(
    stage: Stage,
    file: RolloutFile,
    config: StepBudgetConfig,
    split: SplitName,
    task_indices: Sequence[int],
    sweep: int,
    *,
    seed: int,
    tell: Tell | None = None,
) -> None:
    """Play the stratified sweep on some tasks: rollout k takes the dear one with k / sweep."""
    wanted = [
        Wanted(
            *(index, "sweep", k - 1, k / sweep),
            derive_world_seed(seed, split, index, "sweep", k - 1),
        )
        for index in task_indices
        for k in range(1, sweep + 1)
    ]
    play_missing(stage, file, config, split, wanted, tell)


def derive_world_seed(seed: int, split: str, index: int, arm: str, number: int) -> int:
    """Return the seed of a rollout from its coordinates."""
    return int(mix(seed, "boundary", split, index, arm, number) >> np.uint64(2))


def play_missing(
    stage: Stage,
    file: RolloutFile,
    config: StepBudgetConfig,
    split: SplitName,
    wanted: Sequence[Wanted],
    tell: Tell | None,
) -> None:
    """Play those that are not on file, chunk by chunk; failed ones are not written down.

    Raises:
        RLRouteError: a call failed on every try, so that a task would have no yardstick.
    """
    tasks = stage.tasks[split]
    missing = [
        one
        for one in wanted
        if (split, tasks[one.task_index].id, one.arm, one.number) not in file.rollouts
    ]
    if tell is not None:
        tell(len(wanted) - len(missing))
    size = CHUNK if stage.arrays else stage.lanes
    for start in range(0, len(missing), size):
        chunk = missing[start : start + size]
        rate_B = np.array([one.dear_rate for one in chunk])
        batch = play(stage, BernoulliPolicy(rate_B), chunk, config, split)
        played = list_rollouts(stage, batch, chunk, split)
        file.append([one for one in played if not np.isnan(one.score)])
        for one in played:
            if np.isnan(one.score):
                raise RLRouteError(
                    f"task '{one.task}': a call of a static policy failed on every try, and "
                    "without it the task has no yardstick; start again when the candidate "
                    "answers: what was played is kept"
                )
        if tell is not None:
            tell(len(chunk))


def play(
    stage: Stage,
    policy: StepPolicy,
    chunk: Sequence[Wanted],
    config: StepBudgetConfig,
    split: SplitName,
) -> Batch:
    """Play rollouts by their seeds, without a cap."""
    task_index_B = np.array([one.task_index for one in chunk])
    plan = plan_static(task_index_B, np.array([one.seed for one in chunk]))
    return stage.play(policy, plan, split, make_free_config(config), {})


def list_rollouts(
    stage: Stage, batch: Batch, chunk: Sequence[Wanted], split: SplitName
) -> list[BoundaryRollout]:
    """Return the rollouts of a batch; the score is NaN where a call failed on every try."""
    ends = batch.ends
    assert ends is not None
    return [
        BoundaryRollout(
            split=split,
            task=stage.tasks[split][one.task_index].id,
            arm=one.arm,
            number=one.number,
            dear_rate=one.dear_rate,
            seed=one.seed,
            score=float(ends.score_B[row]),
            cost_usd=float(ends.cost_usd_B[row]),
            calls=int(ends.calls_B[row]),
            actions=tuple(batch.action_BT[row, batch.valid_BT[row]].tolist()),
        )
        for row, one in enumerate(chunk)
    ]


def read_boundary(
    file: RolloutFile, split: SplitName, task: str, rollouts: int, unit: str
) -> Boundary:
    """Return what the static policies got on a task, from its first `rollouts` of each."""
    small = file.list_of(split, task, "small")[:rollouts]
    large = file.list_of(split, task, "large")[:rollouts]
    return Boundary(
        scores_small=tuple(one.score for one in small),
        scores_large=tuple(one.score for one in large),
        cost_small=float(np.mean([one.measure(unit) for one in small])),
        cost_large=float(np.mean([one.measure(unit) for one in large])),
    )


def select_expert(
    rollouts: Sequence[BoundaryRollout], unit: str, success: float = 1.0
) -> BoundaryRollout | None:
    """Return the cheapest success; None where there is none.

    Equal costs are told apart by fewer steps, then the smaller share of the dear executor, then
    the order of the rollouts.
    """
    solved = [one for one in rollouts if one.score >= success]
    if not solved:
        return None
    return min(solved, key=lambda one: (one.measure(unit), len(one.actions), one.dear_rate))


def prune(
    stage: Stage,
    experts: Sequence[BoundaryRollout],
    config: StepBudgetConfig,
    split: SplitName,
) -> list[BoundaryRollout]:
    """Return the experts with every dear step made cheap that success does not need.

    One pass over the steps: each dear step in turn becomes the cheapest executor's, and stays so
    if the rollout, played again by its seed, still scores as much and costs no more.
    """
    unit = config.reward.unit
    index_by_task = {task.id: index for index, task in enumerate(stage.tasks[split])}
    kept = list(experts)
    for turn in range(max((len(one.actions) for one in kept), default=0)):
        rows = [r for r, one in enumerate(kept) if turn < len(one.actions) and one.actions[turn]]
        if not rows:
            continue
        tried = [[*kept[r].actions[:turn], 0, *kept[r].actions[turn + 1 :]] for r in rows]
        chunk = [
            Wanted(
                *(index_by_task[kept[r].task], kept[r].arm, kept[r].number),
                *(kept[r].dear_rate, kept[r].seed),
            )
            for r in rows
        ]
        batch = play(stage, make_script(tried, stage.world.horizon), chunk, config, split)
        for r, found in zip(rows, list_rollouts(stage, batch, chunk, split), strict=True):
            cheaper = found.measure(unit) <= kept[r].measure(unit)
            if found.score >= kept[r].score and cheaper:  # neither, where a call failed (NaN)
                kept[r] = found
    return kept


def make_script(actions: Sequence[Sequence[int]], horizon: int) -> ScriptedPolicy:
    """Return a policy that replays these executors, one episode each; the last one goes on."""
    action_BT = np.zeros((len(actions), horizon), dtype=np.int64)
    for row, script in enumerate(actions):
        action_BT[row, : len(script)] = script
        action_BT[row, len(script) :] = script[-1]
    return ScriptedPolicy(action_BT)
