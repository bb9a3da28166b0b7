"""`core serve` with a real encoder, as its clients see it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
import torch
import transformers
from real_server import CORE, ONE_THREAD, RealServer, real_server

pytestmark = pytest.mark.slow

TEXTS = [
    "How do I bake bread?",
    "Knead flour, water, salt and yeast; let it rise.",
    "The stock market fell on Tuesday.",
]


@pytest.fixture(scope="module")
def encoder(minilm: Path) -> Iterator[RealServer]:
    with real_server(str(minilm), "--served-model-name", "minilm", "--dtype", "float32", *ONE_THREAD) as server:
        yield server


def test_the_sdks_embeddings_are_sentence_transformers(encoder: RealServer, minilm: Path) -> None:
    """Mean of the last states, normalised, computed by transformers in float32; the SDK reads base64 by default."""
    client = openai.OpenAI(base_url=f"{encoder.url}/v1", api_key="none")
    found = client.embeddings.create(model="minilm", input=TEXTS)
    alone = [client.embeddings.create(model="minilm", input=text).data[0].embedding for text in TEXTS]
    assert [each.embedding for each in found.data] == alone
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm)
    reference = transformers.AutoModel.from_pretrained(minilm, dtype=torch.float32).eval()
    for text, entry in zip(TEXTS, found.data, strict=True):
        with torch.no_grad():
            wanted = reference(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)
        assert float(torch.cosine_similarity(torch.tensor(entry.embedding), wanted, dim=0)) >= 0.9999
    assert found.usage.prompt_tokens == sum(len(tokenizer(text)["input_ids"]) for text in TEXTS)


def test_reranking_finds_the_recipe(encoder: RealServer) -> None:
    body = json.dumps({"query": TEXTS[0], "documents": TEXTS[1:][::-1]})
    status, _, answer = encoder.send("POST", "/v1/rerank", body)
    results = json.loads(answer)["results"]
    assert status == 200 and [each["index"] for each in results] == [1, 0]
    assert results[0]["relevance_score"] > results[1]["relevance_score"] + 0.2


def test_what_is_too_long_is_refused_or_cut(encoder: RealServer) -> None:
    long = "word " * 400
    status, _, answer = encoder.send("POST", "/v1/embeddings", json.dumps({"input": long}))
    assert status == 400 and "context of 256 tokens" in json.loads(answer)["error"]["message"]
    cut = json.dumps({"input": long, "truncate_prompt_tokens": -1})
    status, _, answer = encoder.send("POST", "/v1/embeddings", cut)
    assert status == 200 and json.loads(answer)["usage"]["prompt_tokens"] == 256


def test_a_batch_file_of_all_routes(encoder: RealServer, minilm: Path, tmp_path: Path) -> None:
    bodies = {
        "/v1/embeddings": {"model": "minilm", "input": "a"},
        "/v1/score": {"text_1": "a", "text_2": "b"},
        "/v2/rerank": {"query": "a", "documents": ["b", "c"]},
    }
    lines = [json.dumps({"custom_id": url, "method": "POST", "url": url, "body": body}) for url, body in bodies.items()]
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("\n".join(lines) + "\n")
    subprocess.run([CORE, "run-batch", "-i", source, "-o", target, "--url", encoder.url], check=True)
    answers = [json.loads(line) for line in target.read_text().splitlines()]
    assert {answer["custom_id"]: answer["response"]["status_code"] for answer in answers} == dict.fromkeys(bodies, 200)


def test_it_is_restarted_and_answers_what_was_asked_before(encoder: RealServer) -> None:
    engine = encoder.engine()
    assert engine is not None
    engine.kill()
    status, _, answer = encoder.send("POST", "/v1/embeddings", json.dumps({"input": TEXTS}))
    assert status == 200 and len(json.loads(answer)["data"]) == 3
