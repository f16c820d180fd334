"""What the policy of a multi-round episode reads: prompt, replies, ledger, feedback.

Everything follows from the declaration of the candidates and from the configuration, so adding,
removing or repricing a candidate changes the next prompt and nothing that is stored.

The short form, for tiny models, in a line per candidate:

    calls 4 weight 0.5
    NAME $INPUT/OUTPUT+PER_CALL quality 0.93 cost $0.0001
    Question: ...

(`weight` only where there is more than one; what is not known, or switched off, is left out; limits
of money and tokens stand behind the calls, with the candidates that are still affordable.)

What it leaves out: chat templates and tokens, which are the rollout's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING

from rlroute.parsing import (
    PLACEHOLDER_NAME,
    PLACEHOLDER_QUERY,
    Fault,
    escape_tags,
    get_shown_name,
)
from rlroute.types import Candidate, Prices, Query

if TYPE_CHECKING:
    from rlroute.envs.multi_round import MultiRoundConfig

CUT_MARK = " [cut]"


@dataclass(frozen=True)
class Left:
    """What is left of an episode's limits; None where there is no such limit.

    `affordable` holds the names that can still be called, where money or tokens are limited.
    """

    calls: int
    usd: float | None = None
    reply_tokens: int | None = None
    affordable: tuple[str, ...] | None = None


def format_number(value: float, digits: int = 6) -> str:
    """Return a number with so many significant digits and without an exponent."""
    return f"{Decimal(f'{value:.{digits}g}'):f}"


def build_system(config: MultiRoundConfig) -> str:
    """Return the system text of a call: what a candidate is told about its part."""
    return (
        "Several language models solve a problem together. One of them needs your help with the "
        "part below. Answer it correctly and explain the answer in a sentence or two. Where you "
        "cannot answer, give the facts that would help to find the answer; where you have none, "
        "say so, and recommend that another model is asked. Keep to the point and well below "
        f"{config.reply_tokens} tokens."
    )


def build_prompt(
    candidates: Sequence[Candidate],
    config: MultiRoundConfig,
    query: Query,
    cost_weight: float,
    left: Left,
) -> str:
    """Return the first observation of an episode: the whole prompt as one message."""
    if config.prompt == "short":
        return build_short_prompt(candidates, config, query, cost_weight, left)
    parts = [
        describe_task(config),
        "The models:\n" + "\n".join(describe_candidate(config, c) for c in candidates),
        describe_limits(config, cost_weight, left),
        "When you know the answer, write it alone, without explanation, between <answer> and "
        "</answer>; for instance <answer>Lisbon</answer>. That ends the task, so never leave the "
        "block empty.",
        f"Question: {query.text}",
    ]
    return "\n\n".join(parts)


def describe_task(config: MultiRoundConfig) -> str:
    """Return the rules of writing: think, call, read."""
    task = (
        "Answer the question at the end. You may answer from what you know, or first ask language "
        "models for what you are missing, one model and one query at a time. The rules:"
    )
    rules = []
    if config.require_think:
        rules.append(
            "Begin with reasoning between <think> and </think>, and reason anew whenever something "
            "new has come in. Before you ask, work out what is missing and which of the models "
            "below suits it best. The block must hold real reasoning; dots or blanks do not count."
        )
    rules.append(
        f"To ask, write <search>{PLACEHOLDER_NAME}:{PLACEHOLDER_QUERY}</search> with one of the "
        "names below in front of the colon, spelt exactly as it is listed, and behind it a "
        "complete query of your own that brings you closer to the answer: the model reads nothing "
        "else, not even the question. Do not copy descriptions of models into the query, and never "
        "write the two placeholder words as they stand."
    )
    rules.append(
        "The reply arrives between <information> and </information>. Never write these two tags "
        "yourself. A reply may be wrong; you may ask again, another model or in other words."
    )
    return "\n".join([task, *(f"- {rule}" for rule in rules)])


def describe_limits(config: MultiRoundConfig, cost_weight: float, left: Left) -> str:
    """Return what calls cost the policy and what the limits are."""
    lines = [write_left(left)]
    if config.prices:
        lines.append("Every call is charged at the listed prices; thinking is not.")
    if len(config.cost_weights) > 1:
        lines.append(
            f"Cost weight: {format_number(cost_weight)}. At 0 only a right answer counts; the "
            "closer to 1, the more it matters that a right answer was cheap."
        )
    return " ".join(lines)


def describe_candidate(config: MultiRoundConfig, candidate: Candidate) -> str:
    """Return a candidate's line: name, prices, and what is known of it."""
    facts = []
    if config.prices:
        facts.append(describe_prices(candidate.prices))
    profile = candidate.profile
    if config.profile == "structured" and profile is not None:
        facts.append(
            f"scored {format_number(profile.mean_score, 2)} of 1 in a test, at "
            f"${format_number(profile.mean_cost_usd, 3)} per call on average"
        )
    if config.latency and profile is not None and profile.latency_seconds is not None:
        facts.append(f"replies after {format_number(profile.latency_seconds, 2)} s on average")
    line = f"- {get_shown_name(candidate)}"
    if facts:
        line += f" ({'; '.join(facts)})"
    if config.profile == "text" and candidate.description.strip():
        line += f": {squeeze(candidate.description)}"
    return line


def describe_prices(prices: Prices) -> str:
    """Return prices in words."""
    text = (
        f"${format_number(prices.input)} per million tokens of the query, "
        f"${format_number(prices.output)} per million tokens of the reply"
    )
    return text + (f", ${format_number(prices.per_call)} per call" if prices.per_call else "")


def squeeze(text: str) -> str:
    """Return a text on one line with single blanks."""
    return " ".join(text.split())


def build_short_prompt(
    candidates: Sequence[Candidate],
    config: MultiRoundConfig,
    query: Query,
    cost_weight: float,
    left: Left,
) -> str:
    """Return the prompt of the short form; see the module."""
    weight = f"weight {format_number(cost_weight)}" if len(config.cost_weights) > 1 else ""
    lines = [describe_candidate_shortly(config, candidate) for candidate in candidates]
    return "\n".join([write_short_left(left, weight), *lines, f"Question: {query.text}", ""])


def describe_candidate_shortly(config: MultiRoundConfig, candidate: Candidate) -> str:
    """Return a candidate's line of the short form."""
    words = [get_shown_name(candidate)]
    if config.prices:
        prices = candidate.prices
        numbers = map(format_number, (prices.input, prices.output, prices.per_call))
        words.append("${}/{}+{}".format(*numbers))
    profile = candidate.profile
    if config.profile == "text":
        words.append(squeeze(candidate.description))
    elif config.profile == "structured" and profile is not None:
        quality = format_number(profile.mean_score, 2)
        words.append(f"quality {quality} cost ${format_number(profile.mean_cost_usd, 2)}")
    if config.latency and profile is not None and profile.latency_seconds is not None:
        words.append(f"latency {format_number(profile.latency_seconds, 2)}")
    return " ".join(filter(None, words))


def write_left(left: Left) -> str:
    """Return what is left, in words."""
    lines = [f"Calls left: {left.calls}." if left.calls else "No calls left: answer now."]
    if left.usd is not None:
        lines.append(f"Money left: ${format_number(left.usd, 3)}.")
    if left.reply_tokens is not None:
        lines.append(f"Tokens left for replies: {left.reply_tokens}.")
    if left.calls and left.affordable is not None:
        names = ", ".join(left.affordable) or "none, answer now"
        lines.append(f"Models you can still afford: {names}.")
    return " ".join(lines)


def write_short_left(left: Left, weight: str = "") -> str:
    """Return what is left, in the words of the short form; the prompt's head adds the weight."""
    words = [f"calls {left.calls}"]
    if weight:
        words.append(weight)
    if left.usd is not None:
        words.append(f"usd {format_number(left.usd, 3)}")
    if left.reply_tokens is not None:
        words.append(f"tokens {left.reply_tokens}")
    if left.affordable is not None:
        words.append(f"afford {', '.join(left.affordable) or 'none'}")
    return " ".join(words)


def write_reply(config: MultiRoundConfig, text: str) -> str:
    """Return a reply in its block: cut, our tags in it escaped, always closed."""
    text = text.strip()
    if len(text) > config.reply_characters:
        text = text[: config.reply_characters].rstrip() + CUT_MARK
    block = f"<information>{escape_tags(text)}</information>"
    return f"\n{block}\n" if config.prompt == "short" else f"\n\n{block}\n\n"


def write_feedback(config: MultiRoundConfig, fault: Fault) -> str:
    """Return what the policy is told about an unusable chunk."""
    if config.prompt == "short":
        return f"\n{fault.value}\n"
    return f"\n\nNothing was done: {fault.value}. {ADVICE.get(fault, GENERAL_ADVICE)}\n\n"


def write_ledger(config: MultiRoundConfig, left: Left) -> str:
    """Return what is left, as it follows a reply or feedback."""
    return f"{write_short_left(left)}\n" if config.prompt == "short" else f"{write_left(left)}\n\n"


GENERAL_ADVICE = (
    "Ask with <search>, one of the listed names, a colon, your query and </search>, "
    "or give the answer between <answer> and </answer>."
)
ADVICE = {
    Fault.UNKNOWN_NAME: "Use one of the listed names, spelt as it is listed.",
    Fault.UNAFFORDABLE: "Ask a model that you can still afford, or answer.",
}
