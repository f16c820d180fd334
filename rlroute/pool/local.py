r"""Local causal language models that answer batches of prompts on a CPU.

What it is: `LocalModel` holds a checkpoint and continues prompts, up to the first newline or to the
end of the text.

Prompts are sorted by length and padded on the left; the examples of a task are read once and their
keys and values shared by all its questions; answers that are done leave the batch. Seconds of a
query are the wall time of its batch divided by the queries in it.

What it leaves out: candidates (`rlroute.pool.local_candidate`), where checkpoints come from
(`rlroute.pool.checkpoints`), servers and GPUs, retries. An answer that is cut at its limit is an
answer; a prompt that does not fit the context is a failed call.

How to use (extra `local`):
    model = LocalModel.load(Path("checkpoint"))
    completion = model.complete(["Question: 2 + 2 =\nAnswer:"])[0]
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from rlroute.extras import require
from rlroute.seeding import make_torch_generator
from rlroute.types import FailureKind, RLRouteError

Mode = Literal["direct", "chat", "few_shot", "self_consistency"]
Examples = Mapping[str, Sequence[tuple[str, str]]]  # task -> (question, answer) pairs

logger = logging.getLogger(__name__)

# A chat model explains before it answers; with its reply begun for it, the answer comes first.
INSTRUCTION = "You answer with one word, number or list."
REPLY_BEGINNING = "Final answer:"


@dataclass(frozen=True)
class Completion:
    """The continuations of one prompt (one per sample), their tokens, and seconds of wall time."""

    texts: tuple[str, ...]
    prompt_tokens: int
    completion_tokens: tuple[int, ...]
    seconds: float


@dataclass(frozen=True)
class Ending:
    """Where a continuation ends: after so many tokens, and at a newline where it is one line."""

    max_new_tokens: int
    one_line: bool = True


class LocalModel:
    """A causal language model of transformers that continues batches of prompts.

    Args:
        model: the network, in evaluation mode.
        tokenizer: its tokenizer.
        batch_size: prompts in one forward pass; with k samples, k times as many rows.
        max_new_tokens: where an answer is cut, unless `complete` is told otherwise.
    """

    def __init__(
        self, model: Any, tokenizer: Any, *, batch_size: int = 32, max_new_tokens: int = 16
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.batch_size, self.max_new_tokens = batch_size, max_new_tokens
        self.context_tokens = int(model.config.max_position_embeddings)

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        dtype: str = "bfloat16",
        batch_size: int = 32,
        max_new_tokens: int = 16,
    ) -> LocalModel:
        """Load a checkpoint folder; `dtype` is a name of torch.

        Raises:
            RLRouteError: transformers is missing or the folder does not exist.
        """
        transformers = require("transformers", "local")
        if not folder.is_dir():
            raise RLRouteError(f"{folder}: no such checkpoint folder")
        import torch

        transformers.utils.logging.disable_progress_bar()
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, dtype), attn_implementation="sdpa"
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        return cls(model.eval(), tokenizer, batch_size=batch_size, max_new_tokens=max_new_tokens)

    @property
    def parameters(self) -> int:
        """The number of weights, embeddings included."""
        return int(self.model.num_parameters())

    def complete(
        self,
        prompts: Sequence[str],
        *,
        prefix: str = "",
        samples: int = 1,
        temperature: float = 0.0,
        seed: int = 0,
        ending: Ending | None = None,
    ) -> list[Completion | FailureKind]:
        """Continue every prompt `samples` times; results are in the order of the prompts.

        Args:
            prompts: the texts, each after `prefix`.
            prefix: text that all prompts share; it is read once.
            samples: continuations per prompt.
            temperature: 0 takes the likeliest token; above 0 samples from the softened logits.
            seed: together with the prompts of a batch it decides what is sampled.
            ending: where the continuations end; None is one line of `max_new_tokens` at most.

        Returns:
            A completion per prompt, or why there is none: BAD_REQUEST where the prompt is empty or
            does not fit the context, MALFORMED where the network's output was not finite, SERVER
            where torch gave up on the batch (memory).
        """
        import torch

        began = time.perf_counter()
        ending = ending or Ending(self.max_new_tokens)
        prefix_ids, ids_N = self._encode(prefix, prompts)
        longest = self.context_tokens - ending.max_new_tokens - len(prefix_ids)
        order = sorted(range(len(prompts)), key=lambda i: len(ids_N[i]))
        order = [i for i in order if 0 < len(ids_N[i]) <= longest]
        results: list[Completion | FailureKind] = [FailureKind.BAD_REQUEST] * len(prompts)
        with torch.inference_mode():
            prefix_cache = self._read_prefix(prefix_ids)
            shared_seconds = (time.perf_counter() - began) / max(1, len(order))
            for start in range(0, len(order), self.batch_size):
                rows = order[start : start + self.batch_size]
                generator = make_torch_generator(seed, *(prompts[i] for i in rows))
                batch = self._complete_batch(
                    prefix_cache, [ids_N[i] for i in rows], samples, temperature, generator, ending
                )
                for i, result in zip(rows, batch, strict=True):
                    if isinstance(result, Completion):
                        result = replace(result, seconds=result.seconds + shared_seconds)
                    results[i] = result
        return results

    def _complete_batch(
        self,
        prefix_cache: Any,
        ids_B: Sequence[list[int]],
        samples: int,
        temperature: float,
        generator: Any,
        ending: Ending,
    ) -> list[Completion | FailureKind]:
        """Continue the prompts of one batch; see `complete`."""
        began = time.perf_counter()
        try:
            answers = self._continue_batch(
                prefix_cache, ids_B, samples, temperature, generator, ending
            )
        except RuntimeError as error:  # torch has no narrower name for "out of memory"
            logger.warning("a batch of %d prompts failed: %s", len(ids_B), error)
            return [FailureKind.SERVER] * len(ids_B)
        seconds = (time.perf_counter() - began) / len(ids_B)
        prefix_length = prefix_cache.get_seq_length()
        return [
            self._make_completion(
                answers[place * samples : (place + 1) * samples],
                prefix_length + len(ids),
                seconds,
                ending,
            )
            for place, ids in enumerate(ids_B)
        ]

    def _encode(self, prefix: str, prompts: Sequence[str]) -> tuple[list[int], list[list[int]]]:
        """Tokenise prefix and prompts apart; only the first gets the special token."""
        bos = self.tokenizer.bos_token or ""
        prefix_ids = list(self.tokenizer(prefix).input_ids) if prefix else []
        return prefix_ids, [
            list(
                self.tokenizer(
                    prompt, add_special_tokens=not prefix and not (bos and prompt.startswith(bos))
                ).input_ids
            )
            for prompt in prompts
        ]

    def _read_prefix(self, prefix_ids: list[int]) -> Any:
        """Return the keys and values of the prefix as a cache with a batch of one."""
        import torch

        cache = require("transformers", "local").DynamicCache(config=self.model.config)
        if prefix_ids:
            self.model(torch.tensor([prefix_ids]), past_key_values=cache, logits_to_keep=1)
        return cache

    def _continue_batch(
        self,
        prefix_cache: Any,
        ids_B: Sequence[list[int]],
        samples: int,
        temperature: float,
        generator: Any,
        ending: Ending,
    ) -> list[list[int]]:
        """Return the new token ids of every sample of every prompt; empty where not finite."""
        import torch

        prefix_length = prefix_cache.get_seq_length()
        width = max(len(ids) for ids in ids_B)
        tokens_BT = torch.tensor([[0] * (width - len(ids)) + ids for ids in ids_B])
        mask_RT = torch.tensor(
            [[1] * prefix_length + [0] * (width - len(ids)) + [1] * len(ids) for ids in ids_B]
        )
        position_RT = (mask_RT.cumsum(-1) - 1).clamp(min=0)[:, prefix_length:]
        cache = copy.deepcopy(prefix_cache)
        cache.batch_repeat_interleave(len(ids_B))
        logits_RV = self._read(tokens_BT, mask_RT, position_RT, cache)
        if samples > 1:
            cache.batch_repeat_interleave(samples)
        logits_RV, mask_RT, position_R = (
            x.repeat_interleave(samples, dim=0) for x in (logits_RV, mask_RT, position_RT[:, -1])
        )
        new_ids: list[list[int]] = [[] for _ in range(len(ids_B) * samples)]
        alive = list(range(len(new_ids)))  # R = the rows that are still being answered
        for step in range(ending.max_new_tokens):
            finite_R = logits_RV.isfinite().all(-1).tolist()
            token_R = _pick_tokens(logits_RV.nan_to_num(), temperature, generator)
            going = []
            for place, (row, token) in enumerate(zip(alive, token_R.tolist(), strict=True)):
                new_ids[row] = [*new_ids[row], token] if finite_R[place] else []
                if finite_R[place] and not self._ends_answer(token, ending):
                    going.append(place)
            if not going or step + 1 == ending.max_new_tokens:
                break
            if len(going) < len(alive):
                keep = torch.tensor(going)
                cache.batch_select_indices(keep)
                token_R, mask_RT, position_R = token_R[keep], mask_RT[keep], position_R[keep]
                alive = [alive[place] for place in going]
            mask_RT = torch.nn.functional.pad(mask_RT, (0, 1), value=1)
            position_R = position_R + 1
            logits_RV = self._read(token_R[:, None], mask_RT, position_R[:, None], cache)
        return new_ids

    def _read(self, tokens_RT: Any, mask_RT: Any, position_RT: Any, cache: Any) -> Any:
        """Run the network over new tokens; return the logits after the last one, [R, V]."""
        output = self.model(
            tokens_RT,
            attention_mask=mask_RT,
            position_ids=position_RT,
            past_key_values=cache,
            logits_to_keep=1,
        )
        return output.logits[:, -1].float()

    def _ends_answer(self, token: int, ending: Ending) -> bool:
        """Say whether an answer ends with this token: it ends the text, or the only line."""
        if token == self.tokenizer.eos_token_id:
            return True
        return ending.one_line and "\n" in self.tokenizer.decode([token])

    def _make_completion(
        self, new_ids: list[list[int]], prompt_tokens: int, seconds: float, ending: Ending
    ) -> Completion | FailureKind:
        """Decode the samples of one prompt, up to their first newline where they are one line."""
        if not all(new_ids):
            return FailureKind.MALFORMED
        texts = (self.tokenizer.decode(ids, skip_special_tokens=True) for ids in new_ids)
        return Completion(
            texts=tuple(_clean_line(text) if ending.one_line else text.strip() for text in texts),
            prompt_tokens=prompt_tokens,
            completion_tokens=tuple(len(ids) for ids in new_ids),
            seconds=seconds,
        )


def _clean_line(text: str) -> str:
    """Return the first line without the spaces around it and without a closing full stop."""
    return text.partition("\n")[0].strip().removesuffix(".")


def _pick_tokens(logits_RV: Any, temperature: float, generator: Any) -> Any:
    """Return one token id per row, [R]."""
    if temperature == 0:
        return logits_RV.argmax(-1)
    probabilities_RV = (logits_RV / temperature).softmax(-1)
    return probabilities_RV.multinomial(1, generator=generator)[:, 0]
