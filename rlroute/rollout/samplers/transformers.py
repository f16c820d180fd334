"""A sampler over a model of transformers in this process, on a CPU or one GPU.

Requests that are ready at the same time form one left-padded batch with a cache of keys and values;
it is generated in a worker thread, so replies of the pool go on arriving, and the episodes that
become ready meanwhile form the next batch. Each row draws from its own seed by inverting its own
cumulative distribution: with whom it shares a batch changes nothing beyond rounding.

It leaves out rows that join a running batch, and the reuse of keys and values from turn to turn:
that is what the sampler over a vLLM server is for.

How to use:
    sampler = TransformersSampler(model, tokenizer, max_batch=64, version=0)
    sample = await sampler.sample(SampleRequest((5, 9), 32, ("</answer>",), 1.0, seed=3))
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rlroute.extras import require
from rlroute.rollout.samplers.base import Sample, SampleRequest, decode_ids
from rlroute.seeding import draw_uniform
from rlroute.types import Finish, RLRouteError

if TYPE_CHECKING:
    import torch

# Turns of the event loop without a new request after which a batch is closed: what a reply sets
# off (the pool's tasks, the environment, the next request) takes a few turns.
QUIET_TURNS = 10


@dataclass
class Row:
    """A request while it is being answered; `plain_ids` are its new ids without special ones."""

    request: SampleRequest
    token_ids: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    plain_ids: list[int] = field(default_factory=list)
    finish: Finish | None = None


class TransformersSampler:
    """Continues token ids with a causal language model.

    `version`, the number of updates behind the weights, may be set at any time and is noted on the
    batches that start afterwards.

    Args:
        model: the network; it is put into evaluation mode while it generates.
        tokenizer: decodes new tokens to find stop strings; it never encodes.
        max_batch: rows in one forward pass.
        version: see above.
    """

    def __init__(
        self, model: Any, tokenizer: Any, *, max_batch: int = 64, version: int = 0
    ) -> None:
        self.tokenizer, self.max_batch, self.version = tokenizer, max_batch, version
        self.special_ids = frozenset(tokenizer.all_special_ids)
        self._waiting: list[tuple[SampleRequest, asyncio.Future[Sample]]] = []
        self._dispatcher: asyncio.Task[None] | None = None
        self.set_model(model)

    def set_model(self, model: Any) -> None:
        """Generate with another model object from the next batch on."""
        self.model = model
        configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
        ends = configured if isinstance(configured, list) else [configured]
        self.end_ids = frozenset({*ends, self.tokenizer.eos_token_id} - {None})

    async def sample(self, request: SampleRequest) -> Sample:
        """Return one continuation.

        Raises:
            RLRouteError: the model's output is not finite.
        """
        future: asyncio.Future[Sample] = asyncio.get_running_loop().create_future()
        self._waiting.append((request, future))
        if self._dispatcher is None or self._dispatcher.done():
            self._dispatcher = asyncio.create_task(self._dispatch())
        return await future

    async def close(self) -> None:
        """Do nothing: the model belongs to the caller, and a batch outlives no event loop."""

    async def _dispatch(self) -> None:
        """Answer what waits, batch after batch, until nothing waits."""
        try:
            while self._waiting:
                await self._wait_until_quiet()
                batch = self._waiting[: self.max_batch]
                del self._waiting[: self.max_batch]
                await self._answer([pair for pair in batch if not pair[1].done()])
        finally:
            self._waiting.clear()  # a dispatcher that is cancelled takes its loop's requests along

    async def _wait_until_quiet(self) -> None:
        """Return when the batch is full, or no request came for some turns of the event loop."""
        seen = -1
        while seen < len(self._waiting) < self.max_batch:
            seen = len(self._waiting)
            for _ in range(QUIET_TURNS):
                await asyncio.sleep(0)

    async def _answer(self, batch: Sequence[tuple[SampleRequest, asyncio.Future[Sample]]]) -> None:
        """Generate one batch in a thread and hand out its samples, or its fault, to everyone."""
        requests = [request for request, _ in batch]
        version = self.version
        try:
            samples = await asyncio.to_thread(self.generate, requests, version)
        except Exception as error:  # whatever it is, it belongs to those who wait for this batch
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
            return
        for (_, future), sample in zip(batch, samples, strict=True):
            if not future.done():
                future.set_result(sample)

    def generate(self, requests: Sequence[SampleRequest], version: int) -> list[Sample]:
        """Continue the requests as one batch, now, and return the samples in their order.

        Raises:
            RLRouteError: the model's output is not finite.
        """
        rows = [Row(request) for request in requests]
        if rows:
            with borrow_for_inference(self.model):
                self._continue(rows)
        return [
            Sample(tuple(row.token_ids), tuple(row.logps), row.finish or "length", version)
            for row in rows
        ]

    def _continue(self, rows: list[Row]) -> None:
        """Fill the rows; R are those that are not finished, they alone are computed."""
        import torch

        device = next(self.model.parameters()).device
        cache = require("transformers", "local").DynamicCache(config=self.model.config)
        tokens_RT, mask_RT = pad_left([row.request.token_ids for row in rows], device)
        position_RT = (mask_RT.cumsum(-1) - 1).clamp(min=0)
        while True:
            output = self.model(
                tokens_RT,
                attention_mask=mask_RT,
                position_ids=position_RT,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            position = len(rows[0].token_ids)
            requests = [row.request for row in rows]
            token_R, logp_R = draw_tokens(output.logits[:, -1], requests, position)
            for row, token, logp in zip(rows, token_R.tolist(), logp_R.tolist(), strict=True):
                self._extend(row, token, logp)
            going = [place for place, row in enumerate(rows) if row.finish is None]
            if not going:
                return
            tokens_RT, position_RT = token_R[:, None], position_RT[:, -1:] + 1
            mask_RT = torch.nn.functional.pad(mask_RT, (0, 1), value=1)
            if len(going) < len(rows):
                keep = torch.tensor(going, device=device)
                cache.batch_select_indices(keep)
                tokens_RT, position_RT, mask_RT = (
                    tokens_RT[keep],
                    position_RT[keep],
                    mask_RT[keep],
                )
                rows = [rows[place] for place in going]

    def _extend(self, row: Row, token: int, logp: float) -> None:
        """Add a token to a row and note whether the row is finished by it."""
        if not math.isfinite(logp):
            raise RLRouteError("sampler: the model's output is not finite; its weights diverged")
        row.token_ids.append(token)
        row.logps.append(logp)
        if token not in self.special_ids:
            row.plain_ids.append(token)
        if token in self.end_ids:
            row.finish = "end"
        elif self._holds_stop(row):
            row.finish = "stop"
        elif len(row.token_ids) >= row.request.max_new_tokens:
            row.finish = "length"

    def _holds_stop(self, row: Row) -> bool:
        """Say whether the last token completed a stop string.

        A plain token holds one byte at least, so that many last tokens hold the longest string.
        """
        if not row.request.stop:
            return False
        longest = max(len(stop.encode()) for stop in row.request.stop)
        tail = decode_ids(self.tokenizer, row.plain_ids[-longest:])
        return any(stop in tail for stop in row.request.stop)


@contextlib.contextmanager
def borrow_for_inference(model: Any) -> Iterator[None]:
    """Put a model into evaluation mode without gradients, and back; for the thread that asks."""
    import torch

    training = model.training
    device_of: Any = torch.cuda.device_of  # untyped; does nothing for a model on the CPU
    model.eval()
    try:
        # a new thread starts with gradients on, and with cuda:0 as its current device
        with torch.no_grad(), device_of(next(model.parameters())):
            yield
    finally:
        model.train(training)


def pad_left(
    ids_R: Sequence[Sequence[int]], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids and attention mask [R, T], aligned at the right."""
    import torch

    width = max(len(ids) for ids in ids_R)
    tokens_RT = torch.tensor([[0] * (width - len(ids)) + list(ids) for ids in ids_R])
    mask_RT = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in ids_R])
    return tokens_RT.to(device), mask_RT.to(device)


def draw_tokens(
    logits_RV: torch.Tensor, requests: Sequence[SampleRequest], position: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw the token at a position of each continuation; return ids and log-probs [R].

    The uniform number behind a token is a function of the request's seed and the position; the
    token is where the cumulative distribution passes it.
    """
    import torch

    device = logits_RV.device
    seed_R: npt.NDArray[np.uint64] = np.array([request.seed for request in requests], np.uint64)
    uniform_R = torch.as_tensor(draw_uniform("token", seed_R, position), device=device)
    temperature_R = torch.tensor([request.temperature for request in requests], device=device)
    greedy_R = temperature_R == 0
    scale_R1 = temperature_R.where(~greedy_R, 1.0)[:, None]
    logp_RV = (logits_RV.float() / scale_R1).log_softmax(-1)
    cumulative_RV = logp_RV.double().exp().cumsum(-1)
    threshold_R = uniform_R * cumulative_RV[:, -1]
    drawn_R = torch.searchsorted(cumulative_RV, threshold_R[:, None], right=True)[:, 0]
    drawn_R = drawn_R.clamp(max=logp_RV.shape[1] - 1)
    token_R = drawn_R.where(~greedy_R, logp_RV.argmax(-1))
    return token_R, logp_RV.gather(1, token_R[:, None])[:, 0]
