"""Costs of tier paths: tokens, prices, the prompt cache, the oracle, in worked numbers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from twin_router_examples import make_long_rows, make_row, make_toy_rows, write_bank

from rlroute.data.twin_router_bank import TIERS, LoggedTrajectory, read_bank
from rlroute.data.twin_router_cost import (
    HIGH,
    PRICES,
    ApproximateTokens,
    PricedTrajectory,
    TokenizerFiles,
    WordTokens,
    compute_path_costs,
    compute_reward,
    find_oracle,
    make_counters,
    price_bank,
)
from rlroute.types import RLRouteError

MICRO = 1e6


def price_rows(folder: Path, rows: Sequence[dict[str, Any]]) -> tuple[PricedTrajectory, ...]:
    """Write, read and price rows whose tokens are words."""
    return price_bank(read_bank(write_bank(folder / "bank.jsonl", rows)), WordTokens())


def sum_micro(priced: PricedTrajectory, tiers: Sequence[int], after: int = 0) -> float:
    """Return the cost of a path in micro-USD, without its first steps."""
    return MICRO * sum(compute_path_costs(priced, tiers)[after:])


def test_the_toy_example_has_the_published_tokens(tmp_path: Path) -> None:
    first, second = price_rows(tmp_path, make_toy_rows())
    assert first.prompt_tokens_TK.tolist() == [[24] * 4, [58] * 4, [74] * 4]
    assert second.prompt_tokens_TK.tolist() == [[106] * 4]
    assert first.output_tokens_T.tolist() == [10, 7, 8]
    assert second.output_tokens_T.tolist() == [500]
    assert first.continued_T.tolist() == [False, True, True]


@pytest.mark.parametrize(
    ("tiers", "steps", "total"),
    [
        ((3, 3, 3), (400, 399.5, 329), 1128.5),
        ((0, 3, 1), (11.24, 537.5, 38.2), 586.94),
        ((0, 0, 0), (11.24, 15.46, 15.7), 42.4),
        ((0, 3, 3), (11.24, 537.5, 329), 877.74),
        ((0, 2, 1), (11.24, 39.8331, 38.2), 89.2731),
    ],
)
def test_the_paths_of_toy_1_cost_what_is_published(
    tmp_path: Path, tiers: tuple[int, ...], steps: tuple[float, ...], total: float
) -> None:
    priced = price_rows(tmp_path, make_toy_rows())[0]
    costs = [MICRO * cost for cost in compute_path_costs(priced, tiers)]
    assert costs == pytest.approx(steps, abs=5e-5)
    assert sum(costs) == pytest.approx(total, abs=5e-5)


def test_the_only_step_of_toy_2_costs_what_is_published(tmp_path: Path) -> None:
    priced = price_rows(tmp_path, make_toy_rows())[1]
    assert sum_micro(priced, [3]) == pytest.approx(13162.5)
    assert sum_micro(priced, [0]) == pytest.approx(277.56)


@pytest.mark.parametrize(
    ("tokens", "cached", "cents"),
    [
        (4_000, 0, (3.621, 3.530, 3.467)),
        (20_000, 20_000, (1.965, 2.032, 1.900)),
        (100_000, 0, (61.125, 60.65, 62.667)),
    ],
)
def test_the_published_price_checks_hold(
    tokens: int, cached: int, cents: tuple[float, ...]
) -> None:
    high = PRICES[HIGH].compute_cost(tokens, 500, cached)
    savings = [100 * (high - prices.compute_cost(tokens, 500, cached)) for prices in PRICES[:HIGH]]
    assert savings == pytest.approx(cents, abs=5.1e-4)  # three digits are published


@pytest.mark.parametrize(
    ("tiers", "second", "third"),
    [((3, 3, 3), 13_125, 13_375), ((3, 0, 3), 2_830, 73_750), ((3, 1, 3), 3_550, 73_750)],
)
def test_coming_back_to_high_writes_the_whole_prefix_again(
    tmp_path: Path, tiers: tuple[int, ...], second: float, third: float
) -> None:
    (priced,) = price_rows(tmp_path, make_long_rows((3, 0, 3)))
    assert priced.prompt_tokens_TK[:, 0].tolist() == [10_000, 10_500, 11_000]
    assert priced.output_tokens_T.tolist() == [200, 200, 200]
    costs = [MICRO * cost for cost in compute_path_costs(priced, tiers)[1:]]
    assert costs == pytest.approx([second, third])


@pytest.mark.parametrize(
    ("low_steps", "staying", "dropping"),
    [(1, 26_500, 76_580), (6, 97_125, 100_830), (7, 112_000, 105_875)],
)
def test_between_two_high_steps_dropping_to_low_pays_from_seven_steps_on(
    tmp_path: Path, low_steps: int, staying: float, dropping: float
) -> None:
    golds = (3, *[0] * low_steps, 3)
    (priced,) = price_rows(tmp_path, make_long_rows(golds))
    assert sum_micro(priced, [3] * len(golds), 1) == pytest.approx(staying)
    assert sum_micro(priced, golds, 1) == pytest.approx(dropping)


@pytest.mark.parametrize("low_steps", range(1, 9))
def test_the_oracle_stays_at_high_up_to_six_low_steps_and_then_leaves_it(
    tmp_path: Path, low_steps: int
) -> None:
    golds = (3, *[0] * low_steps, 3)
    (priced,) = price_rows(tmp_path, make_long_rows(golds))
    oracle = find_oracle(priced)
    if low_steps <= 6:
        assert oracle.tiers == (3,) * len(golds)
    else:  # the published comparison knows low alone; the oracle may take any tier between
        assert oracle.tiers[0] == oracle.tiers[-1] == 3
        assert HIGH not in oracle.tiers[1:-1]
    assert (
        MICRO * oracle.cost_usd
        <= min(sum_micro(priced, golds), sum_micro(priced, [3] * len(golds))) + 1e-6
    )


def make_priced(
    golds: Sequence[int], prompts_TK: Sequence[Sequence[int]], outputs: Sequence[int]
) -> PricedTrajectory:
    """Return a trajectory of given tokens; each prefix continues the one before."""
    steps = len(golds)
    return PricedTrajectory(
        logged=LoggedTrajectory("drawn", "bfcl", ()),
        gold_T=np.array(golds),
        step_index_T=np.arange(1, steps + 1),
        prompt_tokens_TK=np.array(prompts_TK).cumsum(axis=0) + 6,
        output_tokens_T=np.array(outputs),
        continued_T=np.arange(steps) > 0,
    )


@st.composite
def draw_priced(draw: st.DrawFn) -> PricedTrajectory:
    """Draw a trajectory of up to 5 steps whose prefixes grow, with other tokens for each tier."""
    steps = draw(st.integers(1, 5))
    golds = draw(st.lists(st.integers(0, 3), min_size=steps, max_size=steps))
    grown = st.lists(st.integers(0, 9000), min_size=4, max_size=4)
    prompts = draw(st.lists(grown, min_size=steps, max_size=steps))
    outputs = draw(st.lists(st.integers(0, 900), min_size=steps, max_size=steps))
    return make_priced(golds, prompts, outputs)


@given(draw_priced())
def test_the_oracle_is_the_cheapest_of_all_paths_that_pass(priced: PricedTrajectory) -> None:
    oracle = find_oracle(priced)
    paths = list(product(*(range(gold, 4) for gold in priced.gold_T.tolist())))
    cheapest = min(sum(compute_path_costs(priced, path)) for path in paths)
    assert oracle.tiers in paths
    assert oracle.cost_usd == pytest.approx(cheapest)
    assert sum(compute_path_costs(priced, oracle.tiers)) == pytest.approx(cheapest)


@given(draw_priced())
def test_no_path_at_all_has_a_greater_reward_than_the_oracles(priced: PricedTrajectory) -> None:
    best = compute_reward(priced, find_oracle(priced).tiers)
    rewards = [
        compute_reward(priced, path) for path in product(range(4), repeat=len(priced.gold_T))
    ]
    assert best == pytest.approx(max(rewards))
    assert 0 <= best < 1
    assert compute_reward(priced, [3] * len(priced.gold_T)) == 0


@pytest.mark.parametrize(
    ("tiers", "reward"),
    [
        ((0, 3, 1), (1128.5 - 586.94) / 1128.5),
        ((3, 3, 3), 0.0),
        ((0, 0, 0), -42.4 / 1128.5),
        ((0, 2, 1), -89.2731 / 1128.5),
    ],
)
def test_a_path_that_passes_earns_its_saving_and_one_that_fails_loses_its_cost(
    tmp_path: Path, tiers: tuple[int, ...], reward: float
) -> None:
    priced = price_rows(tmp_path, make_toy_rows())[0]
    assert compute_reward(priced, tiers) == pytest.approx(reward, abs=1e-7)


def test_a_path_that_passes_can_lose_by_switching(tmp_path: Path) -> None:
    (priced,) = price_rows(tmp_path, make_long_rows((0, 0, 0, 0, 0)))
    assert compute_reward(priced, (3, 2, 3, 2, 3)) < 0
    with pytest.raises(ValueError, match="2 tiers for 5 steps"):
        compute_reward(priced, (3, 3))


def test_a_prefix_whose_earlier_messages_changed_is_cold(tmp_path: Path) -> None:
    rows = make_toy_rows()
    rows[1]["messages"] = [{"role": "system", "content": "other"}, *rows[1]["messages"][1:]]
    priced = price_rows(tmp_path, rows)[0]
    assert priced.continued_T.tolist() == [False, False, False]
    assert [priced.count_cached(step, 3, 3, step) for step in (1, 2)] == [0, 0]


@pytest.mark.parametrize(("gap", "cached"), [(1, 24), (3, 24), (4, 0)])
def test_the_cache_expires_after_three_steps(tmp_path: Path, gap: int, cached: int) -> None:
    rows = make_toy_rows()[:2]
    rows[1]["step_index"] = 1 + gap
    (priced,) = price_rows(tmp_path, rows)
    write = 58 - cached
    expected = cached * 0.5 + write * 6.25 + 10 * 25
    assert sum_micro(priced, (3, 3), 1) == pytest.approx(expected)


def test_a_missing_prediction_leaves_the_next_step_cold_but_not_always_high(
    tmp_path: Path,
) -> None:
    priced = price_rows(tmp_path, make_toy_rows())[0]
    billed = [True, False, True]
    chosen = [MICRO * cost for cost in compute_path_costs(priced, [3, None, 3], billed)]
    always = [MICRO * cost for cost in compute_path_costs(priced, [3, 3, 3], billed)]
    assert chosen == pytest.approx([400, 0, 74 * 6.25 + 8 * 25])
    assert always == pytest.approx([400, 0, 329])


def test_always_high_expires_where_predictions_are_missing_for_long(tmp_path: Path) -> None:
    (priced,) = price_rows(tmp_path, make_long_rows([0] * 6))
    missing = [True, False, False, False, True, True]  # step 5 comes 4 steps after step 1
    costs = compute_path_costs(priced, [3] * 6, missing)
    assert MICRO * costs[4] == pytest.approx(12_000 * 6.25 + 200 * 25)
    assert MICRO * costs[5] == pytest.approx(12_000 * 0.5 + 500 * 6.25 + 200 * 25)


def test_an_output_of_nothing_stays_nothing_and_is_no_part_of_the_mean(tmp_path: Path) -> None:
    said = [{"role": "user", "content": write} for write in ("a", "b", "c")]
    answer = {"role": "assistant", "content": "one two three"}
    prefixes = [said[:1], said[:2], [*said[:2], answer, said[2]]]
    rows = [
        make_row("pinchbench", "p", step, messages, 0)
        for step, messages in enumerate(prefixes, start=1)
    ]
    (priced,) = price_rows(tmp_path, rows)
    assert priced.output_tokens_T.tolist() == [0, 7, 7]
    (short,) = price_rows(tmp_path, rows[:2])
    assert short.output_tokens_T.tolist() == [0, 500]


def test_a_quarter_of_the_characters_is_rounded_up() -> None:
    counters = make_counters(ApproximateTokens())
    for text, tokens in {"": 0, "a": 1, "four": 1, "fives": 2, "größe": 2}.items():
        assert [counter(text) for counter in counters] == [tokens] * 4


def write_tokenizer(path: Path, **limits: int) -> Path:
    """Write a tokenizer that knows every character, and may cut off what is long."""
    tokenizers = pytest.importorskip("tokenizers")
    vocabulary = {character: number for number, character in enumerate("?abcdefghij ")}
    model = tokenizers.models.WordLevel(vocabulary, unk_token="?")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    if limits:
        tokenizer.enable_truncation(**limits)
    tokenizer.save(str(path))
    return path


def test_each_tier_may_have_its_own_tokenizer_file_whose_limits_are_lifted(
    tmp_path: Path,
) -> None:
    spelled = write_tokenizer(tmp_path / "spelled.json", max_length=2)
    data = json.loads(spelled.read_text())
    words = tmp_path / "words.json"
    words.write_text(json.dumps({**data, "pre_tokenizer": {"type": "WhitespaceSplit"}}))
    files = TokenizerFiles(low=words, mid=words, mid_high=spelled, high=spelled)
    low, mid, mid_high, high = make_counters(files)
    assert [count("abc de") for count in (low, mid, mid_high, high)] == [2, 2, 6, 6]

    bank = read_bank(write_bank(tmp_path / "bank.jsonl", make_toy_rows()))
    first = price_bank(bank, files)[0]
    assert first.prompt_tokens_TK[0].tolist()[:2] == [24, 24]
    characters = sum(len(message.text) for message in bank[0].rows[0].messages)
    assert first.prompt_tokens_TK[0].tolist()[2:] == [2 + 8 + characters] * 2
    # the label of step 1 is low, that of step 2 high: output is counted by their tokenizers
    assert first.output_tokens_T.tolist()[:2] == [10, len(bank[0].rows[2].messages[4].text) + 4]


def test_a_tokenizer_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    torn = tmp_path / "torn.json"
    torn.write_text("{")
    for path, fault in ((tmp_path / "none.json", "no such file"), (torn, "cannot be read")):
        files = TokenizerFiles(low=path, mid=path, mid_high=path, high=path)
        with pytest.raises(RLRouteError, match=f"tokenizer .*{path.name}: {fault}"):
            make_counters(files)


def test_tiers_and_prices_stand_in_the_order_of_what_a_step_costs() -> None:
    costs = [prices.compute_cost(1000, 100) for prices in PRICES]
    assert len(costs) == len(TIERS)
    assert costs == sorted(costs)
