"""The choice policy in rollouts: the cache of conversations, decisions of many lanes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from choice_lanes import (
    CONTEXT,
    TASKS,
    build,
    make_inputs,
    make_policy,
    make_script,
    play,
    save_checkpoint,
    score_episodes,
    stack,
    stack_masks,
    wake,
)
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
pytest.importorskip("peft", reason="the extra `text` is absent")

from rlroute.policies.choice import ChoiceModel  # noqa: E402
from rlroute.policies.choice_cache import count_shared  # noqa: E402
from rlroute.policies.choice_tokens import ChoiceEncoder, encode_episodes  # noqa: E402
from rlroute.types import RLRouteError  # noqa: E402


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("choice") / "model")


@pytest.fixture(scope="module")
def built(checkpoint: Path) -> tuple[ChoiceModel, ChoiceEncoder]:
    """A model whose value head says something, and its tokens; tests leave it as it is."""
    model, encoder = build(checkpoint, value_head=True)
    wake(model)
    return model, encoder


# --- One pass, many steps, with and without the cache ---------------------------------------------


@pytest.mark.parametrize("max_lanes", [64, 2])
@pytest.mark.parametrize("lora", [None, {"rank": 4, "alpha": 8}], ids=["full", "lora"])
def test_rollouts_with_and_without_the_cache_and_the_one_pass_agree(
    checkpoint: Path, lora: dict[str, int] | None, max_lanes: int
) -> None:
    model, encoder = build(checkpoint, value_head=True, lora=lora)
    wake(model)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.fill_(0.02)
    lengths = (5, 2, 7, 1)
    found = {}
    for reuse_prefix in (True, False):
        policy = make_policy(model, encoder, reuse_prefix=reuse_prefix, max_lanes=max_lanes)
        decided = play(policy, lengths)
        found[reuse_prefix] = (
            [stack(decided, 4, name) for name in ("action_B", "logp_B", "value_B")],
            policy.read_episodes(),
        )
    (action_BT, logp_BT, value_BT), episodes = found[True]
    (other_action_BT, other_logp_BT, other_value_BT), other_episodes = found[False]
    np.testing.assert_array_equal(action_BT, other_action_BT)
    np.testing.assert_array_equal(episodes.ids_BL, other_episodes.ids_BL)
    np.testing.assert_allclose(logp_BT, other_logp_BT, rtol=0, atol=1e-5)
    np.testing.assert_allclose(value_BT, other_value_BT, rtol=0, atol=1e-5)

    scores = score_episodes(model, episodes, stack_masks(lengths))
    valid_BT = np.isfinite(logp_BT)
    np.testing.assert_array_equal(valid_BT, episodes.position_BT >= 0)
    logp_BTK = scores.logp_BK.detach().numpy().reshape(*valid_BT.shape, -1)
    action_N = action_BT[valid_BT].astype(np.int64)
    once_N = np.take_along_axis(logp_BTK[valid_BT], action_N[:, None], axis=1)[:, 0]
    np.testing.assert_allclose(once_N, logp_BT[valid_BT], rtol=0, atol=1e-5)
    once_value_BT = scores.value_B.detach().numpy().reshape(valid_BT.shape)
    np.testing.assert_allclose(once_value_BT[valid_BT], value_BT[valid_BT], rtol=0, atol=1e-5)
    assert np.abs(value_BT[valid_BT]).max() > 0.01
    assert len(set(action_N.tolist())) == 3


@settings(max_examples=15)
@given(lengths=st.lists(st.integers(1, 4), min_size=1, max_size=5), max_lanes=st.integers(1, 5))
def test_a_lane_decides_the_same_alone_and_among_others(
    built: tuple[ChoiceModel, ChoiceEncoder], lengths: list[int], max_lanes: int
) -> None:
    policy = make_policy(*built, max_lanes=max_lanes)
    together = play(policy, tuple(lengths))
    for name in ("action_B", "logp_B"):
        together_BT = stack(together, len(lengths), name)
        for lane, length in enumerate(lengths):
            alone = play(make_policy(*built), tuple(lengths), only=lane)
            alone_T = stack(alone, len(lengths), name)[lane]
            np.testing.assert_allclose(together_BT[lane, :length], alone_T, rtol=0, atol=1e-5)


def test_the_order_of_the_lanes_changes_nothing(built: tuple[ChoiceModel, ChoiceEncoder]) -> None:
    policy = make_policy(*built)
    forward = play(policy, (3, 3, 3))
    policy.start(3)
    for turn, (lanes, texts, mask_BK, uniform_B) in enumerate(make_script((3, 3, 3))):
        order = [2, 0, 1] if turn % 2 else [1, 2, 0]
        decisions = policy.decide(
            make_inputs(
                [lanes[row] for row in order],
                [texts[row] for row in order],
                mask_BK[order],
                uniform_B[order],
            )
        )
        expected = forward[turn][1]
        np.testing.assert_array_equal(decisions.action_B, expected.action_B[order])
        np.testing.assert_allclose(decisions.logp_B, expected.logp_B[order], rtol=0, atol=1e-5)


def test_what_beginnings_share_is_read_once(built: tuple[ChoiceModel, ChoiceEncoder]) -> None:
    model, encoder = built
    rows = []
    hook = model.causal_model.base_model.register_forward_hook(
        lambda module, arguments, output: rows.append(tuple(output.last_hidden_state.shape[:2]))
    )
    policy = make_policy(model, encoder)
    policy.start(4)
    mask_BK = np.ones((4, 3))
    texts = [TASKS[0], TASKS[1], TASKS[0], TASKS[0]]
    first = policy.decide(make_inputs([0, 1, 2, 3], texts, mask_BK, [0.1, 0.2, 0.9, 0.5]))
    policy.decide(make_inputs([0, 1, 2, 3], ["ok"] * 4, mask_BK, [0.5] * 4))
    hook.remove()
    different = [encoder.encode_task(task) for task in TASKS[:2]]
    shared = count_shared(different)
    assert shared >= len(encoder.tokenizer.encode(encoder.instructions))
    longest = max(map(len, different))
    assert rows == [(1, shared), (2, longest - shared), (4, 1 + len(encoder.encode_news("ok")))]
    assert first.action_B[0] != first.action_B[2]  # equal beginnings, their own draws
    assert policy.read_episodes().length_B[0] == sum(width for _, width in rows)


@pytest.mark.parametrize(
    ("pieces", "count"),
    [([[1, 2, 3]], 0), ([[1, 2, 3], [1, 2, 4]], 2), ([[1, 2], [1, 2, 3]], 1), ([[5], [6, 1]], 0)],
)
def test_of_what_pieces_share_a_token_of_each_is_left(pieces: list[list[int]], count: int) -> None:
    assert count_shared(pieces) == count


def test_a_new_start_forgets_the_lanes_before(built: tuple[ChoiceModel, ChoiceEncoder]) -> None:
    policy = make_policy(*built)
    first = play(policy, (2, 3))
    again = play(policy, (2, 3))
    for (_, one), (_, other) in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.logp_B, other.logp_B)


def test_a_lane_that_was_left_out_has_ended(built: tuple[ChoiceModel, ChoiceEncoder]) -> None:
    policy = make_policy(*built)
    policy.start(2)
    mask_BK = np.ones((2, 3))
    policy.decide(make_inputs([0, 1], ["a", "b"], mask_BK, [0.1, 0.2]))
    policy.decide(make_inputs([1], ["c"], mask_BK[:1], [0.3]))
    with pytest.raises(ValueError, match="has ended"):
        policy.decide(make_inputs([0, 1], ["d", "e"], mask_BK, [0.1, 0.2]))


# --- Decisions ------------------------------------------------------------------------------------


def test_masked_labels_have_no_probability_and_the_rest_sums_to_one(
    built: tuple[ChoiceModel, ChoiceEncoder],
) -> None:
    model, encoder = built
    episodes = encode_episodes(encoder, [["a", "b", "c"]], [[0, 1, 2]], CONTEXT)
    mask_BTK = torch.tensor([[[True, False, True], [False, True, False], [True, True, True]]])
    probability_BK = score_episodes(model, episodes, mask_BTK).logp_BK.exp()
    assert (probability_BK[~mask_BTK[0]] == 0).all()
    assert (probability_BK[mask_BTK[0]] > 0).all()
    torch.testing.assert_close(probability_BK.sum(dim=1), torch.ones(3))
    assert probability_BK[1, 1] == 1  # a forced step


def test_a_masked_executor_is_never_chosen_and_a_forced_one_always(
    built: tuple[ChoiceModel, ChoiceEncoder],
) -> None:
    policy = make_policy(*built)
    policy.start(64)
    uniform_B = (np.arange(64) + 0.5) / 64
    mask_BK = np.tile([[True, False, True]], (64, 1))
    decisions = policy.decide(make_inputs(list(range(64)), ["a"] * 64, mask_BK, uniform_B))
    assert set(decisions.action_B.tolist()) == {0, 2}
    mask_BK = np.tile([[False, True, False]], (64, 1))
    decisions = policy.decide(make_inputs(list(range(64)), ["b"] * 64, mask_BK, uniform_B))
    assert (decisions.action_B == 1).all()
    assert (decisions.logp_B == 0).all()


def test_logits_are_the_language_models_own_at_the_labels(
    built: tuple[ChoiceModel, ChoiceEncoder],
) -> None:
    model, encoder = built
    episodes = encode_episodes(encoder, [["task", "more"]], [[0, 1]], CONTEXT)
    scores = score_episodes(model, episodes, torch.ones(1, 2, 3, dtype=torch.bool))
    logits_BLV = model.language_model(torch.as_tensor(episodes.ids_BL)).logits
    expected_TK = logits_BLV[0, episodes.position_BT[0]][:, list(encoder.label_ids)]
    torch.testing.assert_close(scores.logits_BK, expected_TK, rtol=0, atol=1e-5)


def test_greedy_takes_the_likeliest_whatever_is_drawn(
    built: tuple[ChoiceModel, ChoiceEncoder],
) -> None:
    model, encoder = built
    policy = make_policy(model, encoder, greedy=True)
    policy.start(2)
    mask_BK = np.ones((2, 3))
    decisions = policy.decide(make_inputs([0, 1], ["a", "a"], mask_BK, [0.0, 0.9999]))
    episodes = policy.read_episodes()
    scores = score_episodes(model, episodes, torch.ones(2, 1, 3, dtype=torch.bool))
    assert decisions.action_B.tolist() == scores.logits_BK.argmax(dim=1).tolist()
    assert decisions.action_B[0] == decisions.action_B[1]


def test_a_world_without_texts_and_a_lane_without_executors_are_refused(
    built: tuple[ChoiceModel, ChoiceEncoder],
) -> None:
    policy = make_policy(*built)
    policy.start(1)
    with pytest.raises(RLRouteError, match="this world has none"):
        policy.decide(make_inputs([0], [], np.ones((1, 3)), [0.5]))
    with pytest.raises(ValueError, match="no executor"):
        policy.decide(make_inputs([0], ["a"], np.zeros((1, 3)), [0.5]))


def test_weights_that_diverged_are_reported(checkpoint: Path) -> None:
    model, encoder = build(checkpoint)
    model.causal_model.get_output_embeddings().weight.data.fill_(torch.nan)
    policy = make_policy(model, encoder)
    policy.start(1)
    with pytest.raises(RLRouteError, match="not finite"):
        policy.decide(make_inputs([0], ["a"], np.ones((1, 3)), [0.5]))


@pytest.mark.parametrize("training", [True, False])
def test_reading_leaves_the_mode_and_the_gradients_alone(
    built: tuple[ChoiceModel, ChoiceEncoder], training: bool
) -> None:
    model, encoder = built
    model.train(training)
    policy = make_policy(model, encoder)
    with torch.inference_mode():
        inside = play(policy, (2,))
    outside = play(policy, (2,))
    assert model.training is model.causal_model.training is training
    assert torch.is_grad_enabled()
    np.testing.assert_array_equal(inside[1][1].logp_B, outside[1][1].logp_B)
    assert all(parameter.grad is None for parameter in model.parameters())
