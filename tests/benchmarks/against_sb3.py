"""Speed beside stable-baselines3's PPO, in one process, one thread, taking turns.

    pip install --no-deps --target DIR stable-baselines3==2.9.2
    PYTHONPATH=.:tests/benchmarks:DIR python tests/benchmarks/against_sb3.py [--table mmlu_pro]

    usual     stable-baselines3 as its documentation starts it: 64 environments of
              `rlroute/SingleTurn-v0` by make_vec_env, MultiInputPolicy, against our update
    batched   stable-baselines3 given our hand-batched environment and our network, with the same
              lanes, epochs and minibatches; with torch's dropout, and with our quicker draws
    race      processor seconds of learning until the AIQ on validation reaches that of kNN-40 of
              the train split: each of our algorithms, and stable-baselines3 on the batched
              environment with its own network and with ours

Each reads its numbers by the clock and by the processor; the latter do not depend on who else uses
the machine. It asserts nothing. Encoders: `--encoder minilm` needs cached embeddings to be quick.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import torch
from accelerate import Accelerator
from sb3_adapter import FlatVecEnv, make_scorer_policy
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env

import rlroute.envs  # noqa: F401 - registers the environments
from rlroute.data.prepare import PreparedTable, prepare_table
from rlroute.data.table import read_table
from rlroute.evaluation.evaluate import compute_validation_metrics
from rlroute.policies.baselines import NearestNeighbours, PredictThenOptimise
from rlroute.policies.decision import GreedyPolicy
from rlroute.trainers.decision import TableProblem, make_cost_weights, make_learner
from rlroute.trainers.loop import set_schedules
from rlroute.trainers.recipe import Recipe
from rlroute.trainers.update import update_policy

EPISODES, EPOCHS, MINIBATCHES = 4096, 4, 2
USUAL_LANES = 64
SETTINGS = {  # of stable-baselines3, equal to those of our PPO
    "learning_rate": 5e-4,
    "gamma": 1.0,
    "gae_lambda": 1.0,
    "clip_range": 0.2,
    "ent_coef": 0.0,
    "vf_coef": 0.5,
    "max_grad_norm": 1.0,
    "n_epochs": EPOCHS,
    "batch_size": EPISODES // MINIBATCHES,
    "device": "cpu",
}


def read_clocks() -> np.ndarray[Any, Any]:
    """Return the time of day and the processor's, in seconds."""
    return np.array([time.perf_counter(), time.process_time()])


class Ours:
    """Our trainer without its run folder: collect, update, summarise."""

    def __init__(self, recipe: Recipe, prepared: PreparedTable) -> None:
        self.recipe = recipe
        self.learner = make_learner(recipe, prepared, Accelerator())
        self.problem = TableProblem(recipe, prepared, self.learner)
        self.updates = 0

    def update(self) -> None:
        """Take one update."""
        set_schedules(self.learner, self.recipe, self.updates)
        batch = self.problem.collect(self.learner, self.updates)
        update_policy(self.learner, batch, self.updates)
        self.problem.summarise(self.learner, batch)
        self.updates += 1


class Theirs:
    """stable-baselines3's PPO: `update` collects one rollout and trains on it."""

    def __init__(self, policy: Any, environment: Any, steps: int, seed: int) -> None:
        self.model = PPO(policy, environment, n_steps=steps, seed=seed, **SETTINGS)
        self.size = steps * environment.num_envs

    def update(self) -> None:
        """Take one update."""
        self.model.learn(self.size, reset_num_timesteps=False)


def make_recipe(arguments: argparse.Namespace, **algorithm: Any) -> Recipe:
    """Return the recipe of our run."""
    return Recipe.model_validate(
        {
            "table": arguments.table,
            "seed": arguments.seed,
            "updates": 1000,
            "encoder": {"kind": arguments.encoder},
            "algorithm": {"kind": "ppo"} | algorithm,
        }
    )


def make_theirs_batched(
    recipe: Recipe,
    prepared: PreparedTable,
    *,
    own_network: bool = False,
    torch_dropout: bool = True,
) -> Theirs:
    """Return their PPO on our hand-batched environment."""
    train = prepared.splits["train"]
    environment = FlatVecEnv(train, EPISODES, recipe.cost_weight)
    if own_network:
        return Theirs("MlpPolicy", environment, 1, recipe.seed)
    scorer = make_learner(recipe, prepared, Accelerator()).scorer
    policy = make_scorer_policy(scorer, train, torch_dropout=torch_dropout)
    return Theirs(policy, environment, 1, recipe.seed)


def take_turns(ours: Any, theirs: Any, rounds: int) -> None:
    """Let both update in turn and print environment steps per second and the ratio."""
    ours.update()
    theirs.update()  # what is made once
    seconds: dict[str, list[Any]] = {"ours": [], "theirs": []}
    for _ in range(rounds):
        for name, side in (("ours", ours), ("theirs", theirs)):
            started = read_clocks()
            side.update()
            seconds[name].append(read_clocks() - started)
    for kind, clock in enumerate(("clock", "processor")):
        rate = {
            name: EPISODES / statistics.median(row[kind] for row in rows)
            for name, rows in seconds.items()
        }
        print(
            f"  by the {clock}: ours {rate['ours']:,.0f} steps/s, stable-baselines3 "
            f"{rate['theirs']:,.0f}, ratio {rate['ours'] / rate['theirs']:.2f}",
            flush=True,
        )


def run_usual(arguments: argparse.Namespace, prepared: PreparedTable) -> None:
    """Measure against stable-baselines3 as one starts it first."""
    print("usual: 64 environments by make_vec_env, MultiInputPolicy, 4 epochs, 2 minibatches")
    recipe = make_recipe(arguments, target_kl=None)
    train = prepared.splits["train"]
    weights = recipe.cost_weight.model_dump()
    environment = make_vec_env(
        lambda: gymnasium.make("rlroute/SingleTurn-v0", data=train, cost_weight=weights),
        n_envs=USUAL_LANES,
        seed=recipe.seed,
    )
    theirs = Theirs("MultiInputPolicy", environment, EPISODES // USUAL_LANES, recipe.seed)
    take_turns(Ours(recipe, prepared), theirs, arguments.rounds)


def run_batched(arguments: argparse.Namespace, prepared: PreparedTable) -> None:
    """Measure against stable-baselines3 on our environment with our network."""
    recipe = make_recipe(arguments, target_kl=None)
    for torch_dropout in (True, False):
        source = "torch's own dropout" if torch_dropout else "dropout drawn as our trainer does"
        print(f"batched: 4,096 lanes, 4 epochs, 2 minibatches, our network with {source}")
        theirs = make_theirs_batched(recipe, prepared, torch_dropout=torch_dropout)
        take_turns(Ours(recipe, prepared), theirs, arguments.rounds)


class FlatPolicy:
    """The greedy policy of stable-baselines3's own network, as our evaluation reads it."""

    name = "stable-baselines3"

    def __init__(self, theirs: Theirs) -> None:
        self.policy = theirs.model.policy

    def compute_probabilities(self, data: Any, cost_weight: float) -> np.ndarray[Any, Any]:
        """Return one-hot rows [Q, K]."""
        present_QK = data.table.present_QK
        weight_Q1 = np.full((len(present_QK), 1), cost_weight, np.float32)
        row_QW = np.hstack((data.features_QF, weight_Q1, present_QK.astype(np.float32)))
        with torch.no_grad():
            logits_QK = self.policy.get_distribution(torch.as_tensor(row_QW)).distribution.logits
        masked_QK = np.where(present_QK, logits_QK.numpy(), -np.inf)
        chosen_QK = np.arange(present_QK.shape[1]) == masked_QK.argmax(1)[:, None]
        return chosen_QK.astype(np.float32)


def race(update: Callable[[], None], policy: Any, arguments: Any, goal: float, val: Any) -> str:
    """Update until validation reaches the goal; validation itself is not counted."""
    spent, updates, best = np.zeros(2), 0, -np.inf
    weights = make_cost_weights(make_recipe(arguments).cost_weight, 25)
    while spent[1] < arguments.limit:
        started = read_clocks()
        update()
        spent += read_clocks() - started
        updates += 1
        if updates % arguments.every == 0:
            best = max(best, compute_validation_metrics(policy, val, weights)["aiq"])
            if best >= goal:
                return f"{spent[1]:8.2f} s  ({updates} updates, {spent[0]:.1f} s by the clock)"
    return f"not within {arguments.limit:.0f} s  ({updates} updates, best {best:.4f})"


def run_race(arguments: argparse.Namespace, prepared: PreparedTable) -> None:
    """Race to the AIQ of kNN-40 on validation."""
    train, val = prepared.splits["train"], prepared.splits["val"]
    recipe = make_recipe(arguments)
    weights = make_cost_weights(recipe.cost_weight, 25)
    knn = PredictThenOptimise(NearestNeighbours(train, neighbours=40), train)
    goal = compute_validation_metrics(knn, val, weights)["aiq"]
    print(f"race: processor seconds until the validation AIQ reaches kNN-40's {goal:.4f}")
    for kind in ("expected_gradient", "ppo", "grpo", "rloo"):
        ours = Ours(make_recipe(arguments, kind=kind), prepared)
        policy = GreedyPolicy(ours.learner.scorer.eval())
        print(f"  ours, {kind:<28}{race(ours.update, policy, arguments, goal, val)}", flush=True)
    theirs = make_theirs_batched(recipe, prepared)
    policy = GreedyPolicy(theirs.model.policy.scorer.eval())
    found = race(theirs.update, policy, arguments, goal, val)
    print(f"  stable-baselines3, our network    {found}", flush=True)
    theirs = make_theirs_batched(recipe, prepared, own_network=True)
    found = race(theirs.update, FlatPolicy(theirs), arguments, goal, val)
    print(f"  stable-baselines3, its MlpPolicy  {found}", flush=True)


def main() -> None:
    """Run the parts that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--table", default="pocket")
    parser.add_argument("--encoder", default="tfidf")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--limit", type=float, default=120.0, help="seconds of a race")
    parser.add_argument("--every", type=int, default=1, help="updates between two validations")
    parser.add_argument("--parts", default="usual,batched,race")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    recipe = make_recipe(arguments)
    prepared = prepare_table(
        read_table(recipe.table), recipe.encoder, recipe.profile, seed=recipe.seed
    )
    parts = {"usual": run_usual, "batched": run_batched, "race": run_race}
    for part in arguments.parts.split(","):
        parts[part](arguments, prepared)


if __name__ == "__main__":
    main()
