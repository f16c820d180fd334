"""Importance weights in the trainer: 1 where sampler and trainer agree, else up to the cap."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from text_world import (
    DEAD_WORLD,
    collect_batch,
    compute_gradients,
    find_policy_mask,
    make_recipe,
    open_run,
)

torch = pytest.importorskip("torch")
pytest.importorskip("trl", reason="the extra `text` is absent")

from rlroute.tracking import read_metrics  # noqa: E402
from rlroute.trainers.text import RoutingTrainer  # noqa: E402

CAP = 1.5
ROLLOUT: dict[str, Any] = {
    "sampler": {"kind": "transformers"},
    "max_new_tokens": 24,
    "context_tokens": 192,
    "on_failure": "drop",
}


def make_corrected(algorithm: str, **correction: Any) -> Any:
    rollout = ROLLOUT | {"correction": {"cap": CAP} | correction}
    return make_recipe(algorithm, world=DEAD_WORLD, rollout=rollout)


@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_where_both_sides_agree_a_correction_changes_nothing(
    algorithm: str, tmp_path: Path
) -> None:
    found = []
    for name, recipe in (
        ("off", make_recipe(algorithm, world=DEAD_WORLD)),
        ("on", make_corrected(algorithm)),
    ):
        with open_run(recipe, tmp_path / name) as run:
            found.append(compute_gradients(run, collect_batch(run)))
            metrics = run.trainer.update_metrics
    assert metrics["mismatch/kept"] == [1.0]
    assert metrics["mismatch/abs_diff"][0] < 1e-5
    (loss, gradients), (other_loss, others) = found
    assert other_loss == pytest.approx(loss, abs=1e-5)
    for name, gradient in gradients.items():
        assert float((gradient - others[name]).abs().max()) < 1e-5, name


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("mode", ["truncate", "mask"])
@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_where_they_differ_each_advantage_carries_its_weight(
    algorithm: str, mode: str, level: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a sampler with other numbers: what it calls its log-probs are off by up to 0.1 per token
    score_again = RoutingTrainer.score_again

    def shift(trainer: RoutingTrainer, output: dict[str, Any]) -> None:
        score_again(trainer, output)
        logp_BT = output["sampling_per_token_logps"]
        noise_BT = torch.linspace(-0.6, 0.6, logp_BT.numel()).reshape(logp_BT.shape)
        output["sampling_per_token_logps"] = output["old_per_token_logps"] - noise_BT

    with open_run(make_corrected(algorithm, level=level, mode=mode), tmp_path) as run:
        trainer = run.trainer
        plain = collect_batch(run)["advantages"]
        monkeypatch.setattr(RoutingTrainer, "score_again", shift)
        batch = collect_batch(run)
    mask_BT = find_policy_mask(batch)
    log_ratio_BT = batch["old_per_token_logps"] - batch["sampling_per_token_logps"]
    log_ratio_BT = log_ratio_BT * mask_BT
    if level == "sequence":
        log_ratio_BT = log_ratio_BT.sum(dim=1, keepdim=True).expand_as(log_ratio_BT)
    ratio_BT = log_ratio_BT.exp()
    weight_BT = ratio_BT.clamp(max=CAP) if mode == "truncate" else ratio_BT * (ratio_BT <= CAP)
    expected_BT = plain * weight_BT
    difference_BT = (batch["advantages"] - expected_BT)[mask_BT]
    assert float(difference_BT.abs().max()) < 1e-4 * float(expected_BT.abs().max())
    assert trainer.update_metrics["mismatch/abs_diff"][-1] > 0.1
    assert trainer.update_metrics["mismatch/kept"][-1] < 1


def test_without_a_correction_no_token_is_reported_as_cut(tmp_path: Path) -> None:
    with open_run(make_recipe(updates=1), tmp_path) as run:
        run.train(resume=False)
    row = read_metrics(tmp_path)[1]
    assert row.get("mismatch/kept", 1.0) == 1.0
    assert row["mismatch/abs_diff"] < 1e-5
    assert row["mismatch/ratio_p95"] == pytest.approx(1, abs=1e-5)
