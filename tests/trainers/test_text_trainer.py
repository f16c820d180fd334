"""What the loss of a text policy sees: policy tokens of whole episodes, and TRL's own loss."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from text_world import (
    DEAD_WORLD,
    KeepGradients,
    collect_batch,
    compute_gradients,
    find_policy_mask,
    find_warm_base,
    get_language_model,
    make_recipe,
    open_run,
)

torch = pytest.importorskip("torch")
pytest.importorskip("trl", reason="the extra `text` is absent")

from datasets import Dataset  # noqa: E402
from torch import Tensor  # noqa: E402
from trl import GRPOTrainer  # noqa: E402

from rlroute.policies.language_model import load_tokenizer  # noqa: E402
from rlroute.rollout.batching import flatten_tokens  # noqa: E402
from rlroute.tracking import read_metrics  # noqa: E402
from rlroute.trainers.text_arguments import make_arguments  # noqa: E402
from rlroute.trainers.text_model import KEY, load_model  # noqa: E402
from rlroute.trainers.text_run import TextRun  # noqa: E402

PPO = {"share_backbone": True, "kl_weight": 0.1, "entropy_weight": 0.01, "value_clip": 0.2}
GRPO = {"kl_weight": 0.1, "entropy_weight": 0.01}


class PlainHead:
    """Scores tokens as TRL's fused head does, through logits that keep their gradients.

    It takes the place of TRL's scoring: the same pass of the model (which a value head listens to),
    whose last hidden state goes through the plain lm_head.
    """

    def __init__(self, run: TextRun) -> None:
        self.trainer = run.trainer
        self.model = get_language_model(run.trainer)
        self.hook = self.model.base_model.register_forward_hook(self.keep_hidden)
        self.fused = run.trainer._get_per_token_logps_and_entropies
        self.hidden = self.logits = torch.zeros(0)

    def keep_hidden(self, module: Any, arguments: Any, output: Any) -> None:
        self.hidden = output.last_hidden_state
        self.hidden.retain_grad()

    def score(self, model: Any, ids: Tensor, mask: Tensor, length: int, **given: Any) -> Any:
        self.fused(model, ids, mask, length, **given)  # values come with this pass
        self.logits = self.model.lm_head(self.hidden) / self.trainer.temperature  # at all positions
        self.logits.retain_grad()
        logp_BTV = self.logits[:, :-1][:, -length:].log_softmax(-1)
        logp_BT = logp_BTV.gather(2, ids[:, -length:, None])[:, :, 0]
        self.trainer.last_logp_BT = logp_BT.detach()
        return logp_BT, -(logp_BTV.exp() * logp_BTV).sum(-1), None

    def backward(self, batch: dict[str, Any], *, fused: bool) -> tuple[float, Tensor, Tensor]:
        """Return the loss and its gradient in hidden states and (unless fused) in logits."""
        self.trainer._get_per_token_logps_and_entropies = self.fused if fused else self.score
        self.model.zero_grad()
        loss = self.trainer._compute_loss(self.trainer.model, dict(batch))
        loss.backward()
        gradient = None if fused else self.logits.grad
        return float(loss.detach()), self.hidden.grad, gradient


def mark_predicting(batch: dict[str, Any], mask_BT: Tensor) -> Tensor:
    """Return where logits predict a token of the mask, over prompt and completion [B, P + T]."""
    prompt = torch.zeros_like(batch["prompt_ids"], dtype=torch.bool)
    last = torch.zeros_like(mask_BT[:, :1])
    return torch.cat([prompt[:, 1:], mask_BT, last], dim=1)


def make_off_policy(run: TextRun) -> None:
    """Move the policy away from reference and sampler, and the value head away from 0."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in get_language_model(run.trainer).named_parameters():
            scale = 0.1 if name.startswith("value_head") else 0.01
            p.add_(torch.randn(p.shape, generator=generator) * scale)


@pytest.mark.parametrize("loss", ["token", "sequence"])
@pytest.mark.parametrize(("algorithm", "changes"), [("grpo", GRPO), ("ppo", PPO)])
def test_only_logits_that_predict_policy_tokens_of_whole_episodes_have_a_gradient(
    algorithm: str, changes: dict[str, Any], loss: str, tmp_path: Path
) -> None:
    recipe = make_recipe(algorithm, changes | {"loss": loss}, world=DEAD_WORLD)
    with open_run(recipe, tmp_path) as run:
        batch = collect_batch(run)
        make_off_policy(run)
        head = PlainHead(run)
        value, hidden, logits = head.backward(batch, fused=False)
        same_value, same_hidden, _ = head.backward(batch, fused=True)
        mask_BT = find_policy_mask(batch)
        failed_B = [item.failure is not None for item in run.trainer.collected.trajectories]
    assert value == pytest.approx(same_value, abs=1e-5)
    assert torch.allclose(hidden, same_hidden, atol=1e-5)
    assert 0 < sum(failed_B) < len(failed_B)
    assert not mask_BT[torch.tensor(failed_B)].any()
    predicting_BT = mark_predicting(batch, mask_BT)
    for gradient in (logits, hidden, same_hidden):
        assert (gradient[~predicting_BT] == 0).all()  # prompt, replies, padding, failed episodes
        assert (gradient[predicting_BT] != 0).any(dim=-1).all()
    environment = batch["completion_mask"].bool() & ~mask_BT
    assert environment[~torch.tensor(failed_B)].any()


@pytest.mark.parametrize("loss", ["token", "constant"])
@pytest.mark.parametrize(("algorithm", "changes"), [("grpo", GRPO), ("ppo", PPO)])
def test_what_a_failed_episode_holds_changes_nothing(
    algorithm: str, changes: dict[str, Any], loss: str, tmp_path: Path
) -> None:
    recipe = make_recipe(algorithm, changes | {"loss": loss}, world=DEAD_WORLD)
    with open_run(recipe, tmp_path) as run:
        batch = collect_batch(run)
        make_off_policy(run)
        failed = ~find_policy_mask(batch).any(dim=1)
        other = dict(batch)
        for name in ("completion_ids", "old_per_token_logps", "ref_per_token_logps", "return"):
            if name in batch:
                other[name] = batch[name].clone()
                other[name][failed] = torch.tensor(7).to(batch[name].dtype)
        plain_loss, plain = compute_gradients(run, batch)
        other_loss, gradients = compute_gradients(run, other)
    assert failed.any()
    assert not torch.equal(batch["completion_ids"], other["completion_ids"])
    assert other_loss == pytest.approx(plain_loss, abs=1e-7)
    assert all(torch.allclose(gradients[name], plain[name], atol=1e-7) for name in plain)
    assert any(gradient.abs().max() > 0 for gradient in plain.values())


@pytest.mark.parametrize(
    ("algorithm", "changes"),
    [
        ("grpo", {}),
        ("grpo", {"scale_by_std": False}),
        ("grpo", {"normalise_terms": True}),
        ("rloo", {}),
    ],
)
def test_dropped_members_leave_mean_and_std_of_their_group(
    algorithm: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    recipe = make_recipe(algorithm, changes, world=DEAD_WORLD)
    with open_run(recipe, tmp_path) as run:
        adv_NG = collect_batch(run)["advantages"].reshape(-1, 4)
        rewards = run.trainer.collected.rewards
        weights = run.trainer.reward.weigh(run.trainer.collected.cost_weight_N)
        terms = run.trainer.reward.cancel(rewards)
    reward_NG = rewards["reward"].reshape(-1, 4)
    compared = 0
    for n, reward_G in enumerate(reward_NG):
        kept = ~np.isnan(reward_G)
        assert (adv_NG[n][torch.tensor(~kept)] == 0).all()
        if kept.all() or kept.sum() < 2:
            continue
        compared += 1
        group = reward_G[kept].astype(np.float64)
        if algorithm == "rloo":
            expected = [r - np.delete(group, i).mean() for i, r in enumerate(group)]
        elif changes.get("normalise_terms"):
            expected = sum(
                weights[name].reshape(-1, 4)[n][kept] * standardise(value.reshape(-1, 4)[n][kept])
                for name, value in terms.items()
            )
        elif changes:
            expected = group - group.mean()
        else:
            expected = standardise(group)
        assert adv_NG[n][torch.tensor(kept)].tolist() == pytest.approx(list(expected), abs=1e-5)
    assert compared


def standardise(value_G: Any) -> Any:
    value_G = np.asarray(value_G, dtype=np.float64)
    return (value_G - value_G.mean()) / (value_G.std(ddof=1) + 1e-4)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_first_ratio_is_1(temperature: float, tmp_path: Path) -> None:
    rollout = {"temperature": temperature}
    with open_run(make_recipe(rollout=rollout), tmp_path) as run:
        batch = collect_batch(run)
        run.trainer.score_again(batch)
        mask_BT = find_policy_mask(batch)
        log_ratio_BT = batch["old_per_token_logps"] - batch["sampling_per_token_logps"]
        assert float((log_ratio_BT[mask_BT].exp() - 1).abs().max()) < 1e-5
        run.trainer._compute_loss(run.trainer.model, batch)
        assert run.trainer.update_metrics["mismatch/abs_diff"][0] < 1e-5
    assert mask_BT.sum() > 100


def test_rows_are_the_tokens_that_were_sampled_and_nothing_is_tokenised_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = {"max_calls": 2, "max_turns": 3}  # no context gets full
    with open_run(make_recipe(episode=limits), tmp_path) as run:
        tokenizer, encode = run.rollouts.tokenizer, run.rollouts.tokenizer.encode
        written: list[str] = []
        monkeypatch.setattr(
            type(tokenizer), "encode", lambda *a, **k: written.append(a[1]) or encode(*a[1:], **k)
        )
        monkeypatch.setattr(type(tokenizer), "__call__", refuse)
        batch = collect_batch(run)
        trajectories = run.trainer.collected.trajectories
    steps = [step for trajectory in trajectories for step in trajectory.transitions]
    assert sorted(written) == sorted(step.observation.text for step in steps)
    for row, trajectory in enumerate(trajectories):
        tokens = flatten_tokens(trajectory)
        length = len(tokens.completion_ids)
        assert batch["completion_ids"][row, :length].tolist() == list(tokens.completion_ids)
        assert batch["tool_mask"][row, :length].tolist() == list(tokens.policy_mask)


def refuse(*_: Any, **__: Any) -> Any:
    raise AssertionError("tokens of an episode are not tokenised again")


# --- TRL's own trainer on the same batch ----------------------------------------------------------


def run_both(
    recipe: Any, tmp_path: Path
) -> tuple[list[dict[str, Tensor]], list[dict[str, Tensor]], list[float], list[float]]:
    """Train one update with ours and with TRL's trainer on the same rows; gradients and losses."""
    rows: dict[str, Any] = {}
    ours, bare = KeepGradients(), KeepGradients()
    with open_run(recipe, tmp_path / "ours") as run:
        collect, report = run.trainer.collect, run.trainer.report

        def watch(prompts: list[str]) -> dict[str, Any]:
            rows.update(collect(prompts))
            torch.manual_seed(11)  # TRL shuffles the rows
            return rows

        run.trainer.collect = watch
        losses: list[float] = []
        run.trainer.report = lambda *given: (losses.append(given[1]["policy/loss"]), report(*given))
        run.trainer.add_callback(ours)
        run.train(resume=False)
        rewards = run.trainer.collected.rewards["reward"]

    def roll_out(prompts: list[str], trainer: Any) -> dict[str, Any]:
        torch.manual_seed(11)
        return rows

    trainer = GRPOTrainer(
        model=load_model(recipe.policy, find_warm_base(), value_head=False),
        reward_funcs=[
            lambda **_: [None if np.isnan(r) else float(r) for r in rewards],
        ],
        args=make_arguments(recipe, str(tmp_path / "bare"), 1, cpu=True),
        train_dataset=Dataset.from_dict({"prompt": [str(row) for row in range(64)]}),
        processing_class=load_tokenizer(find_warm_base(), KEY),
        rollout_func=roll_out,
        callbacks=[bare],
    )
    trainer.train()
    found = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return ours.steps, bare.steps, losses, found


@pytest.mark.parametrize(
    ("changes", "world"),
    [
        ({"micro_batch": 16}, {}),
        ({"micro_batch": 4}, {}),
        ({"micro_batch": 4, "minibatches": 2, "epochs": 2}, DEAD_WORLD),
        ({"micro_batch": 8, "loss": "sequence", "clip_range_high": 0.28}, DEAD_WORLD),
    ],
    ids=["one step", "four micro-steps", "four steps, failures", "sequence mean, failures"],
)
def test_with_our_extras_off_loss_and_gradients_equal_those_of_trl(
    changes: dict[str, Any], world: dict[str, Any], tmp_path: Path
) -> None:
    recipe = make_recipe(
        changes=changes,
        world=world,
        updates=1,
        optimiser={"learning_rate": 1e-3, "max_grad_norm": 1e9},
    )
    ours, bare, losses, bare_losses = run_both(recipe, tmp_path)
    assert len(ours) == len(bare) == recipe.algorithm.steps_per_update
    for own, other in zip(ours, bare, strict=True):
        assert set(own) == set(other)
        for name, gradient in own.items():
            assert float((gradient - other[name]).abs().max()) < 1e-6, name
    assert max(float(g.abs().max()) for g in ours[0].values()) > 1e-3
    assert np.mean(losses) == pytest.approx(np.mean(bare_losses), abs=1e-6)


# --- Several steps per update ---------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_each_epoch_goes_over_all_episodes_in_minibatches_with_the_old_log_probs(
    algorithm: str, tmp_path: Path
) -> None:
    changes = {"epochs": 2, "minibatches": 2, "micro_batch": 4}
    recipe = make_recipe(algorithm, changes, updates=2, validation={"every": 1, "questions": 2})
    seen: list[dict[str, Any]] = []
    folder = tmp_path / "run"
    with open_run(recipe, folder) as run:
        compute_loss = run.trainer._compute_loss

        def watch(model: Any, inputs: dict[str, Any]) -> Tensor:
            seen.append(inputs | {"step": run.trainer.state.global_step})
            return compute_loss(model, inputs)

        run.trainer._compute_loss = watch
        run.train(resume=False)
        assert run.trainer.state.global_step == 2 * 4
        assert run.trainer.update == run.state.update == 2
    assert [inputs["step"] for inputs in seen] == [step for step in range(8) for _ in range(2)]
    for update in range(2):
        first, second = (
            seen[8 * update + 4 * epoch : 8 * update + 4 * epoch + 4] for epoch in range(2)
        )
        assert list_rows(first) == list_rows(second)
        assert len(list_rows(first)) == 16
    for inputs in seen:
        mask_BT = find_policy_mask(inputs)
        difference = inputs["old_per_token_logps"] - inputs["sampling_per_token_logps"]
        assert float(difference[mask_BT].abs().max()) < 1e-5
    rows = read_metrics(folder)
    assert [row["step"] for row in rows] == [0, 1, 2]
    episodes = (folder / "trajectories.jsonl").read_text("utf-8").splitlines()
    versions = {(row["step"], row["policy_version"]) for row in map(json.loads, episodes)}
    assert versions == {(1, 0), (2, 1)}


def list_rows(parts: Sequence[dict[str, Any]]) -> list[list[int]]:
    """Return the rows of several micro-steps in one order, with their returns as a check."""
    return sorted(
        [*prompt, *completion]
        for part in parts
        for prompt, completion in zip(
            part["prompt_ids"].tolist(), part["completion_ids"].tolist(), strict=True
        )
    )
