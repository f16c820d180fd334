"""PPO on text: advantages over the policy's tokens alone, the value head, the KL's two places."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from text_world import (
    REFERENCE_USD,
    collect_batch,
    compute_gradients,
    find_policy_mask,
    get_language_model,
    make_recipe,
    open_run,
)

torch = pytest.importorskip("torch")
pytest.importorskip("trl", reason="the extra `text` is absent")

from torch import Tensor  # noqa: E402

from rlroute.tracking import read_metrics  # noqa: E402
from rlroute.trainers.text_run import TextRun  # noqa: E402
from rlroute.types import RLRouteError  # noqa: E402

DISCOUNT, LAMBDA = 0.9, 0.8
GAE: dict[str, Any] = {
    "discount": DISCOUNT,
    "gae_lambda": LAMBDA,
    "normalise_advantages": False,
}


@pytest.fixture(scope="module")
def ppo_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TextRun]:
    """A run of PPO with its defaults, for tests of single methods."""
    with open_run(make_recipe("ppo"), tmp_path_factory.mktemp("ppo")) as run:
        yield run


def compute_compact_gae(reward: list[float], value: list[float]) -> list[float]:
    """Return GAE by its definition over a sequence without holes that ends."""
    adv = [0.0] * len(reward)
    for t in reversed(range(len(reward))):
        following = value[t + 1] if t + 1 < len(value) else 0.0
        later = adv[t + 1] if t + 1 < len(adv) else 0.0
        adv[t] = reward[t] + DISCOUNT * following - value[t] + DISCOUNT * LAMBDA * later
    return adv


def shake_value_head(run: TextRun) -> None:
    """Make values differ from token to token; they start at 0."""
    with torch.no_grad():
        outer = get_language_model(run.trainer).value_head.outer
        outer.weight.copy_(torch.linspace(-1, 1, outer.weight.numel())[None])


def test_a_mask_of_1_0_1_gives_the_advantages_of_two_neighbours(tmp_path: Path) -> None:
    with open_run(make_recipe("ppo", GAE), tmp_path) as run:
        run.trainer.collected.rewards = {"reward": np.array([2.0, np.nan], np.float32)}
        output = {"old_value": torch.tensor([[0.5, 9.0, 0.3, 7.0], [1.0, 1.0, 1.0, 1.0]])}
        mask_BT = torch.tensor([[1, 0, 1, 0], [0, 0, 0, 0]]).bool()
        adv_BT = run.trainer.compute_value_advantages(run.recipe.algorithm, output, mask_BT)
    expected = compute_compact_gae([0.0, 2.0], [0.5, 0.3])
    assert adv_BT[0].tolist() == pytest.approx([expected[0], 0, expected[1], 0])
    assert output["return"][0, 2].item() == pytest.approx(2.0)
    assert adv_BT[1].tolist() == [0.0] * 4  # the reward of a failed episode is undefined


def test_advantages_of_whole_episodes_equal_those_of_their_policy_tokens(tmp_path: Path) -> None:
    with open_run(make_recipe("ppo", GAE), tmp_path) as run:
        shake_value_head(run)
        batch = collect_batch(run)
        reward_B = run.trainer.collected.rewards["reward"]
    mask_BT = find_policy_mask(batch)
    assert batch["old_value"][mask_BT].std() > 0.01
    for row, own in enumerate(mask_BT):
        value = batch["old_value"][row][own].tolist()
        reward = [0.0] * (len(value) - 1) + [float(reward_B[row])]  # on the last policy token
        expected = compute_compact_gae(reward, value)
        assert batch["advantages"][row][own].tolist() == pytest.approx(expected, abs=1e-5)
        assert (batch["advantages"][row][~own] == 0).all()
        returns = [a + v for a, v in zip(expected, value, strict=True)]
        assert batch["return"][row][own].tolist() == pytest.approx(returns, abs=1e-5)


def test_normalised_advantages_have_mean_0_and_std_1_over_policy_tokens(tmp_path: Path) -> None:
    with open_run(make_recipe("ppo"), tmp_path) as run:
        batch = collect_batch(run)
    own = batch["advantages"][find_policy_mask(batch)]
    assert own.mean().item() == pytest.approx(0, abs=1e-5)
    assert own.std(unbiased=False).item() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("reward", [0.7, 0.99188, 0.8788])
def test_equal_rewards_give_no_advantage_by_rounding(reward: float, ppo_run: TextRun) -> None:
    trainer, algorithm = ppo_run.trainer, ppo_run.recipe.algorithm
    trainer.collected.rewards = {"reward": np.full(10, reward, np.float32)}
    for tokens in (100, 300, 500):
        trainer.update_metrics.clear()
        mask_BT = torch.ones(10, tokens, dtype=torch.bool)
        output = {"old_value": torch.zeros(mask_BT.shape)}
        adv_BT = trainer.compute_value_advantages(algorithm, output, mask_BT)
        assert float(adv_BT.abs().max()) < 0.1
        assert "policy/explained_variance" not in trainer.update_metrics  # there is no variance


def test_the_value_of_a_token_is_read_before_the_token(tmp_path: Path) -> None:
    with open_run(make_recipe("ppo"), tmp_path) as run:
        shake_value_head(run)
        batch = collect_batch(run)
        model = get_language_model(run.trainer)
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
        mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
        with torch.no_grad():
            hidden = model.base_model(input_ids=ids, attention_mask=mask).last_hidden_state
            value = model.value_head(hidden)
    first = batch["prompt_ids"].size(1)
    expected = value[:, first - 1 : -1]
    difference = (batch["old_value"] - expected)[batch["completion_mask"].bool()]
    assert float(difference.abs().max()) < 1e-5


# --- The KL to the reference ----------------------------------------------------------------------


def collect_away_from_reference(run: TextRun) -> dict[str, Any]:
    """Return a batch of a policy that is not its reference any more."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in run.trainer.model.named_parameters():
            if "value_head" not in name:
                p.add_(torch.randn(p.shape, generator=generator) * 0.01)
    return collect_batch(run)


def test_kl_in_reward_moves_the_kl_from_the_loss_into_the_reward(tmp_path: Path) -> None:
    weight = 0.3
    found: dict[bool, tuple[dict[str, Any], float, float]] = {}
    for inside in (False, True):
        changes = {"kl_weight": weight, "kl_in_reward": inside, "value_weight": 0.0}
        plain = {"discount": 1.0, "gae_lambda": 1.0, "normalise_advantages": False}
        recipe = make_recipe("ppo", changes | plain)
        with open_run(recipe, tmp_path / str(inside)) as run:
            batch = collect_away_from_reference(run)
            reward_B = torch.as_tensor(run.trainer.collected.rewards["reward"])
            moved = batch | {"ref_per_token_logps": batch["ref_per_token_logps"] - 1.0}
            losses = [compute_gradients(run, b)[0] for b in (batch, moved)]
            found[inside] = (batch, *losses)
            assert run.trainer.beta == weight  # the reference stays in use
    batch, loss, moved_loss = found[True]
    assert loss == pytest.approx(moved_loss, abs=1e-7)  # no KL in the loss
    mask_BT = find_policy_mask(batch)
    log_ratio_BT = (batch["old_per_token_logps"] - batch["ref_per_token_logps"]) * mask_BT
    assert float(log_ratio_BT.abs().max()) > 0.1
    # with discount and lambda 1 and values of 0 the advantage is all reward that is to come
    charged_BT = -weight * log_ratio_BT
    to_come_BT = charged_BT.flip(1).cumsum(1).flip(1) + reward_B[:, None]
    assert torch.allclose(batch["advantages"][mask_BT], to_come_BT[mask_BT], atol=1e-4)
    outside, loss, moved_loss = found[False]
    assert abs(loss - moved_loss) > 0.01
    assert torch.allclose(
        outside["advantages"][mask_BT], reward_B[:, None].expand_as(mask_BT)[mask_BT], atol=1e-5
    )


@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_the_kl_to_the_reference_is_0_at_first_and_grows(algorithm: str, tmp_path: Path) -> None:
    changes = {"kl_weight": 1e-3}
    recipe = make_recipe(algorithm, changes, updates=3, optimiser={"learning_rate": 1e-2})
    with open_run(recipe, tmp_path) as run:
        run.train(resume=False)
    kl = [row["policy/kl_ref"] for row in read_metrics(tmp_path)[1:]]
    assert kl[0] == pytest.approx(0, abs=1e-6)
    assert min(kl[1:]) > 1e-3


def test_the_kl_in_the_reward_needs_a_weight_and_is_reported(tmp_path: Path) -> None:
    with pytest.raises(RLRouteError, match="kl_weight"):
        make_recipe("ppo", {"kl_in_reward": True})
    recipe = make_recipe("ppo", {"kl_in_reward": True, "kl_weight": 0.01}, updates=1)
    with open_run(recipe, tmp_path) as run:
        run.train(resume=False)
    assert read_metrics(tmp_path)[1]["policy/kl_ref"] == pytest.approx(0, abs=1e-6)


# --- The value head -------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [False, True])
def test_the_value_loss_reaches_the_backbone_only_where_it_is_shared(
    shared: bool, tmp_path: Path
) -> None:
    with open_run(make_recipe("ppo", {"share_backbone": shared}), tmp_path) as run:
        shake_value_head(run)
        batch = collect_batch(run)
        batch["advantages"] = torch.zeros_like(batch["advantages"])  # leaves the value loss alone
        _, gradients = compute_gradients(run, batch)
    reached = {name: bool(gradient.abs().max() > 0) for name, gradient in gradients.items()}
    assert all(reached[name] for name in reached if "value_head" in name)
    backbone = [reached[name] for name in reached if "value_head" not in name]
    assert all(backbone) if shared else not any(backbone)


@pytest.mark.parametrize("minibatches", [1, 2])
def test_a_value_loss_is_a_mean_over_the_tokens_of_an_optimiser_step(
    minibatches: int, tmp_path: Path
) -> None:
    changes = {
        "micro_batch": 4,
        "minibatches": minibatches,
        "value_weight": 0.5,
        "value_clip": 0.1,
    }
    with open_run(make_recipe("ppo", changes), tmp_path) as run:
        shake_value_head(run)
        batch = collect_batch(run)
        batch["advantages"] = torch.zeros_like(batch["advantages"])
        with torch.no_grad():
            get_language_model(run.trainer).value_head.outer.bias += 0.5
        total = 0.0
        for start in range(0, 16, 4):
            part = {
                name: value[start : start + 4] if value.dim() else value
                for name, value in batch.items()
            }
            total += compute_gradients(run, part)[0]
    mask_BT = find_policy_mask(batch)
    old, returns = batch["old_value"][mask_BT], batch["return"][mask_BT]
    squares = torch.max((old + 0.5 - returns) ** 2, (old + 0.1 - returns) ** 2)
    # a minibatch counts its share of the update's tokens, whatever it holds of them
    assert total == pytest.approx(minibatches * 0.5 * 0.5 * squares.mean().item(), rel=1e-4)


@pytest.mark.slow
def test_the_value_head_learns_a_return_that_can_be_foreseen(tmp_path: Path) -> None:
    # only what was spent counts, and who is asked can be read; the policy stands still
    recipe = make_recipe(
        "ppo",
        {"episodes": 32, "micro_batch": 32, "epochs": 6, "value_learning_rate": 3e-2},
        updates=8,
        optimiser={"learning_rate": 1e-9},
        reward={
            "combination": "additive",
            "normaliser": {"kind": "fixed", "reference_usd": REFERENCE_USD},
        },
        episode={"cost_weights": [1.0]},
    )
    with open_run(recipe, tmp_path) as run:
        run.train(resume=False)
    explained = [row["policy/explained_variance"] for row in read_metrics(tmp_path)[1:]]
    assert explained[0] == pytest.approx(0, abs=1e-4)
    assert np.mean(explained[-2:]) > 0.2


def test_the_value_head_has_its_own_learning_rate(tmp_path: Path) -> None:
    changes = {"value_learning_rate": 0.25}
    with open_run(make_recipe("ppo", changes), tmp_path) as run:
        optimizer = run.trainer.create_optimizer()
        assert run.trainer.create_optimizer() is optimizer
        named = {id(p): name for name, p in run.trainer.model.named_parameters()}
        rates: dict[str, float] = {}
        for group in optimizer.param_groups:
            for p in group["params"]:
                assert named[id(p)] not in rates
                rates[named[id(p)]] = group["lr"]
    assert set(rates) == set(named.values())
    assert {name for name, lr in rates.items() if lr == 0.25} == {
        f"value_head.{layer}.{kind}" for layer in ("inner", "outer") for kind in ("weight", "bias")
    }
    assert {lr for name, lr in rates.items() if "value_head" not in name} == {1e-3}


def test_the_scheduler_moves_both_learning_rates(tmp_path: Path) -> None:
    recipe = make_recipe(
        "ppo",
        {"value_learning_rate": 0.25},
        updates=2,
        optimiser={"learning_rate": 1e-3, "decay": "linear"},
    )
    with open_run(recipe, tmp_path) as run:
        run.train(resume=False)
        rates = {group["lr"] for group in run.trainer.optimizer.param_groups}
    assert rates == {0.0}


def test_no_value_is_left_over_between_passes(tmp_path: Path) -> None:
    changes = {"kl_weight": 0.1, "epochs": 2, "minibatches": 2, "micro_batch": 4}
    with open_run(make_recipe("ppo", changes, updates=2), tmp_path) as run:
        sizes: list[tuple[int, int]] = []
        take = run.trainer.capture.take

        def watch() -> Tensor:
            value = take()
            sizes.append(tuple(value.shape))
            return value

        run.trainer.capture.take = watch
        run.train(resume=False)
        assert not run.trainer.capture.values
    assert [rows for rows, _ in sizes] == [16, *[4] * 8] * 2
