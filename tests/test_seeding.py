from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlroute.seeding import (
    derive_seed,
    draw_permutation,
    draw_uniform,
    finalise,
    make_torch_generator,
    mix,
)

COORDINATE = st.one_of(st.integers(-(2**63), 2**64 - 1), st.text(max_size=8))


def test_the_mixing_function_is_splitmix64():
    # the first outputs of SplitMix64 from state 0 are finalise(n * golden gamma)
    golden = 0x9E3779B97F4A7C15
    states = np.array([golden, 2 * golden % 2**64], dtype=np.uint64)
    assert finalise(states).tolist() == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]


def test_draws_never_change_between_versions():
    assert int(mix(0)) == 0xE220A8397B1DCDAF
    assert derive_seed(7, "kmeans") == 1524381048  # below 2**31


@given(coordinates=st.lists(COORDINATE, min_size=1, max_size=4))
def test_equal_coordinates_give_equal_numbers(coordinates):
    assert mix(*coordinates) == mix(*coordinates)
    assert 0 <= draw_uniform(*coordinates) < 1


def test_arrays_give_what_their_elements_give_one_by_one():
    lanes = np.array([0, 5, -3, 2**62])
    together = mix(1, "lane", lanes, 2)
    assert together.tolist() == [int(mix(1, "lane", int(lane), 2)) for lane in lanes]
    assert together.tolist() == [int(mix(1, "lane", lane, 2)) for lane in lanes]
    assert draw_uniform("turn", lanes[:, None], np.arange(3)).shape == (4, 3)


def test_order_number_and_names_of_coordinates_matter():
    numbers = {int(word) for word in (mix(1, 2), mix(2, 1), mix(1), mix(1, 2, 0), mix(0, 1, 2))}
    assert len(numbers) == 5
    assert mix(3, "query") != mix(3, "episode")


def test_draws_are_uniform_and_neighbouring_coordinates_are_unrelated():
    drawn = draw_uniform(0, "x", np.arange(20_000))
    assert drawn.mean() == pytest.approx(0.5, abs=0.01)
    assert drawn.var() == pytest.approx(1 / 12, abs=0.003)
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 0.03
    assert len(np.unique(drawn)) == 20_000


@given(size=st.integers(0, 200), seed=st.integers(0, 2**32))
def test_a_permutation_holds_each_number_once(size, seed):
    assert sorted(draw_permutation(size, seed, "order")) == list(range(size))


def test_permutations_of_other_coordinates_differ():
    assert draw_permutation(50, 0).tolist() != draw_permutation(50, 1).tolist()


def test_torch_generators_of_equal_coordinates_agree_and_leave_the_global_one_alone():
    before = torch.random.get_rng_state()
    first = torch.rand(3, generator=make_torch_generator(1, "dropout"))
    second = torch.rand(3, generator=make_torch_generator(1, "dropout"))
    assert torch.equal(first, second)
    assert torch.equal(before, torch.random.get_rng_state())


def test_another_process_draws_the_same_numbers():
    code = "from rlroute.seeding import mix; print(int(mix(3, 'query', -1)))"
    for hash_seed in ("0", "1"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": hash_seed},
        )
        assert int(done.stdout) == int(mix(3, "query", -1))
