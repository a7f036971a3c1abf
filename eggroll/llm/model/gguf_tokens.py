"""The tokenizer of a llama.cpp file (GGUF), from its metadata."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from eggroll.llm.model.files import transformers
from eggroll.llm.model.tokens import ENDS
from eggroll.training.errors import RunError

__all__ = ["ends_of", "special_id", "tokenizer_from", "vocabulary_of"]

UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4  # types of tokens
END_IDS = ("eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep")
# Where a file does not say it: of pieces as llama.cpp has it, which has none worth having for byte pairs.
PIECES_IDS = {"bos": 1, "eos": 2, "unknown": 0}
BEGIN_BY_THEMSELVES = {
    "llama",
    "llama-bpe",
}  # tokenizers, and ways to split, whose texts begin with BOS unless told not to
# What is read of the metadata `tokenizer.ggml.…`, and what changes nothing for these two kinds of tokenizers.
READ = {
    "model",
    "pre",
    "tokens",
    "token_type",
    "scores",
    "merges",
    "add_bos_token",
    "add_eos_token",
    "add_space_prefix",
}
NEUTRAL = {"token_type_count", "remove_extra_whitespaces", "precompiled_charsmap"}

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
    if not isinstance(model, str) or model not in makers or "tokenizer.ggml.tokens" not in fields:
        raise RunError(f"got a GGUF file with the tokenizer {model!r}; known are {', '.join(makers)}.")
    _refuse_what_is_not_read(fields)
    tokens = vocabulary_of(fields)
    try:
        inner = makers[model](fields)
        _add_special(inner, fields)
    except RunError:
        raise
    except Exception as error:  # what the library tokenizers raises has no class of its own
        raise RunError(f"its tokenizer cannot be built ({error}); convert the model again.") from error
    named = {}
    for ours, theirs in {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}.items():
        index = special_id(fields, theirs)
        if index is not None:
            named[f"{ours}_token"] = tokens[index]
    made = transformers().PreTrainedTokenizerFast(tokenizer_object=inner, clean_up_tokenization_spaces=False, **named)
    made.chat_template = _template(fields, named.get("bos_token"))
    return made


def vocabulary_of(fields: Mapping[str, Any]) -> list[str]:
    """The tokens of a file by number, an empty one under the name that llama.cpp gives it."""
    found = _listed(fields, "tokens", str)
    tokens = [token or f"[EMPTY_{index}]" for index, token in enumerate(found)]
    if len(set(tokens)) < len(tokens):
        token, times = Counter(tokens).most_common(1)[0]
        raise RunError(f"its tokenizer has the token {token!r} {times} times; convert the model again.")
    return tokens


def special_id(fields: Mapping[str, Any], name: str) -> int | None:
    """The number of a token that has a name, such as "eos"; None if there is none.

    Raises:
        RunError: a number that no token has.
    """
    pieces = fields.get("tokenizer.ggml.model") == "llama"
    index, count = fields.get(f"tokenizer.ggml.{name}_token_id"), len(fields.get("tokenizer.ggml.tokens", ()))
    if index is None:
        default = PIECES_IDS.get(name) if pieces else None
        return None if default is None or default >= count else default
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < count:
        raise RunError(
            f"it has tokenizer.ggml.{name}_token_id={index!r}, and its tokens have the numbers 0 to {count - 1}; "
            "convert the model again."
        )
    return index


def ends_of(fields: Mapping[str, Any]) -> list[int]:
    """The numbers of the tokens that end an answer, as llama.cpp has them: those named so, and those by their text."""
    tokens = vocabulary_of(fields)
    by_text = [index for index, token in enumerate(tokens) if token in ENDS]
    named = [special_id(fields, name) for name in END_IDS]
    found = dict.fromkeys([*(index for index in named if index is not None), *by_text])
    texts = {tokens[index] for index in found}
    calls = {"<|return|>", "<|call|>"} <= texts or ({"<|flush|>"} <= texts and texts & {"<|call|>", "<|calls|>"})
    not_ends = {"<|end|>"} if calls else set()  # between the parts of an answer
    not_ends |= {"</s>"} if "<|tool_response>" in texts else set()
    return [index for index in found if tokens[index] not in not_ends]


def _listed(fields: Mapping[str, Any], name: str, kind: type | tuple[type, ...], least: int = 0) -> list[Any]:
    """A list of the metadata."""
    found = fields.get(f"tokenizer.ggml.{name}")
    if not isinstance(found, list) or not all(isinstance(item, kind) for item in found) or len(found) < least:
        got = f"{len(found)} entries" if isinstance(found, list) else f"{found!r}"
        raise RunError(
            f"it has {got} for tokenizer.ggml.{name}, which has to be a list with an entry for every token; convert "
            "the model again."
        )
    return found


def _refuse_what_is_not_read(fields: Mapping[str, Any]) -> None:
    """Metadata of the tokenizer that is neither read nor known to change nothing may change what texts become."""
    for name, found in fields.items():
        own = name.removeprefix("tokenizer.ggml.")
        if own != name and own.endswith("_token_id"):
            special_id(fields, own.removesuffix("_token_id"))
        told = {"add_bos_token": bool, "add_eos_token": bool, "add_space_prefix": bool}.get(own)
        unknown = (
            own != name and own not in READ | NEUTRAL and not own.endswith("_token_id") and found not in ([], False)
        )
        if unknown or (told and not isinstance(found, told)):
            raise RunError(
                f"it has {name}={found!r}, which is not known to change nothing; load that model from its Hugging Face "
                "folder, or choose another."
            )


def _begins(fields: Mapping[str, Any]) -> bool:
    """Whether every text begins with BOS: as the file says, else as llama.cpp has it for its kind of tokenizer."""
    kinds = {fields["tokenizer.ggml.model"], fields.get("tokenizer.ggml.pre") or ""}
    return fields.get("tokenizer.ggml.add_bos_token", bool(kinds & BEGIN_BY_THEMSELVES))


def _template(fields: Mapping[str, Any], bos: str | None) -> str | None:
    """The chat template; a chat, too, begins with BOS once, whether or not its template says it."""
    template = fields.get("tokenizer.chat_template")
    if template is not None and not isinstance(template, str):
        raise RunError(f"it has tokenizer.chat_template={template!r}; a text is required: convert the model again.")
    if template and _begins(fields) and bos and "bos_token" not in template:
        chat = template.removesuffix("\n") + "{{ '' }}"  # as jinja2 takes the end of a template, and not of a block
        begin = "{% if not chat.startswith(bos_token) %}{{ bos_token }}{% endif %}"
        return f"{{% set chat %}}{chat}{{% endset %}}{begin}{{{{ chat }}}}"
    return template


def _byte_level(fields: Mapping[str, Any]) -> Any:
    """Byte pairs over bytes written as letters, as GPT-2 has them."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    kind = fields.get("tokenizer.ggml.pre")
    if not isinstance(kind, str) or kind not in SPLITS:
        raise RunError(
            f"got a GGUF file whose tokenizer splits words in the way {kind!r}; known are {', '.join(SPLITS)}. Load "
            "that model from its Hugging Face folder."
        )
    tokens = vocabulary_of(fields)
    types = _listed(fields, "token_type", int, len(tokens))
    vocabulary = {token: index for index, token in enumerate(tokens)}
    merges = []
    if "tokenizer.ggml.merges" in fields or any(
        kind == 1 and len(t) > 1 for t, kind in zip(tokens, types, strict=False)
    ):
        merges = [_pair(merge) for merge in _listed(fields, "merges", str)]
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


def _pair(merge: str) -> tuple[str, str]:
    left, _, right = merge.partition(" ")
    if not left or not right:
        raise RunError(f"its tokenizer has the merge {merge!r}, which is no pair; convert the model again.")
    return left, right


def _pieces(fields: Mapping[str, Any]) -> Any:
    """Pieces of words with scores, as SentencePiece has them, and bytes for what no piece covers."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    tokens = vocabulary_of(fields)
    scores = _listed(fields, "scores", (int, float), len(tokens))
    vocabulary = {token: index for index, token in enumerate(tokens)}
    index = special_id(fields, "unknown")
    unknown = None if index is None else tokens[index]
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

    tokens = vocabulary_of(fields)
    kinds = list(zip(tokens, _listed(fields, "token_type", int, len(tokens)), strict=False))
    special = [t for t, kind in kinds if kind in (UNKNOWN, CONTROL) or t in ENDS]
    inner.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    plain = [t for t, kind in kinds if kind == USER_DEFINED and t not in ENDS]
    inner.add_tokens([AddedToken(t, normalized=False) for t in plain])
    around = {"bos": _begins(fields), "eos": fields.get("tokenizer.ggml.add_eos_token", False)}
    used: dict[str, int] = {}
    for name in (name for name, wanted in around.items() if wanted):
        index = special_id(fields, name)
        if index is None:
            raise RunError(
                f"its texts have to have the token {name}, and tokenizer.ggml.{name}_token_id is missing; convert the "
                f"model again, or set tokenizer.ggml.add_{name}_token to false."
            )
        used[name] = index
    if used:
        one, two = ([*["BOS"] * ("bos" in used), f"${text}", *["EOS"] * ("eos" in used)] for text in "AB")
        named: Any = [{"id": n.upper(), "ids": [index], "tokens": [tokens[index]]} for n, index in used.items()]
        inner.post_processor = processors.TemplateProcessing(single=one, pair=one + two, special_tokens=named)
