"""Sampling from a real rollout server, and replacing its weights (`make test-vllm-rollout`).

vLLM on a CPU serves SmolLM2 in float32; transformers, on the same checkpoint, says what is right.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from rlroute.rollout.model_weights import ModelWeights, score_tokens
from rlroute.rollout.rollout_server import RolloutServer
from rlroute.rollout.samplers.base import Sample, SampleRequest
from rlroute.rollout.samplers.vllm import VllmSampler
from rlroute.rollout.weight_folder import write_update
from rlroute.rollout.weight_sync import FolderSync, check_agreement
from rlroute.types import RLRouteError

URL = os.environ.get("RLROUTE_VLLM_URL", "")
FOLDER = os.environ.get("RLROUTE_WEIGHTS_FOLDER", "")
KEY = "RLROUTE_VLLM_KEY" if os.environ.get("RLROUTE_VLLM_KEY") else None

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(
        not (URL and FOLDER),
        reason="no rollout server: `make test-vllm-rollout` starts one and sets RLROUTE_VLLM_URL",
    ),
]

TOLERANCE = 1e-3
QUESTION = "The capital of France is Paris. Count from one to twenty: one, two, three,"
OUTSIDE = ("../elsewhere", "/tmp", ".", "", "update-00000001/../..", "no-such-update")

logger = logging.getLogger(__name__)


@pytest.fixture(scope="module")
def model_root() -> tuple[str, Path]:
    """The served name, and the checkpoint's folder."""
    server = RolloutServer(URL, api_key_env=KEY)
    card = server._request("GET", "/v1/models")["data"][0]
    server.close()
    return card["id"], Path(card["root"])


@pytest.fixture(scope="module")
def tokenizer(model_root: tuple[str, Path]) -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(model_root[1])


@pytest.fixture(scope="module")
def checkpoint(model_root: tuple[str, Path]) -> Any:
    """The model that the server started with; tests change copies of it."""
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(model_root[1], dtype=torch.float32)
    return model.eval()


@pytest.fixture(scope="module")
def probe_ids(tokenizer: Any) -> list[int]:
    ids: list[int] = tokenizer(QUESTION)["input_ids"]
    return ids


@pytest.fixture
def server() -> Iterator[RolloutServer]:
    server = RolloutServer(URL, api_key_env=KEY)
    yield server
    server.close()


@pytest.fixture(scope="module")
def push(checkpoint: Any) -> Iterator[Callable[[Any], int]]:
    """Send a model's weights under the next version; the server ends with those it started with."""
    server = RolloutServer(URL, api_key_env=KEY)
    sync = FolderSync(server, Path(FOLDER), shard_bytes=200 * 2**20)
    version = 0

    def send(model: Any) -> int:
        nonlocal version
        version += 1
        began = time.perf_counter()
        sync.push(ModelWeights(model), version)
        logger.info("update %d took %.2f s", version, time.perf_counter() - began)
        return version

    yield send
    send(checkpoint)
    server.close()


def perturb(model: Any, seed: int) -> Any:
    """Return a copy with noise on every weight, embeddings and norms included."""
    changed = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in changed.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(0.05 * parameter.std(correction=0) * noise)
    return changed


def load(server: RolloutServer, folder: str) -> None:
    """Ask the server for an update that it should refuse."""
    with server.update(99):
        server.start_weight_update()
        server.update_weights({"folder": folder})


def sample_all(tokenizer: Any, name: str, requests: list[SampleRequest]) -> list[Sample]:
    async def run() -> list[Sample]:
        sampler = VllmSampler(URL, name, tokenizer, api_key_env=KEY, concurrency=16)
        sampler.set_version(7)
        samples = await asyncio.gather(*(sampler.sample(request) for request in requests))
        await sampler.close()
        return list(samples)

    return asyncio.run(run())


def score_sample(model: Any, request: SampleRequest, sample: Sample) -> list[float]:
    """Return the log-probs of a sample's tokens by transformers, at the request's temperature."""
    prompt = list(request.token_ids)
    ids = torch.tensor([prompt + list(sample.token_ids)])
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1]
    logps = torch.log_softmax(logits / (request.temperature or 1.0), dim=-1)
    return logps.gather(1, ids[0, len(prompt) :, None])[:, 0].tolist()


def test_every_weight_is_replaced_twice_in_a_row(
    checkpoint: Any, push: Callable[[Any], int], probe_ids: list[int], server: RolloutServer
) -> None:
    original = score_tokens(checkpoint, probe_ids)
    for seed in (1, 2):
        changed = perturb(checkpoint, seed)
        expected = score_tokens(changed, probe_ids)
        assert max(abs(a - b) for a, b in zip(original, expected, strict=True)) > 0.5
        version = push(changed)
        worst = check_agreement(server, probe_ids, expected, version=version)
        logger.info("the probe differs by %.1e", worst)
        assert worst <= TOLERANCE
        assert server.read_version() == str(version)


def test_a_prompt_that_was_cached_is_scored_by_the_new_weights(
    checkpoint: Any,
    push: Callable[[Any], int],
    probe_ids: list[int],
    tokenizer: Any,
    model_root: tuple[str, Path],
) -> None:
    # longer than one block of the server's cache of prompts, which holds 128 tokens on a CPU
    request = SampleRequest(tuple(probe_ids * 16), 4, (), 1.0, 5)
    assert len(request.token_ids) > 256
    for model in (checkpoint, perturb(checkpoint, 3)):
        push(model)
        [sample] = sample_all(tokenizer, model_root[0], [request])
        expected = score_sample(model, request, sample)
        assert sample.logps == pytest.approx(expected, abs=TOLERANCE)


def test_a_sample_is_drawn_from_one_set_of_weights_whatever_is_pushed_meanwhile(
    checkpoint: Any,
    push: Callable[[Any], int],
    probe_ids: list[int],
    tokenizer: Any,
    model_root: tuple[str, Path],
) -> None:
    changed = perturb(checkpoint, 6)
    push(checkpoint)
    requests = [SampleRequest(tuple(probe_ids), 16, (), 1.0, seed) for seed in range(24)]

    async def run() -> list[Sample]:
        sampler = VllmSampler(URL, model_root[0], tokenizer, api_key_env=KEY)
        tasks = [asyncio.create_task(sampler.sample(request)) for request in requests]
        await asyncio.sleep(0.2)
        await asyncio.to_thread(push, changed)
        samples = await asyncio.gather(*tasks, *(sampler.sample(request) for request in requests))
        await sampler.close()
        return list(samples)

    samples = asyncio.run(run())
    is_new = []
    for request, sample in zip([*requests, *requests], samples, strict=True):
        fits = [
            sample.logps == pytest.approx(score_sample(model, request, sample), abs=TOLERANCE)
            for model in (checkpoint, changed)
        ]
        assert sum(fits) == 1  # a request that was running ended first, one that came later waited
        is_new.append(fits[1])
    assert all(is_new[len(requests) :])


def test_one_tensor_that_differs_is_found_by_the_probe(
    checkpoint: Any, push: Callable[[Any], int], probe_ids: list[int], server: RolloutServer
) -> None:
    corrupted = copy.deepcopy(checkpoint)
    with torch.no_grad():
        corrupted.model.layers[7].mlp.down_proj.weight.mul_(1.2)
    version = push(corrupted)
    expected = score_tokens(checkpoint, probe_ids)
    with pytest.raises(RLRouteError, match=f"differ from the trainer's after update {version}"):
        check_agreement(server, probe_ids, expected, version=version)
    version = push(checkpoint)
    assert check_agreement(server, probe_ids, expected, version=version) <= TOLERANCE
    with pytest.raises(RLRouteError, match=f"update {version}, not of update {version + 1}"):
        check_agreement(server, probe_ids, expected, version=version + 1)


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_path_outside_the_folder_is_refused_and_changes_nothing(
    name: str, checkpoint: Any, probe_ids: list[int], server: RolloutServer
) -> None:
    before = server.score(probe_ids)
    version = server.read_version()
    with pytest.raises(RLRouteError, match="weights: "):
        load(server, name)
    server.resume()
    assert server.score(probe_ids) == before
    assert server.read_version() == version


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path, server: RolloutServer) -> None:
    write_update(tmp_path, "update", [("x", torch.zeros(1))])
    link = Path(FOLDER) / "link"
    link.symlink_to(tmp_path / "update")
    try:
        with pytest.raises(RLRouteError, match="is not below"):
            load(server, "link")
        server.resume()
    finally:
        link.unlink()


def test_files_that_are_not_safetensors_are_refused(server: RolloutServer) -> None:
    update = Path(FOLDER) / "broken"
    update.mkdir()
    try:
        torch.save({"x": torch.zeros(1)}, update / "weights.bin")
        for content in (None, b"\x08\0\0\0\0\0\0\0broken"):
            if content is not None:
                (update / "weights.safetensors").write_bytes(content)
            with pytest.raises(RLRouteError, match=r"safetensors"):
                load(server, "broken")
            server.resume()
    finally:
        for path in update.iterdir():
            path.unlink()
        update.rmdir()


def test_an_update_without_all_weights_is_refused_and_the_next_one_mends_it(
    checkpoint: Any, push: Callable[[Any], int], probe_ids: list[int], server: RolloutServer
) -> None:
    some = [(name, tensor) for name, tensor in ModelWeights(checkpoint) if "layers.3." not in name]
    with pytest.raises(RLRouteError, match=r"lacks model\.layers\.3\."):
        FolderSync(server, Path(FOLDER)).push(some, 99)
    changed = perturb(checkpoint, 4)
    version = push(changed)
    expected = score_tokens(changed, probe_ids)
    assert check_agreement(server, probe_ids, expected, version=version) <= TOLERANCE


@pytest.mark.parametrize("temperature", [1.0, 0.6, 0.0])
def test_ids_and_log_probs_are_those_that_were_sampled(
    temperature: float, checkpoint: Any, push: Any, tokenizer: Any, model_root: tuple[str, Path]
) -> None:
    push(checkpoint)
    texts = (QUESTION, "Tags look like this: <b>x</b> <answer>yes</answer> <answer>")
    requests = [
        SampleRequest(tuple(tokenizer(text)["input_ids"]), 24, ("</answer>", "ten"), temperature, n)
        for n in range(12)
        for text in texts
    ]
    samples = sample_all(tokenizer, model_root[0], requests)
    for request, sample in zip(requests, samples, strict=True):
        assert sample.policy_version == 7
        assert len(sample.token_ids) == len(sample.logps) <= 24
        expected = score_sample(checkpoint, request, sample)
        assert sample.logps == pytest.approx(expected, abs=TOLERANCE)
        text = tokenizer.decode(sample.token_ids)
        before = tokenizer.decode(sample.token_ids[:-1])
        has_stop = [any(word in part for word in request.stop) for part in (text, before)]
        assert has_stop == [sample.finish == "stop", False]
        if sample.finish == "length":
            assert len(sample.token_ids) == 24
        if sample.finish == "end":
            assert sample.token_ids[-1] == tokenizer.eos_token_id
    assert "stop" in {sample.finish for sample in samples}


def test_the_same_seed_draws_the_same_tokens(
    tokenizer: Any, probe_ids: list[int], model_root: tuple[str, Path]
) -> None:
    def draw(seeds: list[int]) -> list[tuple[int, ...]]:
        requests = [SampleRequest(tuple(probe_ids), 12, (), 1.0, seed) for seed in seeds]
        return [sample.token_ids for sample in sample_all(tokenizer, model_root[0], requests)]

    together = draw([3, 4, 2**64 - 1, 3])
    assert together[0] == together[3]
    assert len(set(together)) == 3
    assert draw([4]) == [together[1]]


def test_the_server_gives_log_probs_of_what_is_sampled_from(
    server: RolloutServer, probe_ids: list[int]
) -> None:
    server.check_logprobs_mode(probe_ids)


def test_a_request_that_does_not_fit_ends_with_the_servers_own_words(
    tokenizer: Any, probe_ids: list[int], model_root: tuple[str, Path]
) -> None:
    request = SampleRequest(tuple(probe_ids), 10**6, (), 1.0, 0)
    with pytest.raises(RLRouteError, match=r"status 400: .*max"):
        sample_all(tokenizer, model_root[0], [request])


def test_routes_that_a_rollout_does_not_need_are_closed(server: RolloutServer) -> None:
    for path in ("/collective_rpc", "/weight_checker", "/sleep", "/abort_requests"):
        with pytest.raises(RLRouteError, match=r"status 404: .*closed on a rollout server"):
            server._post(path, {"method": "get_model"})


@pytest.mark.skipif(KEY is None, reason="the server asks for no key")
def test_no_update_without_the_key(server: RolloutServer) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for headers in ({}, {"authorization": "Bearer not-the-key"}):
        for path in ("/pause", "/update_weights", "/v1/completions"):
            request = urllib.request.Request(server.url + path, b"{}", headers)
            with pytest.raises(urllib.error.HTTPError, match="401"):
                opener.open(request, timeout=30)


def test_how_fast_it_is(tokenizer: Any, probe_ids: list[int], model_root: tuple[str, Path]) -> None:
    requests = [SampleRequest(tuple(probe_ids), 48, (), 1.0, seed) for seed in range(48)]
    began = time.perf_counter()
    samples = sample_all(tokenizer, model_root[0], requests)
    seconds = time.perf_counter() - began
    tokens = sum(len(sample.token_ids) for sample in samples)
    assert tokens > 48
    logger.info("%d tokens in %.1f s: %.0f tokens/s", tokens, seconds, tokens / seconds)


IN_THE_SERVERS_ENVIRONMENT = """
import dataclasses, inspect, torch
from vllm.distributed.weight_transfer import VLLMWeightSyncClient
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo
from rlroute.rollout.rollout_server import RolloutServer
from rlroute.rollout.weight_sync import NcclSync
from rlroute.types import RLRouteError

server = RolloutServer("http://127.0.0.1:1/v1")
assert isinstance(server, VLLMWeightSyncClient)
for name, theirs in inspect.getmembers(VLLMWeightSyncClient, inspect.isfunction):
    if not name.startswith("_"):
        ours = inspect.signature(getattr(RolloutServer, name))
        assert list(ours.parameters) == list(inspect.signature(theirs).parameters), name
fields = [field.name for field in dataclasses.fields(NCCLTrainerInitInfo)]
assert {"rank", "master_address", "master_port", "world_size"} <= set(fields), fields
inspect.signature(NCCLTrainerInitInfo).bind("localhost", 1, 2, rank=0)

class Weights:
    passes = 0
    def __iter__(self):
        self.passes += 1
        yield from [("a", torch.zeros(2, 3)), ("b", torch.ones(4))]

weights = Weights()
sync = NcclSync(server, address="127.0.0.1", port=29600, rank=1)  # reads along, sends nothing
sync.push(weights, 1)
sync.push(weights, 2)
assert weights.passes == 4, weights.passes
try:
    sync.push(iter(weights), 3)
except RLRouteError as error:
    assert "read them twice" in str(error)
print("AS EXPECTED")
"""


@pytest.mark.skipif("VLLM_PYTHON" not in os.environ, reason="VLLM_PYTHON is not set")
def test_updates_by_nccl_call_what_the_installed_vllm_has() -> None:
    """All that can be tried without a GPU: signatures, and a trainer process that does not send."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    environment.pop("RLROUTE_VLLM_KEY", None)
    command = [os.environ["VLLM_PYTHON"], "-c", IN_THE_SERVERS_ENVIRONMENT]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "AS EXPECTED" in done.stdout


PARSE_IN_THE_SERVERS_ENVIRONMENT = """
import sys
from pathlib import Path
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser
from rlroute.rollout.vllm_server import build_command

for sync, folder in (("nccl", None), ("folder", Path("/dev/shm/weights"))):
    words = build_command(sys.argv[1:], sync=sync, weights_folder=folder, has_key=False)
    options = make_arg_parser(FlexibleArgumentParser()).parse_args(words)
    assert options.weight_transfer_config.backend == sync
    assert options.logprobs_mode == "processed_logprobs"
    assert options.tensor_parallel_size == 2
print("AS EXPECTED")
"""


@pytest.mark.skipif("VLLM_PYTHON" not in os.environ, reason="VLLM_PYTHON is not set")
def test_the_start_script_for_gpus_passes_what_the_installed_vllm_knows(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    stand_in = tmp_path / "python"
    stand_in.write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
    stand_in.chmod(0o755)
    environment = os.environ | {"VLLM_PYTHON": str(stand_in), "TENSOR_PARALLEL": "2"}
    script = [root / "launch" / "vllm" / "serve_rollout.sh", "model"]
    started = subprocess.run(script, env=environment, capture_output=True, text=True, check=True)
    words = started.stdout.splitlines()
    command = [os.environ["VLLM_PYTHON"], "-c", PARSE_IN_THE_SERVERS_ENVIRONMENT]
    done = subprocess.run(
        [*command, *words[words.index("--") + 1 :]],
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "AS EXPECTED" in done.stdout


def test_the_server_says_how_long_an_episode_may_be(
    server: RolloutServer, model_root: tuple[str, Path]
) -> None:
    server.check_context(model_root[0], 64)
    with pytest.raises(RLRouteError, match="max_model_len"):
        server.check_context(model_root[0], 10**7)


def test_the_server_counts_its_workers(server: RolloutServer) -> None:
    assert server.count_workers() == 1
