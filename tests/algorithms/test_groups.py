from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlroute.algorithms.advantages import compute_group_advantages, compute_rloo_advantages
from rlroute.algorithms.groups import gather_groups, locate_in_groups, spread_groups


def test_groups_of_unequal_size_become_rows_with_nobody_behind_them():
    group_B = torch.tensor([7, 7, 7, 9, 8, 8])  # numbers need neither begin at 0 nor be in order
    value_NG = spread_groups(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]), group_B)
    expected = [[1, 2, 3], [4, None, None], [5, 6, None]]
    found = [[None if x != x else int(x) for x in row] for row in value_NG.tolist()]
    assert found == expected
    assert gather_groups(value_NG, group_B).tolist() == [1, 2, 3, 4, 5, 6]
    number_B, place_B = locate_in_groups(group_B)
    assert number_B.tolist() == [0, 0, 0, 1, 2, 2]
    assert place_B.tolist() == [0, 1, 2, 0, 0, 1]


def test_equal_groups_are_a_plain_reshape():
    value_B = torch.arange(12.0)
    found = spread_groups(value_B, torch.arange(4).repeat_interleave(3))
    assert torch.equal(found, value_B.reshape(4, 3))


@given(sizes=st.lists(st.integers(1, 5), min_size=1, max_size=6), seed=st.integers(0, 1000))
def test_a_group_is_compared_with_itself_whatever_stands_beside_it(sizes, seed):
    generator = torch.Generator().manual_seed(seed)
    groups = [torch.rand(size, generator=generator, dtype=torch.float64) for size in sizes]
    group_B = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    reward_NG = spread_groups(torch.cat(groups), group_B)
    for compute in (
        lambda reward: compute_group_advantages(reward, scale_by_std=True),
        compute_rloo_advantages,
    ):
        together_B = gather_groups(compute(reward_NG)[0], group_B)
        alone_B = torch.cat([compute(group[None])[0][0] for group in groups])
        torch.testing.assert_close(together_B, alone_B)


def test_rows_of_a_group_that_do_not_stand_together_are_refused():
    with pytest.raises(ValueError, match="stand together"):
        locate_in_groups(torch.tensor([0, 1, 0]))
