"""A model that vLLM runs inside this process, as a candidate.

What it is: a thin layer over `vllm.LLM.chat`, which batches by itself.

What it leaves out: servers (an `http` candidate talks to `vllm serve`), the installation of vLLM,
which depends on the machine, and retries.

How to use: a candidate of type `vllm` in pool.yaml, `engine` holding arguments of `vllm.LLM`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from rlroute.types import Call, Candidate, FailureKind, Reply, RLRouteError, Usage


class VllmCandidate:
    """One model of vLLM as a candidate.

    Raises:
        RLRouteError: vLLM is not installed.
    """

    def __init__(self, candidate: Candidate, model: str, engine: Mapping[str, Any]) -> None:
        try:
            import vllm
        except ModuleNotFoundError:
            raise RLRouteError(
                f"candidate '{candidate.id}': vllm is not installed; install the build for this "
                "machine, or use a server with a candidate of type http"
            ) from None
        self.candidate = candidate
        self._make_sampling = vllm.SamplingParams
        self._engine = vllm.LLM(model=model, **engine)

    async def ask_many(self, calls: Sequence[Call]) -> list[Reply]:
        """Answer the calls in their order; one that was cut before any text is a failed call."""
        conversations = [
            [
                {"role": role, "content": text}
                for role, text in (("system", call.system), ("user", call.text))
                if text or role == "user"
            ]
            for call in calls
        ]
        sampling = [
            self._make_sampling(
                temperature=call.temperature,
                max_tokens=call.max_output_tokens or self.candidate.limits.output_tokens,
                seed=call.sample,
            )
            for call in calls
        ]
        began = time.perf_counter()
        outputs = self._engine.chat(conversations, sampling, use_tqdm=False)
        seconds = (time.perf_counter() - began) / max(1, len(calls))
        return [self._make_reply(c, o, seconds) for c, o in zip(calls, outputs, strict=True)]

    def _make_reply(self, call: Call, output: Any, seconds: float) -> Reply:
        """Return the reply of one output of the engine."""
        answer = output.outputs[0]
        usage = Usage(len(output.prompt_token_ids), len(answer.token_ids))
        cost = self.candidate.prices.compute_cost(usage.prompt_tokens, usage.completion_tokens)
        cut_empty = answer.finish_reason == "length" and not answer.text.strip()
        failure = FailureKind.TRUNCATED if cut_empty else None
        return Reply(call, answer.text, usage, cost, seconds, failure=failure)
