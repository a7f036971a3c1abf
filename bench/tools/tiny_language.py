"""A tiny random language model with a tokenizer of bytes, to see that a script works."""

from __future__ import annotations

from typing import Any

from flax import nnx
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from eggroll.llm.model.config import config_from
from eggroll.llm.model.decoder import Decoder
from eggroll.llm.model.loading import LanguageModel

PAD, END = "<pad>", "<end>"
SIZES: dict[str, Any] = {
    **{"model_type": "llama", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1},
    **{"num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": True},
    **{"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0},
}


def tiny_language(context: int = 256) -> LanguageModel:
    """One layer of width 16; `eggroll.llm.save` writes a folder of it that loads again."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate((PAD, END, *alphabet))}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token=PAD, eos_token=END)
    settings = SIZES | {"vocab_size": len(alphabet) + 2, "max_position_embeddings": context}
    config = config_from(settings)
    more: dict[str, Any] = {"stop": (1,), "pad": 0, "source": "tiny", "settings": settings}
    return LanguageModel(Decoder(config, rngs=nnx.Rngs(0)), tokenizer, config, **more)
