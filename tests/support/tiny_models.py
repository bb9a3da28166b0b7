"""Tiny random checkpoints, made by transformers with a fixed seed, with a small real tokenizer beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

VOCAB = 384

_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    # Wide enough that the largest logit is never a matter of the last bits.
    "initializer_range": 0.15,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}

_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 128}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama3": ("Llama", {"rope_parameters": _LLAMA3, "tie_word_embeddings": True}),
    "llama-yarn": ("Llama", {"rope_parameters": _YARN, "attention_bias": True, "mlp_bias": True}),
    "llama-linear": ("Llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 2.0}}),
    "mistral": ("Mistral", {"sliding_window": 24}),
    "qwen2": ("Qwen2", {}),
    "qwen2-mixed": ("Qwen2", {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1}),
    "qwen3": ("Qwen3", {"head_dim": 32}),
}


def config(family: str) -> transformers.PretrainedConfig:
    """The transformers configuration of a family."""
    architecture, differences = FAMILIES[family]
    made: transformers.PretrainedConfig = getattr(transformers, f"{architecture}Config")(**{**_SIZES, **differences})
    return made


def build(family: str, seed: int = 0) -> transformers.PreTrainedModel:
    """A random model of the family, in float32. Biases and norms are random too: zeros and ones would hide errors."""
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config(family)).eval()
    return _with_random_norms(model)


def _with_random_norms(model: transformers.PreTrainedModel) -> transformers.PreTrainedModel:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0.0, 0.1)
            elif "norm" in name.lower():
                parameter.uniform_(0.5, 1.5)
    return model


def save(family: str, directory: Path, *, seed: int = 0, **options: Any) -> Path:
    """The model and a byte-level tokenizer as a Hugging Face directory; `options` go to save_pretrained."""
    build(family, seed).save_pretrained(directory, **options)
    byte_tokenizer().save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    return directory


def byte_tokenizer() -> Tokenizer:
    """One token a byte, ids 3 … 258, after three special ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2, **{symbol: 3 + i for i, symbol in enumerate(alphabet)}}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


_ENCODER: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 96,
    "initializer_range": 0.15,
    "pad_token_id": 0,
}

#: Encoders, with their classes in transformers and what is their own. Token 3, which pads RoBERTas, is "!".
ENCODERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("BertConfig", "BertModel", {}),
    "bert-tanh": ("BertConfig", "BertModel", {"hidden_act": "gelu_new"}),
    "roberta": ("RobertaConfig", "RobertaModel", {"type_vocab_size": 1, "pad_token_id": 3}),
    "xlm-roberta": ("XLMRobertaConfig", "XLMRobertaModel", {"type_vocab_size": 1, "pad_token_id": 3}),
    "cross-encoder": ("BertConfig", "BertForSequenceClassification", {"num_labels": 1}),
    "classifier": ("BertConfig", "BertForSequenceClassification", {"num_labels": 3}),
    "roberta-classifier": (
        "RobertaConfig",
        "RobertaForSequenceClassification",
        {"num_labels": 1, "type_vocab_size": 1, "pad_token_id": 3},
    ),
}


def build_encoder(name: str, seed: int = 0) -> transformers.PreTrainedModel:
    """A random encoder in float32, of which nothing is zero or one."""
    config_class, model_class, differences = ENCODERS[name]
    torch.manual_seed(seed)
    settings = getattr(transformers, config_class)(**{**_ENCODER, **differences})
    model: transformers.PreTrainedModel = getattr(transformers, model_class)(settings).eval()
    return _with_random_norms(model)


def save_encoder(name: str, directory: Path, *, pooling: str | None = None, normalize: bool = True) -> Path:
    """The encoder with the byte tokenizer, which puts tokens 1 and 2 around texts and pairs, as a directory.

    With `pooling` ("mean", "cls") it is a sentence-transformers checkpoint.
    """
    build_encoder(name).save_pretrained(directory)
    tokenizer = byte_tokenizer()
    pair = "<s>:0 $A:0 </s>:0 $B:1 </s>:1" if ENCODERS[name][0] == "BertConfig" else "<s> $A </s> </s> $B </s>"
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair=pair, special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    if pooling is not None:
        kinds = ["Transformer", "Pooling", *(["Normalize"] if normalize else [])]
        modules = [
            {"path": "1_Pooling" if k == "Pooling" else "", "type": f"sentence_transformers.models.{k}"} for k in kinds
        ]
        (directory / "modules.json").write_text(json.dumps(modules))
        (directory / "1_Pooling").mkdir()
        mode = {"mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token"}[pooling]
        (directory / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 48, mode: True}))
    return directory
