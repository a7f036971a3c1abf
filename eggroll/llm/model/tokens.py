"""The tokenizer of a checkpoint, and which of its tokens end an answer or fill up a prompt."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eggroll.llm.model.config import DecoderConfig
from eggroll.llm.model.quiet import transformers
from eggroll.training.errors import RunError

__all__ = ["check_tokenizer", "end_tokens", "load_tokenizer", "pad_token", "save_tokenizer"]

# Tokens that end a turn in the chat templates of the families.
TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|end_of_text|>", "<end_of_turn>", "<|endoftext|>")


def load_tokenizer(folder: Path) -> Any:
    """The fast tokenizer that lies in a Hugging Face folder.

    Raises:
        RunError: there is none, or it needs a library that is not installed.
    """
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise RunError(
            f"{folder} has no tokenizer (tokenizer.json, with tokenizer_config.json); copy it from the model that this "
            "one was made from."
        )
    library = transformers()  # not within: what is missing has an error of its own
    try:
        return library.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # whatever a broken file or a missing library raises
        raise RunError(f"the tokenizer in {folder} cannot be loaded: {error}") from error


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Writes its files, without what transformers remembers of how it was loaded."""
    tokenizer.save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    kept = {name: value for name, value in settings.items() if name not in ("is_local", "local_files_only")}
    file.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def check_tokenizer(tokenizer: Any, config: DecoderConfig, source: str) -> None:
    """Raises if the tokenizer has tokens that the embedding lacks.

    Not special tokens beyond it, such as Gemma 3's for images, which text does not become: `encode` checks the prompts.
    """
    special = set(tokenizer.all_special_tokens) | {str(token) for token in tokenizer.added_tokens_decoder.values()}
    plain = [number for token, number in tokenizer.get_vocab().items() if token not in special]
    highest = max(plain, default=0)
    if highest >= config.vocabulary:
        raise RunError(
            f"{source}: the tokenizer's highest token is {highest}; the embedding has rows for 0 to "
            f"{config.vocabulary - 1}. Tokenizer and weights must belong together."
        )


def end_tokens(tokenizer: Any, settings: Mapping[str, Any], generation: Mapping[str, Any]) -> tuple[int, ...]:
    """Tokens that end an answer: those of the configurations, the tokenizer's, and what ends a turn in its template."""
    found: list[Any] = []
    for given in (generation.get("eos_token_id"), settings.get("eos_token_id"), tokenizer.eos_token_id):
        found += given if isinstance(given, list) else [given] * (given is not None)
    template, vocabulary = tokenizer.chat_template or "", tokenizer.get_vocab()
    found += [vocabulary[token] for token in TURN_ENDS if token in vocabulary and token in str(template)]
    return tuple(dict.fromkeys(found))


def pad_token(tokenizer: Any, stop: tuple[int, ...], config: DecoderConfig) -> int:
    """The tokenizer's pad token, or a token that ends answers, or 0."""
    choices = [token for token in (tokenizer.pad_token_id, *stop) if token is not None and token < config.vocabulary]
    return choices[0] if choices else 0
