"""Tiny language models with random weights: one of each family, and a tokenizer of bytes with a chat template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from eggroll.llm.model.config import DecoderConfig, config_from
from eggroll.llm.model.decoder import Decoder
from eggroll.llm.model.loading import LanguageModel, decoder_of, save
from eggroll.llm.model.parts.shapes import starts_at
from tests.llm.decoders import CASES
from tests.llm.families import SETTINGS, VOCABULARY

SPECIAL = ("<pad>", "<|endoftext|>", "<|im_start|>", "<|im_end|>")
assert len(SPECIAL) + 256 == VOCABULARY

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with one token per byte, so that every text comes back as it went in."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate((*SPECIAL, *alphabet))}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<|im_end|>", additional_special_tokens=list(SPECIAL)
    )
    made.chat_template = TEMPLATE
    return made


def draw(config: DecoderConfig, seed: int, dtype: Any) -> dict[str, Any]:
    """Weights as `Decoder` draws them, by NumPy: nothing is compiled."""
    random = np.random.default_rng(seed)
    shapes = nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0), dtype=dtype))))

    def weight(path: Any, leaf: Any) -> Any:
        if (value := starts_at(config, path[-1].key)) is not None:
            return jnp.asarray(np.full(leaf.shape, value), dtype)
        return jnp.asarray(random.normal(0, config.width**-0.5, leaf.shape), dtype)

    return jax.tree_util.tree_map_with_path(weight, shapes)


def language_model(
    family: str = "smollm2", *, dtype: Any = jnp.float32, seed: int = 0, **changes: Any
) -> LanguageModel:
    """A random model of a family, with `changes` to its settings."""
    settings = {**CASES, **SETTINGS}[family] | changes
    config = config_from(settings)
    model = decoder_of(config, draw(config, seed, dtype))
    return LanguageModel(model, tokenizer(), config, stop=(1, 3), pad=0, source=family, settings=settings)


def folder(path: Path, family: str = "smollm2", **options: Any) -> Path:
    """A Hugging Face folder with that model."""
    save(language_model(family, **options), path)
    return path


def edit(path: Path, **changes: Any) -> None:
    """Changes a JSON file; None removes a key."""
    value = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps({key: item for key, item in value.items() if item is not None}), encoding="utf-8")
