"""What quantisation costs in perplexity: `python benchmarks/perplexity.py [MODEL] [--schemes none int8 int4 stored]`.

The text is the first chapter of Jane Austen's "Pride and Prejudice" (1813, in the public domain), cut into windows of
256 tokens. Every token but a window's first is predicted from all before it in the window, by the engine as it serves:
each prefix is a request for one token, which a bias makes the text's own, and whose logprob is that of the unbiased
distribution. `stored` keeps a GGUF file's blocks, the others start from its values in bfloat16, or from float weights.
The standard error is that of the mean difference, token by token, to the first scheme.
"""

from __future__ import annotations

import argparse
import math
import statistics
from pathlib import Path
from typing import Any

from core import LLM, SamplingParams
from core.bench.figures import machine

TEXT = Path(__file__).with_suffix(".txt")
WINDOW = 256
#: How `--quantization` says each scheme; an explicit dtype makes a file's blocks floats.
OPTIONS: dict[str, dict[str, Any]] = {
    "none": {"dtype": "bfloat16"},
    "int8": {"dtype": "bfloat16", "quantization": "int8"},
    "int4": {"dtype": "bfloat16", "quantization": "int4"},
    "stored": {"quantization": "gguf"},
}


def losses(llm: LLM) -> list[float]:
    """-log p of each predicted token."""
    tokens = llm.tokenizer.encode(TEXT.read_text(encoding="utf-8"), add_special_tokens=False)
    windows = [tokens[start : start + WINDOW] for start in range(0, len(tokens), WINDOW)]
    found: list[float] = []
    for window in windows:
        places = range(1, len(window))
        params = [
            SamplingParams(temperature=0.0, max_tokens=1, logprobs=0, logit_bias={window[place]: 100.0})
            for place in places
        ]
        outputs = llm.generate([window[:place] for place in places], params, progress=False)
        for place, output in zip(places, outputs, strict=True):
            (choice,) = output.outputs
            if choice.token_ids != [window[place]] or not choice.logprobs:
                raise RuntimeError(f"the bias did not choose token {window[place]}, but {choice.token_ids}")
            found.append(-choice.logprobs[0].logprob)
    return found


def row(scheme: str, llm: LLM, found: list[float], first: list[float]) -> str:
    """One line of the table."""
    differences = [ours - theirs for ours, theirs in zip(found, first, strict=True)]
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    weights, kept = llm.engine.memory_plan.weights, llm.engine.config.model.quantization
    perplexity, ratio = math.exp(statistics.fmean(found)), math.exp(statistics.fmean(differences)) - 1
    name = "as stored" if kept == "stored" else str(llm.engine.config.model.dtype) if kept == "none" else scheme
    return f"| {name} | {weights / 1e6:.0f} MB | {perplexity:.2f} | {ratio:+.1%} ± {error:.1%} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="default: the demo")
    parser.add_argument("--schemes", nargs="+", choices=OPTIONS, default=list(OPTIONS), help="(default: all)")
    parser.add_argument("--platform", default="cpu", help="(default: %(default)s)")
    given = parser.parse_args()
    first: list[float] | None = None
    for scheme in given.schemes:
        options = {"max_model_len": WINDOW, "max_num_seqs": 16, "kv_cache_memory": "256MiB", "progress": False}
        with LLM(given.model, platform=given.platform, **options, **OPTIONS[scheme]) as llm:
            found = losses(llm)
            if first is None:
                first = found
                print(f"{machine()}\n{llm.engine.config.model.name}, {len(found)} predictions\n")
                print("| weights | size | perplexity | against the first |\n|---|---|---|---|")
            print(row(scheme, llm, found, first), flush=True)


if __name__ == "__main__":
    main()
