"""Where padding and end-of-text are the same token, those inside a prompt or an episode survive.

Router-R1 tells padding by the token: [9, 9, 1, 2, 9, 3] + [4, 5, 9] becomes
[9, 9, 9, 9, 1, 2, 3, 4, 5] where both are 9 (a tokenizer without a padding token, as Llama-3.2's).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from text_world import collect_batch, find_policy_mask, find_warm_base, make_recipe, open_run

torch = pytest.importorskip("torch")
pytest.importorskip("trl", reason="the extra `text` is absent")

from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

from rlroute.rollout.batching import flatten_tokens  # noqa: E402
from rlroute.trainers.text_run import TextRun  # noqa: E402

# end-of-text before and after the message, and the turn goes on behind it
TEMPLATE = "{{ eos_token }}{{ messages[0]['content'] }}{{ eos_token }}{{ '\\n' }}"


@pytest.fixture
def run(tmp_path: Path) -> Iterator[TextRun]:
    """A run whose tokenizer has no padding token, and end-of-text inside every prompt."""
    base = tmp_path / "base"
    tokenizer = AutoTokenizer.from_pretrained(find_warm_base())
    tokenizer.pad_token, tokenizer.chat_template = None, TEMPLATE
    tokenizer.save_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(find_warm_base())
    model.config.pad_token_id = None
    model.save_pretrained(base)
    recipe = make_recipe("ppo", base=base, world={"max_hops": 2})  # two lengths
    with open_run(recipe, tmp_path / "run") as run:
        assert run.rollouts.tokenizer.pad_token_id == run.rollouts.tokenizer.eos_token_id
        yield run


def split_row(batch: dict[str, Any], row: int) -> tuple[list[int], list[int], list[int]]:
    """Return, without padding, the ids of a prompt, of what follows, and its policy mask."""
    prompt, mask = batch["prompt_ids"][row], batch["completion_mask"][row].bool()
    own = find_policy_mask(batch)[row].int()
    return (
        prompt[batch["prompt_mask"][row].bool()].tolist(),
        batch["completion_ids"][row][mask].tolist(),
        own[mask].tolist(),
    )


def test_ids_and_masks_of_played_episodes_survive_and_the_first_ratio_is_1(run: TextRun) -> None:
    batch = collect_batch(run)
    end = run.rollouts.tokenizer.eos_token_id
    rows = [flatten_tokens(item) for item in run.trainer.collected.trajectories]
    for number, row in enumerate(rows):
        assert row.prompt_ids[0] == row.prompt_ids[-2] == end != row.prompt_ids[-1]
        expected = (list(row.prompt_ids), list(row.completion_ids), list(row.policy_mask))
        assert split_row(batch, number) == expected
    assert not batch["prompt_mask"].all(), "no prompt was padded"
    run.trainer.score_again(batch)  # sampler and trainer mask the same positions
    log_ratio_BT = batch["old_per_token_logps"] - batch["sampling_per_token_logps"]
    assert float((log_ratio_BT[find_policy_mask(batch)].exp() - 1).abs().max()) < 1e-5


def test_the_example_of_router_r1s_fault_survives_as_it_is(run: TextRun) -> None:
    end = run.rollouts.tokenizer.eos_token_id
    prompts = ([11, 12, end, 13], [end, end, 11, 12, end, 13])
    written = [14, 15, end]
    play = run.trainer.collect_episodes

    def write(plan: Any, update: int) -> Any:
        played = []
        for row, trajectory in enumerate(play(plan, update)):
            last = trajectory.transitions[-1]
            decision = replace(
                last.decision,
                environment_ids=tuple(prompts[row % 2]),
                token_ids=tuple(written),
                logps=(-1.0, -1.0, -1.0),
            )
            played.append(replace(trajectory, transitions=(replace(last, decision=decision),)))
        return played

    run.trainer.collect_episodes = write
    batch = collect_batch(run)
    assert batch["prompt_ids"].shape == (16, 6)
    for row in range(16):
        assert split_row(batch, row) == (prompts[row % 2], written, [1, 1, 1])
    assert batch["prompt_mask"][0].tolist() == [0, 0, 1, 1, 1, 1]
    assert batch["prompt_mask"][1].tolist() == [1] * 6
