"""The encoder behind an endpoint: vectors, bill, cache and failures, over real sockets."""

from __future__ import annotations

import json
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

pytest.importorskip("httpx", reason="needs the extra 'http'")

from embeddings_server import DIMENSION, KEY, embed, run_embeddings_server

from rlroute import Router
from rlroute.data import endpoint_encoder
from rlroute.data.encoder_config import OpenaiConfig
from rlroute.data.encoders import ENCODER_FILE, fit_encoder, load_encoder
from rlroute.data.endpoint_encoder import EndpointEncoder
from rlroute.data.prepare import CACHE_VARIABLE, encode_texts
from rlroute.export.bundle import BundleContents, write_bundle
from rlroute.policies.mlp import CandidateScorer
from rlroute.types import RLRouteError

TEXTS = ["one sea", "two hills and birds", "three", "two hills and birds", "four more words here"]


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(endpoint_encoder, "FIRST_WAIT_SECONDS", 0.01)


def make_encoder(url: str, **settings: Any) -> EndpointEncoder:
    entries = {"url": url, "model": "small", "dimension": DIMENSION, "price": 2.0}
    return EndpointEncoder(OpenaiConfig.model_validate({**entries, **settings}))


def compute_expected(texts: list[str]) -> np.ndarray:
    rows_NF = np.array([embed(text) for text in texts])
    return rows_NF / np.linalg.norm(rows_NF, axis=1, keepdims=True)


def test_vectors_are_normalised_in_the_order_of_the_texts_and_the_bill_is_exact() -> None:
    with run_embeddings_server() as server:
        encoder = make_encoder(server.url, batch_size=2)
        np.testing.assert_allclose(encoder.encode(TEXTS), compute_expected(TEXTS), atol=1e-6)
    # what stands twice is sent once: two batches of two texts
    assert [body["input"] for body in server.bodies] == [
        ["one sea", "two hills and birds"],
        ["three", "four more words here"],
    ]
    assert server.keys == [f"Bearer {KEY}"] * 2
    assert (encoder.usage.requests, encoder.usage.texts, encoder.usage.tokens) == (2, 4, 11)
    assert encoder.usage.tokens == server.tokens
    assert encoder.usage.cost_usd == pytest.approx(11 * 2.0 / 1e6)
    described = json.loads(json.dumps(encoder.describe()))
    assert described["usd_per_million_tokens"] == 2.0
    assert described["usage"]["cost_usd_per_text"] == pytest.approx(5.5e-6)
    assert KEY not in json.dumps(described)


def test_blank_texts_are_not_sent_and_long_ones_are_cut() -> None:
    with run_embeddings_server() as server:
        encoder = make_encoder(server.url, max_characters=5, shorten=True)
        vectors_NF = encoder.encode(["", " \n", "abcdefgh", "\ud800"])
        assert not vectors_NF[:2].any()
        np.testing.assert_allclose(vectors_NF[2:], compute_expected(["abcde", "?"]), atol=1e-6)
        assert encoder.encode([]).shape == (0, DIMENSION)
        assert encoder.encode(["  "]).shape == (1, DIMENSION)
    assert server.bodies == [
        {
            "model": "small",
            "input": ["abcde", "?"],
            "encoding_format": "float",
            "dimensions": DIMENSION,
        }
    ]


@pytest.mark.parametrize(
    ("fault", "uncertain"),
    [("rate_limited", 0), ("server", 0), ("unavailable", 0), ("reset", 1), ("not_json", 1)],
)
def test_what_may_pass_is_tried_again(fault: str, uncertain: int) -> None:
    with run_embeddings_server(fault, fault) as server:
        encoder = make_encoder(server.url)
        np.testing.assert_allclose(encoder.encode(TEXTS), compute_expected(TEXTS), atol=1e-6)
    assert encoder.usage.requests == len(server.bodies) == 3
    assert encoder.usage.uncertain_requests == 2 * uncertain
    assert encoder.usage.tokens == 11  # of the one reply that could be read


def test_a_server_that_hangs_is_left_in_time_and_counted_as_uncertain() -> None:
    with run_embeddings_server("hang") as server:
        encoder = make_encoder(server.url, timeout_seconds=0.3)
        np.testing.assert_allclose(encoder.encode(["a"]), compute_expected(["a"]), atol=1e-6)
    assert (encoder.usage.requests, encoder.usage.uncertain_requests) == (2, 1)


@pytest.mark.parametrize(
    ("fault", "said", "requests", "billed"),
    [
        ("server", "server: status 500 .3 of 3 attempts", 3, 0),
        ("bad", "bad_request: status 400 .1 of 3", 1, 0),
        ("auth", "auth: status 401", 1, 0),
        ("moved", "bad_request: status 302", 1, 0),
        ("no_usage", "no usage.prompt_tokens, so its cost is unknown", 1, 0),
        ("too_few", "does not hold 4 vectors of 4 numbers", 1, 11),
        ("twice", "does not hold 4 vectors of 4 numbers", 1, 11),
        ("short", "does not hold 4 vectors of 4 numbers", 1, 11),
        ("words", "does not hold 4 vectors of 4 numbers", 1, 11),
        ("zero", "a vector is zero", 1, 11),
        ("infinite", "not finite", 1, 11),
        ("huge", "a body of more than", 1, 0),
    ],
)
def test_what_cannot_be_mended_is_refused_in_one_line_and_what_was_paid_is_counted(
    fault: str, said: str, requests: int, billed: int
) -> None:
    with run_embeddings_server(*[fault] * 9) as server:
        encoder = make_encoder(server.url, retries=2)
        with pytest.raises(RLRouteError, match=said) as caught:
            encoder.encode(TEXTS)
        message = str(caught.value)
        assert f"{server.url} (model 'small')" in message
        assert "\n" not in message
        assert KEY not in message
        assert (len(server.bodies), encoder.usage.tokens) == (requests, billed)
        server.faults.clear()
        encoder.encode(TEXTS)


def test_an_endpoint_that_nobody_listens_at_is_named() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        encoder = make_encoder(url, retries=1)
        with pytest.raises(RLRouteError, match=r"cannot be reached \(2 of 2 attempts\)"):
            encoder.encode(["a"])
    assert (encoder.usage.uncertain_requests, encoder.usage.cost_usd) == (0, 0)


def test_a_key_that_is_not_set_is_asked_for_by_name_and_none_is_sent_where_none_is_needed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with run_embeddings_server() as server:
        monkeypatch.delenv("OPENAI_API_KEY")
        with pytest.raises(RLRouteError, match="OPENAI_API_KEY is not set"):
            make_encoder(server.url).encode(["a"])
        monkeypatch.setenv("OPENAI_API_KEY", "key\nwith a line")
        with pytest.raises(RLRouteError, match="OPENAI_API_KEY holds characters") as caught:
            make_encoder(server.url).encode(["a"])
        assert "with a line" not in str(caught.value)
        make_encoder(server.url, api_key_env=None).encode(["a"])
    assert server.keys == [None]


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"price": None}, "price"),
        ({"price": -1}, "price"),
        ({"url": "ftp://host/v1"}, "http"),
        ({"url": "https://me:secret@host/v1"}, "api_key_env"),
        ({"api_key_env": "sk-1234567890abcdef"}, "NAME of an environment variable"),
        ({"dimension": None}, "dimension"),
    ],
)
def test_settings_without_a_price_or_with_a_key_in_them_are_refused(
    settings: dict[str, Any], fault: str
) -> None:
    entries = {"url": "https://host/v1", "model": "small", "dimension": 4, "price": 0.02}
    entries = {**entries, **settings}
    with pytest.raises(ValidationError, match=fault):
        OpenaiConfig.model_validate({k: v for k, v in entries.items() if v is not None})


def test_texts_are_paid_once_also_after_a_failure_in_between_and_with_features() -> None:
    with run_embeddings_server("ok", "bad") as server:
        encoder = make_encoder(server.url, batch_size=2)
        with pytest.raises(RLRouteError, match="status 400"):
            encode_texts(encoder, TEXTS)
        again = make_encoder(server.url, batch_size=2)
        vectors_NF = encode_texts(again, TEXTS)
        np.testing.assert_allclose(vectors_NF, compute_expected(TEXTS), atol=1e-6)
        assert server.bodies[-1]["input"] == ["three", "four more words here"]
        assert (len(server.bodies), again.usage.texts) == (3, 2)
        config = encoder.config.model_copy(update={"features": True})
        joined = fit_encoder(config, TEXTS, seed=0)
        rows_NF = encode_texts(joined, TEXTS)
        np.testing.assert_allclose(rows_NF[:, :DIMENSION], vectors_NF * np.sqrt(0.75), atol=1e-6)
    assert (len(server.bodies), server.tokens) == (3, 11)


def test_the_fingerprint_is_that_of_url_model_dimension_and_cut() -> None:
    url = "https://host/v1"
    first = make_encoder(url).fingerprint()
    same = ({"price": 0.0}, {"retries": 9}, {"batch_size": 1}, {"api_key_env": None})
    assert {make_encoder(url, **settings).fingerprint() for settings in same} == {first}
    assert make_encoder(url + "/").fingerprint() == first
    others = [make_encoder("https://other/v1")] + [
        make_encoder(url, **settings)
        for settings in ({"model": "large"}, {"dimension": 8}, {"max_characters": 9})
    ]
    assert len({first, *(other.fingerprint() for other in others)}) == 5


def test_a_saved_encoder_names_its_endpoint_and_loads_without_it(tmp_path: Path) -> None:
    encoder = make_encoder("http://127.0.0.1:9/v1")
    encoder.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [ENCODER_FILE]
    assert KEY not in (tmp_path / ENCODER_FILE).read_text()
    assert load_encoder(tmp_path).describe() == encoder.describe()
    content = (tmp_path / ENCODER_FILE).read_text().replace("127.0.0.1:9", "127.0.0.1:8")
    (tmp_path / ENCODER_FILE).write_text(content)
    with pytest.raises(RLRouteError, match="not the encoder that was saved"):
        load_encoder(tmp_path)


def test_an_exported_router_asks_the_endpoint_and_says_what_a_query_costs(
    router_contents: BundleContents, tmp_path: Path
) -> None:
    with run_embeddings_server() as server:
        encoder = make_encoder(server.url, retries=0)
        scorer = router_contents.scorer.model_copy(update={"features": DIMENSION})
        contents = replace(
            router_contents,
            encoder=encoder,
            scorer=scorer,
            weights=CandidateScorer(scorer).state_dict(),
        )
        write_bundle(contents, tmp_path / "router")
        for named in (None, "http://127.0.0.1:1/v1"):  # nobody agreed to where texts are sent
            with pytest.raises(RLRouteError, match="this router sends every text"):
                Router.load(tmp_path / "router", endpoint=named)
        router = Router.load(tmp_path / "router", endpoint=encoder.config.url)
        assert router.describe_encoder()["usage"]["cost_usd_per_text"] is None
        route = router.route("two hills and birds", cost_weight=0.1)
        vector_F = compute_expected(["two hills and birds"])[0]
        assert route.ranking == router.route_features(vector_F, cost_weight=0.1).ranking
        usage = router.describe_encoder()["usage"]
        assert usage["cost_usd_per_text"] == pytest.approx(4 * 2.0 / 1e6)
    with pytest.raises(RLRouteError, match="encoder endpoint http://127"):
        router.route("two hills and birds", cost_weight=0.1)
