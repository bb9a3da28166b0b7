"""Models that pool against transformers in float32: encoders, classifiers, and decoders that give embeddings."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
import transformers

from core import LLM
from core.errors import ConfigError, InvalidRequest, UnsupportedModel
from core.tokenization import Tokenizer

#: Of 1, 15, 16, 17 and more characters; with the two tokens around them, and no "!", which pads RoBERTas.
TEXTS = [
    "x",
    "fifteen letters",
    "sixteen letters.",
    "and seventeen, so",
    "a longer one, of some forty characters",
    "ab" * 40,
]

Make = Callable[..., Path]


def load(path: Path, **options: Any) -> LLM:
    return LLM(str(path), dtype="float32", progress=False, **options)


def vectors(outputs: Sequence[Any]) -> torch.Tensor:
    return torch.tensor([output.vector for output in outputs])


def hidden(model: transformers.PreTrainedModel, token_ids: list[int], **inputs: Any) -> torch.Tensor:
    """transformers' last states of one prompt alone, [tokens, hidden]."""
    with torch.no_grad():
        return model(input_ids=torch.tensor([token_ids]), **inputs).last_hidden_state[0]


def normalized(rows: list[torch.Tensor]) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.stack(rows), dim=-1)


# --- encoders ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bert", "bert-tanh", "roberta", "xlm-roberta"])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_an_encoders_embeddings_are_those_of_transformers(tiny_encoder: Make, name: str, pooling: str) -> None:
    reference = tiny_models.build_encoder(name)
    with load(tiny_encoder(name, pooling=pooling)) as llm:
        outputs = llm.embed(TEXTS)
    states = [hidden(reference, output.prompt_token_ids) for output in outputs]
    wanted = normalized([each.mean(0) if pooling == "mean" else each[0] for each in states])
    torch.testing.assert_close(vectors(outputs), wanted, atol=2e-6, rtol=1e-5)


def test_a_vector_does_not_depend_on_its_batch(tiny_encoder: Make) -> None:
    """Alone and among others, to the bit."""
    with load(tiny_encoder("bert", pooling="mean")) as llm:
        together = vectors(llm.embed(TEXTS))
        alone = vectors([llm.embed(text)[0] for text in TEXTS])
    assert torch.equal(together, alone)


def test_an_encoder_keeps_no_kv_cache(tiny_encoder: Make) -> None:
    with load(tiny_encoder("bert")) as llm:
        assert llm.engine.memory_plan.kv_cache == 0
        llm.embed(TEXTS)
        assert llm.engine.stats().kv_usage == 0.0


def test_prompts_of_the_whole_context_and_one_token_more(tiny_encoder: Make) -> None:
    with load(tiny_encoder("bert")) as llm:
        assert len(llm.embed("a" * 94)[0].prompt_token_ids) == 96
        with pytest.raises(InvalidRequest, match=r"97 tokens are more than this model's context of 96 tokens$"):
            llm.embed("a" * 95)


def test_roberta_has_fewer_positions_than_its_table(tiny_encoder: Make) -> None:
    """Those before its padding token's are never used."""
    with load(tiny_encoder("roberta")) as llm:
        assert llm.engine.config.model.max_model_len == 96 - 4


def test_truncation_keeps_the_first_tokens_and_those_around_a_text(tiny_encoder: Make) -> None:
    with load(tiny_encoder("bert")) as llm:
        (cut,) = llm.embed("abcdef", truncate_prompt_tokens=5)
        assert cut.prompt_token_ids == [1, *llm.tokenizer.encode("abc", add_special_tokens=False), 2]
        (whole,) = llm.embed("a" * 300, truncate_prompt_tokens=-1)
        assert len(whole.prompt_token_ids) == 96 and whole.prompt_token_ids[-1] == 2
        (ids,) = llm.embed([[5, 6, 7, 8]], truncate_prompt_tokens=3)
        assert ids.prompt_token_ids == [6, 7, 8]


def test_it_generates_nothing(tiny_encoder: Make) -> None:
    with load(tiny_encoder("bert")) as llm, pytest.raises(InvalidRequest, match="gives embeddings and no text"):
        llm.generate("hello")
    with pytest.raises(ConfigError, match="BertModel has no head that gives tokens"):
        load(tiny_encoder("bert"), runner="generate")


# --- what is made of a vector --------------------------------------------------------------------------------


def test_dimensions_are_refused_unless_the_model_can_be_cut(tiny_encoder: Make) -> None:
    path = tiny_encoder("bert", pooling="mean")
    with load(path) as llm, pytest.raises(InvalidRequest, match="not made to be cut"):
        llm.embed("x", dimensions=8)
    with load(path, hf_overrides='{"is_matryoshka": true}') as llm:
        whole, cut = (vectors(llm.embed(TEXTS, activate=False, dimensions=size)) for size in (None, 8))
        assert torch.equal(cut, whole[:, :8])
        unit = vectors(llm.embed(TEXTS, dimensions=8))
        torch.testing.assert_close(unit, torch.nn.functional.normalize(cut, dim=-1))
        with pytest.raises(InvalidRequest, match=r"dimensions: 49 is not in \[1, 48\]"):
            llm.embed("x", dimensions=49)
    with load(path, hf_overrides='{"matryoshka_dimensions": [8, 16]}') as llm:
        assert len(llm.embed("x", dimensions=16)[0].vector) == 16
        with pytest.raises(InvalidRequest, match="12 is not one of 8, 16"):
            llm.embed("x", dimensions=12)


@pytest.mark.parametrize(("options", "length_one"), [({}, True), ({"pooler_config": '{"normalize": false}'}, False)])
def test_what_the_checkpoint_and_the_user_say_of_norms(tiny_encoder: Make, options: Any, length_one: bool) -> None:
    with load(tiny_encoder("bert", pooling="mean"), **options) as llm:
        assert bool(torch.allclose(vectors(llm.embed(TEXTS)).norm(dim=1), torch.ones(len(TEXTS)))) is length_one
    with load(tiny_encoder("bert", pooling="mean", normalize=False)) as llm:
        assert llm.engine.config.model.pooler is not None
        assert llm.engine.config.model.pooler.activation == "none"


def test_unknown_encoders_name_the_nearest(tiny_encoder: Make) -> None:
    with pytest.raises(UnsupportedModel, match="did you mean 'BertModel'"):
        load(tiny_encoder("bert"), hf_overrides='{"architectures": ["BertModle"]}', runner="pooling")


def test_modules_that_would_be_left_out_are_refused(tiny_encoder: Make, tmp_path: Path) -> None:
    path = shutil.copytree(tiny_encoder("bert", pooling="mean"), tmp_path / "model")
    modules = json.loads((path / "modules.json").read_text())
    modules.append({"path": "3_Dense", "type": "sentence_transformers.models.Dense"})
    (path / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(UnsupportedModel, match="module 'Dense' is not implemented"):
        load(path)


# --- heads that classify -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cross-encoder", "roberta-classifier"])
def test_a_cross_encoder_scores_pairs_as_transformers_does(tiny_encoder: Make, name: str) -> None:
    reference = tiny_models.build_encoder(name)
    query, documents = "which of them?", TEXTS[:5]
    with load(tiny_encoder(name)) as llm:
        found = llm.score(query, documents)
        tokenizer = llm.tokenizer.backend
    wanted = []
    for document in documents:
        pair = tokenizer.encode(query, document)
        kinds = {} if name.startswith("roberta") else {"token_type_ids": torch.tensor([pair.type_ids])}
        with torch.no_grad():
            logits = reference(input_ids=torch.tensor([pair.ids]), **kinds).logits[0]
        wanted.append(float(logits.sigmoid()))
    np.testing.assert_allclose(found, wanted, atol=2e-6)
    assert len(set(found)) == len(found)


def test_a_pair_that_is_too_long_loses_of_its_longer_text(tiny_encoder: Make) -> None:
    with load(tiny_encoder("cross-encoder")) as llm:
        with pytest.raises(InvalidRequest, match="context of 96 tokens"):
            llm.score("short", "d" * 200)
        pairs = [("short", "d" * 200), ("s" * 50, "d" * 50), ("s" * 50, "dd"), ("s" * 50, "d" * 60)]
        found = [(len(ids), start) for ids, start in llm.tokenizer.encode_pairs(pairs, 20)]
        assert found == [(20, 7), (20, 1 + 9 + 1), (20, 1 + 15 + 1), (20, 1 + 8 + 1)]  # three of them special
        assert len(llm.score("short", "d" * 200, truncate_prompt_tokens=-1)) == 1


def test_a_text_that_goes_with_many_is_tokenized_once(tiny_encoder: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded, encoding = [], Tokenizer._encoding
    monkeypatch.setattr(Tokenizer, "_encoding", lambda *given: (encoded.append(given[1]), encoding(*given))[1])
    with load(tiny_encoder("cross-encoder")) as llm:
        assert len(llm.score("q" * 10_000, ["a", "b", "c"], truncate_prompt_tokens=-1)) == 3
    assert encoded == ["q" * 10_000, "a", "b", "c"]


def test_a_classifier_gives_probabilities(tiny_encoder: Make) -> None:
    reference = tiny_models.build_encoder("classifier")
    with load(tiny_encoder("classifier")) as llm:
        outputs = llm.encode(TEXTS)
        raw = vectors(llm.encode(TEXTS, activate=False))
        with pytest.raises(InvalidRequest, match="sorts texts into 3 classes"):
            llm.score("a", "b")
    with torch.no_grad():
        logits = torch.stack([reference(input_ids=torch.tensor([o.prompt_token_ids])).logits[0] for o in outputs])
    torch.testing.assert_close(raw, logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(vectors(outputs), logits.softmax(-1), atol=1e-5, rtol=1e-5)


def test_an_embedding_model_scores_by_the_cosine(tiny_encoder: Make) -> None:
    with load(tiny_encoder("bert", pooling="mean", normalize=False)) as llm:
        found = llm.score(TEXTS[0], TEXTS)
        rows = torch.nn.functional.normalize(vectors(llm.embed(TEXTS)), dim=-1)
    np.testing.assert_allclose(found, (rows @ rows[0]).tolist(), atol=1e-5)
    assert found[0] == pytest.approx(1.0)


# --- decoders ------------------------------------------------------------------------------------------------


def headless(path: Path, family: str, directory: Path) -> Path:
    """The family's checkpoint as its base model saves it: without head, and without `model.` before each name."""
    model = tiny_models.build(family).base_model
    model.save_pretrained(directory)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(path / name, directory / name)
    return directory


@pytest.mark.parametrize("pooling", ["LAST", "MEAN", "CLS"])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_a_decoders_embeddings_are_those_of_transformers(
    tiny_model: Callable[[str], Path], family: str, pooling: str
) -> None:
    reference = tiny_models.build(family).base_model
    options = {"pooler_config": json.dumps({"pooling_type": pooling}), "max_num_batched_tokens": 512}
    with load(tiny_model(family), convert="embed", **options) as llm:
        outputs = llm.embed(TEXTS)
    states = [hidden(reference, output.prompt_token_ids) for output in outputs]
    pick = {"LAST": lambda x: x[-1], "MEAN": lambda x: x.mean(0), "CLS": lambda x: x[0]}[pooling]
    torch.testing.assert_close(vectors(outputs), normalized([pick(each) for each in states]), atol=2e-6, rtol=1e-5)


def test_the_last_token_may_come_in_chunks_and_behind_a_cached_prefix(tiny_model: Callable[[str], Path]) -> None:
    with load(tiny_model("llama"), runner="pooling") as llm:
        whole = vectors(llm.embed(TEXTS))
    with load(tiny_model("llama"), runner="pooling", max_num_seqs=4, max_num_batched_tokens=16) as llm:
        assert torch.equal(vectors(llm.embed(TEXTS)), whole)
        assert torch.equal(vectors(llm.embed(TEXTS)), whole)
        assert llm.engine.stats().prefix_hits > 0


def test_a_decoder_saved_without_its_head_pools(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    with load(tiny_model("llama"), runner="pooling") as llm:
        wanted = vectors(llm.embed(TEXTS))
    with load(headless(tiny_model("llama"), "llama", tmp_path)) as llm:
        assert torch.equal(vectors(llm.embed(TEXTS)), wanted)


def test_a_generating_model_says_how_it_would_embed(tiny_model: Callable[[str], Path]) -> None:
    with (
        load(tiny_model("llama")) as llm,
        pytest.raises(InvalidRequest, match="start the server with --runner pooling"),
    ):
        llm.embed("hello")
    with pytest.raises(ConfigError, match="--convert embed makes it give vectors"):
        load(tiny_model("llama"), runner="pooling", convert="none")
    with pytest.raises(ConfigError, match="set --runner pooling with it"):
        load(tiny_model("llama"), pooler_config='{"pooling_type": "MEAN"}')
    with pytest.raises(ConfigError, match="--pooler-config"):
        load(tiny_model("llama"), runner="pooling", pooler_config='{"pooling_type": "MAX"}')


# --- the real one --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_minilm_embeds_as_sentence_transformers_does(minilm: Path) -> None:
    """Mean of the last states over a prompt's tokens, normalised; computed by transformers in float32."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm)
    reference = transformers.AutoModel.from_pretrained(minilm, dtype=torch.float32).eval()
    texts = [*TEXTS, "How do I bake bread?", "Un texte en français, avec des accents.", "word " * 400]
    with load(minilm) as llm:
        outputs = llm.embed(texts, truncate_prompt_tokens=-1)
        alone = vectors([llm.embed(text, truncate_prompt_tokens=-1)[0] for text in texts])
    states = []
    for text, output in zip(texts, outputs, strict=True):
        token_ids = tokenizer(text, truncation=True, max_length=256)["input_ids"]
        assert output.prompt_token_ids == token_ids
        states.append(hidden(reference, token_ids).mean(0))
    cosines = (vectors(outputs) * normalized(states)).sum(1)
    assert float(cosines.min()) >= 0.9999
    assert torch.equal(vectors(outputs), alone)
