"""The chat format of OpenAI-compatible servers: a call becomes a body, a body becomes an answer.

Rules that are stated here and nowhere else:

- Every request names its output limit (`max_tokens`): the call's, else the candidate's, the smaller
  of both where both state one, else `DEFAULT_OUTPUT_TOKENS`. Without it no price has a bound.
- Upper bound of a call: a prompt has at most as many tokens as bytes (byte-level tokenizers never
  make more) and `OVERHEAD_TOKENS` for the server's template, and no more than the candidate's
  context; the output at most its limit.
- A prompt that fills the candidate's context, as the endpoint's tokenizer counts it, is BAD_REQUEST
  and is not sent. Without a tokenizer the server is left to say so.
- A reply without usage (or with one that is no count) is counted here and flagged `estimated`: by
  the endpoint's tokenizer, with `TEMPLATE_TOKENS` per message; where it names none, at
  `BYTES_PER_TOKEN`. English has some 4.4 bytes a token: that estimate errs towards dear.
- An answer cut at its limit is an answer where it has text, TRUNCATED where it has none.
- `content_filter`, or a refusal in the place of the text, is REFUSED.
- A reply of another model than asked for is MALFORMED. The same model may add its date or tag
  (`gpt-x` answers as `gpt-x-2025-01-31`, `phi` as `phi:latest`), or leave out the name of the
  provider before the slash.

What it leaves out: streams, tools, pictures, log-probabilities.
"""

from __future__ import annotations

import functools
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlroute.extras import require
from rlroute.types import Call, FailureKind, RLRouteError, Usage

if TYPE_CHECKING:
    from rlroute.pool.http import Endpoint

DEFAULT_OUTPUT_TOKENS = 1024
OVERHEAD_TOKENS = 256
BYTES_PER_TOKEN = 3
TEMPLATE_TOKENS = 4  # what a chat template puts around a message
MOST_TOKENS = 10**12  # a count beyond it is none
MODEL_SUFFIX = re.compile(r"(-\d{4}-\d{2}-\d{2}|-\d{8}|-\d{4}|:latest)")


@dataclass(frozen=True)
class Answer:
    """What a body said: a text or a typed failure, and the tokens that are charged either way."""

    text: str
    usage: Usage
    failure: FailureKind | None = None


class UnreadableBodyError(ValueError):
    """A body that is no JSON object: nothing is known of what it cost."""


def build_body(endpoint: Endpoint, call: Call) -> dict[str, Any]:
    """Return the JSON object that is sent for a call."""
    messages = [{"role": "user", "content": call.text}]
    if call.system:
        messages.insert(0, {"role": "system", "content": call.system})
    return {
        "model": endpoint.served_model,
        "messages": messages,
        "temperature": call.temperature,
        "max_tokens": resolve_output_tokens(endpoint, call),
    }


def resolve_output_tokens(endpoint: Endpoint, call: Call) -> int:
    """Return the output limit of a call in tokens; see the module's rules."""
    limits = (call.max_output_tokens, endpoint.candidate.limits.output_tokens)
    stated = [limit for limit in limits if limit is not None]
    return min(stated) if stated else DEFAULT_OUTPUT_TOKENS


def bound_usage(endpoint: Endpoint, call: Call) -> Usage:
    """Return the most tokens that a request can use."""
    prompt_tokens = _count_prompt_bytes(call) + OVERHEAD_TOKENS
    context_tokens = endpoint.candidate.limits.context_tokens
    if context_tokens is not None:
        prompt_tokens = min(prompt_tokens, context_tokens)
    return Usage(prompt_tokens, resolve_output_tokens(endpoint, call))


def fits_context(endpoint: Endpoint, call: Call) -> bool:
    """Say whether a prompt leaves room for an answer; True where that cannot be told for sure."""
    context_tokens = endpoint.candidate.limits.context_tokens
    if context_tokens is None or endpoint.tokenizer is None:
        return True
    return estimate_usage(endpoint, call, "").prompt_tokens < context_tokens


def estimate_usage(endpoint: Endpoint, call: Call, text: str) -> Usage:
    """Return the tokens of a request by the stated estimate, flagged as such."""
    if endpoint.tokenizer is None:
        prompt_tokens = max(1, math.ceil(_count_prompt_bytes(call) / BYTES_PER_TOKEN))
        completion_tokens = math.ceil(_count_bytes(text) / BYTES_PER_TOKEN)
    else:
        tokenizer = load_tokenizer(endpoint.tokenizer)
        messages = [part for part in (call.system, call.text) if part]
        counts = [len(item.ids) for item in tokenizer.encode_batch(messages)]
        prompt_tokens = max(1, sum(counts) + TEMPLATE_TOKENS * len(messages))
        completion_tokens = len(tokenizer.encode(text, add_special_tokens=False).ids)
    completion_tokens = min(completion_tokens, resolve_output_tokens(endpoint, call))
    return Usage(prompt_tokens, completion_tokens, estimated=True)


@functools.cache
def load_tokenizer(path: Path) -> Any:
    """Load a tokenizer.json, or the one in a checkpoint's folder.

    Raises:
        RLRouteError: there is none, it cannot be read, or the extra `http` is missing.
    """
    file = path / "tokenizer.json" if path.is_dir() else path
    tokenizers = require("tokenizers", "http")
    if not file.is_file():
        raise RLRouteError(f"tokenizer {path}: no such file, and no folder with a tokenizer.json")
    try:
        return tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises no narrower class
        raise RLRouteError(f"tokenizer {file}: cannot be read ({error})") from None


def parse_body(endpoint: Endpoint, call: Call, data: bytes) -> Answer:
    """Read the body of a reply with status 200.

    Raises:
        UnreadableBodyError: it is no JSON object in UTF-8.
    """
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):  # ValueError: no JSON, or no UTF-8
        raise UnreadableBodyError from None
    if not isinstance(body, dict):
        raise UnreadableBodyError
    choices = body.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    content = message.get("content") or "" if isinstance(message, dict) else None
    text = content if isinstance(content, str) else ""
    usage = _parse_usage(body.get("usage")) or estimate_usage(endpoint, call, text)
    if not (
        isinstance(choice, dict)
        and isinstance(message, dict)
        and isinstance(content, str)
        and names_model(body.get("model"), endpoint.served_model)
    ):
        return Answer("", usage, FailureKind.MALFORMED)
    if choice.get("finish_reason") == "content_filter" or message.get("refusal"):
        return Answer("", usage, FailureKind.REFUSED)
    if not text.strip() and choice.get("finish_reason") == "length":
        return Answer("", usage, FailureKind.TRUNCATED)
    return Answer(text, usage)


def names_model(replied: object, served_model: str) -> bool:
    """Say whether the name in a reply may be the model that was asked; no name at all may be."""
    if replied is None:
        return True
    if not isinstance(replied, str):
        return False
    for asked in (served_model, served_model.rpartition("/")[2]):
        if replied.startswith(asked) and (
            replied == asked or MODEL_SUFFIX.fullmatch(replied, len(asked))
        ):
            return True
    return False


def _parse_usage(usage: object) -> Usage | None:
    """Return the reported tokens, or None where they are missing or no counts."""
    if not isinstance(usage, dict):
        return None
    prompt = _read_count(usage.get("prompt_tokens"))
    completion = _read_count(usage.get("completion_tokens"))
    if not prompt or completion is None:  # no prompt has 0 tokens
        return None
    details = usage.get("prompt_tokens_details")
    cached = _read_count(details.get("cached_tokens")) if isinstance(details, dict) else None
    return Usage(prompt, completion, min(cached or 0, prompt))


def _read_count(value: object) -> int | None:
    """Return a number of tokens as it is, and None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MOST_TOKENS:
        return None
    return value


def _count_prompt_bytes(call: Call) -> int:
    return _count_bytes(call.text) + _count_bytes(call.system)


def _count_bytes(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))  # JSON may hold halves of pairs
