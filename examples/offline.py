"""Complete a few prompts in this process: python examples/offline.py [MODEL]"""

import sys

from core import LLM, SamplingParams

PROMPTS = ["The capital of France is", "Water boils at", "Once upon a time,"]

with LLM(sys.argv[1] if len(sys.argv) > 1 else None) as llm:
    for output in llm.generate(PROMPTS, SamplingParams(temperature=0.0, max_tokens=24)):
        print(f"{output.prompt!r} -> {output.outputs[0].text!r}")
