r"""Local causal language models that answer batches of prompts on a CPU.

What it is: `LocalModel` holds a checkpoint and continues prompts up to the first newline;
`LocalCandidate` is such a model in one mode, behind `ask_many`. The modes:

- direct: the question alone, in the model's chat template where it has one, reply begun;
- few_shot: worked examples of the same task before the question, greedy;
- self_consistency: as few_shot, but k sampled answers and a majority vote (Wang et al., 2023);
  its usage is the sum over the k samples, prompts included.

Prompts are sorted by length and padded on the left; the examples of a task are read once and their
keys and values shared by all its questions; answers that are done leave the batch. Seconds of a
query are the wall time of its batch divided by the queries in it.

What it leaves out: where checkpoints come from (`rlroute.pool.checkpoints`), servers and GPUs,
answers of several lines, retries. An answer that is cut at `max_new_tokens` is an answer; a prompt
that does not fit the context is a failed call.

How to use (extra `local`):
    model = LocalModel.load(Path("checkpoint"))
    completion = model.complete(["Question: 2 + 2 =\nAnswer:"])[0]
"""

from __future__ import annotations

import copy
import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from rlroute.extras import require
from rlroute.seeding import make_torch_generator
from rlroute.types import Call, Candidate, FailureKind, Reply, RLRouteError, Usage

Mode = Literal["direct", "few_shot", "self_consistency"]
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


class LocalModel:
    """A causal language model of transformers that continues batches of prompts to a newline.

    Args:
        model: the network, in evaluation mode.
        tokenizer: its tokenizer.
        batch_size: prompts in one forward pass; with k samples, k times as many rows.
        max_new_tokens: where an answer is cut.
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
    ) -> list[Completion | FailureKind]:
        """Continue every prompt `samples` times; results are in the order of the prompts.

        Args:
            prompts: the texts, each after `prefix`.
            prefix: text that all prompts share; it is read once.
            samples: continuations per prompt.
            temperature: 0 takes the likeliest token; above 0 samples from the softened logits.
            seed: together with the prompts of a batch it decides what is sampled.

        Returns:
            A completion per prompt, or why there is none: BAD_REQUEST where the prompt is empty or
            does not fit the context, MALFORMED where the network's output was not finite, SERVER
            where torch gave up on the batch (memory).
        """
        import torch

        began = time.perf_counter()
        prefix_ids, ids_N = self._encode(prefix, prompts)
        longest = self.context_tokens - self.max_new_tokens - len(prefix_ids)
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
                    prefix_cache, [ids_N[i] for i in rows], samples, temperature, generator
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
    ) -> list[Completion | FailureKind]:
        """Continue the prompts of one batch; see `complete`."""
        began = time.perf_counter()
        try:
            answers = self._continue_batch(prefix_cache, ids_B, samples, temperature, generator)
        except RuntimeError as error:  # torch has no narrower name for "out of memory"
            logger.warning("a batch of %d prompts failed: %s", len(ids_B), error)
            return [FailureKind.SERVER] * len(ids_B)
        seconds = (time.perf_counter() - began) / len(ids_B)
        prefix_length = prefix_cache.get_seq_length()
        return [
            self._make_completion(
                answers[place * samples : (place + 1) * samples], prefix_length + len(ids), seconds
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
        for step in range(self.max_new_tokens):
            finite_R = logits_RV.isfinite().all(-1).tolist()
            token_R = _pick_tokens(logits_RV.nan_to_num(), temperature, generator)
            going = []
            for place, (row, token) in enumerate(zip(alive, token_R.tolist(), strict=True)):
                new_ids[row] = [*new_ids[row], token] if finite_R[place] else []
                if finite_R[place] and not self._ends_answer(token):
                    going.append(place)
            if not going or step + 1 == self.max_new_tokens:
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

    def _ends_answer(self, token: int) -> bool:
        """Say whether an answer ends with this token: it ends the text or holds a newline."""
        return token == self.tokenizer.eos_token_id or "\n" in self.tokenizer.decode([token])

    def _make_completion(
        self, new_ids: list[list[int]], prompt_tokens: int, seconds: float
    ) -> Completion | FailureKind:
        """Decode the samples of one prompt up to their first newline."""
        if not all(new_ids):
            return FailureKind.MALFORMED
        texts = (self.tokenizer.decode(ids, skip_special_tokens=True) for ids in new_ids)
        return Completion(
            texts=tuple(_clean_line(text) for text in texts),
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


@dataclass(frozen=True)
class LocalCandidate:
    """One local model in one mode, as a candidate.

    `samples` and `temperature` are used by self_consistency only; `examples` by it and few_shot.
    """

    candidate: Candidate
    model: LocalModel
    mode: Mode
    examples: Examples
    samples: int = 1
    temperature: float = 0.0
    seed: int = 0

    async def ask_many(self, calls: Sequence[Call]) -> list[Reply]:
        """Answer the calls, in their order; a call that got no usable answer is a typed failure.

        Nothing else runs meanwhile: the processor is what the calls wait for.

        Raises:
            RLRouteError: a mode with examples is asked about a task that has none.
        """
        replies: dict[int, Reply] = {}
        tasks = sorted({call.query.task for call in calls}) if self.mode != "direct" else [""]
        for task in tasks:
            members = [
                i
                for i, call in enumerate(calls)
                if self.mode == "direct" or call.query.task == task
            ]
            several = self.mode == "self_consistency"
            completions = self.model.complete(
                [self._write_prompt(calls[i].text) for i in members],
                prefix="" if self.mode == "direct" else self._write_examples(task),
                samples=self.samples if several else 1,
                temperature=self.temperature if several else 0.0,
                seed=self.seed,
            )
            for i, completion in zip(members, completions, strict=True):
                replies[i] = self._make_reply(calls[i], completion)
        return [replies[i] for i in range(len(calls))]

    def _write_examples(self, task: str) -> str:
        """Return the worked examples of a task as the beginning of a prompt."""
        if not self.examples.get(task):
            raise RLRouteError(f"{self.candidate.id}: no worked examples for the task '{task}'")
        return "".join(
            f"Question: {question}\nAnswer: {answer}\n\n"
            for question, answer in self.examples[task]
        )

    def _write_prompt(self, text: str) -> str:
        """Return the part of the prompt that holds the question."""
        tokenizer = self.model.tokenizer
        if self.mode == "direct" and tokenizer.chat_template:
            messages = [
                {"role": "system", "content": INSTRUCTION},
                {"role": "user", "content": text},
            ]
            prompt = tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
            return f"{prompt}{REPLY_BEGINNING}"
        return f"Question: {text}\nAnswer:"

    def _make_reply(self, call: Call, completion: Completion | FailureKind) -> Reply:
        """Vote over the samples and add up their tokens, each sample with its own prompt."""
        if isinstance(completion, FailureKind):
            return Reply(call, failure=completion)
        usage = Usage(
            prompt_tokens=completion.prompt_tokens * len(completion.texts),
            completion_tokens=sum(completion.completion_tokens),
        )
        return Reply(
            call,
            text=Counter(completion.texts).most_common(1)[0][0],  # a tie goes to the first drawn
            usage=usage,
            cost_usd=self.candidate.prices.compute_cost(
                usage.prompt_tokens, usage.completion_tokens
            ),
            latency_seconds=completion.seconds,
        )
