"""What a form costs a token: mask, its application to the logits, and the step of the parser.

    python benchmarks/structured.py

The demo model's vocabulary, random walks through each form. Prints a Markdown table: microseconds a token of one request.
"""

from __future__ import annotations

import time

import numpy as np
import torch

from core.sampling.sampler import forbid
from core.structured.guidance import Matchers
from core.types import StructuredOutputs
from core.weights import source

VOCAB, EOS = 49152, 2
ANSWERS, TOKENS = 20, 200
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "maxItems": 5},
        "address": {"type": "object", "properties": {"street": {"type": "string"}, "zip": {"pattern": r"^\d{5}$"}}},
    },
    "required": ["name", "age", "tags", "address"],
    "additionalProperties": False,
}
FORMS = {
    "JSON schema": StructuredOutputs(json=PERSON, strict=False),
    "any JSON object": StructuredOutputs(json_object=True),
    "regex": StructuredOutputs(regex=r"(\d{3}-\d{4} [a-z]{2,9}\n){40}"),
    "choice of 1,000": StructuredOutputs(choice=tuple(f"answer {i * 7919}" for i in range(1000))),
    "grammar": StructuredOutputs(grammar='start: term (" + " term)*\nterm: /[0-9]+/ | "(" start ")"'),
}


def walk(matchers: Matchers, form: StructuredOutputs, random: np.random.Generator) -> list[float]:
    """Seconds of each token of one answer. The first, which waits for the grammar, is left out."""
    matcher, logits = matchers.start(form), torch.zeros(1, VOCAB)
    seconds: list[float] = []
    for _ in range(TOKENS):
        logits.zero_()
        begin = time.perf_counter()
        forbid(logits, {0: matcher})
        masked = time.perf_counter()
        token = int(random.choice(np.flatnonzero(np.isfinite(logits[0].numpy()))))
        chosen = time.perf_counter()
        matcher.advance(token)
        seconds.append(time.perf_counter() - chosen + masked - begin)
        if matcher.failure is not None or token == EOS:
            break
    return seconds[1:]


def main() -> None:
    """All forms."""
    matchers = Matchers(str(source.locate(source.default_model()).path), VOCAB, [EOS])
    begin = time.perf_counter()
    matchers.start(StructuredOutputs(regex="a")).forbidden()
    print(f"Tables of the vocabulary: {time.perf_counter() - begin:.2f} s, once.\n")
    print("| form | tokens | mean | p50 | p99 |\n|---|---|---|---|---|")
    random, every = np.random.default_rng(0), []
    for name, form in FORMS.items():
        times = 1e6 * np.array([t for _ in range(ANSWERS) for t in walk(matchers, form, random)])
        every.append(times)
        print(row(name, times))
    print(row("all", np.concatenate(every)))


def row(name: str, times: np.ndarray) -> str:
    """One row of the table."""
    p50, p99 = np.percentile(times, [50, 99])
    return f"| {name} | {len(times)} | {times.mean():.0f} | {p50:.0f} | {p99:.0f} |"


if __name__ == "__main__":
    main()
