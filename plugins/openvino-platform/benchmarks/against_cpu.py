"""This platform against core's own CPU platform, on the demo model: one prompt's prefill, one stream's decode, memory.

Each run is a process of its own with one engine; the platforms take turns, so that both see the same machine. Prefill
is a prompt of 512 tokens computed in one step, decode are 64 tokens after one of 32. The best of the runs is shown, and
the spread. Memory is the process's resident set after them. Prints a Markdown table.

    python benchmarks/against_cpu.py [ROUNDS]
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

PROMPT, BEFORE, DECODED, REPEATS = 512, 32, 64, 3
DTYPES = ("float32", "bfloat16")
PLATFORMS = ("cpu", "openvino")


def measure(platform: str, dtype: str) -> dict[str, float]:
    """Tokens a second and megabytes of one engine."""
    from core import LLM, SamplingParams

    def best(prompt: list[int], tokens: int) -> float:
        params = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True)
        times = []
        for _ in range(REPEATS + 1):
            begin = time.perf_counter()
            llm.generate([prompt], params, progress=False)
            times.append(time.perf_counter() - begin)
        return min(times[1:])

    settings = {"dtype": dtype, "max_model_len": 1024, "kv_cache_memory": "256MiB", "enable_prefix_caching": False}
    with LLM(platform=platform, progress=False, **settings) as llm:  # type: ignore[arg-type]
        prompt = [5 + index % 1000 for index in range(PROMPT)]
        prefill = best(prompt, 1)
        # The difference of two lengths: the prompt, the first token and what comes once a request cancel out.
        decode = best(prompt[:BEFORE], DECODED + 1) - best(prompt[:BEFORE], 1)
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6
    return {"prefill": PROMPT / prefill, "decode": DECODED / decode, "memory": resident}


def main() -> None:
    """Run every platform and type by turns."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    found: dict[tuple[str, str], list[dict[str, float]]] = defaultdict(list)
    for _ in range(rounds):
        for dtype in DTYPES:
            for platform in PLATFORMS:
                command = [sys.executable, __file__, "--one", platform, dtype]
                ran = subprocess.run(command, check=True, capture_output=True, text=True)
                found[dtype, platform].append(json.loads(ran.stdout.splitlines()[-1]))
    print("| dtype | platform | prefill, tok/s | decode, tok/s | resident, MB |\n|---|---|---|---|---|")
    for (dtype, platform), runs in found.items():
        cells = [
            f"{max(run[k] for run in runs):.0f} ({min(run[k] for run in runs):.0f})" for k in ("prefill", "decode")
        ]
        print(f"| {dtype} | {platform} | {' | '.join(cells)} | {max(run['memory'] for run in runs):.0f} |")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(measure(*sys.argv[2:])))
    else:
        main()
