"""Weight updates without vLLM: the files, the trainer's weights, and what is asked of a server.

The server of these tests speaks HTTP and reads the same folder, but runs no model; that the real
one does what it is asked is the matter of test_vllm_sampler.py.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_llama import save_tiny_llama

from rlroute.config import parse_config
from rlroute.rollout.model_weights import ModelWeights, score_tokens
from rlroute.rollout.rollout_server import RolloutServer
from rlroute.rollout.samplers import vllm
from rlroute.rollout.samplers.base import Sample, SampleRequest
from rlroute.rollout.samplers.vllm import VllmSampler, parse_completion
from rlroute.rollout.vllm_server import MODULE, ROUTES, ControlGate, build_command
from rlroute.rollout.weight_folder import find_update, read_tensors, write_update
from rlroute.rollout.weight_sync import FolderSync, NcclSync, check_agreement
from rlroute.trainers.text_access import make_access
from rlroute.trainers.text_recipe import RolloutConfig
from rlroute.types import RLRouteError

UPDATE_CALLS = [
    "/pause",
    "/start_weight_update",
    "/update_weights",
    "/finish_weight_update",
    "/update_weight_version",
    "/reset_prefix_cache",
    "/resume",
]
WEIGHTS = [("a.weight", torch.arange(6.0).reshape(2, 3)), ("b.bias", torch.ones(5))]
COMPLETION = {
    "choices": [
        {
            "token_ids": [5, 6, 7],
            "logprobs": {"token_logprobs": [-0.5, -0.25, 0.0]},
            "finish_reason": "stop",
            "stop_reason": "</answer>",
        }
    ]
}


class StandInServer:
    """Answers as a rollout server would; `answers` replaces answers by path, a list one by one."""

    def __init__(self, folder: Path) -> None:
        self.calls: list[str] = []
        self.bodies: list[Any] = []
        self.loaded: dict[str, torch.Tensor] = {}
        self.version = "default"
        self.answers: dict[str, Any] = {}
        self._folder = folder
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                content = self.rfile.read(int(self.headers.get("content-length", 0)))
                status, answer = outer.answer(
                    self.path.partition("?")[0], json.loads(content or b"{}")
                )
                data = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def answer(self, path: str, body: Any) -> tuple[int, Any]:
        self.calls.append(path)
        self.bodies.append(body)
        given = self.answers.get(path)
        if isinstance(given, list):
            given = given.pop(0)
        if given is not None:
            return given
        if path == "/update_weights":
            paths = find_update(self._folder, body["update_info"]["folder"])
            self.loaded = dict(read_tensors(paths))
        elif path == "/update_weight_version":
            self.version = body["new_version"]
        return 200, {"success": True, "weight_version": self.version}


@pytest.fixture
def stand_in(tmp_path: Path) -> Iterator[StandInServer]:
    server = StandInServer(tmp_path / "weights")
    yield server
    server.http.shutdown()
    server.http.server_close()


@pytest.fixture(scope="module")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Any:
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("tiny")
    save_tiny_llama(folder)
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def make_llama(*, tied: bool) -> Any:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=30,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=tied,
    )
    return transformers.LlamaForCausalLM(config)


# files


@given(
    shapes=st.lists(st.lists(st.integers(0, 4), max_size=3), min_size=1, max_size=6),
    shard_bytes=st.integers(1, 300),
)
def test_what_is_written_is_read_in_files_of_bounded_size(
    tmp_path_factory: pytest.TempPathFactory, shapes: list[list[int]], shard_bytes: int
) -> None:
    root = tmp_path_factory.mktemp("weights")
    weights = {f"w{n}": torch.randn(shape) for n, shape in enumerate(shapes)}
    total = write_update(root, "one", weights.items(), shard_bytes=shard_bytes)
    assert total == sum(4 * tensor.numel() for tensor in weights.values())
    paths = find_update(root, "one")
    read = dict(read_tensors(paths))
    assert read.keys() == weights.keys()
    assert all(torch.equal(read[name], weights[name]) for name in weights)
    for path in paths:
        sizes = [4 * tensor.numel() for _, tensor in read_tensors([path])]
        assert len(sizes) == 1 or sum(sizes) <= shard_bytes
    assert [path.name for path in root.iterdir()] == ["one"]


def test_a_transposed_tensor_and_bfloat16_arrive_as_they_are(tmp_path: Path) -> None:
    weights = {"t": torch.randn(3, 4).T, "half": torch.randn(5).bfloat16()}
    write_update(tmp_path, "one", weights.items())
    read = dict(read_tensors(find_update(tmp_path, "one")))
    assert torch.equal(read["t"], weights["t"])
    assert read["half"].dtype == torch.bfloat16
    assert torch.equal(read["half"], weights["half"])


def test_an_update_that_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    def break_off() -> Iterator[tuple[str, torch.Tensor]]:
        yield "a", torch.ones(3)
        raise ValueError

    with pytest.raises(ValueError):
        write_update(tmp_path, "one", break_off(), shard_bytes=1)
    assert not list(tmp_path.iterdir())
    with pytest.raises(RLRouteError, match="'a' comes twice"):
        write_update(tmp_path, "one", [("a", torch.ones(1))] * 2)
    with pytest.raises(RLRouteError, match="no tensors"):
        write_update(tmp_path, "one", [])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name", ["..", "../x", ".", "", "/etc", "one/../..", "absent", None, 3, "l"]
)
def test_only_folders_below_the_root_are_read(tmp_path: Path, name: Any) -> None:
    root = tmp_path / "root"
    write_update(root, "one", WEIGHTS)
    write_update(tmp_path, "x", WEIGHTS)
    (root / "l").symlink_to(tmp_path / "x")
    with pytest.raises(RLRouteError, match="weights: "):
        find_update(root, name)


def test_no_other_kind_of_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    torch.save({"a": torch.ones(1)}, tmp_path / "one" / "model.bin")
    with pytest.raises(RLRouteError, match=r"holds no \.safetensors file"):
        find_update(tmp_path, "one")
    (tmp_path / "one" / "model.bin").rename(tmp_path / "one" / "model.safetensors")
    with pytest.raises(RLRouteError, match=r"one/model\.safetensors cannot be read"):
        find_update(tmp_path, "one")


def test_a_file_that_was_cut_is_refused(tmp_path: Path) -> None:
    write_update(tmp_path, "one", [("a", torch.ones(1000))])
    [path] = find_update(tmp_path, "one")
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(RLRouteError, match="cannot be read"):
        find_update(tmp_path, "one")


# the trainer's weights


@pytest.mark.parametrize("tied", [True, False])
def test_weights_carry_the_names_of_a_checkpoint(tmp_path: Path, tied: bool) -> None:
    model = make_llama(tied=tied)
    model.save_pretrained(tmp_path)
    saved = dict(read_tensors([tmp_path / "model.safetensors"]))
    sent = dict(ModelWeights(model))
    assert sent.keys() == saved.keys()
    assert all(torch.equal(sent[name], saved[name]) for name in saved)
    assert ("lm_head.weight" in sent) != tied


def test_a_value_head_is_not_sent_and_a_lost_weight_is_named(tiny_llama: Any) -> None:
    model = make_llama(tied=True)
    names = [name for name, _ in ModelWeights(model)]
    model.value_head = torch.nn.Linear(16, 1)
    assert [name for name, _ in ModelWeights(model)] == names
    del model.model.norm
    with pytest.raises(RLRouteError, match=r"the model has no model\.norm\.weight"):
        ModelWeights(model)


def test_adapters_are_added_to_what_they_adapt() -> None:
    peft = pytest.importorskip("peft")
    model = make_llama(tied=True)
    names = [name for name, _ in ModelWeights(model)]
    targets = ["q_proj", "down_proj"]
    config = peft.LoraConfig(r=2, target_modules=targets, init_lora_weights=False)
    adapted = peft.get_peft_model(model, config)
    ids = list(range(3, 20))
    expected = score_tokens(adapted, ids)
    sent = dict(ModelWeights(adapted))
    assert list(sent) == names
    assert score_tokens(adapted, ids) == expected  # reading changed nothing
    plain = make_llama(tied=True)
    plain.load_state_dict(sent, strict=False)
    assert score_tokens(plain, ids) == pytest.approx(expected, abs=1e-5)
    adapted.merge_adapter()
    merged = dict(ModelWeights(adapted))
    assert all(torch.allclose(merged[name], sent[name], atol=1e-6) for name in names)


def test_weights_are_read_anew_each_time() -> None:
    model = make_llama(tied=True)
    weights = ModelWeights(model)
    before = {name: tensor.clone() for name, tensor in weights}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    assert all(torch.allclose(tensor, before[name] + 1) for name, tensor in weights)


def test_shards_are_gathered(tmp_path: Path) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = make_llama(tied=True)
    expected = {name: tensor.clone() for name, tensor in ModelWeights(model)}
    store = f"file://{tmp_path / 'store'}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    try:
        fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        assert type(model.model.norm.weight).__name__ == "DTensor"
        sent = dict(ModelWeights(model))
    finally:
        torch.distributed.destroy_process_group()
    assert sent.keys() == expected.keys()
    assert all(type(tensor) is torch.Tensor for tensor in sent.values())
    assert all(torch.equal(sent[name], expected[name]) for name in sent)


def test_scores_are_log_probs_of_each_token_but_the_first(tiny_llama: Any) -> None:
    ids = [3, 14, 15, 92, 65]
    tiny_llama.train()
    scores = score_tokens(tiny_llama, ids)
    assert tiny_llama.training
    with torch.no_grad():
        logits = tiny_llama(input_ids=torch.tensor([ids])).logits[0]
    expected = [float(logits[t].log_softmax(-1)[ids[t + 1]]) for t in range(4)]
    assert scores == pytest.approx(expected, abs=1e-6)


# updates


def test_an_update_pauses_loads_records_and_resumes(
    stand_in: StandInServer, tmp_path: Path
) -> None:
    folder = tmp_path / "weights"
    server = RolloutServer(stand_in.url)
    sync = FolderSync(server, folder, shard_bytes=1)
    for version in (1, 2):
        sync.push(WEIGHTS, version)
        assert stand_in.version == server.read_version() == str(version)
        assert stand_in.loaded.keys() == dict(WEIGHTS).keys()
        assert all(torch.equal(stand_in.loaded[name], tensor) for name, tensor in WEIGHTS)
        assert not list(folder.iterdir())
    assert stand_in.calls == [*UPDATE_CALLS, "/weight_info"] * 2


@pytest.mark.parametrize("path", UPDATE_CALLS[:-1])
def test_a_server_whose_update_fails_stays_paused(
    stand_in: StandInServer, tmp_path: Path, path: str
) -> None:
    stand_in.answers[path] = (500, {"error": {"message": "out of\nmemory"}})
    sync = FolderSync(RolloutServer(stand_in.url), tmp_path / "weights")
    with pytest.raises(RLRouteError, match=f"{path}: status 500: out of memory"):
        sync.push(WEIGHTS, 1)
    assert stand_in.calls == UPDATE_CALLS[: UPDATE_CALLS.index(path) + 1]
    assert not list((tmp_path / "weights").iterdir())


def test_a_cache_that_is_not_emptied_ends_the_update(
    stand_in: StandInServer, tmp_path: Path
) -> None:
    stand_in.answers["/reset_prefix_cache"] = (200, {"success": False})
    with pytest.raises(RLRouteError, match="cache of prompts"):
        FolderSync(RolloutServer(stand_in.url), tmp_path / "weights").push(WEIGHTS, 1)


def test_a_process_that_does_not_send_reads_along(stand_in: StandInServer, tmp_path: Path) -> None:
    read = []
    weights = (read.append(name) or (name, tensor) for name, tensor in WEIGHTS)
    server = RolloutServer(stand_in.url)
    FolderSync(server, tmp_path / "weights", is_sender=False).push(weights, 1)
    assert read == ["a.weight", "b.bias"]
    assert stand_in.calls == []


def test_what_a_killed_run_left_is_removed_and_nothing_else(
    stand_in: StandInServer, tmp_path: Path
) -> None:
    for name in ("update-00000003", ".update-00000004.x1y2", "notes"):
        (tmp_path / name).mkdir()
    FolderSync(RolloutServer(stand_in.url), tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.name != "weights"] == ["notes"]


def test_a_server_that_is_not_there_is_named() -> None:
    with pytest.raises(RLRouteError, match=r"http://127\.0\.0\.1:9/weight_info: no answer"):
        RolloutServer("http://127.0.0.1:9/v1").read_version()


def answer_prompt(ids: list[int], logps: list[float]) -> tuple[int, Any]:
    entries = [{str(token): {"logprob": logp}} for token, logp in zip(ids[1:], logps, strict=True)]
    return 200, {"choices": [{"prompt_logprobs": [None, *entries]}]}


def test_a_probe_that_agrees_returns_the_largest_difference(stand_in: StandInServer) -> None:
    stand_in.answers["/v1/completions"] = answer_prompt([4, 5, 6], [-1.0, -2.0])
    stand_in.version = "3"
    server = RolloutServer(stand_in.url)
    worst = check_agreement(server, [4, 5, 6], [-1.0001, -2.0004], version=3)
    assert worst == pytest.approx(4e-4)
    assert stand_in.bodies[-1]["prompt"] == [4, 5, 6]


@pytest.mark.parametrize("logp", [-2.1, -1.9, math.nan, -math.inf])
def test_a_probe_that_differs_ends_the_run(stand_in: StandInServer, logp: float) -> None:
    stand_in.answers["/v1/completions"] = answer_prompt([4, 5, 6], [-1.0, logp])
    stand_in.version = "3"
    with pytest.raises(
        RLRouteError, match="weights differ from the trainer's after update 3: log-probs of the"
    ):
        check_agreement(RolloutServer(stand_in.url), [4, 5, 6], [-1.0, -2.0], version=3)


def test_another_version_ends_the_run_before_anything_is_scored(stand_in: StandInServer) -> None:
    stand_in.version = "2"
    with pytest.raises(RLRouteError, match="has the weights of update 2, not of update 3"):
        check_agreement(RolloutServer(stand_in.url), [4, 5], [-1.0], version=3)
    assert stand_in.calls == ["/weight_info"]


def test_a_server_without_log_probs_of_prompts_is_refused(stand_in: StandInServer) -> None:
    stand_in.answers["/v1/completions"] = (200, {"choices": [{}]})
    with pytest.raises(RLRouteError, match="no log-probs of a prompt's tokens"):
        RolloutServer(stand_in.url).score([4, 5])


@pytest.mark.parametrize(("logps", "fits"), [((-2.0, -0.5), True), ((-2.0, -2.0), False)])
def test_log_probs_must_depend_on_the_temperature(
    stand_in: StandInServer, logps: tuple[float, float], fits: bool
) -> None:
    stand_in.answers["/v1/completions"] = [
        (200, {"choices": [{"logprobs": {"top_logprobs": [{"a": logp, "b": logp - 3}]}}]})
        for logp in logps
    ]
    server = RolloutServer(stand_in.url)
    if fits:
        server.check_logprobs_mode([4, 5])
        assert stand_in.calls[0] == "/resume"
    else:
        with pytest.raises(RLRouteError, match="--logprobs-mode processed_logprobs"):
            server.check_logprobs_mode([4, 5])


def test_a_server_that_takes_less_than_the_recipes_context_is_refused_before_anything_else(
    stand_in: StandInServer,
) -> None:
    stand_in.answers["/v1/models"] = (200, {"data": [{"id": "policy", "max_model_len": 4096}]})
    sampler = {"kind": "vllm", "url": stand_in.url, "served_model": "policy"}
    rollout = parse_config(RolloutConfig, {"sampler": sampler, "context_tokens": 8192}, "recipe")
    fault = r"max_model_len \(4096\) is below the recipe's rollout\.context_tokens \(8192\)"
    with pytest.raises(RLRouteError, match=fault) as caught:
        make_access(rollout, None, Letters(), "a probe", rank=0)
    assert "\n" not in str(caught.value)
    assert stand_in.calls == ["/v1/models"]


def test_a_server_is_asked_for_the_length_of_the_model_that_the_recipe_names(
    stand_in: StandInServer,
) -> None:
    cards = [{"id": "other", "max_model_len": 64}, {"id": "policy", "max_model_len": 8192}]
    stand_in.answers["/v1/models"] = (200, {"data": cards})
    server = RolloutServer(stand_in.url)
    server.check_context("policy", 8192)
    with pytest.raises(RLRouteError, match=r"serves no model 'polici' \(it serves other, policy\)"):
        server.check_context("polici", 8192)


@pytest.mark.parametrize(
    ("port", "rank", "fault"), [(0, 0, "port 0"), (70000, 0, "port"), (1, -1, "rank")]
)
def test_updates_by_nccl_check_their_arguments(
    stand_in: StandInServer, port: int, rank: int, fault: str
) -> None:
    with pytest.raises(RLRouteError, match=fault):
        NcclSync(RolloutServer(stand_in.url), address="127.0.0.1", port=port, rank=rank)


def test_updates_by_nccl_name_what_they_need(
    stand_in: StandInServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(RLRouteError, match="vllm is not installed beside the trainer"):
        NcclSync(RolloutServer(stand_in.url), address="127.0.0.1", port=29600)


# sampling


class Letters:
    """A tokenizer: token n is the n-th of these pieces."""

    pieces = ("a", "b", " ", "</ans", "wer", ">", "> ")

    def decode(self, token_ids: list[int], **_: bool) -> str:
        return "".join(self.pieces[token] for token in token_ids)


REQUEST = SampleRequest((0, 1), 8, ("</answer>",), 0.7, 2**63 + 5)


def draw(server: StandInServer, **settings: Any) -> Sample:
    async def run() -> Sample:
        sampler = VllmSampler(server.url, "policy", Letters(), **settings)
        sampler.set_version(4)
        sample = await sampler.sample(REQUEST)
        await sampler.close()
        return sample

    return asyncio.run(run())


def change(**fields: Any) -> Any:
    return {"choices": [COMPLETION["choices"][0] | fields]}


def test_a_request_goes_out_as_ids_and_comes_back_as_ids(stand_in: StandInServer) -> None:
    content = change(token_ids=[0, 1, 2])
    stand_in.answers["/v1/completions"] = (200, content)
    assert draw(stand_in) == Sample((0, 1, 2), (-0.5, -0.25, 0.0), "stop", 4)
    body = stand_in.bodies[0]
    assert body["prompt"] == [0, 1]
    assert body["seed"] == 5
    assert body["stop"] == ["</answer>"]
    assert body["include_stop_str_in_output"]
    # a checkpoint's own sampling settings must not come in
    assert {
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
    }.items() <= body.items()


def test_tokens_after_the_stop_string_are_cut(stand_in: StandInServer) -> None:
    ids = [0, 3, 4, 6, 1, 1]  # a server that drafts tokens goes on for some
    content = change(
        token_ids=ids, logprobs={"token_logprobs": [-1.0, -2.0, -3.0, -4.0, -5.0, -6.0]}
    )
    stand_in.answers["/v1/completions"] = (200, content)
    assert draw(stand_in) == Sample((0, 3, 4, 6), (-1.0, -2.0, -3.0, -4.0), "stop", 4)


@pytest.mark.parametrize(
    ("reason", "stop_reason", "finish"),
    [
        ("stop", "</answer>", "stop"),
        ("stop", None, "end"),
        ("stop", 2, "end"),
        ("length", None, "length"),
    ],
)
def test_the_finish_says_why_the_text_ended(reason: str, stop_reason: Any, finish: str) -> None:
    content = change(finish_reason=reason, stop_reason=stop_reason)
    assert parse_completion(content, 0, "here").finish == finish


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"token_ids": None}, "no token ids"),
        ({"logprobs": None}, "no log-prob for each token"),
        ({"logprobs": {"token_logprobs": [-0.5, None, 0.0]}}, "no log-prob for each token"),
        ({"logprobs": {"token_logprobs": [-0.5]}}, "no log-prob for each token"),
        ({"logprobs": {"token_logprobs": [-0.5, 9.5, 0.0]}}, "9.5 is no log-prob"),
        ({"finish_reason": "abort"}, r"broke the generation off \(abort\)"),
    ],
)
def test_an_answer_that_cannot_be_learnt_from_is_refused(fields: Any, fault: str) -> None:
    with pytest.raises(RLRouteError, match=fault):
        parse_completion(change(**fields), 0, "here")


def test_faults_that_pass_are_waited_for(
    stand_in: StandInServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm, "FIRST_WAIT_SECONDS", 0.01)
    stand_in.answers["/v1/completions"] = [
        (503, {}),
        (500, {"error": "x"}),
        (200, change(token_ids=[0, 1, 2])),
    ]
    assert draw(stand_in, retries=2).token_ids == (0, 1, 2)
    assert stand_in.bodies[0] == stand_in.bodies[2]
    stand_in.answers["/v1/completions"] = [(503, {}), (502, {"error": {"message": "bad gateway"}})]
    with pytest.raises(RLRouteError, match="status 502: bad gateway"):
        draw(stand_in, retries=1)


def test_a_refused_request_is_not_repeated(stand_in: StandInServer) -> None:
    stand_in.answers["/v1/completions"] = (400, {"error": {"message": "prompt too long"}})
    with pytest.raises(RLRouteError, match="status 400: prompt too long"):
        draw(stand_in)
    assert len(stand_in.calls) == 1


def test_one_sampler_serves_one_event_loop_after_another(stand_in: StandInServer) -> None:
    stand_in.answers["/v1/completions"] = (200, change(token_ids=[0, 1, 2]))
    sampler = VllmSampler(stand_in.url, "policy", Letters(), concurrency=2)

    async def run() -> list[Sample]:
        return list(await asyncio.gather(*(sampler.sample(REQUEST) for _ in range(6))))

    assert len({sample.token_ids for _ in range(2) for sample in asyncio.run(run())}) == 1


def test_the_key_is_read_by_name_and_stands_in_no_message(
    stand_in: StandInServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RLRouteError, match="ROLLOUT_TEST_KEY is not set"):
        draw(stand_in, api_key_env="ROLLOUT_TEST_KEY")
    monkeypatch.setenv("ROLLOUT_TEST_KEY", "sehr-geheim")
    stand_in.answers["/v1/completions"] = (401, {"error": "Unauthorized"})
    with pytest.raises(RLRouteError, match="status 401: Unauthorized") as caught:
        draw(stand_in, api_key_env="ROLLOUT_TEST_KEY")
    assert "geheim" not in str(caught.value)


@pytest.mark.parametrize("setting", ["concurrency", "timeout_seconds", "retries"])
def test_numbers_out_of_range_are_named(stand_in: StandInServer, setting: str) -> None:
    with pytest.raises(RLRouteError, match=f"{setting} must be at least"):
        VllmSampler(stand_in.url, "policy", Letters(), **{setting: -1})


# how the server is started


def ask_gate(path: str, headers: list[tuple[bytes, bytes]] | None = None) -> int:
    """Return the status that the gate answers with; 200 stands for the server behind it."""
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Callable[[Any], Any]) -> None:
        await send({"type": "http.response.start", "status": 200})

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "path": path, "headers": headers or []}
    asyncio.run(ControlGate(app)(scope, None, send))  # type: ignore[arg-type]
    return int(sent[0]["status"])


def test_the_gate_lets_through_what_a_rollout_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    assert all(ask_gate(path) == 200 for path in (*ROUTES, *UPDATE_CALLS))
    for path in ("/collective_rpc", "/server_info", "/v1/load_lora_adapter", "/", "/pause/"):
        assert ask_gate(path) == 404
    monkeypatch.setenv("VLLM_API_KEY", "geheim")
    key, wrong = [(b"authorization", b"Bearer geheim")], [(b"authorization", b"Bearer geheimer")]
    assert ask_gate("/health") == ask_gate("/metrics") == 200
    for path in (*UPDATE_CALLS, "/v1/completions"):
        assert ask_gate(path) == ask_gate(path, wrong) == 401
        assert ask_gate(path, key) == 200


def test_the_server_listens_to_this_machine_only_unless_it_has_a_key() -> None:
    folder = Path("/dev/shm/weights")

    def build(*arguments: str, has_key: bool = False) -> list[str]:
        return build_command(arguments, sync="folder", weights_folder=folder, has_key=has_key)

    command = build("--model", "m")
    assert command[:2] == ["--model", "m"]
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert command[command.index("--logprobs-mode") + 1] == "processed_logprobs"
    assert command[command.index("--generation-config") + 1] == "vllm"
    assert json.loads(command[command.index("--additional-config") + 1]) == {
        "rlroute_weights_folder": "/dev/shm/weights"
    }
    for words in (["--host", "0.0.0.0"], ["--host=10.0.0.1"], ["--host=::1", "--host", ""]):
        with pytest.raises(RLRouteError, match="set VLLM_API_KEY"):
            build(*words)
        command = build(*words, has_key=True)
        assert command[: len(words)] == words
        assert not [word for word in command[len(words) :] if word.startswith("--host")]


def test_what_the_rollout_server_decides_is_not_for_its_arguments() -> None:
    for option in ("--logprobs-mode", "--middleware=x", "--generation_config", "--api-key"):
        with pytest.raises(RLRouteError, match="is set by the rollout server"):
            build_command([option, "x"], sync="nccl", weights_folder=None, has_key=False)
    with pytest.raises(RLRouteError, match="--weights-folder"):
        build_command([], sync="nccl", weights_folder=Path("x"), has_key=False)
    with pytest.raises(RLRouteError, match="--weights-folder"):
        build_command([], sync="folder", weights_folder=None, has_key=False)


def test_the_start_script_for_gpus_starts_a_rollout_server(tmp_path: Path) -> None:
    script = Path(__file__).resolve().parents[2] / "launch" / "vllm" / "serve_rollout.sh"
    stand_in = tmp_path / "python"
    stand_in.write_text('#!/bin/sh\nprintf \'%s\\n\' "$VLLM_API_KEY" "$@"\n')
    stand_in.chmod(0o755)

    def start(**settings: str) -> list[str]:
        environment = os.environ | {"VLLM_PYTHON": str(stand_in)} | settings
        done = subprocess.run(
            [script, "model", "--seed", "3"], env=environment, capture_output=True, text=True
        )
        assert (done.returncode == 0) == (settings.get("SYNC") != "folder"), done.stderr
        return done.stdout.splitlines() or done.stderr.splitlines()

    key, *words = start(TENSOR_PARALLEL="2", DATA_PARALLEL="4", RLROUTE_VLLM_KEY="geheim")
    assert key == "geheim"
    assert words[:6] == ["-m", MODULE, "--sync", "nccl", "--", "--model"]
    assert words[words.index("--tensor-parallel-size") + 1] == "2"
    assert words[words.index("--data-parallel-size") + 1] == "4"
    assert words[-2:] == ["--seed", "3"]
    assert "geheim" not in words
    build_command(words[5:], sync="nccl", weights_folder=None, has_key=True)
    assert start(SYNC="folder") == ["serve_rollout.sh: SYNC=folder: set WEIGHTS_FOLDER"]
