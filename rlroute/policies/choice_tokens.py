"""Conversations of the choice policy as token ids: labels, instructions, whole episodes.

    instructions, task ">" label, news ">" label, news ">" ...

A text is tokenised once, by itself, and its ids are appended; nothing is tokenised again, so what a
trainer reads is what the policy read. Of a label only the first token counts.

What it leaves out: chat templates; the network (`rlroute.policies.choice`).

How to use:
    encoder = ChoiceEncoder(tokenizer, {"small": "SMALL", "large": "LARGE"}, "Choose.")
    episodes = encode_episodes(encoder, [["sort 3 words", "one is left"]], [[0, 1]], 1024)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rlroute.types import Candidate, Conversations, RLRouteError

MARK = "\n>"  # stands before every label
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


# --- Labels and texts -----------------------------------------------------------------------------


class ChoiceEncoder:
    """Turns texts into token ids, each text once and by itself, and knows the labels' tokens.

    Args:
        tokenizer: a tokenizer of transformers.
        labels: executor id -> word, in the order of the executors.
        instructions: the text that every conversation begins with.

    Raises:
        RLRouteError: the first tokens of two labels are equal, or a label has no token.
    """

    def __init__(self, tokenizer: Any, labels: Mapping[str, str], instructions: str) -> None:
        self.tokenizer, self.labels, self.instructions = tokenizer, dict(labels), instructions
        self.label_ids = encode_labels(tokenizer, list(labels.values()))
        self._instruction_ids: list[int] = tokenizer.encode(instructions)

    def encode_task(self, text: str) -> list[int]:
        """Return the ids of a conversation's beginning, up to where the first label goes."""
        return [*self._instruction_ids, *self._encode(f"\n{text}{MARK}")]

    def encode_news(self, text: str) -> list[int]:
        """Return the ids of a later text, up to where the next label goes."""
        return self._encode(f"\n{text}{MARK}")

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return ids


def encode_labels(tokenizer: Any, words: Sequence[str]) -> tuple[int, ...]:
    """Return the first token of each label.

    Raises:
        RLRouteError: two of them are equal, or a label has none.
    """
    word_of: dict[int, str] = {}
    for word in words:
        ids = tokenizer.encode(word, add_special_tokens=False)
        if not ids:
            raise RLRouteError(f"policy.labels: '{word}' is no token of the model; use a word")
        if ids[0] in word_of:
            raise RLRouteError(
                f"policy.labels: '{word_of[ids[0]]}' and '{word}' begin with the same token; "
                "use words whose first tokens differ"
            )
        word_of[ids[0]] = word
    return tuple(word_of)


def find_labels(
    tokenizer: Any, executor_ids: Sequence[str], stated: Mapping[str, str] | None
) -> dict[str, str]:
    """Return a label for each executor: as stated, else its id in capitals, else a letter.

    Raises:
        RLRouteError: the stated labels are not of these executors, or there are more executors
            than letters.
    """
    if stated is not None:
        if set(stated) != set(executor_ids):
            raise RLRouteError(
                f"policy.labels: has labels for {', '.join(sorted(stated)) or 'nobody'}; "
                f"the executors are {', '.join(executor_ids)}"
            )
        return {name: stated[name] for name in executor_ids}
    words = [name.upper() for name in executor_ids]
    try:
        encode_labels(tokenizer, words)
    except RLRouteError:
        if len(executor_ids) > len(LETTERS):
            raise RLRouteError(
                f"policy.labels: {len(executor_ids)} executors, and letters for {len(LETTERS)}; "
                "state a word for each"
            ) from None
        words = list(LETTERS[: len(executor_ids)])
    return dict(zip(executor_ids, words, strict=True))


def write_instructions(text: str, executors: Sequence[Candidate], labels: Mapping[str, str]) -> str:
    """Return what every conversation begins with: `text`, then a line for each executor.

    Prices are in USD per million tokens read and written, and per call where there is such a price.
    """
    lines = [text, "USD per million tokens read / written:"]
    for executor in executors:
        prices = executor.prices
        call = f" + {prices.per_call:g} a call" if prices.per_call else ""
        lines.append(
            f"{labels[executor.id]} = {executor.id}: {prices.input:g} / {prices.output:g}{call}"
        )
    return "\n".join(lines) + "\n"


# --- Episodes -------------------------------------------------------------------------------------


@dataclass
class Conversation:
    """The tokens of one episode so far, and where its decisions were made."""

    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    read: int = 0  # tokens that the cache holds

    def add_text(self, encoder: ChoiceEncoder, text: str, context_tokens: int) -> None:
        """Append what is new; the next label follows it.

        Raises:
            RLRouteError: the conversation is too long.
        """
        self.ids += encoder.encode_news(text) if self.positions else encoder.encode_task(text)
        if len(self.ids) > context_tokens:
            raise RLRouteError(
                f"policy.context_tokens: {context_tokens} are too few, the episode has "
                f"{len(self.ids)} at step {len(self.positions) + 1}; allow more, or shorten "
                "the world's texts or its horizon"
            )
        self.positions.append(len(self.ids) - 1)


def pack_conversations(conversations: Sequence[Conversation]) -> Conversations:
    """Return conversations as arrays, padded with 0; a label after the last decision is left out.

    So `ids_BL` of a row ends with the token before its last label, and `length_B` counts up to it.
    """
    length_B = np.array([one.positions[-1] + 1 if one.positions else 0 for one in conversations])
    steps = max((len(one.positions) for one in conversations), default=0)
    ids_BL = np.zeros((len(conversations), int(length_B.max(initial=0))), dtype=np.int64)
    position_BT = np.full((len(conversations), steps), -1, dtype=np.int64)
    for row, one in enumerate(conversations):
        ids_BL[row, : length_B[row]] = one.ids[: length_B[row]]
        position_BT[row, : len(one.positions)] = one.positions
    return Conversations(ids_BL, length_B.astype(np.int64), position_BT)


def encode_episodes(
    encoder: ChoiceEncoder,
    texts: Sequence[Sequence[str]],
    actions: Sequence[Sequence[int]],
    context_tokens: int,
) -> Conversations:
    """Return episodes that others decided: for each its texts, and the executor after each text.

    Raises:
        RLRouteError: an episode is too long.
    """
    conversations = []
    for episode_texts, episode_actions in zip(texts, actions, strict=True):
        conversation = Conversation()
        for text, action in zip(episode_texts, episode_actions, strict=True):
            conversation.add_text(encoder, text, context_tokens)
            conversation.ids.append(encoder.label_ids[action])
        conversations.append(conversation)
    return pack_conversations(conversations)
