"""A tiny random language model with a tokenizer of bytes, to see that a script works."""

from __future__ import annotations

from typing import Any

from flax import nnx
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from eggroll.llm.config import DecoderConfig
from eggroll.llm.decoder import Decoder
from eggroll.llm.loading import LanguageModel

PAD, END = "<pad>", "<end>"


def tiny_language(context: int = 256) -> LanguageModel:
    """One layer of width 16."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate((PAD, END, *alphabet))}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token=PAD, eos_token=END)
    sizes: dict[str, Any] = {"width": 16, "layers": 1, "heads": 2, "key_value_heads": 1, "head_width": 8, "hidden": 16}
    config = DecoderConfig(vocabulary=len(alphabet) + 2, context=context, **sizes)
    return LanguageModel(Decoder(config, rngs=nnx.Rngs(0)), tokenizer, config, stop=(1,), pad=0, source="tiny")
