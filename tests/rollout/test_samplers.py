"""The sampler over transformers: batches, draws, stops and faults, on a two-layer model."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_llama import save_tiny_llama

from rlroute.rollout.samplers.base import Sample, SampleRequest
from rlroute.rollout.samplers.transformers import TransformersSampler, draw_tokens
from rlroute.types import RLRouteError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", reason="the extra `local` is absent")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny_llama")
    save_tiny_llama(folder, max_position_embeddings=512, initializer_range=0.2)
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder)


@pytest.fixture
def tokenizer(folder: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(folder)


def make_requests(tokenizer: Any, count: int, temperature: float = 0.7) -> list[SampleRequest]:
    return [
        SampleRequest(
            token_ids=tuple(tokenizer.encode(f"Question: {number} + 2 " * (number % 4 + 1))),
            max_new_tokens=3 + 4 * (number % 5),
            stop=(),
            temperature=0.0 if number % 3 == 2 else temperature,
            seed=1000 + number,
        )
        for number in range(count)
    ]


def ask(sampler: TransformersSampler, requests: Sequence[SampleRequest]) -> list[Sample]:
    async def gather() -> list[Sample]:
        return await asyncio.gather(*[sampler.sample(request) for request in requests])

    return asyncio.run(gather())


def compute_logps(model: Any, request: SampleRequest, sample: Sample) -> torch.Tensor:
    """Return the log-probs of a sample from one plain pass over its unpadded ids."""
    ids = torch.tensor([request.token_ids + sample.token_ids])
    with torch.no_grad():
        logits_TV = model(ids).logits[0, len(request.token_ids) - 1 : -1]
    logp_TV = (logits_TV / (request.temperature or 1.0)).log_softmax(-1)
    return logp_TV.gather(1, torch.tensor(sample.token_ids)[:, None])[:, 0]


def test_a_request_gets_the_same_tokens_alone_as_in_a_batch(model, tokenizer):
    sampler = TransformersSampler(model, tokenizer, max_batch=16, version=7)
    requests = make_requests(tokenizer, 14)
    together = ask(sampler, requests)
    for request, sample in zip(requests, together, strict=True):
        (alone,) = ask(sampler, [request])
        assert sample.token_ids == alone.token_ids
        np.testing.assert_allclose(sample.logps, alone.logps, atol=1e-5)
        assert (sample.finish, sample.policy_version) == (alone.finish, 7)
    assert len({len(sample.token_ids) for sample in together}) > 2
    # other company, in another order, and in batches of three
    small = TransformersSampler(model, tokenizer, max_batch=3)
    again = ask(small, requests[::-1])[::-1]
    assert [sample.token_ids for sample in again] == [sample.token_ids for sample in together]


def test_log_probs_are_those_of_an_unpadded_pass_at_the_temperature(model, tokenizer):
    requests = make_requests(tokenizer, 9)
    for request, sample in zip(
        requests, ask(TransformersSampler(model, tokenizer), requests), strict=True
    ):
        expected = compute_logps(model, request, sample)
        np.testing.assert_allclose(sample.logps, expected, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_log_probs_on_a_gpu_are_those_of_an_unpadded_pass(folder, tokenizer):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).cuda()
    requests = make_requests(tokenizer, 9)
    samples = ask(TransformersSampler(model, tokenizer), requests)
    model.cpu()
    for request, sample in zip(requests, samples, strict=True):
        expected = compute_logps(model, request, sample)
        np.testing.assert_allclose(sample.logps, expected, atol=1e-4)


def test_temperature_zero_takes_the_likeliest_token_and_notes_its_plain_log_prob(model, tokenizer):
    (request,) = make_requests(tokenizer, 1, temperature=0.0)
    (sample,) = ask(TransformersSampler(model, tokenizer), [request])
    logits_TV = model(torch.tensor([request.token_ids + sample.token_ids])).logits[0]
    likeliest = logits_TV[len(request.token_ids) - 1 : -1].argmax(-1)
    assert list(sample.token_ids) == likeliest.tolist()
    np.testing.assert_allclose(sample.logps, compute_logps(model, request, sample), atol=1e-5)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_are_drawn_as_often_as_the_softened_distribution_says(temperature):
    logits = torch.tensor([1.0, -1.0, -torch.inf, 0.0, 2.0])
    requests = [SampleRequest((), 1, (), temperature, seed) for seed in range(20_000)]
    token_R, logp_R = draw_tokens(logits.expand(len(requests), -1), requests, position=3)
    probability = (logits / temperature).softmax(-1)
    share = torch.bincount(token_R, minlength=5) / len(requests)
    np.testing.assert_allclose(share, probability, atol=0.01)
    assert share[2] == 0
    np.testing.assert_allclose(logp_R.exp(), probability[token_R], rtol=1e-5)


def test_the_draw_depends_on_seed_and_position():
    logits_RV = torch.zeros(64, 1000)
    requests = [SampleRequest((), 1, (), 1.0, seed) for seed in range(64)]
    first, again, later = (draw_tokens(logits_RV, requests, p)[0] for p in (0, 0, 1))
    assert torch.equal(first, again)
    assert (first == later).float().mean() < 0.1
    assert len(first.unique()) > 50


class Scribe(transformers.LlamaForCausalLM):
    """Writes a script whatever it reads: the token that belongs at each position."""

    script: list[int]

    def forward(self, input_ids, position_ids, **options):
        logits = torch.full((len(input_ids), 1, self.config.vocab_size), -100.0)
        for row, position in enumerate(position_ids[:, -1].tolist()):
            logits[row, 0, self.script[position + 1]] = 100.0
        return transformers.modeling_outputs.CausalLMOutput(logits=logits)


def write_script(model: Any, tokenizer: Any, script: list[int], stop: tuple[str, ...]) -> Sample:
    """Let a scribe continue one token."""
    config = transformers.LlamaConfig(**{**model.config.to_dict(), "vocab_size": len(tokenizer)})
    scribe = Scribe(config)
    scribe.script = [0, *script]
    request = SampleRequest((0,), len(script), stop, 1.0, 0)
    (sample,) = ask(TransformersSampler(scribe, tokenizer), [request])
    return sample


PIECES = ["</an", "swer>", "swer>more", "never", "</answer>"]


@pytest.mark.parametrize(
    ("script", "kept"),
    [
        (["never", "</an", "swer>", "never"], 3),
        (["never", "</an", "swer>more", "never"], 3),
        (["</answer>", "never"], 1),
        (["</an", "<s>", "swer>", "never"], 3),  # text skips special tokens, so this is a stop too
        ([*"</answer>", "never"], 9),
        ([*"ü</an", "swer>more", "never"], 6),
    ],
)
def test_a_text_stops_at_the_token_that_completes_a_stop_string(model, tokenizer, script, kept):
    tokenizer.add_tokens(PIECES)
    ids = [tokenizer.encode(piece, add_special_tokens=False) for piece in script]
    sample = write_script(model, tokenizer, [*chain(*ids)], ("</search>", "</answer>"))
    assert sample.finish == "stop"
    assert list(sample.token_ids) == [*chain(*ids[:kept])]


def test_a_text_ends_with_the_end_token_which_is_kept(model, tokenizer):
    sample = write_script(model, tokenizer, [40, 41, tokenizer.eos_token_id, 42], ("</answer>",))
    assert (sample.finish, sample.token_ids) == ("end", (40, 41, tokenizer.eos_token_id))


def test_an_end_token_of_the_models_own_generation_settings_counts_too(model, tokenizer):
    sampler = TransformersSampler(model, tokenizer)
    other = transformers.LlamaForCausalLM(model.config)
    other.generation_config.eos_token_id = [5, 6]
    sampler.set_model(other)
    assert sampler.end_ids == {5, 6, tokenizer.eos_token_id}


def test_a_text_without_stop_is_cut_at_the_limit(model, tokenizer):
    sample = write_script(model, tokenizer, [40, 41, 42], ())
    assert (sample.finish, sample.token_ids) == ("length", (40, 41, 42))


class Watched(TransformersSampler):
    """Notes the seeds of each batch; the first batch goes on only when `go` is set."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.batches: list[list[int]] = []
        self.started, self.go = threading.Event(), threading.Event()

    def generate(self, requests: Sequence[SampleRequest], version: int) -> list[Sample]:
        self.batches.append([request.seed for request in requests])
        self.started.set()
        assert self.go.wait(60)
        return super().generate(requests, version)


def test_what_arrives_during_a_batch_is_the_next_batch_and_the_loop_stays_alive(model, tokenizer):
    async def scenario() -> list[Sample]:
        sampler = Watched(model, tokenizer, max_batch=4)
        requests = make_requests(tokenizer, 8)
        tasks = [asyncio.create_task(sampler.sample(requests[0]))]
        while not sampler.started.is_set():
            await asyncio.sleep(0)  # the batch of one is being generated, and this loop turns
        sampler.version = 1
        tasks += [asyncio.create_task(sampler.sample(request)) for request in requests[1:]]
        for _ in range(3):
            await asyncio.sleep(0)
        sampler.go.set()
        samples = await asyncio.gather(*tasks)
        assert sampler.batches == [[1000], [1001, 1002, 1003, 1004], [1005, 1006, 1007]]
        return samples

    assert [sample.policy_version for sample in asyncio.run(scenario())] == [0] + [1] * 7


def test_a_fault_of_a_batch_reaches_everyone_who_waits_for_it_and_nobody_else(model, tokenizer):
    class Faulty(TransformersSampler):
        def generate(self, requests: Sequence[SampleRequest], version: int) -> list[Sample]:
            if any(request.seed == 1001 for request in requests):
                raise RuntimeError("out of memory")
            return super().generate(requests, version)

    async def scenario() -> list[Any]:
        sampler = Faulty(model, tokenizer, max_batch=3)
        requests = make_requests(tokenizer, 5)
        return await asyncio.gather(
            *[sampler.sample(request) for request in requests], return_exceptions=True
        )

    results = asyncio.run(asyncio.wait_for(scenario(), 60))
    assert [str(result) for result in results[:3]] == ["out of memory"] * 3
    assert all(isinstance(result, Sample) for result in results[3:])


def test_a_request_whose_caller_is_gone_is_not_generated(model, tokenizer):
    async def scenario() -> list[list[int]]:
        sampler = Watched(model, tokenizer)
        sampler.go.set()
        tasks = [
            asyncio.create_task(sampler.sample(request)) for request in make_requests(tokenizer, 3)
        ]
        await asyncio.sleep(0)
        tasks[1].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return sampler.batches

    assert asyncio.run(scenario()) == [[1000, 1002]]


def test_weights_that_diverged_are_named_and_not_sampled(model, tokenizer):
    broken = transformers.LlamaForCausalLM(model.config)
    torch.nn.init.constant_(broken.lm_head.weight, torch.nan)
    with pytest.raises(RLRouteError, match="not finite"):
        ask(TransformersSampler(broken, tokenizer), make_requests(tokenizer, 2))


@pytest.mark.parametrize("training", [True, False])
def test_the_model_generates_in_evaluation_mode_and_is_given_back_as_it_was(folder, training):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, attention_dropout=0.5)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model.train(training)
    requests = make_requests(tokenizer, 4)
    sampler = TransformersSampler(model, tokenizer)
    assert ask(sampler, requests) == ask(sampler, requests)
    assert model.training is training
    assert all(parameter.grad is None for parameter in model.parameters())
