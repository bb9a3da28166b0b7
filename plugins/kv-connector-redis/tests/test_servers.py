"""Two real servers that share a Redis: what one has computed the other finds, and answers never change."""

from __future__ import annotations

import http.client
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import MistralConfig, MistralForCausalLM

from core import LLM, SamplingParams

pytestmark = pytest.mark.slow

VOCAB, BLOCK = 300, 16
OPTIONS = ("--dtype", "float32", "--max-num-seqs", "4", "--kv-cache-memory", "8MiB", "--platform-opt", "cpu.threads=1")
_READY = re.compile(r"^ready in .*?: (http://\S+)/v1", re.MULTILINE)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random checkpoint with a sliding window, and a byte tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=VOCAB, hidden_size=64, intermediate_size=112, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, sliding_window=40, initializer_range=0.15, bos_token_id=1,
        eos_token_id=2, tie_word_embeddings=False,
    )  # fmt: skip
    MistralForCausalLM(config).save_pretrained(folder)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2, **{symbol: 3 + i for i, symbol in enumerate(alphabet)}}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    return folder


@pytest.fixture(scope="module")
def expected(model: Path) -> Iterator[Callable[[list[int]], str]]:
    """What an engine without a connector answers."""
    with LLM(str(model), dtype="float32", max_num_seqs=4, platform_opt=("cpu.threads=1",), progress=False) as llm:
        params = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
        yield lambda prompt: llm.generate(prompt, params)[0].outputs[0].text


class Server:
    """A `core serve` that is ready."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self._log = log
        wait(lambda: _READY.search(self.log()) is not None or process.poll() is not None, 120)
        found = _READY.search(self.log())
        assert found is not None, self.log()
        self._address = urlsplit(found[1]).netloc
        wait(self._is_ready)  # the frontend hears of it a moment later

    def log(self) -> str:
        return self._log.read_text()

    def _send(self, method: str, path: str, body: str | None = None) -> bytes:
        status, answer = self._exchange(method, path, body)
        assert status == 200, answer
        return answer

    def _is_ready(self) -> bool:
        return self._exchange("GET", "/readyz", None)[0] == 200

    def _exchange(self, method: str, path: str, body: str | None) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self._address, timeout=60)
        try:
            connection.request(method, path, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def complete(self, prompt: list[int]) -> tuple[str, int]:
        """The answer, and how many tokens of the prompt were found."""
        model = json.loads(self._send("GET", "/v1/models"))["data"][0]["id"]
        fields: dict[str, Any] = {"max_tokens": 12, "temperature": 0, "ignore_eos": True}
        answer = json.loads(
            self._send("POST", "/v1/completions", json.dumps({"model": model, "prompt": prompt, **fields}))
        )
        return answer["choices"][0]["text"], answer["usage"]["prompt_tokens_details"]["cached_tokens"]

    def figure(self, name: str) -> float:
        """One of the engine's counters."""
        found = re.search(rf"^core:{name}_total{{.*}} (\S+)$", self._send("GET", "/metrics").decode(), re.MULTILINE)
        assert found is not None, name
        return float(found[1])


@contextmanager
def serve(model: Path, *options: str) -> Iterator[Server]:
    """A server, which must end well when it is told to."""
    with tempfile.TemporaryDirectory(prefix="t") as base, Path(base, "log").open("wb") as output:
        temporary = Path(base, "tmp")
        temporary.mkdir()
        process = subprocess.Popen(
            [sys.executable, "-m", "core.cli.main", "serve", str(model), "--port", "0", *OPTIONS, *options],
            stdin=subprocess.DEVNULL,
            stderr=output,
            env={**os.environ, "TMPDIR": str(temporary)},
        )
        try:
            server = Server(process, Path(base, "log"))
            yield server
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                assert process.wait(60) == 0, server.log()
                assert "Traceback" not in server.log()
        finally:
            process.kill()
            process.wait()


def with_redis(redis: Any) -> tuple[str, ...]:
    return ("--kv-connector", "redis", "--plugin-opt", f"redis.url={redis.url}")


def wait(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.05)


def prompt(seed: int, blocks: int = 12) -> list[int]:
    """That many full blocks, and a token that has to be computed."""
    rng = random.Random(seed)
    return [rng.randrange(3, 259) for _ in range(blocks * BLOCK + 1)]


def test_what_one_server_has_computed_another_finds(server: Any, model: Path, expected: Callable[..., str]) -> None:
    with serve(model, *with_redis(server)) as first, serve(model, *with_redis(server)) as second:
        for seed in range(3):
            assert first.complete(prompt(seed)) == (expected(prompt(seed)), 0)
        wait(lambda: first.figure("kv_connector_blocks_saved") >= 3 * 12)
        for seed in range(3):
            assert second.complete(prompt(seed)) == (expected(prompt(seed)), 12 * BLOCK)
        assert second.figure("external_prefix_cache_hits") == 3 * 12 * BLOCK
        assert second.figure("external_prefix_cache_queries") == 3 * 12 * BLOCK
        assert second.figure("kv_connector_blocks_loaded") == 3 * 3, "the window's blocks are all that is needed"
        longer = prompt(1)[:-1] + prompt(9)
        text, cached = second.complete(longer)
        assert (text, cached) == (expected(longer), 12 * BLOCK), "found on the device by now"


def test_redis_goes_away_and_comes_back(server: Any, model: Path, expected: Callable[..., str]) -> None:
    with serve(model, *with_redis(server)) as first, serve(model, *with_redis(server)) as second:
        assert first.complete(prompt(0)) == (expected(prompt(0)), 0)
        wait(lambda: first.figure("kv_connector_blocks_saved") >= 12)
        server.kill()
        for seed in range(1, 5):
            assert first.complete(prompt(seed)) == second.complete(prompt(seed)) == (expected(prompt(seed)), 0)
        assert second.complete(prompt(0)) == (expected(prompt(0)), 0)
        for one in (first, second):
            assert one.log().count("it is left alone for") in (1, 2), "one warning for each side at most"
            assert one.figure("kv_connector_blocks_dropped") + one.figure("kv_connector_blocks_failed") > 0
        server.start()
        saved, seeds = first.figure("kv_connector_blocks_saved"), iter(range(10, 1000))

        def saves_again() -> bool:
            seed = next(seeds)
            assert first.complete(prompt(seed)) == (expected(prompt(seed)), 0)
            return first.figure("kv_connector_blocks_saved") > saved

        wait(saves_again)

        def finds_again() -> bool:
            seed = next(seeds)
            before = first.figure("kv_connector_blocks_saved")
            assert first.complete(prompt(seed)) == (expected(prompt(seed)), 0)
            wait(lambda: first.figure("kv_connector_blocks_saved") >= before + 12)
            text, cached = second.complete(prompt(seed))
            assert text == expected(prompt(seed))
            return cached == 12 * BLOCK

        wait(finds_again)


def test_a_redis_that_hangs_holds_nobody(server: Any, model: Path, expected: Callable[..., str]) -> None:
    with serve(model, *with_redis(server)) as first:
        assert first.complete(prompt(0)) == (expected(prompt(0)), 0)
        server.pause()
        try:
            for seed in range(1, 4):
                began = time.monotonic()
                assert first.complete(prompt(seed)) == (expected(prompt(seed)), 0)
                assert time.monotonic() - began < 10
        finally:
            server.resume()


def test_corrupted_values_are_computed_again(server: Any, model: Path, expected: Callable[..., str]) -> None:
    with serve(model, *with_redis(server)) as first:
        first.complete(prompt(0))
        wait(lambda: first.figure("kv_connector_blocks_saved") >= 12)
    with server.client() as client:
        for key in client.keys("*"):
            value = bytearray(client.get(key))
            value[len(value) // 2] ^= 1
            client.set(key, bytes(value))
    with serve(model, *with_redis(server)) as second:
        assert second.complete(prompt(0)) == (expected(prompt(0)), 0)
        assert second.figure("external_prefix_cache_hits") == 0
        assert second.figure("kv_connector_blocks_failed") > 0
        wait(lambda: second.figure("kv_connector_blocks_saved") > 0)


def test_a_server_that_is_killed_leaves_nothing_that_is_wrong(
    server: Any, model: Path, expected: Callable[..., str]
) -> None:
    """Killed while it saves: what is found of it gives the same answer."""
    with serve(model, *with_redis(server)) as first:
        for seed in range(2):
            first.complete(prompt(seed, blocks=25))
        first.process.kill()
        first.process.wait()
    with serve(model, *with_redis(server)) as second:
        for seed in range(2):
            assert second.complete(prompt(seed, blocks=25))[0] == expected(prompt(seed, blocks=25))


def test_a_wrong_option_stops_the_start(model: Path) -> None:
    command = [sys.executable, "-m", "core.cli.main", "serve", str(model), "--port", "0", *OPTIONS]
    for options, message in (
        (("--kv-connector", "rediss"), "--kv-connector: there is no 'rediss'; did you mean 'redis'?"),
        (("--kv-connector", "redis", "--plugin-opt", "redis.url=http://x"), "--plugin-opt redis.url: "),
    ):
        ended = subprocess.run([*command, *options], capture_output=True, text=True, timeout=120, check=False)
        assert ended.returncode != 0
        assert message in ended.stderr and "Traceback" not in ended.stderr
