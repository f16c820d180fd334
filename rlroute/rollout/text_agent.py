"""One episode's side of a text policy: keeps its token ids, and asks a sampler for the next ones.

Observations are tokenised once, each by itself, and their ids are put behind those before; what the
policy wrote stays as it was sampled and is never tokenised again.

How to use: `run_episode(environment, TextAgent(sampler, tokenizer, ...), pool, query, ...)`.
"""

from __future__ import annotations

from typing import Any

from rlroute.parsing import STOP_STRINGS
from rlroute.rollout.engine import ContextFullError
from rlroute.rollout.plan import shorten
from rlroute.rollout.samplers.base import Sampler, SampleRequest, decode_ids
from rlroute.seeding import mix
from rlroute.types import TextDecision, TextObservation


class TextAgent:
    """Writes the text of one episode.

    Args:
        sampler: where tokens come from.
        tokenizer: of transformers; a chat template is applied to the prompt where there is one.
        action_seed: together with the turn it decides what is drawn.
        max_new_tokens: the limit of one text.
        context_tokens: the limit of prompt, texts and observations together.
        temperature: of the sampling; 0 takes the likeliest tokens.
        stop: the strings that end a text.
    """

    def __init__(
        self,
        sampler: Sampler,
        tokenizer: Any,
        *,
        action_seed: int,
        max_new_tokens: int,
        context_tokens: int,
        temperature: float,
        stop: tuple[str, ...] = STOP_STRINGS,
    ) -> None:
        self.sampler, self.tokenizer, self.action_seed = sampler, tokenizer, action_seed
        self.max_new_tokens, self.context_tokens = max_new_tokens, context_tokens
        self.temperature, self.stop = temperature, stop
        self.token_ids: tuple[int, ...] = ()
        self.turn = 0

    async def decide(self, observation: TextObservation) -> tuple[str, TextDecision]:
        """Read an observation and write the next text.

        Raises:
            ContextFullError: not one more token fits the context.
        """
        environment_ids = encode_observation(self.tokenizer, observation.text, first=self.turn == 0)
        context = self.token_ids + environment_ids
        room = self.context_tokens - len(context)
        if room < 1:
            raise ContextFullError(
                f"{len(context)} tokens leave no room in a context of {self.context_tokens}"
            )
        sample = await self.sampler.sample(
            SampleRequest(
                token_ids=context,
                max_new_tokens=min(self.max_new_tokens, room),
                stop=self.stop,
                temperature=self.temperature,
                seed=int(shorten(mix("text", self.action_seed, self.turn))),
            )
        )
        self.token_ids = context + sample.token_ids
        self.turn += 1
        text = decode_ids(self.tokenizer, sample.token_ids)
        return text, TextDecision(
            text=text,
            environment_ids=environment_ids,
            token_ids=sample.token_ids,
            logps=sample.logps,
            finish=sample.finish,
            policy_version=sample.policy_version,
        )


def encode_observation(tokenizer: Any, text: str, *, first: bool) -> tuple[int, ...]:
    """Tokenise an observation: the first as a user's message, later ones as they are.

    A reply that spells out a special token ("</s>") gives the letters, not the token.
    """
    if not first:
        return tuple(tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True))
    if not tokenizer.chat_template:
        return tuple(tokenizer.encode(text))
    message = {"role": "user", "content": text}
    return tuple(
        tokenizer.apply_chat_template(
            [message], tokenize=True, add_generation_prompt=True, return_dict=False
        )
    )
