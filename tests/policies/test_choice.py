"""The choice policy: labels, tokens, gradients, precision, files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from choice_lanes import (
    CONTEXT,
    EXECUTORS,
    LABELS,
    NEWS,
    TASKS,
    CountingTokenizer,
    build,
    make_config,
    make_policy,
    make_script,
    play,
    save_checkpoint,
    score_episodes,
    stack,
    stack_masks,
    wake,
)

torch = pytest.importorskip("torch")
pytest.importorskip("peft", reason="the extra `text` is absent")

from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

from rlroute.policies.choice import (  # noqa: E402
    ChoiceModel,
    build_choice,
    load_choice,
    load_full_attention_model,
    save_choice,
)
from rlroute.policies.choice_tokens import (  # noqa: E402
    ChoiceEncoder,
    encode_episodes,
    find_labels,
    write_instructions,
)
from rlroute.policies.language_model import ValueHead  # noqa: E402
from rlroute.types import Conversations, RLRouteError  # noqa: E402


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("choice") / "model")


@pytest.fixture(scope="module")
def built(checkpoint: Path) -> tuple[ChoiceModel, ChoiceEncoder]:
    """A model whose value head says something, and its tokens; tests leave it as it is."""
    model, encoder = build(checkpoint, value_head=True)
    wake(model)
    return model, encoder


# --- Labels and instructions ----------------------------------------------------------------------


def test_labels_are_the_ids_in_capitals_where_their_first_tokens_differ(checkpoint: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    ids = ["small", "medium", "large"]
    assert find_labels(tokenizer, ids, None) == LABELS
    encoder = ChoiceEncoder(tokenizer, LABELS, "")
    assert tokenizer.decode(list(encoder.label_ids)) == "SML"


def test_labels_are_letters_where_the_ids_begin_alike(checkpoint: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    found = find_labels(tokenizer, ["gpt-small", "gpt-large"], None)
    assert found == {"gpt-small": "A", "gpt-large": "B"}
    with pytest.raises(RLRouteError, match="27 executors, and letters for 26"):
        find_labels(tokenizer, [f"m{k}" for k in range(27)], None)


def test_stated_labels_stand_in_the_order_of_the_executors(checkpoint: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    found = find_labels(tokenizer, ["a", "b"], {"b": "two", "a": "one"})
    assert list(found.items()) == [("a", "one"), ("b", "two")]
    with pytest.raises(RLRouteError, match="has labels for a, c; the executors are a, b"):
        find_labels(tokenizer, ["a", "b"], {"a": "one", "c": "two"})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("SMALL", "SMART"), "'SMALL' and 'SMART' begin with the same token"),
        (("", "B"), "no token"),
    ],
)
def test_labels_that_cannot_be_told_apart_are_refused(
    checkpoint: Path, words: tuple[str, str], message: str
) -> None:
    labels = {"small": words[0], "medium": words[1], "large": "LARGE"}
    with pytest.raises(RLRouteError, match=message):
        build(checkpoint, labels=labels)


def test_the_instructions_list_labels_and_prices() -> None:
    assert write_instructions("Choose.", EXECUTORS, LABELS) == (
        "Choose.\n"
        "USD per million tokens read / written:\n"
        "SMALL = small: 0.4 / 1.6\n"
        "MEDIUM = medium: 1 / 4\n"
        "LARGE = large: 2 / 8 + 0.001 a call\n"
    )


# --- The conversation as tokens -------------------------------------------------------------------


def test_every_text_is_tokenised_once_and_by_itself(
    built: tuple[ChoiceModel, ChoiceEncoder],
) -> None:
    model, known = built
    counting = CountingTokenizer(known.tokenizer)
    encoder = ChoiceEncoder(counting, LABELS, known.instructions)
    assert counting.texts == [*LABELS.values(), known.instructions]
    counting.texts.clear()
    policy = make_policy(model, encoder)
    play(policy, (3, 1))
    episodes = policy.read_episodes()
    texts = [f"\n{text}\n>" for _, here, _, _ in make_script((3, 1)) for text in here]
    assert counting.texts == texts
    assert episodes.position_BT.shape == (2, 3)


def test_an_episode_is_the_texts_with_the_chosen_labels_between_them(
    built: tuple[ChoiceModel, ChoiceEncoder],
) -> None:
    model, encoder = built
    policy = make_policy(model, encoder)
    decided = play(policy, (3, 1))
    episodes = policy.read_episodes()
    first, second = (decided[turn][1].action_B[0] for turn in (0, 1))
    text = encoder.tokenizer.decode(episodes.ids_BL[0, : episodes.length_B[0]].tolist())
    assert text == (
        f"{encoder.instructions}\n{TASKS[0]}\n>{'SML'[first]}\n{NEWS[1]}\n>{'SML'[second]}"
        f"\n{NEWS[2]}\n>"
    )
    mark = encoder.tokenizer.encode(">")
    for row, steps in enumerate((3, 1)):
        positions = episodes.position_BT[row]
        assert (positions[steps:] == -1).all()
        assert episodes.ids_BL[row, positions[:steps]].tolist() == mark * steps
        assert episodes.length_B[row] == positions[steps - 1] + 1
        assert not episodes.ids_BL[row, episodes.length_B[row] :].any()


def test_episodes_that_others_decided_have_the_tokens_of_those_that_were_played(
    built: tuple[ChoiceModel, ChoiceEncoder],
) -> None:
    model, encoder = built
    lengths = (3, 1, 4)
    policy = make_policy(model, encoder)
    decided = play(policy, lengths)
    texts: list[list[str]] = [[] for _ in lengths]
    actions: list[list[int]] = [[] for _ in lengths]
    for (lanes, here, _, _), (_, decisions) in zip(make_script(lengths), decided, strict=True):
        for lane, text, action in zip(lanes, here, decisions.action_B.tolist(), strict=True):
            texts[lane].append(text)
            actions[lane].append(action)
    played, encoded = policy.read_episodes(), encode_episodes(encoder, texts, actions, CONTEXT)
    for name in ("ids_BL", "length_B", "position_BT"):
        np.testing.assert_array_equal(getattr(played, name), getattr(encoded, name))
        assert getattr(encoded, name).dtype == np.int64


def test_an_episode_longer_than_the_context_is_refused(
    built: tuple[ChoiceModel, ChoiceEncoder], checkpoint: Path
) -> None:
    policy = make_policy(*built, context_tokens=200)
    with pytest.raises(RLRouteError, match=r"context_tokens: 200 are too few, .* at step [23];"):
        play(policy, (6,))
    with pytest.raises(RLRouteError, match=r"context_tokens: 513, and .* at most 512 tokens"):
        build(checkpoint, context_tokens=513)


# --- Gradients ------------------------------------------------------------------------------------


def test_gradient_flows_through_the_decisions_only(
    built: tuple[ChoiceModel, ChoiceEncoder],
) -> None:
    model, encoder = built
    episodes = encode_episodes(encoder, [["a", "b"], ["one step"]], [[0, 1], [2]], CONTEXT)
    hidden = []

    def keep(module: Any, arguments: Any, output: Any) -> None:
        output.last_hidden_state.retain_grad()
        hidden.append(output.last_hidden_state)

    hook = model.causal_model.base_model.register_forward_hook(keep)
    mask_BTK = torch.tensor([[[True] * 3] * 2, [[True] * 3, [False] * 3]])
    scores = score_episodes(model, episodes, mask_BTK)
    hook.remove()
    assert torch.isfinite(scores.logp_BK[3]).all()  # padding, whose mask allows nothing
    scores.logp_BK[:, 0].sum().backward()
    (hidden_BLH,) = hidden
    moved_BL = (hidden_BLH.grad != 0).any(dim=-1).numpy()
    expected_BL = np.zeros_like(moved_BL)
    for row, steps in enumerate((2, 1)):
        expected_BL[row, episodes.position_BT[row, :steps]] = True
    np.testing.assert_array_equal(moved_BL, expected_BL)
    for parameter in model.parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all()
    model.zero_grad(set_to_none=True)


def test_what_stands_beyond_an_episodes_end_changes_nothing(
    built: tuple[ChoiceModel, ChoiceEncoder],
) -> None:
    model, encoder = built
    episodes = encode_episodes(encoder, [["a", "b"], ["one step"]], [[0, 1], [2]], CONTEXT)
    mask_BTK = torch.ones(2, 2, 3, dtype=torch.bool)
    ids_BL = np.pad(episodes.ids_BL, ((0, 0), (0, 20)), constant_values=7)
    ids_BL[1, episodes.length_B[1] :] = 9
    changed = Conversations(ids_BL, episodes.length_B, episodes.position_BT)
    torch.testing.assert_close(
        score_episodes(model, changed, mask_BTK).logp_BK,
        score_episodes(model, episodes, mask_BTK).logp_BK,
        rtol=0,
        atol=0,
    )


def test_the_value_head_learns_without_moving_the_language_model(checkpoint: Path) -> None:
    model, encoder = build(checkpoint, value_head=True)
    episodes = encode_episodes(encoder, [["a", "b"]], [[0, 1]], CONTEXT)
    scores = score_episodes(model, episodes, torch.ones(1, 2, 3, dtype=torch.bool))
    assert (scores.value_B == 0).all()
    (scores.value_B - 1).square().sum().backward()
    moved = {name for name, one in model.named_parameters() if one.grad is not None}
    assert moved
    assert all(name.startswith("value_head.") for name in moved)


def test_there_is_no_value_without_a_value_head(checkpoint: Path) -> None:
    model, encoder = build(checkpoint)
    assert model.value_head is None
    (_, decisions), *_ = play(make_policy(model, encoder), (1, 1))
    assert (decisions.value_B == 0).all()


@pytest.mark.parametrize("lora", [None, {"rank": 4, "alpha": 8}], ids=["full", "lora"])
def test_gradient_steps_teach_which_label_follows_which_text(
    checkpoint: Path, lora: dict[str, int] | None
) -> None:
    model, encoder = build(checkpoint, lora=lora)
    learnt = [parameter for parameter in model.parameters() if parameter.requires_grad]
    adapters = [name for name, one in model.named_parameters() if one.requires_grad]
    if lora:
        assert all("lora_" in name for name in adapters)
        assert not any("lm_head" in name for name in adapters)
    optimiser = torch.optim.Adam(learnt, lr=3e-3)
    episodes = encode_episodes(encoder, [["go", "stop"], ["stop", "go"]], [[0, 2], [2, 0]], CONTEXT)
    mask_BTK = torch.ones(2, 2, 3, dtype=torch.bool)
    action_N = torch.tensor([0, 2, 2, 0])
    losses = []
    for _ in range(60):
        logp_NK = score_episodes(model, episodes, mask_BTK).logp_BK
        loss = -logp_NK.gather(1, action_N[:, None]).mean()
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert losses[-1] < 0.1 * losses[0]


def test_equal_seeds_draw_equal_adapters_and_leave_the_generator_alone(checkpoint: Path) -> None:
    config = make_config(checkpoint, lora={"rank": 4, "alpha": 8})
    state = torch.get_rng_state()
    drawn = []
    for seed in (0, 0, 1):
        model, _ = build_choice(config, EXECUTORS, value_head=True, seed=seed)
        assert torch.equal(torch.get_rng_state(), state)
        drawn.append(torch.cat([one.flatten() for one in model.parameters() if one.requires_grad]))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


# --- Precision ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lora", "frozen"), [(None, torch.float32), ({"rank": 4, "alpha": 8}, torch.bfloat16)]
)
def test_passes_in_bfloat16_train_float32_weights(
    checkpoint: Path, lora: dict[str, int] | None, frozen: torch.dtype
) -> None:
    model, encoder = build(checkpoint, value_head=True, precision="bfloat16", lora=lora)
    exact, _ = build(checkpoint)
    assert model.causal_model.get_input_embeddings().weight.dtype == frozen
    assert all(one.dtype == torch.float32 for one in model.parameters() if one.requires_grad)
    lengths = (3, 2)
    policy = make_policy(model, encoder)
    decided = play(policy, lengths)
    scores = score_episodes(model, policy.read_episodes(), stack_masks(lengths))
    assert scores.logits_BK.dtype == scores.value_B.dtype == torch.float32
    expected = score_episodes(exact, policy.read_episodes(), stack_masks(lengths))
    allowed_NK = stack_masks(lengths).flatten(0, 1)
    torch.testing.assert_close(
        scores.logp_BK[allowed_NK], expected.logp_BK[allowed_NK], rtol=0, atol=0.1
    )
    assert decided[0][1].logp_B.dtype == np.float32


# --- Files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("lora", [None, {"rank": 4, "alpha": 8}], ids=["full", "lora"])
def test_a_saved_policy_decides_as_it_did(
    checkpoint: Path, tmp_path: Path, lora: dict[str, int] | None
) -> None:
    model, encoder = build(checkpoint, value_head=True, lora=lora)
    generator = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    before = [parameter.clone() for parameter in model.parameters()]
    save_choice(tmp_path / "saved", model, encoder)
    assert all(map(torch.equal, before, model.parameters()))
    loaded, loaded_encoder = load_choice(tmp_path / "saved")
    assert loaded_encoder.labels == encoder.labels
    assert loaded_encoder.instructions == encoder.instructions
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    lengths = (3, 2, 4)
    one, other = (
        play(make_policy(*pair), lengths) for pair in ((model, encoder), (loaded, loaded_encoder))
    )
    np.testing.assert_array_equal(stack(one, 3, "action_B"), stack(other, 3, "action_B"))
    np.testing.assert_allclose(stack(one, 3, "logp_B"), stack(other, 3, "logp_B"), atol=1e-5)
    facts = json.loads((tmp_path / "saved" / "choice.json").read_text())
    assert facts == {
        "format_version": 1,
        "labels": LABELS,
        "instructions": encoder.instructions,
    }
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")  # an ordinary checkpoint
    assert not any("lora" in name for name, _ in plain.named_parameters())


def test_a_saved_policy_keeps_tied_weights(checkpoint: Path, tmp_path: Path) -> None:
    plain = AutoModelForCausalLM.from_pretrained(checkpoint)
    plain.config.tie_word_embeddings = True
    plain.tie_weights()
    plain.save_pretrained(tmp_path / "tied")
    AutoTokenizer.from_pretrained(checkpoint).save_pretrained(tmp_path / "tied")
    model, encoder = build(tmp_path / "tied", lora={"rank": 4, "alpha": 8})
    save_choice(tmp_path / "saved", model, encoder)
    loaded, _ = load_choice(tmp_path / "saved")
    head = loaded.causal_model.get_output_embeddings().weight
    assert head is loaded.causal_model.get_input_embeddings().weight
    assert torch.equal(head, model.causal_model.get_input_embeddings().weight)


def test_incomplete_and_unsuitable_folders_are_refused(
    checkpoint: Path, tmp_path: Path, built: tuple[ChoiceModel, ChoiceEncoder]
) -> None:
    with pytest.raises(RLRouteError, match=r"choice\.json: cannot be read"):
        load_choice(checkpoint)
    (tmp_path / "empty").mkdir()
    with pytest.raises(RLRouteError, match=r"policy\.model '.*empty': no tokenizer"):
        build(tmp_path / "empty")
    save_choice(tmp_path / "saved", *built)
    path = tmp_path / "saved" / "choice.json"
    path.write_text(path.read_text().replace('"format_version": 1', '"format_version": 2'))
    with pytest.raises(RLRouteError, match=r"choice\.json: format_version"):
        load_choice(tmp_path / "saved")
    facts = json.loads((checkpoint / "config.json").read_text())
    sliding = tmp_path / "sliding"
    sliding.mkdir()
    facts |= {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "sliding_window": 8}
    facts |= {"use_sliding_window": True, "max_window_layers": 1}
    (sliding / "config.json").write_text(json.dumps(facts))
    (sliding / "model.safetensors").write_bytes((checkpoint / "model.safetensors").read_bytes())
    with pytest.raises(RLRouteError, match="full_attention, sliding_attention"):
        load_full_attention_model(sliding, "float32")


def test_the_value_heads_weights_come_from_its_seed() -> None:
    one, same, other = ValueHead(8, 0), ValueHead(8, 0), ValueHead(8, 1)
    assert torch.equal(one.inner.weight, same.inner.weight)
    assert not torch.equal(one.inner.weight, other.inner.weight)
