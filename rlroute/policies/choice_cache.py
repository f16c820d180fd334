"""The choice policy in rollouts: conversations that grow, read through a cache of keys and values.

Lanes that are read together share a cache. At each step only what is new goes through the model:
the label that was chosen and the text that followed. New pieces have different lengths, so they are
padded at the right; the holes that this leaves in the cache are masked, and every token is told its
own position. Lanes that have ended leave the cache. Of the beginnings, what all lanes share (the
instructions) is read once and copied, and then each one that differs (the tasks) once.

What it leaves out: lanes that pause. A lane that takes no part in a decision has ended. The caches
of all lanes are held at the same time, whatever `max_lanes` is; that bounds one pass only.

How to use:
    policy = ChoicePolicy(model, encoder, context_tokens=1024, max_lanes=64)
    policy.start(lanes)
    decisions = policy.decide(inputs)           # once per step
    episodes = policy.read_episodes()           # what ChoiceModel.forward scores in one pass
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlroute.extras import require
from rlroute.policies.choice import ChoiceModel
from rlroute.policies.choice_tokens import ChoiceEncoder, Conversation, pack_conversations
from rlroute.policies.decision import Decisions, sample_actions
from rlroute.policies.language_model import EXTRA
from rlroute.policies.stepwise import StepInputs
from rlroute.types import Conversations, RLRouteError


class ConversationCache:
    """Keys and values of lanes that are read together; B lanes, C columns, some of them holes."""

    def __init__(self) -> None:
        self.lanes: list[int] = []
        self._keys_and_values: Any = None
        self._mask_BC: Tensor
        self._length_B: Tensor

    def read(self, model: ChoiceModel, lanes: list[int], pieces: list[list[int]]) -> Tensor:
        """Read a piece for each lane; return the hidden states [B, H] at the ends of the pieces.

        Raises:
            ValueError: a lane was left out of an earlier step.
        """
        if self._keys_and_values is None:
            return self._begin(model, lanes, pieces)
        if lanes != self.lanes:
            if not set(lanes) <= set(self.lanes):
                raise ValueError("a lane that was left out of a step has ended")
            self._select([self.lanes.index(lane) for lane in lanes])
            self.lanes = lanes
        return self._append(model, pieces)

    def _begin(self, model: ChoiceModel, lanes: list[int], pieces: list[list[int]]) -> Tensor:
        """Read the beginnings: what all share once, and each that differs once."""
        different = list(dict.fromkeys(map(tuple, pieces)))
        row_of = {piece: row for row, piece in enumerate(different)}
        device = model.label_ids_K.device
        self._keys_and_values = require("transformers", EXTRA).DynamicCache()
        self._mask_BC = torch.zeros(1, 0, dtype=torch.int64, device=device)
        self._length_B = torch.zeros(1, dtype=torch.int64, device=device)
        self.lanes = lanes
        shared = count_shared(different)
        if shared:
            self._append(model, [different[0][:shared]])
        self._select([0] * len(different))
        hidden_BH = self._append(model, [piece[shared:] for piece in different])
        if len(different) == len(pieces):
            return hidden_BH
        rows = [row_of[tuple(piece)] for piece in pieces]
        self._select(rows)
        return hidden_BH[rows]

    def _select(self, rows: list[int]) -> None:
        """Keep these rows, in this order; a row may be asked for more than once."""
        row_B = torch.tensor(rows, device=self._length_B.device)
        self._keys_and_values.batch_select_indices(row_B)
        self._mask_BC, self._length_B = self._mask_BC[row_B], self._length_B[row_B]

    def _append(self, model: ChoiceModel, pieces: Sequence[Sequence[int]]) -> Tensor:
        """Read on; W is the longest piece's length."""
        ids_BW, mask_BW = pad_right(pieces, self._length_B.device)
        position_BW = self._length_B[:, None] + mask_BW.cumsum(dim=1) - 1
        self._mask_BC = torch.cat([self._mask_BC, mask_BW], dim=1)
        hidden_BWH = model.read(
            ids_BW,
            attention_mask=self._mask_BC,
            position_ids=position_BW,
            past_key_values=self._keys_and_values,
            use_cache=True,
        )
        self._length_B = self._length_B + mask_BW.sum(dim=1)
        return take_last(hidden_BWH, mask_BW)


class ChoicePolicy:
    """Chooses the executor of each step with a `ChoiceModel`; a StepPolicy.

    Args:
        model: the network; it is put into evaluation mode while it reads.
        encoder: its tokens.
        context_tokens: most tokens of an episode.
        max_lanes: lanes in one pass.
        greedy: take the likeliest executor instead of sampling.
        reuse_prefix: keep what was read; otherwise the whole conversation is read at each step.
        version: the number of updates behind the weights; may be set between episodes.
    """

    def __init__(
        self,
        model: ChoiceModel,
        encoder: ChoiceEncoder,
        *,
        context_tokens: int,
        max_lanes: int,
        greedy: bool = False,
        reuse_prefix: bool = True,
        version: int = 0,
    ) -> None:
        self.model, self.encoder, self.version = model, encoder, version
        self.context_tokens, self.max_lanes = context_tokens, max_lanes
        self.greedy, self.reuse_prefix = greedy, reuse_prefix
        self._conversations: list[Conversation] = []
        self._caches: list[ConversationCache] = []

    def start(self, lanes: int) -> None:
        """Begin new episodes in all lanes; what was kept of others is forgotten."""
        self._conversations = [Conversation() for _ in range(lanes)]
        self._caches = [ConversationCache() for _ in range(0, lanes, self.max_lanes)]

    def decide(self, inputs: StepInputs) -> Decisions:
        """Decide for B lanes; a masked executor is never chosen.

        Raises:
            RLRouteError: the world has no texts, an episode is longer than the context, or the
                model's output is not finite.
            ValueError: a lane has no executor that may act, or was left out of an earlier step.
        """
        if len(inputs.texts) != len(inputs.lane_B):
            raise RLRouteError("policy.kind choice: reads texts, and this world has none; use mlp")
        if not inputs.mask_BK.any(axis=1).all():
            raise ValueError("a lane has no executor that may act")
        lanes: list[int] = inputs.lane_B.tolist()
        for lane, text in zip(lanes, inputs.texts, strict=True):
            self._conversations[lane].add_text(self.encoder, text, self.context_tokens)
        logp_BK = np.empty(inputs.mask_BK.shape, dtype=np.float32)
        value_B = np.empty(len(lanes), dtype=np.float32)
        batch_B = inputs.lane_B // self.max_lanes
        with borrow_for_reading(self.model):
            for batch in np.unique(batch_B).tolist():
                place_N = np.flatnonzero(batch_B == batch)
                hidden_NH = self._read(batch, [lanes[place] for place in place_N])
                mask_NK = torch.as_tensor(inputs.mask_BK[place_N], device=hidden_NH.device)
                scores = self.model.score(hidden_NH, mask_NK)
                logp_BK[place_N] = scores.logp_BK.cpu().numpy()
                value_B[place_N] = scores.value_B.cpu().numpy()
        if not np.isfinite(logp_BK[inputs.mask_BK]).all():
            raise RLRouteError("policy: the model's output is not finite; its weights diverged")
        greedy_B = logp_BK.argmax(axis=1)
        action_B = greedy_B if self.greedy else sample_actions(logp_BK, inputs.uniform_B)
        for lane, action in zip(lanes, action_B.tolist(), strict=True):
            self._conversations[lane].ids.append(self.encoder.label_ids[action])
        logp_B = np.take_along_axis(logp_BK, action_B[:, None], axis=1)[:, 0]
        return Decisions(action_B, logp_B, value_B)

    def read_episodes(self) -> Conversations:
        """Return the episodes of all lanes since `start`, T being the most decisions of a lane."""
        return pack_conversations(self._conversations)

    def _read(self, batch: int, lanes: list[int]) -> Tensor:
        """Return the hidden states [N, H] before the next labels of some lanes."""
        conversations = [self._conversations[lane] for lane in lanes]
        if self.reuse_prefix:
            pieces = [one.ids[one.read :] for one in conversations]
            for one in conversations:
                one.read = len(one.ids)
            return self._caches[batch].read(self.model, lanes, pieces)
        ids_NL, mask_NL = pad_right(
            [one.ids for one in conversations], self.model.label_ids_K.device
        )
        return take_last(self.model.read(ids_NL, use_cache=False), mask_NL)


@contextlib.contextmanager
def borrow_for_reading(model: ChoiceModel) -> Iterator[None]:
    """Put a model into evaluation mode without gradients, and back."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def count_shared(pieces: Sequence[Sequence[int]]) -> int:
    """Return how many ids all pieces begin with, at least one of each being left."""
    if len(pieces) == 1:
        return 0
    count = 0
    for ids in zip(*[piece[:-1] for piece in pieces], strict=False):
        if len(set(ids)) > 1:
            break
        count += 1
    return count


def pad_right(pieces: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return token ids and mask [B, W], aligned at the left."""
    width = max(len(piece) for piece in pieces)
    ids_BW = torch.tensor([[*piece, *[0] * (width - len(piece))] for piece in pieces])
    mask_BW = torch.tensor([[1] * len(piece) + [0] * (width - len(piece)) for piece in pieces])
    return ids_BW.to(device), mask_BW.to(device)


def take_last(hidden_BWH: Tensor, mask_BW: Tensor) -> Tensor:
    """Return the hidden state [B, H] of the last token of each row."""
    row_B = torch.arange(len(mask_BW), device=mask_BW.device)
    return hidden_BWH[row_B, mask_BW.sum(dim=1) - 1]
