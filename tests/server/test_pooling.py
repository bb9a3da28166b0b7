"""Embeddings, pooling, classify, score and rerank over HTTP, in front of an engine whose vectors are a function of the prompt."""

from __future__ import annotations

import base64
import struct
from collections.abc import Callable
from typing import Any

import openai
import pytest
from fake_server import Server
from plain_http import assert_refused, post, send

from core.pooling import PoolerConfig

EMBEDS = PoolerConfig(
    task="embed", pooling="mean", activation="normalize", size=4, whole=True, dimensions=None, labels=()
)
SCORES = PoolerConfig(task="classify", pooling="cls", activation="sigmoid", size=1, whole=True)
SORTS = PoolerConfig(
    task="classify", pooling="cls", activation="softmax", size=4, whole=True, labels=("dry", "wet", "hot", "cold")
)


@pytest.fixture(scope="module")
def embedder(serve: Callable[..., Server]) -> Server:
    return serve(pooler=EMBEDS)


@pytest.fixture(scope="module")
def scorer(serve: Callable[..., Server]) -> Server:
    return serve(pooler=SCORES)


@pytest.fixture(scope="module")
def sorter(serve: Callable[..., Server]) -> Server:
    return serve(pooler=SORTS)


def expected(ids: list[int]) -> list[float]:
    numbers = struct.pack("<4f", len(ids) / 1000, sum(ids) / 100_000, ids[0] / 1000, ids[-1] / 1000)
    return list(struct.unpack("<4f", numbers))


def ask(server: Server, path: str, **body: Any) -> dict[str, Any]:
    status, _, answer = post(server.url, path, body)
    assert status == 200, answer
    return answer


# --- embeddings ----------------------------------------------------------------------------------------------


def test_the_sdk_embeds(embedder: Server) -> None:
    """It asks for base64 and decodes that, unless told otherwise."""
    client = openai.OpenAI(base_url=f"{embedder.url}/v1", api_key="none", max_retries=0)
    found = client.embeddings.create(model="fake/model", input=["the", "a longer one"], user="me")
    plain = client.embeddings.create(model="fake/model", input=["the", "a longer one"], encoding_format="float")
    assert [each.embedding for each in found.data] == [each.embedding for each in plain.data]
    assert [each.index for each in found.data] == [0, 1] and found.object == "list"
    assert found.model == "fake/model"
    assert found.usage.prompt_tokens == found.usage.total_tokens == plain.usage.total_tokens > 2
    (cut,) = client.embeddings.create(model="fake/model", input="the", dimensions=2).data
    assert cut.embedding == plain.data[0].embedding[:2]


@pytest.mark.parametrize(
    ("given", "prompts"),
    [([5, 6, 7], [[5, 6, 7]]), ([[5], [6, 7]], [[5], [6, 7]]), (["a", "b"], [[66], [67]]), ("a", [[66]])],
)
def test_inputs_of_every_form(embedder: Server, given: Any, prompts: list[list[int]]) -> None:
    answer = ask(embedder, "/v1/embeddings", input=given)
    assert len(answer["data"]) == len(prompts)
    engine = embedder.engine
    asked = [request.prompt_token_ids for request in engine.requests[-len(prompts) :]]
    assert [each["embedding"] for each in answer["data"]] == [expected(ids) for ids in asked]
    if not isinstance(given, str) and not isinstance(given[0], str):
        assert asked == prompts
    assert answer["usage"] == {"prompt_tokens": sum(map(len, asked)), "total_tokens": sum(map(len, asked))}


def test_base64_is_of_float32(embedder: Server) -> None:
    (entry,) = ask(embedder, "/v1/embeddings", input=[5, 6], encoding_format="base64")["data"]
    assert list(struct.unpack("<4f", base64.b64decode(entry["embedding"]))) == expected([5, 6])


def test_what_the_engine_is_asked_for(embedder: Server) -> None:
    ask(
        embedder,
        "/v1/embeddings",
        input="a b c d",
        truncate_prompt_tokens=2,
        priority=3,
        cache_salt="s",
        normalize=False,
    )
    request = embedder.engine.requests[-1]
    assert len(request.prompt_token_ids) == 2 and request.priority == 3 and request.cache_salt == "s"
    assert request.pooling is not None and request.pooling.activation == "none"
    ask(embedder, "/v1/embeddings", input="a", use_activation=True)
    pooling = embedder.engine.requests[-1].pooling
    assert pooling is not None and pooling.activation == "normalize"


def test_pooling_gives_the_same_as_data(embedder: Server, sorter: Server) -> None:
    answer = ask(embedder, "/pooling", input=[5, 6])
    assert answer["data"] == [{"object": "pooling", "index": 0, "data": expected([5, 6])}]
    assert ask(sorter, "/pooling", input=[5, 6])["data"][0]["data"] == expected([5, 6])


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({}, "input", "required"),
        ({"input": ""}, "input", "empty"),
        ({"input": []}, "input", "empty"),
        ({"input": ["a", ""]}, "input", "empty"),
        ({"input": ["a", [5]]}, "input", "either strings"),
        ({"input": [5, 99_999]}, "input", "99999"),
        ({"input": ["x"] * 4097}, "input", "4097"),
        ({"input": [5] * 513}, "input", "context of 512 tokens"),
        ({"input": "a", "dimensions": 5}, "dimensions", "[1, 4]"),
        ({"input": "a", "dimensions": 0}, "dimensions", "[1, 4]"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format", "hex"),
        ({"input": "a", "dimension": 2}, "dimension", "dimensions"),
        ({"input": "a", "truncate_prompt_tokens": -2}, "truncate_prompt_tokens", "-1"),
    ],
)
def test_bad_input_is_refused_by_name(embedder: Server, body: dict[str, Any], param: str, words: str) -> None:
    assert_refused(post(embedder.url, "/v1/embeddings", body), 400, param, words)


def test_a_prompt_of_the_whole_context_is_embedded(embedder: Server) -> None:
    assert ask(embedder, "/v1/embeddings", input=[5] * 512)["usage"]["prompt_tokens"] == 512


def test_the_engines_failures_are_errors(embedder: Server) -> None:
    engine = embedder.engine
    try:
        engine.finish, engine.reason = "error", "out of luck"
        assert_refused(post(embedder.url, "/v1/embeddings", {"input": "a"}), 500, None, "out of luck")
        engine.finish = "deadline"
        assert_refused(post(embedder.url, "/v1/embeddings", {"input": "a"}), 408, "deadline_ms", "passed")
    finally:
        engine.reset()


# --- classes, scores, ranks ----------------------------------------------------------------------------------


def test_classify_names_the_likeliest(sorter: Server) -> None:
    answer = ask(sorter, "/classify", input=[[200, 5], [5, 200]])
    assert [each["label"] for each in answer["data"]] == ["hot", "cold"]
    assert answer["data"][0]["probs"] == expected([200, 5]) and answer["data"][0]["num_classes"] == 4
    pooling = sorter.engine.requests[-1].pooling
    assert pooling is not None and pooling.activation == "softmax"


@pytest.mark.parametrize("path", ["/score", "/v1/score"])
def test_scores_of_pairs(scorer: Server, path: str) -> None:
    one = ask(scorer, path, text_1="query", text_2=["the", "a longer document"])
    asked = [request.prompt_token_ids for request in scorer.engine.requests[-2:]]
    assert [each["score"] for each in one["data"]] == [expected(ids)[0] for ids in asked]
    assert one["usage"]["prompt_tokens"] == sum(map(len, asked))
    assert one["data"][1]["index"] == 1 and one["data"][1]["object"] == "score"
    several = ask(scorer, path, text_1=["query", "query"], text_2=["the", "a longer document"])
    assert several["data"] == one["data"]
    assert_refused(
        post(scorer.url, path, {"text_1": ["a", "b"], "text_2": ["c"] * 3}), 400, "text_1", "2 texts cannot be paired"
    )


def test_an_embedding_models_scores_are_products_of_vectors(embedder: Server) -> None:
    before = len(embedder.engine.requests)
    answer = ask(embedder, "/score", text_1="a", text_2=["a", "b", "a"])
    asked = [expected(request.prompt_token_ids) for request in embedder.engine.requests[before:]]
    assert len(asked) == 2  # each text once
    products = [sum(x * y for x, y in zip(asked[0], other, strict=True)) for other in (asked[0], asked[1], asked[0])]
    assert [each["score"] for each in answer["data"]] == pytest.approx(products)


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
def test_rerank_puts_the_best_first(scorer: Server, path: str) -> None:
    documents: list[Any] = ["the", {"text": "the longest document of them"}, "in between"]
    answer = ask(scorer, path, query="q", documents=documents)
    assert [each["index"] for each in answer["results"]] == [1, 2, 0]
    scores = [each["relevance_score"] for each in answer["results"]]
    assert scores == sorted(scores, reverse=True)
    assert answer["results"][0]["document"] == {"text": "the longest document of them"}
    best = ask(scorer, path, query="q", documents=documents, top_n=1, return_documents=False)
    assert best["results"] == [{"index": 1, "relevance_score": scores[0]}]
    assert len(ask(scorer, path, query="q", documents=documents, top_n=9)["results"]) == 3
    assert_refused(post(scorer.url, path, {"query": "q", "documents": []}), 400, "documents", "empty")


# --- the wrong model -----------------------------------------------------------------------------------------

CHAT = {"messages": [{"role": "user", "content": "a"}]}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "a"}),
        ("/v1/chat/completions", CHAT),
        ("/v1/responses", {"input": "a"}),
        ("/v1/messages", {**CHAT, "max_tokens": 4}),
    ],
)
def test_generation_is_refused_by_a_model_that_pools(embedder: Server, path: str, body: dict[str, Any]) -> None:
    status, _, answer = post(embedder.url, path, body)
    assert status == 400 and "gives embeddings and no text; ask /v1/embeddings" in answer["error"]["message"]


PAIR = {"text_1": "a", "text_2": "b"}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/embeddings", {"input": "a"}),
        ("/pooling", {"input": "a"}),
        ("/classify", {"input": "a"}),
        ("/score", PAIR),
        ("/rerank", {"query": "a", "documents": ["b"]}),
    ],
)
def test_a_model_that_generates_says_which_flag_pools(server: Server, path: str, body: dict[str, Any]) -> None:
    assert_refused(post(server.url, path, body), 400, "model", "start the server with --runner pooling")


def test_a_classifier_has_no_embeddings_and_an_embedder_no_classes(sorter: Server, embedder: Server) -> None:
    assert_refused(post(sorter.url, "/v1/embeddings", {"input": "a"}), 400, "model", "/classify")
    assert_refused(post(embedder.url, "/classify", {"input": "a"}), 400, "model", "/v1/embeddings")
    assert_refused(post(sorter.url, "/score", PAIR), 400, "model", "4 classes")


def test_metrics_count_them(embedder: Server) -> None:
    before = _counted(embedder)
    ask(embedder, "/v1/embeddings", input=["a", "b"])
    assert _counted(embedder) == before + 2


def _counted(server: Server) -> float:
    import urllib.request

    with urllib.request.urlopen(f"{server.url}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    name = 'core:request_success_total{finished_reason="stop"'
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


def test_the_document_knows_the_routes(embedder: Server) -> None:
    paths = send(embedder.url, "GET", "/openapi.json")[2]["paths"]
    for path in (
        "/v1/embeddings",
        "/pooling",
        "/classify",
        "/score",
        "/v1/score",
        "/rerank",
        "/v1/rerank",
        "/v2/rerank",
    ):
        assert "requestBody" in paths[path]["post"]
