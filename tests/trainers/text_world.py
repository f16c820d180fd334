"""A small world of relations, a model that was warmed up on it, and batches of a few episodes."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

torch = pytest.importorskip("torch")
pytest.importorskip("trl", reason="the extra `text` is absent")

from torch import Tensor  # noqa: E402
from transformers import PrinterCallback, ProgressCallback, TrainerCallback  # noqa: E402

from rlroute.config import parse_config  # noqa: E402
from rlroute.trainers.text import RoutingTrainer  # noqa: E402
from rlroute.trainers.text_arguments import make_plan  # noqa: E402
from rlroute.trainers.text_problem import TextProblem, build_problem  # noqa: E402
from rlroute.trainers.text_recipe import TextRecipe  # noqa: E402
from rlroute.trainers.text_run import TextRun, train_text  # noqa: E402

REFERENCE_USD = 0.002
PRICES = {"input": 1.0, "output": 3.0, "per_call": 6e-4}
SPECIALISTS: dict[str, dict[str, Any]] = {
    "alpha": {"relations": ["boss"], "prices": PRICES},
    "beta": {"relations": ["coach"], "prices": PRICES},
}
WORLD: dict[str, Any] = {
    "entities": 4,
    "relations": ["boss", "coach"],
    "max_hops": 1,
    "reference_usd": REFERENCE_USD,
    "specialists": SPECIALISTS,
}
DEAD = "alpha"  # in this world every call of it fails
DEAD_WORLD = {
    "specialists": SPECIALISTS | {DEAD: SPECIALISTS[DEAD] | {"failures": {"server": 1.0}}}
}
ALGORITHMS: dict[str, dict[str, Any]] = {
    "grpo": {"kind": "grpo", "episodes": 16, "group_size": 4, "micro_batch": 16},
    "rloo": {"kind": "rloo", "episodes": 16, "group_size": 4, "micro_batch": 16},
    "ppo": {"kind": "ppo", "episodes": 16, "micro_batch": 16},
}


def make_recipe(
    algorithm: str = "grpo",
    changes: Mapping[str, Any] | None = None,
    *,
    base: Path | str | None = None,
    world: Mapping[str, Any] | None = None,
    **parts: Any,
) -> TextRecipe:
    """Return a short recipe: `changes` of its algorithm, of its world, and of its other parts."""
    stated: dict[str, Any] = {
        "environment": "multi_round",
        "updates": 2,
        "questions": {
            "kind": "relations",
            "train": 64,
            "val": 16,
            "test": 16,
            "world": WORLD | dict(world or {}),
        },
        "episode": {
            "prompt": "short",
            "profile": "none",
            "prices": False,
            "latency": False,
            "ledger": False,
            "max_calls": 3,
            "max_turns": 5,
            "reply_tokens": 16,
            "cost_weights": [0.4],
        },
        "reward": {"normaliser": {"kind": "fixed", "reference_usd": REFERENCE_USD}},
        "policy": {
            "base": {"kind": "pretrained", "model": str(base or find_warm_base())},
            "precision": "float32",
        },
        "rollout": {
            "sampler": {"kind": "transformers"},
            "max_new_tokens": 24,
            "context_tokens": 192,
            "on_failure": "drop",
        },
        "algorithm": ALGORITHMS[algorithm] | dict(changes or {}),
        "optimiser": {"learning_rate": 1e-3},
        "validation": {"every": 100, "questions": 8},
        "checkpoint_every": 100,
        "tracking": {"wandb": False},
    }
    for name, value in parts.items():
        both = isinstance(value, dict) and isinstance(stated.get(name), dict)
        stated[name] = stated[name] | value if both else value
    return parse_config(TextRecipe, stated, "recipe")


@functools.cache
def find_warm_base() -> Path:
    """Return a two-layer Llama that writes calls and answers; made once per test process."""
    scratch = Path(tempfile.mkdtemp(prefix="rlroute-warm-"))
    atexit.register(shutil.rmtree, scratch, ignore_errors=True)
    recipe = make_recipe(
        updates=1,
        base="unused",
        policy={
            "base": {"kind": "new", "hidden": 32, "layers": 2, "heads": 4, "vocabulary": 400},
            "precision": "float32",
        },
        questions={"kind": "relations", "train": 512, "val": 8, "test": 8, "world": WORLD},
        warm_start={
            "planner": "random",
            "episodes": 1024,
            "epochs": 3,
            "batch": 16,
            "learning_rate": 1e-2,
        },
    )
    train_text(recipe, scratch / "run")
    return scratch / "run" / "warm_start"


@contextmanager
def open_run(
    recipe: TextRecipe, folder: Path, problem: TextProblem | None = None
) -> Iterator[TextRun]:
    """Yield the run of a recipe with a pretrained base before its first update."""
    folder.mkdir(parents=True, exist_ok=True)
    run = TextRun(recipe, folder, problem or build_problem(recipe), recipe.policy.base.model)
    run.trainer.remove_callback(ProgressCallback)
    run.trainer.remove_callback(PrinterCallback)
    try:
        yield run
    finally:
        run.rollouts.close()
        run.access.close()


def collect_batch(run: TextRun) -> dict[str, Any]:
    """Play the episodes of the coming update and return what the loss of all of them reads."""
    trainer = run.trainer
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    plan = make_plan(run.recipe, trainer.update, trainer.queries)
    rows = [{"prompt": str(index)} for index in plan.query_index_B]
    batch: dict[str, Any] = trainer._generate_and_score_completions(rows)
    return batch


def find_policy_mask(batch: Mapping[str, Any]) -> Tensor:
    """Return where the tokens stand that are learnt from [B, T]."""
    mask_BT: Tensor = (batch["completion_mask"] * batch["tool_mask"]).bool()
    return mask_BT


def get_language_model(trainer: RoutingTrainer) -> Any:
    """Return the causal language model, without PEFT's wrapper."""
    model = trainer.model
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def compute_gradients(run: TextRun, batch: Mapping[str, Any]) -> tuple[float, dict[str, Tensor]]:
    """Return the loss of a batch and the gradient of every trained parameter."""
    model = run.trainer.model
    model.zero_grad()
    loss = run.trainer._compute_loss(model, dict(batch))
    loss.backward()
    found = {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in model.named_parameters()
        if p.requires_grad
    }
    model.zero_grad()
    return float(loss.detach()), found


class KeepGradients(TrainerCallback):
    """Keeps the gradient of every parameter before each optimiser step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Tensor]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Copy them; clipping is done by now, so its limit must be out of reach."""
        self.steps.append(
            {
                name: p.grad.detach().clone()
                for name, p in given["model"].named_parameters()
                if p.grad is not None
            }
        )
