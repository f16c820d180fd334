"""The original Router-R1's rules, number by number: chunks (S), formats (P), the whole example."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlroute.rewards.charge import PercentileWindow, PercentileWindowConfig
from rlroute.rewards.combination import MultiplicativeConfig, combine_terms
from rlroute.rewards.grading import GRADES
from rlroute.router_r1 import (
    MARKS,
    MODELS,
    PaperAnswer,
    PaperCall,
    compute_charge,
    count_routes,
    cut_chunk,
    extract_answer,
    format_observation,
    parse_chunk,
    resolve_name,
    score_format,
)
from rlroute.types import RLRouteError

THINK = "<think>I need a fact.</think>"
QWEN, MIXTRAL = "Qwen2.5-7B-Instruct", "Mixtral-8x22B-Instruct"
CALL = f"<search>{QWEN}:Q?</search>"
INFO = "<information>a reply</information>"
ANSWER = "<answer>X</answer>"

# number: (what was generated, what is parsed, charge of the call at 100 reply tokens)
CHUNKS = {
    "S1": (f"{THINK}{CALL} junk {ANSWER}", PaperCall(QWEN, "Q?"), 30.0),
    "S2": (f"{THINK}{ANSWER} text", PaperAnswer("X"), 0.0),
    "S3": (f"{THINK}{ANSWER} and {CALL}", PaperAnswer("X"), 0.0),
    "S4": ("<search>LLM-Name:Your-Query</search>", None, 0.0),
    "S5": ("<search>Qwen no colon</search>", None, 0.0),
    "S6": ("<search>Qwen: </search>", None, 0.0),
    "S7": ("<search>GPT-4o:Q?</search>", PaperCall(None, "Q?"), 0.0),
    "S8": (f"<search>{MIXTRAL}:T: rest?</search>", PaperCall(MIXTRAL, "T"), 120.0),
    "S9": ("<search>:Q?</search>", PaperCall(None, "Q?"), 0.0),
    "S10": ("<answer></answer>", PaperAnswer(""), 0.0),
    "S11": (f"<search>{QWEN}:Q? <answer>Y</answer>", PaperAnswer("Y"), 0.0),
    "S12": ("I do not know.", None, 0.0),
}


@pytest.mark.parametrize("number", CHUNKS)
def test_a_chunk_is_parsed_and_charged_as_in_the_original(number: str) -> None:
    generated, expected, charge = CHUNKS[number]
    parsed = parse_chunk(cut_chunk(generated))
    assert parsed == expected
    name = parsed.name if isinstance(parsed, PaperCall) else None
    assert (compute_charge(name, 100) if name else 0.0) == pytest.approx(charge)


def test_what_is_kept_of_a_chunk_ends_at_its_first_closing_tag() -> None:
    assert cut_chunk(CHUNKS["S1"][0]) == THINK + CALL
    assert cut_chunk(CHUNKS["S2"][0]) == THINK + ANSWER
    assert cut_chunk(CHUNKS["S3"][0]) == CHUNKS["S3"][0]
    assert score_format(cut_chunk(CHUNKS["S3"][0])) == -1
    assert cut_chunk("I do not know.") == "I do not know."


def test_a_failed_call_and_an_unknown_name_read_none() -> None:
    assert format_observation(None) == "\n\n<information>None</information>\n\n"
    assert format_observation("hi") == "\n\n<information>hi</information>\n\n"


FORMATS = {
    "P1": (f"{THINK}{CALL}{INFO}{THINK}{ANSWER}", 0, 1),
    "P2": (f"{THINK}{ANSWER}", 0, 0),
    "P3": (f"\n\n{THINK}\n\n{ANSWER}\n\n", 0, 0),
    "P4": (f"{THINK}{CALL}{INFO}{ANSWER}", 0, 1),
    "P5": (f"{THINK} so {CALL} and {INFO} hence {ANSWER}", 0, 1),
    "P6": (f"{THINK}<answer></answer>", 0, 0),
    "P7": (f"{THINK}{(CALL + INFO) * 5}{ANSWER}", 0, 5),
    "P8": (f"{THINK}<search>my-gemma-thing:Q?</search>{INFO}{ANSWER}", 0, 1),
    "P9": (f"{THINK}<search>granite:Q?</search>{INFO}{ANSWER}", 0, 1),
    "P10": ("", -1, 0),
    "P11": ("The answer is X.", -1, 0),
    "P12": (ANSWER, -1, 0),
    "P13": (f"<think>...</think>{ANSWER}", -1, 0),
    "P14": (f"<think> </think>{ANSWER}", -1, 0),
    "P15": (f"{THINK}{ANSWER}{ANSWER}", -1, 0),
    "P16": (f"{THINK}{CALL}{INFO}", -1, 1),
    "P17": (f"{THINK}{CALL}{ANSWER}", -1, 1),
    "P18": (f"{THINK}{INFO}{ANSWER}", -1, 0),
    "P19": (f"{THINK}{CALL}{INFO}{INFO}{ANSWER}", -1, 1),
    "P20": (f"Well: {THINK}{ANSWER}", -1, 0),
    "P21": (f"{THINK}{ANSWER} I hope this helps.", -1, 0),
    "P22": (f"{THINK}{ANSWER}<|im_end|>", -1, 0),
    "P23": (f"<think>I need a fact.{ANSWER}", -1, 0),
    "P24": (f"<think>Let me ask {CALL}</think>{INFO}{ANSWER}", -1, 1),
    "P25": (f"{THINK}{CALL}<information>it is</answer> so</information>{ANSWER}", -1, 1),
    "P26": (f"{THINK}<search>Qwen no colon</search>{INFO}{ANSWER}", -1, 0),
    "P27": (f"{THINK}<search>{QWEN}:T: rest?</search>{INFO}{ANSWER}", -1, 0),
    "P28": (f"{THINK}<search>{QWEN}: </search>{INFO}{ANSWER}", -1, 0),
    "P29": (f"{THINK}<search>LLM-Name:Q?</search>{INFO}{ANSWER}", -1, 0),
    "P30": (f"{THINK}<search>{QWEN}:your-query</search>{INFO}{ANSWER}", -1, 0),
    "P31": (f"{THINK}<search>qwen:What is qwen?</search>{INFO}{ANSWER}", -1, 1),
    "P32": (f"{THINK}<search>GPT-4o:Q?</search>{INFO}{ANSWER}", -1, 0),
    "P33": (f"{THINK}<search>llama:Q?</search>{INFO}{ANSWER}", -1, 0),
}


@pytest.mark.parametrize("number", FORMATS)
def test_a_format_is_judged_as_in_the_original(number: str) -> None:
    response, reward, routes = FORMATS[number]
    assert score_format(response) == reward
    assert count_routes(response) == routes


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("QWEN", QWEN),
        ("creative-llama-8b", "Palmyra-Creative-122B"),
        ("palmyra", "Palmyra-Creative-122B"),
        ("LLaMA-3.1-8B-Instruct", "LLaMA-3.1-8B-Instruct"),
        ("llama 70b", "LLaMA-3.1-70B-Instruct"),
        ("LLaMA3-ChatQA-1.5-8B", "LLaMA3-ChatQA-1.5-8B"),
        ("llama-nemotron-51b", "Nemotron-51B"),
        ("llama-nemotron-49b", "Nemotron-49B"),
        ("llama-mistral", None),
        ("Mistral-7B-Instruct", "Mistral-7B-Instruct"),
        ("Mixtral-8x22B-Instruct", MIXTRAL),
        ("mistral or mixtral", "Mistral-7B-Instruct"),
        ("granite", "Granite-3.0-8B"),
        ("gemma", "Gemma-2-27B-Instruct"),
        ("", None),
    ],
)
def test_names_are_guessed_by_substring_and_the_first_hit_wins(text: str, name: str | None) -> None:
    assert resolve_name(text) == name


def test_every_model_of_the_prompt_resolves_to_itself_and_has_a_price() -> None:
    for model in MODELS:
        if model.price is not None:
            assert resolve_name(model.name) == model.name
            assert compute_charge(model.name, 1_000_000) == pytest.approx(model.price * 1e6)


@pytest.mark.parametrize(
    ("calls", "charge"),
    [
        ([(QWEN, 120)], 36.0),
        ([("LLaMA-3.1-70B-Instruct", 120)], 105.6),
        ([(MIXTRAL, 120)], 144.0),
        ([("LLaMA-3.1-8B-Instruct", 80), ("LLaMA-3.1-70B-Instruct", 150)], 146.4),
    ],
)
def test_charges_of_a_trajectory_add_up(calls: list[tuple[str, int]], charge: float) -> None:
    assert sum(compute_charge(*call) for call in calls) == pytest.approx(charge)


def test_a_model_without_a_price_is_refused() -> None:
    with pytest.raises(RLRouteError, match=r"no price for 'Granite-3\.0-8B'"):
        compute_charge("Granite-3.0-8B", 10)


def test_the_last_answer_counts() -> None:
    assert extract_answer("<answer>a</answer> <answer> b \n</answer>") == "b"
    assert extract_answer("<answer>a") is None


@given(pieces=st.lists(st.sampled_from([*MARKS, "...", " ", "Qwen:Q?", "x"]), max_size=12))
def test_a_right_format_has_one_answer_and_one_information_for_each_search(
    pieces: list[str],
) -> None:
    response = "".join(pieces)
    if score_format(response) == 0:
        assert extract_answer(response) is not None
        assert count_routes(response) == response.count("<information>")


def test_the_whole_example_from_charge_to_reward() -> None:
    window = PercentileWindow(PercentileWindowConfig())
    window.normalise(np.array([0, 30, 60, 90, 120]) * 1e-6)
    charge_usd = compute_charge("LLaMA-3.1-70B-Instruct", 50) * 1e-6
    assert charge_usd == pytest.approx(44.0e-6)
    cost = window.normalise(np.array([charge_usd]))[0]
    assert cost == pytest.approx(0.4289, abs=1e-4)
    right = f"{THINK}{CALL}{INFO}{THINK}<answer>Paris</answer>"
    wrong = right.replace("Paris", "London")
    rewards = []
    for response in (right, wrong, right + " Done."):
        outcome = GRADES["squad_exact"](extract_answer(response) or "", ["Paris"])
        terms = {"format": score_format(response), "outcome": outcome, "cost": cost}
        arrays = {name: np.array([term], dtype=np.float32) for name, term in terms.items()}
        weight_1 = np.array([0.6])
        rewards += [combine_terms(arrays, weight_1, "gated", MultiplicativeConfig())[0]]
    assert rewards == pytest.approx([0.6574, 0.0, -1.0], abs=5e-5)
