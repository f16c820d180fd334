"""The rules of the original Router-R1, letter by letter: parsing, names, prices, format check.

What it is: what the authors' programs do with text, kept so that their behaviour can be reproduced
and compared (`strict_paper`). Its faults are kept too: names are guessed by substring, the text
behind a second colon is lost, a reply of the pool can break the format, prompt tokens are free.
New work uses `rlroute.parsing`, which has none of them.

What it leaves out, because other modules hold the same rule: the normalisation of answers and the
grades (`squad_exact`, `squad_f1` in `rlroute.rewards.grading`), the window of charges
(`PercentileWindow` in `rlroute.rewards.charge`) and the final reward (form "gated" in
`rlroute.rewards.combination`).

How to use: `parse_chunk(cut_chunk(text))` for each chunk, `score_format(response)` at the end.

Source: Router-R1 (Zhang et al., 2025, arXiv 2506.09033) as its authors implemented it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from rlroute.types import RLRouteError

MAX_ROUNDS = 4  # rounds in which calls are executed; one closing generation follows
BROKEN_FORMAT = -1.0  # three severities exist in the original, all of this value
TAGS = ("think", "search", "information", "answer")
PLACEHOLDERS = ("llm-name", "your-query")

MARKS = tuple(mark for tag in TAGS for mark in (f"<{tag}>", f"</{tag}>"))
ACTION = re.compile(r"<(search|answer)>(.*?)</\1>", re.DOTALL)
BLOCK = re.compile(rf"<({'|'.join(TAGS)})>(.*?)</\1>", re.DOTALL)
SEARCH = re.compile(r"<search>(.*?)</search>", re.DOTALL)
ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


@dataclass(frozen=True)
class PaperModel:
    """A model of the original's pool: its price in USD per million output tokens, None if unset."""

    name: str
    served_id: str
    price: float | None
    in_prompt: bool
    temperature: float = 0.0


MODELS = (
    PaperModel("Qwen2.5-7B-Instruct", "qwen/qwen2.5-7b-instruct", 0.30, True),
    PaperModel("LLaMA-3.1-8B-Instruct", "meta/llama-3.1-8b-instruct", 0.18, True),
    PaperModel("LLaMA-3.1-70B-Instruct", "meta/llama-3.1-70b-instruct", 0.88, True),
    PaperModel("Mistral-7B-Instruct", "mistralai/mistral-7b-instruct-v0.3", 0.20, True),
    PaperModel("Mixtral-8x22B-Instruct", "mistralai/mixtral-8x22b-instruct-v0.1", 1.20, True),
    PaperModel("Gemma-2-27B-Instruct", "google/gemma-2-27b-it", 0.80, True, temperature=0.1),
    PaperModel("Palmyra-Creative-122B", "writer/palmyra-creative-122b", 1.80, False),
    PaperModel("LLaMA3-ChatQA-1.5-8B", "nvidia/llama3-chatqa-1.5-8b", 0.18, False),
    PaperModel("Nemotron-51B", "", None, False),
    PaperModel("Nemotron-49B", "", None, False),
    PaperModel("Granite-3.0-8B", "", None, False),
)
PRICES = {model.name: model.price for model in MODELS}


@dataclass(frozen=True)
class PaperCall:
    """A routing call; `name` is None where no model of the pool is meant."""

    name: str | None
    query: str


@dataclass(frozen=True)
class PaperAnswer:
    """The final answer, trimmed."""

    text: str


def cut_chunk(text: str) -> str:
    """Return a chunk up to its first closing search tag; without one, its first closing answer."""
    for mark in ("</search>", "</answer>"):
        head, found, _ = text.partition(mark)
        if found:
            return head + found
    return text


def parse_chunk(chunk: str) -> PaperCall | PaperAnswer | None:
    """Return what a cut chunk asks for; None where it is unusable and gets an empty observation.

    The first closed search or answer decides. Between the first and the second colon stands the
    query, and the check for an empty query looks behind the last colon.
    """
    match = ACTION.search(chunk)
    if match is None:
        return None
    content = match[2].strip()
    if match[1] == "answer":
        return PaperAnswer(content)
    fields = content.split(":")
    if has_placeholder(content) or len(fields) == 1 or not fields[-1].strip():
        return None
    return PaperCall(resolve_name(fields[0]), fields[1].strip())


def has_placeholder(text: str) -> bool:
    """Say whether a text holds one of the prompt's placeholders, in any case."""
    return any(word in text.lower() for word in PLACEHOLDERS)


def resolve_name(text: str) -> str | None:
    """Return the model that a name stands for by substring, first hit wins; None for no model."""
    name = text.strip().lower()
    if "qwen" in name:
        return "Qwen2.5-7B-Instruct"
    if "palmyra" in name or "creative" in name:
        return "Palmyra-Creative-122B"
    if "llama" in name:
        return _resolve_llama(name)
    for part, model in (
        ("mistral", "Mistral-7B-Instruct"),
        ("mixtral", "Mixtral-8x22B-Instruct"),
        ("granite", "Granite-3.0-8B"),
        ("gemma", "Gemma-2-27B-Instruct"),
    ):
        if part in name:
            return model
    return None


def _resolve_llama(name: str) -> str | None:
    """Return the Llama of the size that stands in the name."""
    for size, model in (
        ("70b", "LLaMA-3.1-70B-Instruct"),
        ("51b", "Nemotron-51B"),
        ("49b", "Nemotron-49B"),
    ):
        if size in name:
            return model
    if "8b" in name:
        return "LLaMA3-ChatQA-1.5-8B" if "chatqa" in name else "LLaMA-3.1-8B-Instruct"
    return None


def compute_charge(name: str, completion_tokens: int) -> float:
    """Return the charge of a call in millionths of a USD: output tokens only.

    Raises:
        RLRouteError: the model has no price (in the original this ends the whole batch).
    """
    price = PRICES.get(name)
    if price is None:
        priced = ", ".join(model for model, known in PRICES.items() if known is not None)
        raise RLRouteError(f"Router-R1 has no price for '{name}'; it prices {priced}")
    return completion_tokens * price


def format_observation(reply: str | None) -> str:
    """Return what follows a call: the reply as it is, or None for a failure or an unknown name."""
    return f"\n\n<information>{reply}</information>\n\n"


def score_format(response: str) -> float:
    """Return 0 for a well-formed response and -1 for any other.

    `response` is all text behind the prompt: the policy's, the injected replies and the special
    tokens that were not stripped.
    """
    blocks = [(match[1], match[2].strip()) for match in BLOCK.finditer(response)]
    text = response.strip()
    well_formed = (
        bool(blocks)
        and all(response.count(f"<{tag}>") == response.count(f"</{tag}>") for tag in TAGS)
        and not any(mark in content for _, content in blocks for mark in MARKS)
        and _has_right_blocks(blocks)
        and all(_is_right_search(content) for tag, content in blocks if tag == "search")
        and text.startswith("<think>")
        and text.endswith("</answer>")
    )
    return 0.0 if well_formed else BROKEN_FORMAT


def _has_right_blocks(blocks: list[tuple[str, str]]) -> bool:
    """Check the numbers of blocks, and that no think block is blank or three dots."""
    tags = [tag for tag, _ in blocks]
    thoughts = [content for tag, content in blocks if tag == "think"]
    return (
        tags.count("answer") == 1
        and bool(thoughts)
        and not any(thought in ("", "...") for thought in thoughts)
        and tags.count("search") == tags.count("information")
    )


def _is_right_search(content: str) -> bool:
    """Check the content of a search block; the query must not repeat the name."""
    name, _, query = content.lower().partition(":")
    return _is_route(content) and name.strip() not in query


def _is_route(content: str) -> bool:
    """Say whether a search names a model and a query, with exactly one colon."""
    name, _, query = content.partition(":")
    return (
        content.count(":") == 1
        and bool(query.strip())
        and not has_placeholder(content)
        and resolve_name(name) is not None
    )


def count_routes(response: str) -> int:
    """Return the number of valid routes, the original's metric, in any response."""
    return sum(_is_route(content) for content in SEARCH.findall(response))


def extract_answer(response: str) -> str | None:
    """Return the content of the last answer block, trimmed; None without one."""
    answers = ANSWER.findall(response)
    return answers[-1].strip() if answers else None
