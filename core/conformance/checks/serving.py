"""Level serve: `core serve` with the platform, over HTTP: what users get."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from core.conformance.checkpoints import prompts, token_ids
from core.conformance.checks.sampling import ASKING
from core.conformance.failures import NotClaimed, expect
from core.conformance.oracle import Oracle
from core.conformance.registry import check
from core.conformance.server import Server, alive, serve, until
from core.conformance.subject import Subject
from core.types import SAMPLING_FEATURES

#: Seconds for a server without requests to end after SIGTERM.
SHUTDOWN_S = 20.0
_TOKENS = 20
_LONG = 180


@dataclass
class _Running:
    server: Server | None = None


def _server(subject: Subject) -> Server:
    """The server, started for the first check that asks and again where one has ended it."""
    running = subject.kept("server", _Running)
    if running.server is None or running.server.process.poll() is not None:
        subject.release()
        log = subject.directory / "serve.log"
        running.server = subject.keep_open(
            serve([str(subject.checkpoint().path), *_flags(subject)], log, subject.environment)
        )
    return running.server


def _flags(subject: Subject) -> list[str]:
    options = subject.options(max_num_seqs=8, kv_cache_memory="32MiB")
    pairs = [text for pair in options.pop("platform_opt") for text in ("--platform-opt", pair)]
    return pairs + [text for name, value in options.items() for text in (f"--{name.replace('_', '-')}", str(value))]


def _oracle(subject: Subject) -> Oracle:
    return Oracle(subject.config(), subject.checkpoint().tensors)


def _greedy(prompt: list[int], count: int = _TOKENS) -> dict[str, Any]:
    return {"prompt": prompt, "temperature": 0, "max_tokens": count, "ignore_eos": True, "skip_special_tokens": False}


def _expect_right(subject: Subject, oracle: Oracle, prompt: list[int], text: str, count: int, what: str) -> None:
    tokens = token_ids(text)
    expect(len(tokens) == count, f"{what}: {len(tokens)} tokens came, {count} were asked for")
    wrong = oracle.wrong_greedy(prompt, tokens, subject.dtype)
    expect(not wrong, f"{what}: {wrong}")


@check("serving.golden", "serve", "this is the way that every user takes")
def golden(subject: Subject) -> None:
    """Greedy completions over HTTP, several at once, are those of the float32 reference."""
    server, oracle, asked = _server(subject), _oracle(subject), prompts(6, seed=51)
    with ThreadPoolExecutor(len(asked)) as pool:
        answers = list(pool.map(lambda prompt: server.complete(**_greedy(prompt)), asked))
    for prompt, (status, body) in zip(asked, answers, strict=True):
        expect(status == 200, f"a completion gave status {status}: {body}")
        _expect_right(subject, oracle, prompt, body["choices"][0]["text"], _TOKENS, "over HTTP")


@check("serving.refusals", "serve", "a field that is quietly ignored is an answer that nobody asked for")
def refusals(subject: Subject) -> None:
    """A request for an undeclared sampling feature gets HTTP 400 that names the field; the server goes on."""
    missing = [feature for feature in SAMPLING_FEATURES if feature not in subject.capabilities.sampling]
    if not missing:
        raise NotClaimed("every feature is declared, so there is none to refuse")
    server = _server(subject)
    for feature in missing:
        status, body = server.complete(**{"prompt": [5, 6], "max_tokens": 2, "temperature": 0, **ASKING[feature]})
        param = body.get("error", {}).get("param") if status != 200 else None
        expect((status, param) == (400, feature), f"{feature} is not declared; asking for it gave {status}, {param!r}")
    status, _ = server.complete(**_greedy([5, 6], 2))
    expect(status == 200, f"after refusals a completion gave status {status}")


@check("serving.cancel", "serve", "clients leave all the time; what they leave must not run on")
def cancel(subject: Subject) -> None:
    """A client that leaves in mid-stream frees its row and its blocks."""
    server = _server(subject)
    stream = server.stream(**_greedy(prompts(2, 20)[1], _LONG))
    next(stream)
    stream.close()  # type: ignore[attr-defined]  # it is a generator
    until(lambda: server.figure("num_requests_running") == 0, "a request whose client left still runs")
    until(lambda: server.figure("kv_cache_usage_perc") == 0, "a request whose client left keeps its blocks")


@check("serving.worker_killed", "serve", "devices fall over; a stream that ends with them is a user's lost hour")
def worker_killed(subject: Subject) -> None:
    """The engine's process is killed in mid-stream: it is replaced, and the stream goes on with the right tokens."""
    server, prompt = _server(subject), prompts(2, 30, seed=52)[1]
    first = server.engine()
    expect(first is not None, "no process of the server has loaded torch: which one is the engine?")
    text = ""
    for index, piece in enumerate(server.stream(**_greedy(prompt, _LONG))):
        text += piece
        if index == 3 and first is not None:
            os.kill(first, signal.SIGKILL)
    _expect_right(subject, _oracle(subject), prompt, text, _LONG, "a stream whose engine was killed")
    until(lambda: server.engine() not in (None, first), "a killed engine is not replaced")


@check("serving.shutdown", "serve", "a deployment waits for this at every roll-out, and kills what does not end")
def shutdown(subject: Subject) -> None:
    """After SIGTERM an idle server ends well, within 20 s, and leaves no process behind."""
    server = _server(subject)
    until(lambda: server.engine() is not None, "no engine runs")
    everyone = server.children()
    started = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    until(lambda: server.process.poll() is not None, "the server does not end after SIGTERM", SHUTDOWN_S)
    status, seconds = server.process.poll(), time.monotonic() - started
    expect(status == 0, f"after SIGTERM the server ended with status {status} in {seconds:.1f} s")
    until(lambda: not any(map(alive, everyone)), f"processes {everyone} outlive the server", SHUTDOWN_S)
