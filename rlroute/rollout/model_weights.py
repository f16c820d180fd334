"""The weights of a trainer's language model as a rollout server wants them, and its own scores.

What it is: `ModelWeights` yields (name, whole tensor) under the names of a checkpoint of the model:
adapters (LoRA) are added to the weights they adapt, shards (FSDP2, ZeRO-3) are gathered, weights
that are tied come once, and nothing else comes: the value head of a critic is not in the list.

What it leaves out: models whose checkpoints name tensors otherwise than the model in memory does
(mixtures of experts that transformers fuses), other adapters than LoRA.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from rlroute.types import RLRouteError

if TYPE_CHECKING:
    from torch import Tensor, nn

ADAPTED = ".base_layer."  # what PEFT puts between a layer's name and its weight


class ModelWeights:
    """The weights of a causal language model of transformers; each iteration reads them anew.

    `model` is the model itself or PEFT's around it, without wrappers of data parallelism. On a
    sharded model each process must iterate, as gathering takes all of them.

    Raises:
        RLRouteError: the model lacks a weight that its architecture has.
    """

    def __init__(self, model: Any) -> None:
        get_base = getattr(model, "get_base_model", None)
        self._model: nn.Module = get_base() if callable(get_base) else model
        own = {name.replace(ADAPTED, "."): name for name, _ in self._model.named_parameters()}
        known = _list_names(self._model)
        missing = [name for name in known if name not in own]
        if missing:
            raise RLRouteError(f"weights: the model has no {missing[0]} ({len(missing)} missing)")
        self._names = {name: own[name] for name in known}

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """Yield names and whole tensors, detached, on the model's device."""
        import torch

        for name, own_name in self._names.items():
            module_name, _, attribute = own_name.rpartition(".")
            module: Any = self._model.get_submodule(module_name.removesuffix(".base_layer"))
            with torch.no_grad(), _gather(module):
                parameter = self._model.get_parameter(own_name)
                tensor = parameter.detach()
                if attribute == "weight" and own_name != name and not module.merged:
                    for adapter in module.active_adapters:
                        if adapter in module.lora_A or adapter in module.lora_embedding_A:
                            tensor = tensor + module.get_delta_weight(adapter)
                if hasattr(tensor, "full_tensor"):
                    tensor = tensor.full_tensor()
                elif hasattr(parameter, "ds_id"):
                    tensor = tensor.clone()  # the gathered weight goes when the block ends
                yield name, tensor


def score_tokens(model: Any, token_ids: Sequence[int]) -> list[float]:
    """Return the model's log-probability of each token but the first, given those before it.

    In the precision of its weights, also where accelerate runs its passes in a lower one.
    """
    import torch

    device = next(model.parameters()).device
    ids = torch.tensor([list(token_ids)], device=device)
    was_training = model.training
    model.eval()
    with torch.no_grad():
        score = getattr(model, "_original_forward", model)  # without accelerate's autocast
        logits = score(input_ids=ids).logits[0, :-1].float()
    model.train(was_training)
    logps = torch.log_softmax(logits, dim=-1).gather(1, ids[0, 1:, None])[:, 0]
    return [float(logp) for logp in logps]


def _list_names(model: Any) -> list[str]:
    """Return the names of the weights that a fresh model of this configuration has."""
    import torch

    with torch.device("meta"):  # by its class: `from_config` would shard it under ZeRO-3
        fresh = type(model)(model.config)
    return [name for name, _ in fresh.named_parameters()]


def _gather(module: Any) -> AbstractContextManager[Any]:
    """Return a block in which the parameters of a module are whole (DeepSpeed ZeRO-3)."""
    parameters = [p for p in module.parameters() if hasattr(p, "ds_id")]
    if not parameters:
        return nullcontext()
    import deepspeed

    gathered: AbstractContextManager[Any] = deepspeed.zero.GatheredParameters(parameters)
    return gathered
