"""The model of a text policy: made here or loaded, under adapters, with a value head, and saved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from text_world import find_warm_base, get_language_model, make_recipe, open_run
from tiny_llama import save_tiny_llama

torch = pytest.importorskip("torch")
pytest.importorskip("trl", reason="the extra `text` is absent")

from peft import get_peft_model  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

from rlroute.config import parse_config  # noqa: E402
from rlroute.parsing import STOP_STRINGS  # noqa: E402
from rlroute.policies.language_model import LoraConfig, ValueHead, load_tokenizer  # noqa: E402
from rlroute.rollout.samplers.base import decode_ids  # noqa: E402
from rlroute.trainers.text_model import (  # noqa: E402
    KEY,
    ValueCapture,
    load_model,
    make_lora,
    make_new_model,
)
from rlroute.trainers.text_recipe import NewModelConfig, TextPolicyConfig  # noqa: E402
from rlroute.trainers.text_run import BEST_FOLDER, TRAINER_FOLDER  # noqa: E402
from rlroute.types import RLRouteError  # noqa: E402

LORA = {"rank": 4, "alpha": 8}
TEXTS = (
    "Question: Who is the boss of Ada?",
    "<think>boss</think><search>alpha:boss of Ada</search>",
)


def make_policy(model: Path | str, **changes: Any) -> TextPolicyConfig:
    stated = {"base": {"kind": "pretrained", "model": str(model)}, "precision": "float32"}
    return parse_config(TextPolicyConfig, stated | changes, "policy")


@pytest.fixture(scope="module")
def new_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("new") / "model"
    config = NewModelConfig(kind="new", hidden=16, layers=1, heads=2, vocabulary=320)
    make_new_model(config, TEXTS, folder, context=64, seed=0)
    return folder


# --- Made and loaded ------------------------------------------------------------------------------


def test_a_new_model_is_a_checkpoint_whose_tags_are_single_tokens(new_model: Path) -> None:
    tokenizer = load_tokenizer(new_model, KEY)
    for name in ("think", "search", "answer", "information"):
        for tag in (f"<{name}>", f"</{name}>"):
            assert len(tokenizer.encode(tag, add_special_tokens=False)) == 1
    text = f"{TEXTS[1]}\n<information>Größe 3 €</information>\n"
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert decode_ids(tokenizer, ids) == text  # tags are no special tokens, nothing is lost
    assert len(tokenizer) <= 320
    assert tokenizer.padding_side == "left"
    assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)
    model = load_model(make_policy(new_model), new_model, value_head=False)
    assert model.config.max_position_embeddings == 64
    assert model.get_input_embeddings().weight.shape[0] == len(tokenizer)
    assert all(decode_ids(tokenizer, tokenizer.encode(stop)) for stop in STOP_STRINGS)


def test_equal_seeds_make_equal_models_and_leave_the_generator_alone(
    new_model: Path, tmp_path: Path
) -> None:
    config = NewModelConfig(kind="new", hidden=16, layers=1, heads=2, vocabulary=320)
    state = torch.get_rng_state()
    for name, seed in (("same", 0), ("other", 1)):
        make_new_model(config, TEXTS, tmp_path / name, context=64, seed=seed)
    assert torch.equal(torch.get_rng_state(), state)
    weights = [
        (folder / "model.safetensors").read_bytes()
        for folder in (new_model, tmp_path / "same", tmp_path / "other")
    ]
    assert weights[0] == weights[1] != weights[2]


def test_what_is_no_checkpoint_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(RLRouteError, match=r"policy\.base\.model .* cannot be loaded"):
        load_model(make_policy(tmp_path), tmp_path, value_head=False)
    with pytest.raises(RLRouteError, match=r"policy\.base\.model .* no tokenizer"):
        load_tokenizer(tmp_path, KEY)


def test_a_tokenizer_without_padding_pads_with_end_of_text(tmp_path: Path) -> None:
    save_tiny_llama(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).pad_token is None
    tokenizer = load_tokenizer(tmp_path, KEY)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id


@pytest.mark.parametrize(
    ("precision", "lora", "expected"),
    [
        ("float32", None, torch.float32),
        ("bfloat16", None, torch.float32),  # small steps would be lost in bfloat16
        ("bfloat16", LORA, torch.bfloat16),  # frozen under adapters
    ],
)
def test_trained_weights_are_float32_and_frozen_ones_take_the_precision(
    precision: str, lora: dict[str, int] | None, expected: Any, new_model: Path
) -> None:
    policy = make_policy(new_model, precision=precision, lora=lora)
    model = load_model(policy, new_model, value_head=True)
    assert {p.dtype for name, p in model.named_parameters() if "value_head" not in name} == {
        expected
    }
    assert {p.dtype for p in model.value_head.parameters()} == {torch.float32}


def test_adapters_and_the_value_head_are_float32_on_a_frozen_bfloat16(new_model: Path) -> None:
    policy = make_policy(new_model, precision="bfloat16", lora=LORA)
    model = load_model(policy, new_model, value_head=True)
    model = get_peft_model(model, make_lora(policy.lora, value_head=True))
    found = {(p.requires_grad, p.dtype) for p in model.parameters()}
    # PEFT keeps an untouched copy of what it saves whole, the value head
    assert found <= {(True, torch.float32), (False, torch.bfloat16), (False, torch.float32)}
    assert {dtype for trained, dtype in found if trained} == {torch.float32}
    assert {p.dtype for name, p in model.named_parameters() if "base_layer" in name} == {
        torch.bfloat16
    }


def test_a_value_head_starts_at_zero_and_reads_any_precision() -> None:
    head = ValueHead(8, seed=0)
    value = head(torch.randn(3, 5, 8, dtype=torch.bfloat16))
    assert value.shape == (3, 5)
    assert value.dtype == torch.float32
    assert (value == 0).all()


def test_a_capture_listens_to_scoring_passes_only(new_model: Path) -> None:
    from trl.trainer.utils import add_fused_lm_head

    model = load_model(make_policy(new_model), new_model, value_head=True)
    plain = model(input_ids=torch.tensor([[5, 6, 7]])).logits
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    capture = ValueCapture(model, share_backbone=False)
    ids = torch.tensor([[5, 6, 7], [8, 9, 10]])
    assert torch.equal(model(input_ids=ids[:1]).logits, plain)
    assert not capture.values
    output = model(input_ids=ids, labels=ids, fused_lm_head=True)
    assert output.log_probs.shape == (2, 2)
    assert capture.take().shape == (2, 2)
    assert not capture.values


def test_no_adapters_are_made_where_none_are_asked_for() -> None:
    assert make_lora(None, value_head=True) is None
    found = make_lora(LoraConfig(rank=4, alpha=8), value_head=True)
    assert found.modules_to_save == ["value_head"]
    assert (found.r, found.lora_alpha) == (4, 8)


# --- Trained and saved ----------------------------------------------------------------------------


def run_one_update(algorithm: str, lora: dict[str, int] | None, folder: Path) -> dict[str, Any]:
    """Train one update, keep the policy as the best one, and tell what moved."""
    policy = {
        "base": {"kind": "pretrained", "model": str(find_warm_base())},
        "precision": "float32",
        "lora": lora,
    }
    changes = {"kl_weight": 1e-3} | ({"share_backbone": True} if algorithm == "ppo" else {})
    recipe = make_recipe(
        algorithm, changes, updates=1, policy=policy, optimiser={"learning_rate": 1e-2}
    )
    ids = torch.tensor([[1, *range(20, 60)]])
    with open_run(recipe, folder) as run:
        model = run.trainer.model
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        run.train(resume=False)
        moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
        trained = {name for name, p in model.named_parameters() if p.requires_grad}
        with torch.no_grad():
            logits = model.eval()(input_ids=ids).logits
        names = set(get_language_model(run.trainer).state_dict())
    loaded = AutoModelForCausalLM.from_pretrained(folder / BEST_FOLDER, dtype=torch.float32)
    with torch.no_grad():
        difference = (loaded(input_ids=ids).logits - logits).abs().max()
    return {
        "moved": moved,
        "trained": trained,
        "difference": float(difference),
        "names": names,
        "best": set(load_file(folder / BEST_FOLDER / "model.safetensors")),
    }


@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_the_best_policy_is_a_plain_checkpoint_of_the_trained_weights(
    lora: dict[str, int] | None, algorithm: str, tmp_path: Path
) -> None:
    found = run_one_update(algorithm, lora, tmp_path)
    base = set(load_file(find_warm_base() / "model.safetensors"))
    assert found["best"] == base  # no adapter, no value head, under the names of the base
    assert found["difference"] < 1e-5
    facts = json.loads((tmp_path / BEST_FOLDER / "best.json").read_text("utf-8"))
    assert facts["update"] == 1
    assert load_tokenizer(tmp_path / BEST_FOLDER, KEY).encode("boss") == load_tokenizer(
        find_warm_base(), KEY
    ).encode("boss")
    head = {name for name in found["trained"] if "value_head" in name}
    assert bool(head) == (algorithm == "ppo")
    if lora is None:
        assert found["moved"] <= found["trained"]
        assert len(found["moved"]) > 15
    else:
        assert all("lora_" in name for name in found["trained"] - head)
        assert found["moved"] <= found["trained"]
        assert any("lora_B" in name for name in found["moved"])
        assert not any("value_head" in name and "lora_" in name for name in found["names"])
    assert bool(found["moved"] & head) == (algorithm == "ppo")


def test_adapters_go_on_from_a_checkpoint_with_their_value_head(tmp_path: Path) -> None:
    policy = {
        "base": {"kind": "pretrained", "model": str(find_warm_base())},
        "precision": "float32",
        "lora": LORA,
    }
    parts: dict[str, Any] = {"policy": policy, "checkpoint_every": 1}
    changes = {"kl_weight": 1e-3}
    with open_run(make_recipe("ppo", changes, updates=1, **parts), tmp_path) as run:
        run.train(resume=False)
        kept = {
            name: p.detach().clone()
            for name, p in run.trainer.model.named_parameters()
            if p.requires_grad
        }
    assert (tmp_path / TRAINER_FOLDER / "checkpoint-1").is_dir()
    with open_run(make_recipe("ppo", changes, updates=2, **parts), tmp_path) as run:
        first: dict[str, Any] = {}
        play = run.collect

        def watch(plan: Any, update: int) -> Any:
            model = run.trainer.model
            first.update({name: p.detach().clone() for name, p in model.named_parameters()})
            assert update == 1
            return play(plan, update)

        run.trainer.collect_episodes = watch
        run.train(resume=True)
    assert kept
    assert all(torch.equal(first[name], value) for name, value in kept.items())
