"""The language model behind a text policy: loaded, or made here; a value head beside it for PPO.

The value head reads the hidden state before each token. It runs inside the model's own forward
pass, so DDP, DeepSpeed and FSDP treat it like any other part, and its output is picked up from a
`ValueCapture` because the trainer's forward pass returns log-probs only.

What it leaves out: quantised weights.
"""

from __future__ import annotations

import json
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlroute.extras import require
from rlroute.files import atomic_folder, write_atomic
from rlroute.parsing import STOP_STRINGS
from rlroute.policies.language_model import (
    EXTRA,
    VALUE_HEAD,
    LoraConfig,
    ValueHead,
    load_causal_model,
)
from rlroute.rollout.model_weights import ModelWeights
from rlroute.seeding import derive_seed
from rlroute.trainers.run_folder import BEST_FILE
from rlroute.trainers.text_recipe import NewModelConfig, TextPolicyConfig

KEY = "policy.base.model"
INITIALISER_RANGE = 0.1  # small models copy names after 100 steps; at the usual 0.02 after 1,000


class ValueCapture:
    """Makes a model's scoring pass also compute values, and keeps them until they are taken."""

    def __init__(self, model: Any, *, share_backbone: bool) -> None:
        self.values: list[Tensor] = []
        self.hidden: Tensor | None = None
        self.share_backbone = share_backbone
        model.base_model.register_forward_hook(self.keep_hidden)
        score = model.forward

        def forward(this: Any, *args: Any, fused_lm_head: bool = False, **kwargs: Any) -> Any:
            if not fused_lm_head:
                return score(*args, **kwargs)
            output = score(*args, fused_lm_head=True, **kwargs)
            assert self.hidden is not None
            self.values.append(this.value_head(self.hidden)[:, :-1])
            self.hidden = None
            return output

        model.forward = types.MethodType(forward, model)

    def keep_hidden(self, module: Any, arguments: Any, output: Any) -> None:
        """Keep the backbone's last hidden state [B, T, H]; a forward hook."""
        hidden = output.last_hidden_state
        self.hidden = hidden if self.share_backbone else hidden.detach()

    def take(self) -> Tensor:
        """Return the values [B, T - 1] before each token of the passes since the last call."""
        values, self.values = torch.cat(self.values), []
        return values


def load_model(
    config: TextPolicyConfig, source: str | Path, *, value_head: bool, seed: int = 0
) -> Any:
    """Load a causal language model; with a value head on top, drawn from `seed`, where asked.

    Weights that are trained are float32 (bfloat16 would swallow small steps; its precision is that
    of the passes); under adapters the frozen ones take the policy's precision.

    Raises:
        RLRouteError: no such checkpoint, or it is no causal language model.
    """
    precision = config.precision if config.lora else "float32"
    model = load_causal_model(source, precision, KEY)
    if value_head:
        hidden = model.config.get_text_config().hidden_size
        model.value_head = ValueHead(hidden, seed)
    return model


def write_policy(
    accelerator: Any, model: Any, tokenizer: Any, folder: Path, facts: dict[str, Any]
) -> None:
    """Write a policy as a checkpoint of transformers: adapters added, no value head.

    All processes call it; the main one writes. `facts` become `best.json` beside the weights.
    """
    main = accelerator.is_main_process
    weights = {}
    for name, tensor in ModelWeights(model):  # all processes read along: shards are gathered
        if main:
            weights[name] = tensor.to("cpu", copy=True)
    if main:
        get_base = getattr(model, "get_base_model", None)
        base = get_base() if callable(get_base) else model
        with atomic_folder(folder) as temporary:
            base.save_pretrained(temporary, state_dict=weights)
            tokenizer.save_pretrained(temporary)
            write_atomic(temporary / BEST_FILE, json.dumps(facts, indent=2))
    accelerator.wait_for_everyone()


def make_lora(config: LoraConfig | None, *, value_head: bool) -> Any:
    """Return PEFT's configuration of adapters, None where all weights are trained."""
    if config is None:
        return None
    peft = require("peft", EXTRA)
    return peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        target_modules="all-linear",
        exclude_modules=[f"{VALUE_HEAD}.inner", f"{VALUE_HEAD}.outer"] if value_head else None,
        modules_to_save=[VALUE_HEAD] if value_head else None,
        task_type="CAUSAL_LM",
    )


def make_new_model(
    config: NewModelConfig, texts: Sequence[str], folder: Path, *, context: int, seed: int
) -> None:
    """Write a Llama with random weights and a byte-pair tokenizer trained on `texts`.

    The tags of the episode's format are single tokens.
    """
    transformers = require("transformers", EXTRA)
    tokenizers = require("tokenizers", EXTRA)
    raw = tokenizers.Tokenizer(tokenizers.models.BPE())
    pieces = tokenizers.pre_tokenizers  # a word is the same token with and without a blank before
    split = pieces.Split(tokenizers.Regex(r"\w+|\s|[^\w\s]"), behavior="isolated")
    raw.pre_tokenizer = pieces.Sequence(
        [split, pieces.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    raw.decoder = tokenizers.decoders.ByteLevel()
    tags = [f"<{mark}{tag}>" for tag in list_tags() for mark in ("", "/")]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=config.vocabulary - len(tags),
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(texts, trainer)
    raw.add_tokens([tokenizers.AddedToken(tag, special=False) for tag in tags])
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    llama = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.hidden,
        intermediate_size=2 * config.hidden,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.heads,
        max_position_embeddings=context,
        rope_parameters={"rope_type": "default", "rope_theta": float(context)},
        tie_word_embeddings=True,
        initializer_range=INITIALISER_RANGE,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "weights"))
        transformers.LlamaForCausalLM(llama).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def list_tags() -> list[str]:
    """Return the names of the episode's tags."""
    return ["think", "information", *(text.strip("</>") for text in STOP_STRINGS)]
