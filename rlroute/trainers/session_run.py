"""The offline trainer of sessions: from a log to a run folder, without asking any executor.

    log -> splits -> relabelled with every budget -> minibatches -> validation, checkpoints

recipe.resolved.yaml, run.json   settings; versions, command, digest of the log
encoder/                         the fitted encoder, for logs of texts
metrics.jsonl, events.log        one row per update
checkpoints/step-N               to go on from;  best/  the weights that validation chose

Conservative Q-learning or behaviour cloning, on the CPU. Rows of a minibatch follow from the number
of the step, so a resumed run equals an uninterrupted one bit for bit. Validation replays the val
sessions of the log; nothing is played, not even in a made world.

How to use: `train_sessions(recipe, Path("runs/mine"))`, or `rlroute train RECIPE`.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import platform
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import AdamW

from rlroute.algorithms.offline import (
    blend_towards,
    compute_bootstrapped_targets,
    compute_cloning_loss,
    compute_conservative_loss,
)
from rlroute.config import dump_config, load_config, redact
from rlroute.data.encoders import load_encoder
from rlroute.evaluation.session_replay import play_sessions
from rlroute.files import atomic_folder, write_atomic
from rlroute.policies.session_scorer import SessionScorer
from rlroute.policies.weights import load_weights
from rlroute.seeding import derive_seed, draw_uniform
from rlroute.tracking import Tracker
from rlroute.trainers.checkpoint import (
    WEIGHTS_FILE,
    TrainingState,
    list_checkpoints,
    load_checkpoint,
    save_checkpoint,
)
from rlroute.trainers.run_folder import (
    BEST_FILE,
    BEST_FOLDER,
    CHECKPOINTS_FOLDER,
    ENCODER_FOLDER,
    RECIPE_FILE,
    RUN_FILE,
    clear_folder,
    read_json,
)
from rlroute.trainers.session_problem import (
    SessionProblem,
    SessionTransitions,
    build_problem,
    make_chooser,
    make_scorer_config,
    make_transitions,
)
from rlroute.trainers.session_recipe import (
    BlendedTargetConfig,
    ConservativeConfig,
    SessionRecipe,
)
from rlroute.types import RLRouteError

FORMAT_VERSION = 1
VALIDATION_METRIC = "return"
ONLINE, TARGET = "online", "target"


@dataclass(frozen=True)
class SessionLearner:
    """Networks (`target` beside `online` for Q-learning only), optimiser, and what they learn."""

    recipe: SessionRecipe
    problem: SessionProblem
    transitions: SessionTransitions
    networks: nn.ModuleDict
    optimiser: AdamW

    @property
    def scorer(self) -> SessionScorer:
        """The network that decides."""
        scorer = self.networks[ONLINE]
        assert isinstance(scorer, SessionScorer)
        return scorer


def train_sessions(
    recipe: SessionRecipe,
    folder: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    command: str = "",
) -> TrainingState:
    """Learn from a log as the recipe says and leave everything in `folder`.

    With `resume` the folder's last checkpoint is gone on from; with `overwrite` a run that lies
    there is replaced.

    Raises:
        RLRouteError: the log, the encoder or the folder does not allow it.
    """
    if resume:
        _, problem, _ = read_session_run(folder)
    else:
        problem = build_problem(recipe)
        clear_folder(folder, overwrite=overwrite)
        start_session_folder(folder, recipe, problem, command)
    learner = make_learner(recipe, problem)
    state = resume_learner(folder, learner) if resume else TrainingState()
    with Tracker(
        folder,
        updates=recipe.updates,
        start=state.update,
        wandb_project=recipe.tracking.project if recipe.tracking.wandb else None,
        config=redact(recipe.model_dump(mode="json")),
    ) as tracker:
        tracker.log_event(f"{'resumed' if state.update else 'started'} at update {state.update}")
        for update in range(state.update, recipe.updates):
            started = time.perf_counter()
            metrics = run_update(learner, update)
            state = dataclasses.replace(state, update=update + 1)
            if is_due(recipe, update + 1, recipe.validation.every):
                found = validate(learner)
                metrics |= {f"eval/{name}": value for name, value in found.items()}
                state = keep_best(folder, learner, state, found)
            seconds = state.seconds + time.perf_counter() - started
            state = dataclasses.replace(state, seconds=seconds)
            best = state.best_metric
            tracker.log(state.update, metrics, "" if best is None else f"best on val {best:.4f}")
            if is_due(recipe, update + 1, recipe.checkpoint_every):
                weights = learner.networks.state_dict()
                save_checkpoint(folder / CHECKPOINTS_FOLDER, weights, learner.optimiser, state)
                tracker.log_event(f"checkpoint at update {state.update}")
        tracker.log_event(f"finished at update {state.update}")
    return state


def is_due(recipe: SessionRecipe, update: int, every: int) -> bool:
    """Say whether something that happens every so many updates, and after the last, happens."""
    return update == recipe.updates or update % every == 0


# --- Learner --------------------------------------------------------------------------------------


def make_learner(recipe: SessionRecipe, problem: SessionProblem) -> SessionLearner:
    """Build networks and optimiser; equal seeds give equal weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(recipe.seed, "weights"))
        scorer = SessionScorer(make_scorer_config(problem, recipe))
    networks = nn.ModuleDict({ONLINE: scorer})
    if isinstance(recipe.algorithm, ConservativeConfig):
        networks[TARGET] = copy.deepcopy(scorer).requires_grad_(False)
    settings = recipe.optimiser
    optimiser = AdamW(
        scorer.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    return SessionLearner(recipe, problem, make_transitions(problem, recipe), networks, optimiser)


def run_update(learner: SessionLearner, update: int) -> dict[str, float]:
    """Take the update's steps and return the means of their metrics."""
    recipe = learner.recipe
    left = 1 - update / recipe.updates if recipe.optimiser.decay == "linear" else 1.0
    for group in learner.optimiser.param_groups:
        group["lr"] = recipe.optimiser.learning_rate * left
    rows = [take_step(learner, update * recipe.steps + step) for step in range(recipe.steps)]
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def take_step(learner: SessionLearner, step: int) -> dict[str, float]:
    """Learn from one minibatch; its rows are drawn with replacement from the step's coordinates."""
    recipe, scorer = learner.recipe, learner.scorer
    count = len(learner.transitions.action_N)
    drawn_N = draw_uniform(recipe.seed, "minibatch", step, np.arange(recipe.batch))
    loss, metrics = compute_loss(learner, torch.from_numpy((drawn_N * count).astype(np.int64)))
    learner.optimiser.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    limit = recipe.optimiser.max_grad_norm
    metrics["policy/grad_norm"] = float(nn.utils.clip_grad_norm_(scorer.parameters(), limit))
    learner.optimiser.step()
    if isinstance(recipe.algorithm, ConservativeConfig):
        target, settings = learner.networks[TARGET], recipe.algorithm.target
        if isinstance(settings, BlendedTargetConfig):
            blend_towards(target, scorer, settings.rate)
        elif (step + 1) % settings.every == 0:
            target.load_state_dict(scorer.state_dict())
    return metrics


def compute_loss(learner: SessionLearner, row_N: Tensor) -> tuple[Tensor, dict[str, float]]:
    """Return the mean loss over rows of the transitions, and its metrics."""
    recipe, all_turns = learner.recipe, learner.transitions
    score_NK = learner.scorer(*read_rows(all_turns, row_N))
    action_N = all_turns.action_N[row_N]
    if not isinstance(recipe.algorithm, ConservativeConfig):
        loss = compute_cloning_loss(score_NK, action_N) / len(row_N)
        agree = (score_NK.argmax(dim=1) == action_N).float().mean()
        return loss, {"loss/cloning": loss.item(), "policy/agreement": agree.item()}
    last_N = all_turns.last_N[row_N]
    # the row after a last one is another session's; what is read in its place is thrown away
    next_N = torch.where(last_N, row_N, row_N + 1)
    with torch.no_grad():
        next_score_NK = learner.networks[TARGET](*read_rows(all_turns, next_N))
    target_N = compute_bootstrapped_targets(
        all_turns.reward_N[row_N], next_score_NK, last_N, recipe.discount
    )
    parts = compute_conservative_loss(score_NK, action_N, target_N, recipe.algorithm.alpha)
    metrics = {
        "loss/squared_error": parts.squared_error.item() / len(row_N),
        "loss/conservative": parts.conservative.item() / len(row_N),
        "policy/mean_score": score_NK.mean().item(),
    }
    return parts.total / len(row_N), metrics


def read_rows(all_turns: SessionTransitions, row_N: Tensor) -> tuple[Tensor, Tensor]:
    """Return what the network reads of rows: features [N, F] and standing [N, P]."""
    return all_turns.features_RF[all_turns.place_N[row_N]], all_turns.standing_NP[row_N]


def validate(learner: SessionLearner) -> dict[str, float]:
    """Return return, cost, bankruptcy and the dearest executor's share at cost weight 0 on val."""
    recipe, problem = learner.recipe, learner.problem
    played = play_sessions(
        problem.parts["val"].imputed,
        recipe.budgets,
        make_chooser(learner.scorer, problem, recipe, "val", 0.0),
        penalty=recipe.penalty,
        discount=recipe.discount,
    )
    return {
        VALIDATION_METRIC: float(played.return_SM.mean()),
        "cost": float(played.cost_SM.mean()),
        "bankruptcy": float(played.bankrupt_SM.mean()),
        "dearest_share": float(played.calls_SMK[..., -1].sum() / played.calls_SMK.sum()),
    }


def fit_scorer(recipe: SessionRecipe, problem: SessionProblem) -> SessionScorer:
    """Train as `train_sessions` does, without a folder, and return what validation chose."""
    learner = make_learner(recipe, problem)
    best, kept = -np.inf, learner.scorer
    for update in range(recipe.updates):
        run_update(learner, update)
        if is_due(recipe, update + 1, recipe.validation.every):
            found = validate(learner)[VALIDATION_METRIC]
            if found > best:
                best, kept = found, copy.deepcopy(learner.scorer)
    return kept.eval()


# --- Run folder -----------------------------------------------------------------------------------


def start_session_folder(
    folder: Path, recipe: SessionRecipe, problem: SessionProblem, command: str
) -> None:
    """Write what is known before the first update."""
    folder.mkdir(parents=True, exist_ok=True)
    if problem.encoder is not None:
        problem.encoder.save(folder / ENCODER_FOLDER)
    facts = {
        "format_version": FORMAT_VERSION,
        "log": problem.log.name,
        "log_digest": problem.digest,
        "encoder": None if problem.encoder is None else problem.encoder.describe(),
        "sessions": {split: len(part.ids) for split, part in problem.parts.items()},
        "rlroute": version("rlroute"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "command": redact(command),
    }
    write_atomic(folder / RUN_FILE, json.dumps(facts, indent=2))
    write_atomic(folder / RECIPE_FILE, dump_config(recipe))  # last: with it the folder is a run


def read_session_run(folder: Path) -> tuple[SessionRecipe, SessionProblem, dict[str, Any]]:
    """Read a run folder and prepare its log as the run did; return run.json as well.

    Raises:
        RLRouteError: no run lies there, a file is torn or of another version, or the log has
            changed since.
    """
    if not (folder / RECIPE_FILE).exists():
        raise RLRouteError(f"{folder}: no run lies here ({RECIPE_FILE} is missing)")
    recipe = load_config(SessionRecipe, folder / RECIPE_FILE)
    facts = read_json(folder / RUN_FILE)
    if facts.get("format_version") != FORMAT_VERSION:
        raise RLRouteError(
            f"{folder / RUN_FILE}: format_version {facts.get('format_version')}, "
            f"this rlroute reads {FORMAT_VERSION}"
        )
    stored = folder / ENCODER_FOLDER
    problem = build_problem(recipe, load_encoder(stored) if stored.exists() else None)
    if problem.digest != facts["log_digest"]:
        raise RLRouteError(f"log '{problem.log.name}' has changed since {folder} was trained on it")
    return recipe, problem, facts


def resume_learner(folder: Path, learner: SessionLearner) -> TrainingState:
    """Load the last checkpoint of a run.

    Raises:
        RLRouteError: there is none.
    """
    checkpoints = list_checkpoints(folder / CHECKPOINTS_FOLDER)
    if not checkpoints:
        raise RLRouteError(f"{folder}: no checkpoint to resume from")
    return load_checkpoint(checkpoints[-1], learner.networks, learner.optimiser)


def keep_best(
    folder: Path, learner: SessionLearner, state: TrainingState, found: dict[str, float]
) -> TrainingState:
    """Keep the weights where validation finds them the best so far."""
    metric = found[VALIDATION_METRIC]
    if state.best_metric is not None and metric <= state.best_metric:
        return state
    with atomic_folder(folder / BEST_FOLDER) as temporary:
        save_file(learner.scorer.state_dict(), temporary / WEIGHTS_FILE)
        facts = {"update": state.update, "metric": VALIDATION_METRIC, **found}
        write_atomic(temporary / BEST_FILE, json.dumps(facts, indent=2))
    return dataclasses.replace(state, best_metric=metric, best_update=state.update)


def load_best_scorer(
    folder: Path, recipe: SessionRecipe, problem: SessionProblem
) -> tuple[SessionScorer, dict[str, Any]]:
    """Return the network that validation chose, and what was written beside it.

    Raises:
        RLRouteError: the run has no best weights yet, or they are torn.
    """
    path = folder / BEST_FOLDER / WEIGHTS_FILE
    scorer = SessionScorer(make_scorer_config(problem, recipe))
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise RLRouteError(f"{path}: cannot be read ({error})") from None
    load_weights(scorer, weights, path)
    return scorer.eval(), read_json(folder / BEST_FOLDER / BEST_FILE)
