"""Local models as candidates: how a call becomes a prompt, and a continuation a reply.

    direct            a short answer of one line is asked for
    chat              the call's text as it is; all that is written, up to its `max_output_tokens`
    few_shot          worked examples of the call's task come first
    self_consistency  the same, several samples, the commonest answer (Wang et al., 2023); its
                      usage is the sum over the samples, prompts included

What it leaves out: the network (`rlroute.pool.local`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from rlroute.pool.local import (
    INSTRUCTION,
    REPLY_BEGINNING,
    Completion,
    Ending,
    Examples,
    LocalModel,
    Mode,
)
from rlroute.types import Call, Candidate, FailureKind, Reply, RLRouteError, Usage


@dataclass(frozen=True)
class LocalCandidate:
    """One local model in one mode, as a candidate; see the module's text.

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
        if self.mode == "chat":
            return self._chat(calls)
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

    def _chat(self, calls: Sequence[Call]) -> list[Reply]:
        """Answer calls as they are, those of one limit of tokens together."""
        replies: dict[int, Reply] = {}
        limits = [call.max_output_tokens or self.model.max_new_tokens for call in calls]
        for limit in sorted(set(limits)):
            members = [i for i in range(len(calls)) if limits[i] == limit]
            completions = self.model.complete(
                [self._write_chat(calls[i]) for i in members],
                ending=Ending(limit, one_line=False),
            )
            for i, completion in zip(members, completions, strict=True):
                replies[i] = self._make_reply(calls[i], completion)
        return [replies[i] for i in range(len(calls))]

    def _write_chat(self, call: Call) -> str:
        """Return a call's texts in the form that the model was taught to talk in, if any."""
        tokenizer = self.model.tokenizer
        system = [{"role": "system", "content": call.system}] if call.system else []
        if not tokenizer.chat_template:
            return "\n\n".join(filter(None, (call.system, call.text)))
        messages = [*system, {"role": "user", "content": call.text}]
        prompt: str = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        return prompt

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
