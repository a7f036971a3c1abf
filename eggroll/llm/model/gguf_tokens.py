"""The tokenizer of a llama.cpp file (GGUF), from its metadata."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eggroll.llm.model.quiet import transformers
from eggroll.training.errors import RunError

__all__ = ["tokenizer_from"]

CONTROL, USER_DEFINED = 3, 4  # types of tokens

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|NUMBER"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# How each kind of byte-level tokenizer splits a text first; None is GPT-2's way.
SPLITS = {
    "gpt-2": None,
    "smollm": None,
    "qwen2": _WORDS.replace("NUMBER", r"\p{N}"),
    "llama-bpe": _WORDS.replace("NUMBER", r"\p{N}{1,3}"),
}


def tokenizer_from(fields: Mapping[str, Any]) -> Any:
    """A fast tokenizer of transformers, with special tokens and chat template.

    Args:
        fields: metadata of the file by name.

    Raises:
        RunError: no tokenizer in the file, or one of a kind that is not known.
    """
    model = fields.get("tokenizer.ggml.model")
    makers = {"gpt2": _byte_level, "llama": _pieces}
    if model not in makers or "tokenizer.ggml.tokens" not in fields:
        raise RunError(f"got a GGUF file with the tokenizer {model!r}; known are {', '.join(makers)}.")
    tokens = fields["tokenizer.ggml.tokens"]
    inner = makers[model](fields)
    _add_special(inner, fields)
    named = {}
    for ours, theirs in {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}.items():
        index = fields.get(f"tokenizer.ggml.{theirs}_token_id")
        if index is not None:
            named[f"{ours}_token"] = tokens[index]
    made = transformers().PreTrainedTokenizerFast(tokenizer_object=inner, clean_up_tokenization_spaces=False, **named)
    made.chat_template = fields.get("tokenizer.chat_template")
    return made


def _byte_level(fields: Mapping[str, Any]) -> Any:
    """Byte pairs over bytes written as letters, as GPT-2 has them."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    kind = fields.get("tokenizer.ggml.pre")
    if kind not in SPLITS:
        raise RunError(
            f"got a GGUF file whose tokenizer splits words in the way {kind!r}; known are {', '.join(SPLITS)}. Load "
            "that model from its Hugging Face folder."
        )
    vocabulary = {token: index for index, token in enumerate(fields["tokenizer.ggml.tokens"])}
    merges = [tuple(merge.split(" ", 1)) for merge in fields.get("tokenizer.ggml.merges", ())]
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=kind == "llama-bpe"))
    split, letters = SPLITS[kind], pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=SPLITS[kind] is None)
    first = [pre_tokenizers.Split(Regex(split), "isolated")] if split else []
    if kind == "smollm":
        first = [pre_tokenizers.Digits(individual_digits=True)]
    inner.pre_tokenizer = pre_tokenizers.Sequence([*first, letters])
    if kind == "qwen2":
        inner.normalizer = normalizers.NFC()
    inner.decoder = decoders.ByteLevel()
    return inner


def _pieces(fields: Mapping[str, Any]) -> Any:
    """Pieces of words with scores, as SentencePiece has them, and bytes for what no piece covers."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    tokens, scores = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.scores"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    unknown = tokens[fields.get("tokenizer.ggml.unknown_token_id", 0)]
    merges = _merges(vocabulary, scores)
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    prefix = fields.get("tokenizer.ggml.add_space_prefix", True)
    steps: list[Any] = [normalizers.Prepend("▁")] * bool(prefix)
    inner.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    back: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    inner.decoder = decoders.Sequence(back + [decoders.Strip(" ", 1, 0)] * bool(prefix))
    return inner


def _merges(vocabulary: Mapping[str, int], scores: list[float]) -> list[tuple[str, str]]:
    """All pairs of pieces that make a piece, those that make the best piece first."""
    found = []
    for piece, index in vocabulary.items():
        halves = ((piece[:i], piece[i:]) for i in range(1, len(piece)))
        pairs = [(left, right) for left, right in halves if left in vocabulary and right in vocabulary]
        pairs.sort(key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
        found += [(-scores[index], left, right) for left, right in pairs]
    found.sort(key=lambda entry: entry[0])
    return [(left, right) for _, left, right in found]


def _add_special(inner: Any, fields: Mapping[str, Any]) -> None:
    """Tokens that no text is merged into, and the one that every text begins with."""
    from tokenizers import AddedToken, processors

    tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    special = [
        AddedToken(t, special=True, normalized=False) for t, kind in zip(tokens, types, strict=True) if kind == CONTROL
    ]
    plain = [AddedToken(t, normalized=False) for t, kind in zip(tokens, types, strict=True) if kind == USER_DEFINED]
    inner.add_special_tokens(special)
    inner.add_tokens(plain)
    pieces = fields["tokenizer.ggml.model"] == "llama"  # which llama.cpp begins so unless the file says otherwise
    if fields.get("tokenizer.ggml.add_bos_token", pieces):
        index = fields["tokenizer.ggml.bos_token_id"]
        begin = [(tokens[index], index)]
        inner.post_processor = processors.TemplateProcessing(
            single=f"{tokens[index]} $A", pair=f"{tokens[index]} $A {tokens[index]} $B", special_tokens=begin
        )
