"""The choice policy: a causal language model says who takes the next step, by one label token.

    logits_K = (hidden state at the last token before a label) . (the labels' rows of lm_head)
    logp_K   = log-softmax over the allowed labels only                   (masked: minus infinity)

Each executor has a label, and of a label only the first token counts, so a decision generates
nothing and its probabilities sum to one (as in BAAR, arXiv 2602.21227, for any number of
executors). `ChoiceModel.forward` scores all decisions of whole episodes in one pass, without logits
over the vocabulary.

What it leaves out: acting (`rlroute.policies.choice_cache`); features and cost weights, for what
the policy is to know stands in the texts; a model's own scaling of logits (soft caps); weights that
are sharded or quantised; models with sliding windows or recurrent layers.

How to use (extra `text`):
    model, encoder = build_choice(config, world.executors, value_head=False, seed=0)
    scores = model(ids_BL, length_B, position_BT, mask_BTK)
    save_choice(Path("router"), model, encoder)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from rlroute.config import StrictModel, parse_config, read_yaml_mapping
from rlroute.extras import require
from rlroute.files import atomic_folder, write_atomic
from rlroute.policies.choice_tokens import ChoiceEncoder, find_labels, write_instructions
from rlroute.policies.language_model import (
    EXTRA,
    LoraConfig,
    Precision,
    ValueHead,
    load_causal_model,
    load_tokenizer,
)
from rlroute.seeding import derive_seed
from rlroute.types import Candidate, RLRouteError

CHOICE_FILE = "choice.json"
KEY = "policy.model"


# --- Configuration --------------------------------------------------------------------------------


class ChoiceConfig(StrictModel):
    """A language model as the policy.

    `model` is a checkpoint folder or a name on the hub; `precision` is that of its passes, trained
    weights stay float32. `labels` gives each executor id a word; null takes the ids in capitals, or
    letters where the first tokens of those do not differ. `instructions` begin every conversation,
    before the list of executors with labels and prices. An episode may have `context_tokens`
    tokens; `max_lanes` of them are read in one pass of a rollout, `micro_batch` in one of training.
    """

    kind: Literal["choice"]
    model: str = Field(min_length=1)
    lora: LoraConfig | None = None
    precision: Precision = "bfloat16"
    labels: dict[str, str] | None = None
    instructions: str = "Choose who takes each next step. Solve the task and spend little."
    context_tokens: int = Field(default=1024, ge=1)
    max_lanes: int = Field(default=64, ge=1)
    micro_batch: int = Field(default=8, ge=1)


class ChoiceFile(StrictModel):
    """What stands beside the weights of a saved policy; `labels` are in the executors' order."""

    format_version: Literal[1] = 1
    labels: dict[str, str]
    instructions: str


# --- The network ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class ChoiceScores:
    """What the model says of B decisions and K executors.

    `logits_BK` is minus infinity where masked; `value_B` estimates the return (0 without a value
    head).
    """

    logits_BK: Tensor
    value_B: Tensor

    @property
    def logp_BK(self) -> Tensor:
        """Log-probabilities [B, K] over the allowed executors."""
        return self.logits_BK.log_softmax(dim=-1)


class ChoiceModel(nn.Module):
    """A causal language model that scores labels; see the module's text.

    Args:
        language_model: a causal language model of transformers, or PEFT's around one.
        label_ids: the first token of each executor's label.
        precision: that of the passes; labels and values are scored in float32.
        value_head: reads the hidden states of decisions and sends no gradient into them.
    """

    def __init__(
        self,
        language_model: Any,
        label_ids: Sequence[int],
        *,
        precision: Precision = "float32",
        value_head: ValueHead | None = None,
    ) -> None:
        super().__init__()
        self.language_model, self.value_head = language_model, value_head
        self.precision = precision
        self.label_ids_K: Tensor
        self.register_buffer("label_ids_K", torch.tensor(label_ids), persistent=False)

    @property
    def causal_model(self) -> Any:
        """The model of transformers, without PEFT's wrapper; adapters stay in its layers."""
        get_base = getattr(self.language_model, "get_base_model", None)
        return get_base() if callable(get_base) else self.language_model

    def read(self, ids_BL: Tensor, **options: Any) -> Tensor:
        """Return the last hidden state of each token [B, L, H]; `options` go to the model."""
        bfloat16 = self.precision == "bfloat16"
        with torch.autocast(ids_BL.device.type, dtype=torch.bfloat16, enabled=bfloat16):
            output = self.causal_model.base_model(input_ids=ids_BL, **options)
        hidden_BLH: Tensor = output.last_hidden_state
        return hidden_BLH

    def score(self, hidden_BH: Tensor, mask_BK: Tensor) -> ChoiceScores:
        """Score K labels after B hidden states."""
        head = self.causal_model.get_output_embeddings()
        with torch.autocast(hidden_BH.device.type, enabled=False):
            hidden_BH = hidden_BH.float()
            bias_K = None if head.bias is None else head.bias[self.label_ids_K].float()
            logits_BK = functional.linear(
                hidden_BH, head.weight[self.label_ids_K].float(), bias_K
            ).masked_fill(~mask_BK, -torch.inf)
            value_B = hidden_BH.new_zeros(len(hidden_BH))
            if self.value_head is not None:
                value_B = self.value_head(hidden_BH.detach())
        return ChoiceScores(logits_BK, value_B)

    def forward(
        self, ids_BL: Tensor, length_B: Tensor, position_BT: Tensor, mask_BTK: Tensor
    ) -> ChoiceScores:
        """Score all decisions of B episodes in one pass.

        Args:
            ids_BL: token ids, padded at the right with any id.
            length_B: tokens of each episode; columns that no episode reaches are not computed.
            position_BT: the token before each decision's label; -1 on padding, whose rows say
                nothing and carry no gradient.
            mask_BTK: True where an executor may be chosen.

        Returns:
            Scores of B * T rows, the steps of an episode one after the other.
        """
        # pads stand at the right and attention looks left, so there is nothing to mask
        hidden_BLH = self.read(ids_BL[:, : int(length_B.max())], use_cache=False)
        index_BTH = position_BT.clamp(min=0)[..., None].expand(-1, -1, hidden_BLH.shape[-1])
        padding_BT1 = (position_BT < 0)[..., None]
        hidden_BTH = hidden_BLH.gather(1, index_BTH).masked_fill(padding_BT1, 0.0)
        # without an allowed label the log-softmax would be NaN, and so would its gradient
        return self.score(hidden_BTH.flatten(0, 1), (mask_BTK | padding_BT1).flatten(0, 1))


# --- Made, saved, loaded --------------------------------------------------------------------------


def build_choice(
    config: ChoiceConfig, executors: Sequence[Candidate], *, value_head: bool, seed: int = 0
) -> tuple[ChoiceModel, ChoiceEncoder]:
    """Load the model and its tokenizer, with labels for the executors.

    Adapters and value head are drawn from `seed`; neither changes what the policy does at first.
    Trained weights are float32 (bfloat16 would swallow small steps); under adapters the frozen ones
    take the config's precision.

    Raises:
        RLRouteError: no such checkpoint, its kind of attention or its context does not do, or the
            labels do not (`find_labels`, `encode_labels`).
    """
    tokenizer = load_tokenizer(config.model, KEY)
    labels = find_labels(tokenizer, [executor.id for executor in executors], config.labels)
    encoder = ChoiceEncoder(
        tokenizer, labels, write_instructions(config.instructions, executors, labels)
    )
    model = load_full_attention_model(config.model, config.precision if config.lora else "float32")
    check_context(model, config)
    head = ValueHead(model.config.hidden_size, seed) if value_head else None
    if config.lora is not None:
        model = add_adapters(model, config.lora, seed)
    choice = ChoiceModel(model, encoder.label_ids, precision=config.precision, value_head=head)
    return choice, encoder


def load_full_attention_model(source: str | Path, precision: Precision) -> Any:
    """Load a causal language model with weights of a precision.

    Raises:
        RLRouteError: no such checkpoint, it is no causal language model, or not all of its layers
            look at the whole conversation.
    """
    model = load_causal_model(source, precision, KEY)
    kinds = set(getattr(model.config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"}:
        raise RLRouteError(
            f"{KEY} '{source}': has layers of the kind {', '.join(sorted(kinds))}; "
            "use a model whose layers all are full_attention"
        )
    return model


def check_context(model: Any, config: ChoiceConfig) -> None:
    """Raise RLRouteError where an episode may be longer than the model's context."""
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit is not None and config.context_tokens > limit:
        raise RLRouteError(
            f"policy.context_tokens: {config.context_tokens}, and '{config.model}' reads at most "
            f"{limit} tokens"
        )


def add_adapters(model: Any, config: LoraConfig, seed: int) -> Any:
    """Return PEFT's model with adapters on all linear layers but lm_head; the rest is frozen."""
    peft = require("peft", EXTRA)
    lora = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "adapters"))
        return peft.get_peft_model(model, lora)


def save_choice(folder: Path, model: ChoiceModel, encoder: ChoiceEncoder) -> None:
    """Write a checkpoint of transformers (adapters added, no value head) and `choice.json`."""
    facts = ChoiceFile(labels=encoder.labels, instructions=encoder.instructions)
    with atomic_folder(folder) as temporary:
        causal_model = model.causal_model
        causal_model.save_pretrained(temporary, state_dict=collect_weights(causal_model))
        encoder.tokenizer.save_pretrained(temporary)
        write_atomic(temporary / CHOICE_FILE, facts.model_dump_json(indent=2))


def collect_weights(causal_model: Any) -> dict[str, Tensor]:
    """Return the weights under the names of a checkpoint, adapters added to what they adapt."""
    weights = {}
    with torch.no_grad():
        for name, tensor in causal_model.state_dict().items():
            if ".lora_" in name:
                continue
            module_name, adapted, attribute = name.partition(".base_layer.")
            if adapted and attribute == "weight":
                layer = causal_model.get_submodule(module_name)
                for adapter in layer.active_adapters:
                    tensor = tensor + layer.get_delta_weight(adapter).to(tensor.dtype)
            weights[name.replace(".base_layer.", ".")] = tensor.detach()
    return weights


def load_choice(
    folder: Path, *, precision: Precision = "float32"
) -> tuple[ChoiceModel, ChoiceEncoder]:
    """Read what `save_choice` wrote, with weights and passes of a precision, to act with.

    Raises:
        RLRouteError: the folder is incomplete, or of another format.
    """
    path = folder / CHOICE_FILE
    facts = parse_config(ChoiceFile, read_yaml_mapping(path), str(path))  # JSON is YAML
    encoder = ChoiceEncoder(load_tokenizer(folder, KEY), facts.labels, facts.instructions)
    model = ChoiceModel(
        load_full_attention_model(folder, precision), encoder.label_ids, precision=precision
    )
    return model.eval().requires_grad_(False), encoder
