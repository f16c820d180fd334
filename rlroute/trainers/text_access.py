"""How rollouts reach the present policy: the trainer's model, or a server that gets its weights.

    with access.open(trainer, update): ...play episodes with access.sampler...

It leaves out the samplers themselves (`rlroute.rollout.samplers`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

from rlroute.rollout.model_weights import ModelWeights, score_tokens
from rlroute.rollout.rollout_server import RolloutServer
from rlroute.rollout.samplers.base import Sampler
from rlroute.rollout.samplers.transformers import TransformersSampler
from rlroute.rollout.samplers.vllm import VllmSampler
from rlroute.rollout.weight_sync import FolderSync, NcclSync, WeightSync, check_agreement
from rlroute.trainers.text_recipe import (
    RolloutConfig,
    TransformersSamplerConfig,
    VllmSamplerConfig,
)

PROBE_TOKENS = 64


class PolicyAccess(Protocol):
    """A sampler, and what makes it write with the trainer's present weights."""

    @property
    def sampler(self) -> Sampler:
        """What writes."""

    def open(self, trainer: Any, update: int) -> AbstractContextManager[None]:
        """Return a block in which the sampler writes as the policy after `update` updates."""

    def close(self) -> None:
        """Release what is held besides the sampler."""


class LocalPolicy:
    """The trainer's model generates itself; shards are whole inside the block."""

    def __init__(self, config: TransformersSamplerConfig, model: Any, tokenizer: Any) -> None:
        self.sampler = TransformersSampler(model, tokenizer, max_batch=config.max_batch)

    @contextmanager
    def open(self, trainer: Any, update: int) -> Iterator[None]:
        """Generate with the present weights."""
        with trainer.open_model() as model:
            self.sampler.set_model(model)
            self.sampler.version = update
            yield

    def close(self) -> None:
        """Hold nothing."""


class ServedPolicy:
    """A vLLM server generates; it gets the weights once per update, and a probe proves it."""

    def __init__(
        self,
        config: VllmSamplerConfig,
        tokenizer: Any,
        probe: str,
        *,
        context_tokens: int,
        rank: int,
    ) -> None:
        self.config, self.rank = config, rank
        self.sampler = VllmSampler(
            config.url,
            config.served_model,
            tokenizer,
            api_key_env=config.api_key_env,
            concurrency=config.concurrency,
            timeout_seconds=config.timeout_seconds,
        )
        self.server = RolloutServer(config.url, api_key_env=config.api_key_env)
        self.server.check_context(config.served_model, context_tokens)
        self.probe_ids = list(tokenizer.encode(probe))[:PROBE_TOKENS]
        self.server.check_logprobs_mode(self.probe_ids)
        self.sync: WeightSync
        if config.folder is not None:
            self.sync = FolderSync(self.server, config.folder, is_sender=rank == 0)
        else:
            self.sync = NcclSync(
                self.server, address=config.nccl_address, port=config.nccl_port, rank=rank
            )
        self.pushed = -1

    @contextmanager
    def open(self, trainer: Any, update: int) -> Iterator[None]:
        """Send the weights where the server lacks them, and compare both sides.

        Raises:
            RLRouteError: the server's log-probs of the probe differ from the trainer's.
        """
        if update != self.pushed:
            self.push(trainer, update)
        yield

    def push(self, trainer: Any, update: int) -> None:
        """Send the weights of the policy after `update` updates."""
        model = trainer.accelerator.unwrap_model(trainer.model_wrapped)
        self.sync.push(ModelWeights(model), update)
        with trainer.open_model() as whole:
            expected = score_tokens(whole, self.probe_ids)
        if self.rank == 0:
            difference = check_agreement(
                self.server,
                self.probe_ids,
                expected,
                version=update,
                tolerance=self.config.probe_tolerance,
            )
            trainer.note_metrics({"mismatch/probe": difference})
        trainer.accelerator.wait_for_everyone()
        self.sampler.set_version(update)
        self.pushed = update

    def close(self) -> None:
        """Close the connection to the server."""
        self.server.close()


def make_access(
    config: RolloutConfig, model: Any, tokenizer: Any, probe: str, *, rank: int
) -> PolicyAccess:
    """Return what the recipe's sampler needs; `probe` is text that the policy may well meet.

    Raises:
        RLRouteError: the server cannot be reached or is not set up for rollouts.
    """
    if isinstance(config.sampler, VllmSamplerConfig):
        return ServedPolicy(
            config.sampler, tokenizer, probe, context_tokens=config.context_tokens, rank=rank
        )
    return LocalPolicy(config.sampler, model, tokenizer)
