"""Whole episodes of text with a two-layer model: ids, masks, log-probs, limits and seeds."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from text_episodes import Oracle, Talk, make_plan, make_queries
from tiny_llama import save_tiny_llama

from rlroute.envs.multi_round import MultiRound, MultiRoundConfig
from rlroute.rollout.batching import TokenRow, flatten_tokens
from rlroute.rollout.engine import ContextFullError, run_episode, run_episodes
from rlroute.rollout.samplers.base import Sample, SampleRequest
from rlroute.rollout.samplers.transformers import TransformersSampler
from rlroute.rollout.text_agent import TextAgent
from rlroute.types import (
    Call,
    Candidate,
    Prices,
    Query,
    Reply,
    TextDecision,
    TextObservation,
    Trajectory,
    Transition,
)

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", reason="the extra `local` is absent")

TEMPERATURE = 0.8
TEMPLATE = "{% for m in messages %}<s>{{ m.content }}{% endfor %}Answer:"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny_llama")
    save_tiny_llama(folder, max_position_embeddings=1024, initializer_range=0.2)
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder)


@pytest.fixture
def tokenizer(folder: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(folder)


def run(
    sampler: Any,
    tokenizer: Any,
    turns: Sequence[int],
    *,
    pool: Any = None,
    shared: bool = False,
    max_new_tokens: int = 12,
    context_tokens: int = 1024,
) -> list[Trajectory[TextObservation, TextDecision]]:
    """Run one episode per entry of `turns`, or with `shared` all for the first query."""
    plan = make_plan(len(turns), shared=shared)

    def start_agent(row: int, attempt: int) -> TextAgent:
        return TextAgent(
            sampler,
            tokenizer,
            action_seed=int(plan.action_seed_B[row]),
            max_new_tokens=max_new_tokens,
            context_tokens=context_tokens,
            temperature=TEMPERATURE,
        )

    return asyncio.run(
        run_episodes(
            Talk, start_agent, pool or Oracle(), make_queries(*turns), plan, on_failure="drop"
        )
    )


def compute_logps(model: Any, row: TokenRow) -> torch.Tensor:
    """Return the log-probs of a row's completion from one plain pass, teacher-forced."""
    with torch.no_grad():
        logits_TV = model(torch.tensor([row.prompt_ids + row.completion_ids])).logits[0]
    logp_TV = (logits_TV[len(row.prompt_ids) - 1 : -1] / TEMPERATURE).log_softmax(-1)
    return logp_TV.gather(1, torch.tensor(row.completion_ids)[:, None])[:, 0]


def test_noted_log_probs_are_those_of_one_pass_over_the_joined_ids(model, tokenizer):
    trajectories = run(TransformersSampler(model, tokenizer, max_batch=4), tokenizer, [1, 3, 4, 2])
    assert [len(item.transitions) for item in trajectories] == [1, 3, 4, 2]
    for trajectory in trajectories:
        row = flatten_tokens(trajectory)
        mask = np.array(row.policy_mask, dtype=bool)
        expected = compute_logps(model, row).numpy()
        np.testing.assert_allclose(np.array(row.logps)[mask], expected[mask], atol=1e-5)
        assert not np.array(row.logps)[~mask].any()
        assert mask.sum() == sum(len(step.decision.token_ids) for step in trajectory.transitions)


class EnvironmentOnly:
    """A tokenizer that refuses to encode whatever no environment has written."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.all_special_ids, self.eos_token_id = (
            tokenizer.all_special_ids,
            tokenizer.eos_token_id,
        )
        self.chat_template = tokenizer.chat_template
        self.encoded = 0

    def check(self, text: str) -> None:
        if not text.startswith(("Question 1", "\n<information>")):
            raise AssertionError(f"encoded what the policy wrote: {text!r}")
        self.encoded += 1

    def encode(self, text: str, **options: Any) -> list[int]:
        self.check(text)
        return self.tokenizer.encode(text, **options)

    def apply_chat_template(self, messages: list[dict[str, str]], **options: Any) -> Any:
        for message in messages:
            self.check(message["content"])
        return self.tokenizer.apply_chat_template(messages, **options)

    def decode(self, ids: Sequence[int], **options: Any) -> str:
        return self.tokenizer.decode(ids, **options)


@pytest.mark.parametrize("template", [None, TEMPLATE])
def test_nothing_but_environment_texts_is_tokenised_in_whole_rollouts(model, tokenizer, template):
    tokenizer.chat_template = template
    guarded = EnvironmentOnly(tokenizer)
    guarded_run = run(TransformersSampler(model, guarded), guarded, [3, 1, 2])
    assert guarded.encoded == 6  # each observation once
    assert guarded_run == run(TransformersSampler(model, tokenizer), tokenizer, [3, 1, 2])


def test_the_prompt_goes_through_the_chat_template_and_later_texts_do_not(model, tokenizer):
    tokenizer.chat_template = TEMPLATE
    (trajectory,) = run(TransformersSampler(model, tokenizer), tokenizer, [2])
    first, second = (step.decision.environment_ids for step in trajectory.transitions)
    assert tokenizer.decode(first) == "<s>Question 10: q0\nAnswer:"
    assert tokenizer.decode(second) == trajectory.transitions[1].observation.text


def test_what_the_environment_reads_is_the_text_of_the_sampled_ids(model, tokenizer):
    (trajectory,) = run(TransformersSampler(model, tokenizer), tokenizer, [3])
    for step in trajectory.transitions:
        assert step.replies[0].call.text == step.decision.text
        text = tokenizer.decode(step.decision.token_ids, skip_special_tokens=True)
        assert step.decision.text == text


def test_equal_seeds_give_equal_trajectories_and_other_seeds_others(model, tokenizer):
    first, again = (
        run(TransformersSampler(model, tokenizer), tokenizer, [3, 3, 3], shared=True)
        for _ in range(2)
    )
    assert first == again
    assert len({flatten_tokens(trajectory).completion_ids for trajectory in first}) == 3
    # the texts of two turns are not drawn alike
    turns = [step.decision.token_ids for step in first[0].transitions]
    assert len(set(turns)) == 3


def test_who_shares_the_batches_changes_no_episode(model, tokenizer):
    together = run(TransformersSampler(model, tokenizer), tokenizer, [2, 3, 1, 4])
    narrow = run(TransformersSampler(model, tokenizer, max_batch=1), tokenizer, [2, 3, 1, 4])
    rows, alone = map(flatten_tokens, together), map(flatten_tokens, narrow)
    for row, other in zip(rows, alone, strict=True):
        assert (row.completion_ids, row.policy_mask) == (other.completion_ids, other.policy_mask)
        np.testing.assert_allclose(row.logps, other.logps, atol=1e-5)


def test_every_decision_carries_the_version_of_its_weights(model, tokenizer):
    sampler = TransformersSampler(model, tokenizer, version=4)

    class Updating(Oracle):
        def reply(self, call: Call) -> Reply:
            sampler.version += 1  # the trainer went on while this episode waited
            return super().reply(call)

    (trajectory,) = run(sampler, tokenizer, [3], pool=Updating())
    assert [step.decision.policy_version for step in trajectory.transitions] == [4, 5, 6]
    assert flatten_tokens(trajectory).policy_version_min == 4


class Parrot:
    """A sampler that repeats one token, as often as it may."""

    def __init__(self) -> None:
        self.requests: list[SampleRequest] = []

    async def sample(self, request: SampleRequest) -> Sample:
        self.requests.append(request)
        count = request.max_new_tokens
        return Sample((70,) * count, (-1.0,) * count, "length", 0)

    async def close(self) -> None:
        pass


def test_a_full_context_truncates_the_episode_with_the_environments_final_terms(tokenizer):
    parrot = Parrot()
    (whole,) = run(Parrot(), tokenizer, [5])
    room = sum(
        len(step.decision.environment_ids) + len(step.decision.token_ids)
        for step in whole.transitions[:2]
    )
    (trajectory,) = run(parrot, tokenizer, [5], context_tokens=room)
    assert len(trajectory.transitions) == 2
    last = trajectory.transitions[-1]
    assert (last.terminated, last.truncated) == (False, True)
    assert last.reward_terms == {"outcome": 0.25}
    assert (
        flatten_tokens(trajectory).completion_ids
        == flatten_tokens(whole).completion_ids[
            : room - len(whole.transitions[0].decision.environment_ids)
        ]
    )


def test_a_full_context_ends_a_multi_round_episode_with_all_its_terms(tokenizer):
    candidates = [Candidate("small", Prices(0.1, 0.4)), Candidate("large", Prices(1.0, 4.0))]
    config = MultiRoundConfig(prompt="short")
    environment = MultiRound(candidates, config)
    query = Query("q", "How many?", references=("42",))
    prompt = len(tokenizer.encode(environment.reset(query, 3).text))
    agent = TextAgent(
        Parrot(),
        tokenizer,
        action_seed=0,
        max_new_tokens=12,
        context_tokens=prompt + 12,
        temperature=1.0,
    )
    trajectory = asyncio.run(run_episode(environment, agent, Oracle(), query, episode_seed=3))
    (step,) = trajectory.transitions
    assert (step.terminated, step.truncated) == (False, True)
    assert step.reward_terms == {"format": -1.0, "outcome": 0.0, "charge_usd": 0.0}


def test_the_last_text_is_as_long_as_the_context_allows(tokenizer):
    parrot = Parrot()
    prompt = len(tokenizer.encode("Question 10: q0\n"))
    (trajectory,) = run(parrot, tokenizer, [5], context_tokens=prompt + 5)
    assert [request.max_new_tokens for request in parrot.requests] == [5]
    assert trajectory.transitions[0].truncated


def test_a_prompt_without_room_for_an_answer_stops_the_run_and_names_the_query(tokenizer):
    prompt = len(tokenizer.encode("Question 10: q0\n"))
    with pytest.raises(ContextFullError, match=f"query '5': {prompt} tokens .* of {prompt}"):
        run(Parrot(), tokenizer, [5], context_tokens=prompt)


def test_tokens_of_an_episode_become_one_row_with_a_mask():
    def make_step(environment_ids: tuple[int, ...], token_ids: tuple[int, ...], version: int):
        decision = TextDecision(
            "", environment_ids, token_ids, (-0.5,) * len(token_ids), policy_version=version
        )
        return Transition(TextObservation("", 0.0), decision, (), {}, False, False)

    steps = (make_step((1, 2, 3), (4, 5), 3), make_step((6,), (7,), 2), make_step((), (8,), 4))
    row = flatten_tokens(Trajectory(Query("q", ""), 0, steps))
    assert row == TokenRow(
        prompt_ids=(1, 2, 3),
        completion_ids=(4, 5, 6, 7, 8),
        policy_mask=(1, 1, 0, 1, 1),
        logps=(-0.5, -0.5, 0.0, -0.5, -0.5),
        policy_version_min=2,
    )
