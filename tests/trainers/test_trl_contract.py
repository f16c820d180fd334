"""What RoutingTrainer relies on in TRL: private and experimental hooks, seen from a bare trainer.

When one of these fails after an update of TRL, `rlroute/trainers/text.py` has to follow.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from text_world import KeepGradients
from tiny_llama import save_tiny_llama

torch = pytest.importorskip("torch")
trl = pytest.importorskip("trl", reason="the extra `text` is absent")

from datasets import Dataset  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402
from trl import GRPOConfig, GRPOTrainer  # noqa: E402
from trl.models.utils import unwrap_model_for_generation  # noqa: E402

PROMPTS = ["zero", "one", "two", "three"]
GROUP = 2
ROWS = GROUP * len(PROMPTS)
# one row per prompt: 3 tokens of the prompt, then own, foreign, own
PROMPT_IDS = [[5 + row, 6, 7] for row in range(ROWS)]
COMPLETION_IDS = [[20 + row, 21, 22, 23 + row][: 3 + row % 2] for row in range(ROWS)]
ENV_MASK = [[1, 0, 1, 1][: 3 + row % 2] for row in range(ROWS)]
LOGPS = [[-1.0 - row, 0.0, -2.0, -0.5][: 3 + row % 2] for row in range(ROWS)]
REWARDS = [1.0, 0.0, 0.5, 0.5, None, 2.0, -1.0, 3.0]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("contract") / "tiny"
    save_tiny_llama(folder, initializer_range=0.2)
    return folder


def roll_out(prompts: list[str], trainer: Any) -> dict[str, Any]:
    """Return one fixed row per prompt that is received."""
    trainer.received = prompts
    return {
        "prompt_ids": PROMPT_IDS,
        "completion_ids": COMPLETION_IDS,
        "logprobs": LOGPS,
        "env_mask": ENV_MASK,
        "extra": list(range(len(prompts))),
    }


def score_rows(completion_ids: list[list[int]], extra: list[int], **_: Any) -> list[float | None]:
    """Return the reward of each row by the number that the rollout gave it."""
    assert completion_ids == COMPLETION_IDS
    return [REWARDS[row] for row in extra]


def make_trainer(
    base: Path, folder: Path, trainer_class: type = GRPOTrainer, **arguments: Any
) -> Any:
    stated = {
        "per_device_train_batch_size": ROWS,
        "steps_per_generation": 1,
        "gradient_accumulation_steps": 1,
        "num_generations": GROUP,
        "max_completion_length": 64,
        "max_steps": 2,
        "learning_rate": 1e-3,
        "max_grad_norm": 1e9,
        "bf16": False,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "disable_dropout": True,
        "remove_unused_columns": False,
    }
    trainer = trainer_class(
        model=AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
        reward_funcs=[score_rows],
        args=GRPOConfig(output_dir=str(folder), **(stated | arguments)),
        train_dataset=Dataset.from_dict({"prompt": PROMPTS}),
        processing_class=AutoTokenizer.from_pretrained(base, pad_token="</s>"),
        rollout_func=roll_out,
    )
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    return trainer


def collect(trainer: Any) -> dict[str, Any]:
    """Call the hook as TRL does, with each prompt as often as its group has members."""
    rows = [{"prompt": prompt} for prompt in PROMPTS for _ in range(GROUP)]
    found: dict[str, Any] = trainer._generate_and_score_completions(rows)
    return found


def list_parameters(function: Callable[..., Any]) -> list[str]:
    return list(inspect.signature(function).parameters)


def test_the_version_is_the_one_that_was_read() -> None:
    assert trl.__version__.split(".")[:2] == ["1", "16"]


def test_the_hooks_have_the_signatures_that_are_overridden() -> None:
    constructor = set(list_parameters(GRPOTrainer.__init__))
    assert {
        *("model", "reward_funcs", "args", "train_dataset", "processing_class", "callbacks"),
        *("peft_config", "rollout_func"),
    } <= constructor
    expected = {
        "_generate_and_score_completions": ["self", "inputs"],
        "_calculate_rewards": ["self", "inputs", "prompts", "completions", "completion_ids_list"],
        "_compute_loss": ["self", "model", "inputs"],
        "_get_train_sampler": ["self", "dataset"],
        "log": ["self", "logs", "start_time"],
        "create_optimizer": ["self", "model"],
    }
    for name, parameters in expected.items():
        assert list_parameters(getattr(GRPOTrainer, name)) == parameters, name
    scoring = list_parameters(GRPOTrainer._get_per_token_logps_and_entropies)
    assert scoring[:7] == [
        *("self", "model", "input_ids", "attention_mask", "logits_to_keep", "batch_size"),
        "compute_entropy",
    ]
    assert list_parameters(unwrap_model_for_generation)[:2] == ["model", "accelerator"]


def test_the_arguments_that_a_recipe_is_translated_into_exist() -> None:
    known = set(list_parameters(GRPOConfig.__init__))
    assert {
        *("max_steps", "per_device_train_batch_size", "gradient_accumulation_steps"),
        *("steps_per_generation", "num_generations", "num_iterations", "max_completion_length"),
        *("temperature", "beta", "epsilon", "epsilon_high", "entropy_coef", "loss_type"),
        *("scale_rewards", "warmup_steps", "bf16", "use_cpu", "disable_dropout", "data_seed"),
    } <= known


def test_a_rollout_gets_one_prompt_per_row_and_its_keys_reach_loss_and_reward(
    base: Path, tmp_path: Path
) -> None:
    trainer = make_trainer(base, tmp_path)
    found = collect(trainer)
    assert trainer.received == [prompt for prompt in PROMPTS for _ in range(GROUP)]
    assert found["prompt_ids"].tolist() == PROMPT_IDS
    for row in range(ROWS):
        length = len(COMPLETION_IDS[row])
        assert found["completion_ids"][row, :length].tolist() == COMPLETION_IDS[row]
        assert found["completion_mask"][row].tolist() == [1] * length + [0] * (4 - length)
        # env_mask is tool_mask; what stands behind the row is 1 there, and out by completion_mask
        assert found["tool_mask"][row].tolist() == ENV_MASK[row] + [1] * (4 - length)
        kept = found["sampling_per_token_logps"][row, :length]
        assert kept.tolist() == pytest.approx(LOGPS[row])
    assert int(found["num_items_in_batch"]) == sum(map(sum, ENV_MASK))
    assert found["advantages"].shape == (ROWS,)
    assert found["advantages"][4] == 0  # its reward is None
    assert {"prompt_mask", "completion_mask"} <= set(found)
    assert "old_per_token_logps" not in found  # generation and optimiser steps are aligned
    assert "ref_per_token_logps" not in found


def test_a_rollout_without_log_probs_is_refused(base: Path, tmp_path: Path) -> None:
    trainer = make_trainer(base, tmp_path)
    trainer.rollout_func = lambda prompts, _: {"prompt_ids": [], "completion_ids": []}
    with pytest.raises(ValueError, match="logprobs"):
        collect(trainer)


def test_old_and_reference_log_probs_come_where_they_are_needed(base: Path, tmp_path: Path) -> None:
    found = collect(make_trainer(base, tmp_path, beta=0.1, num_iterations=2))
    assert found["old_per_token_logps"].shape == (ROWS, 4)
    # the reference is the checkpoint that the model was loaded from
    difference = found["old_per_token_logps"] - found["ref_per_token_logps"]
    assert float(difference.abs().max()) < 1e-5


def test_undefined_rewards_leave_the_mean_of_their_group(base: Path, tmp_path: Path) -> None:
    trainer = make_trainer(base, tmp_path)
    rows = [{"prompt": str(row), "extra": row} for row in range(ROWS)]
    rewards = trainer._calculate_rewards(rows, ["x"] * ROWS, ["y"] * ROWS, COMPLETION_IDS)
    assert rewards.shape == (ROWS, 1)
    assert rewards[4].isnan().all()


@pytest.mark.parametrize("loss_type", ["dapo", "grpo", "dr_grpo"])
def test_the_loss_takes_advantages_per_token(loss_type: str, base: Path, tmp_path: Path) -> None:
    trainer = make_trainer(base, tmp_path, loss_type=loss_type)
    found = collect(trainer)
    plain = trainer._compute_loss(trainer.model, dict(found))
    spread = found["advantages"][:, None].expand(-1, 4)
    same = trainer._compute_loss(trainer.model, found | {"advantages": spread})
    assert same.item() == pytest.approx(plain.item(), abs=1e-7)
    doubled = spread.clone()
    doubled[:, 0] *= 2
    other = trainer._compute_loss(trainer.model, found | {"advantages": doubled})
    foreign = spread.clone()
    foreign[:, 1] = 1e3  # tokens of the environment
    masked = trainer._compute_loss(trainer.model, found | {"advantages": foreign})
    gradient = torch.autograd.grad(other - same, trainer.model.lm_head.weight)[0]
    assert float(gradient.abs().max()) > 0
    assert masked.item() == pytest.approx(plain.item(), abs=1e-7)


def test_per_token_inputs_follow_their_rows_through_shuffle_and_split(
    base: Path, tmp_path: Path
) -> None:
    seen: list[dict[str, Any]] = []

    class Watching(GRPOTrainer):  # type: ignore[misc]
        def _generate_and_score_completions(self, inputs: Any) -> Any:
            output = super()._generate_and_score_completions(inputs)
            output["advantages"] = output["completion_ids"] * 0.01
            output["own"] = output["completion_ids"].float()
            return output

        def _compute_loss(self, model: Any, inputs: Any) -> Any:
            seen.append(inputs | {"step": self.state.global_step})
            return super()._compute_loss(model, inputs)

    trainer = make_trainer(
        base,
        tmp_path,
        Watching,
        per_device_train_batch_size=2,
        steps_per_generation=4,
        gradient_accumulation_steps=2,
        num_iterations=2,
        max_steps=4,
    )
    watcher = KeepGradients()
    trainer.add_callback(watcher)
    trainer.train()
    # 4 micro-steps over the rows, twice; an optimiser step after every second one
    assert [step["step"] for step in seen] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert len(watcher.steps) == 4
    for step in seen:
        assert torch.equal(step["own"], step["completion_ids"].float())
        assert torch.equal(step["advantages"], step["completion_ids"] * 0.01)
        assert step["old_per_token_logps"].shape == (2, 4)
        assert step["num_items_in_batch"].dim() == 0
    for half in (seen[:4], seen[4:]):
        firsts = sorted(row[0] for step in half for row in step["completion_ids"].tolist())
        assert firsts == [row[0] for row in COMPLETION_IDS]


def test_the_log_hook_gets_the_metrics_that_are_renamed(base: Path, tmp_path: Path) -> None:
    told: list[dict[str, float]] = []

    class Telling(GRPOTrainer):  # type: ignore[misc]
        def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
            told.append(dict(logs) | {"metrics": dict(self._metrics["train"])})
            super().log(logs, start_time)

    make_trainer(base, tmp_path, Telling, beta=0.1).train()
    steps = [row for row in told if "loss" in row]
    assert len(steps) == 2
    assert {"loss", "grad_norm", "learning_rate"} <= set(steps[0])
    assert {"entropy", "kl", "clip_ratio/region_mean"} <= set(steps[0]["metrics"])
    assert "loss" not in told[-1]  # the summary at the end


def test_the_pass_that_scores_goes_through_the_models_forward_with_a_flag(
    base: Path, tmp_path: Path
) -> None:
    # the value head is computed in this pass, from the backbone's last hidden state
    trainer = make_trainer(base, tmp_path)
    model = trainer.model
    forward, flags = model.forward, []

    def watch(*args: Any, **kwargs: Any) -> Any:
        flags.append(kwargs.get("fused_lm_head", False))
        return forward(*args, **kwargs)

    model.forward = watch
    hidden: list[Any] = []
    model.base_model.register_forward_hook(lambda *a: hidden.append(a[2].last_hidden_state))
    ids = torch.tensor([[5, 6, 7, 20, 21, 22]])
    logp_BT, entropy_BT, _ = trainer._get_per_token_logps_and_entropies(
        model, ids, torch.ones_like(ids), 3, compute_entropy=True
    )
    assert flags == [True]
    assert hidden[0].shape[:2] == (1, 6)
    logits = model.lm_head(hidden[0])[:, 2:5].log_softmax(-1)
    expected = logits.gather(2, ids[:, 3:, None])[:, :, 0]
    assert torch.allclose(logp_BT, expected, atol=1e-5)
    assert torch.allclose(entropy_BT, -(logits.exp() * logits).sum(-1), atol=1e-4)


def test_the_model_is_opened_for_generation(base: Path, tmp_path: Path) -> None:
    trainer = make_trainer(base, tmp_path)
    with (
        unwrap_model_for_generation(trainer.model_wrapped, trainer.accelerator) as model,
        trainer._dist.summon_full_params(trainer.model_wrapped, recurse=False),
    ):
        assert model is trainer.model
