"""What transformers says: the oracle that the engine's tokens and logprobs are held against."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import gguf
import numpy as np
import torch
import transformers

_NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
_TOP_LEVEL = {
    "token_embd": "model.embed_tokens.weight",
    "output_norm": "model.norm.weight",
    "output": "lm_head.weight",
}


@functools.cache
def gguf_llama(path: str) -> transformers.PreTrainedModel:
    """A llama GGUF as transformers' float32 model, read by the `gguf` package: nothing of ours is involved."""
    reader = gguf.GGUFReader(path)

    def field(name: str) -> float:
        return reader.fields[f"llama.{name}"].contents()

    heads, kv_heads = int(field("attention.head_count")), int(field("attention.head_count_kv"))
    state = {}
    for tensor in reader.tensors:
        weight = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        parts = tensor.name.split(".")
        if parts[0] != "blk":
            state[_TOP_LEVEL[parts[0]]] = torch.from_numpy(weight)
            continue
        if parts[2] in ("attn_q", "attn_k"):
            weight = _halves(weight, heads if parts[2] == "attn_q" else kv_heads)
        state[f"model.layers.{parts[1]}.{_NAMES[parts[2]]}.weight"] = torch.from_numpy(np.ascontiguousarray(weight))
    config = transformers.LlamaConfig(
        vocab_size=state["model.embed_tokens.weight"].shape[0],
        hidden_size=int(field("embedding_length")),
        intermediate_size=int(field("feed_forward_length")),
        num_hidden_layers=int(field("block_count")),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=int(field("context_length")),
        rms_norm_eps=float(field("attention.layer_norm_rms_epsilon")),
        rope_parameters={"rope_type": "default", "rope_theta": float(field("rope.freq_base"))},
        tie_word_embeddings="lm_head.weight" not in state,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}
    return model


def _halves(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a GGUF's q and k stand in pairs; transformers wants first halves, then second halves."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


@torch.no_grad()
def logprobs(model: transformers.PreTrainedModel, prompt: Sequence[int], output: Sequence[int]) -> torch.Tensor:
    """Log probabilities [len(output), vocab] of what follows the prompt and each output but the last."""
    tokens = torch.tensor([[*prompt, *output[:-1]]])
    logits = model(tokens, use_cache=False).logits[0, len(prompt) - 1 :].float()
    return logits.log_softmax(-1)


def assert_greedy(model: transformers.PreTrainedModel, prompt: Sequence[int], output: Sequence[int]) -> None:
    """That greedy decoding by `model` gives exactly `output`: each token is the most likely after those before it."""
    expected = logprobs(model, prompt, output).argmax(-1).tolist()
    assert list(output) == expected
