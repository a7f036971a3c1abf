"""The tokenizer of a checkpoint, and which of its tokens end an answer or fill up a prompt."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eggroll.llm.model.config import DecoderConfig
from eggroll.llm.model.files import read_json, transformers
from eggroll.training.errors import RunError

__all__ = ["ENDS", "check_tokenizer", "end_strings", "end_tokens", "load_tokenizer", "pad_token", "save_tokenizer"]
__all__ += ["has_tokenizer", "tell_unread"]

LOGGER = logging.getLogger("eggroll")

# What llama.cpp (src/llama-vocab.cpp) takes for the end of an answer by its text alone.
ENDS = {
    *("<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>"),
    *("<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>", "<eos>"),
    *("<end_of_utterance>", "<turn|>", "<|tool_response>", "<｜end▁of▁sentence｜>", "[e~["),
    # Between the files of a text that is completed in the middle.
    *("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    *("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>", "<|file_sep|>"),
}
UNUSED = 1 << 16  # numbers that no token need have
# What changes greedy answers of transformers' `generate`, with the values that change nothing beside null.
UNREAD: dict[str, tuple] = {
    **{"repetition_penalty": (1,), "encoder_repetition_penalty": (1,), "guidance_scale": (1,), "num_beams": (1,)},
    **{"no_repeat_ngram_size": (0,), "encoder_no_repeat_ngram_size": (0,), "min_length": (0,), "min_new_tokens": (0,)},
    **{"suppress_tokens": ([],), "begin_suppress_tokens": ([],), "bad_words_ids": ([],), "sequence_bias": ({}, [])},
    **{"forced_bos_token_id": (), "forced_eos_token_id": (), "exponential_decay_length_penalty": ()},
}
MOST_STRINGS = 512  # characters: the decoder has a table of so many rows
# Of these, what ends a turn where a chat template of a Hugging Face folder writes it.
TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<end_of_turn>", "<|endoftext|>", "<|end|>")


def has_tokenizer(folder: Path) -> bool:
    """Whether a Hugging Face folder has one."""
    return any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json"))


def load_tokenizer(folder: Path) -> Any:
    """The fast tokenizer that lies in a Hugging Face folder.

    Raises:
        RunError: there is none, it needs a library that is not installed, or it is code of its own, which is not run.
    """
    if not has_tokenizer(folder):
        raise RunError(
            f"{folder} has no tokenizer (tokenizer.json, with tokenizer_config.json); copy it from the model that this "
            "one was made from."
        )
    for name in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
        own = (read_json(folder / name) or {}).get("auto_map")
        if own is not None:
            raise RunError(
                f"{folder / name} has auto_map={own!r}: the tokenizer is Python code of the folder, which eggroll does "
                "not run. Choose another model, or remove auto_map if tokenizer.json is the whole tokenizer."
            )
    _check_numbers(folder / "tokenizer.json")
    library = transformers()  # not within: what is missing has an error of its own
    try:
        return library.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever a broken file or a missing library raises
        raise RunError(f"the tokenizer in {folder} cannot be loaded: {error}") from error


def _check_numbers(file: Path) -> None:
    """Refuses numbers of tokens far beyond their count: the library tokenizers goes through all up to the highest."""
    made = read_json(file) or {}
    model = made.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    added = made.get("added_tokens")
    numbers = list(vocabulary.values()) if isinstance(vocabulary, dict) else []
    numbers += [token.get("id") for token in added if isinstance(token, dict)] if isinstance(added, list) else []
    beyond = [number for number in numbers if isinstance(number, int) and number >= 2 * len(numbers) + UNUSED]
    if beyond:
        raise RunError(
            f"{file} has {len(numbers)} tokens, and one with the number {beyond[0]}; fetch or copy it again."
        )


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


def end_tokens(
    tokenizer: Any, settings: Mapping[str, Any], generation: Mapping[str, Any], config: DecoderConfig, source: str
) -> tuple[int, ...]:
    """Tokens that end an answer: those of the configurations, the tokenizer's, and what ends a turn in its template.

    Raises:
        RunError: one that the model cannot write.
    """
    places = {"generation_config.json": generation, "config.json": settings}
    given = {place: found.get("eos_token_id") for place, found in places.items()}
    _check_others(places, config, source)
    found: list[Any] = []
    for place, ends in (given | {"the tokenizer": tokenizer.eos_token_id}).items():
        for end in ends if isinstance(ends, list) else [ends] * (ends is not None):
            if isinstance(end, bool) or not isinstance(end, int) or not 0 <= end < config.vocabulary:
                raise RunError(
                    f"{source}: {place} has eos_token_id={ends!r}; numbers from 0 to {config.vocabulary - 1} are "
                    "required, which the embedding has rows for. Correct it."
                )
            found.append(end)
    template, vocabulary = str(tokenizer.chat_template or ""), tokenizer.get_vocab()
    found += [vocabulary[token] for token in TURN_ENDS if token in template and token in vocabulary]
    return tuple(dict.fromkeys(end for end in found if end < config.vocabulary))


def _check_others(places: Mapping[str, Any], config: DecoderConfig, source: str) -> None:
    """Refuses numbers of other special tokens that the embedding has no row for, though nothing reads them."""
    for place, found in places.items():
        for name in ("bos_token_id", "pad_token_id"):
            number = found.get(name)
            if number is not None and (type(number) is not int or not 0 <= number < config.vocabulary):
                raise RunError(
                    f"{source}: {place} has {name}={number!r}; a number from 0 to {config.vocabulary - 1} is required, "
                    "which the embedding has a row for, or null. Correct it."
                )


def end_strings(generation: Mapping[str, Any], source: str) -> tuple[str, ...]:
    """Texts that end an answer.

    Raises:
        RunError: something else than texts.
    """
    given = generation.get("stop_strings")
    strings = [given] if isinstance(given, str) else given or []
    texts = isinstance(strings, list) and all(isinstance(text, str) and text for text in strings)
    if not texts or sum(map(len, strings)) > MOST_STRINGS:
        raise RunError(
            f"{source}: generation_config.json has stop_strings={str(given)[:80]}; a list of texts, of {MOST_STRINGS} "
            "characters together at most, is required. Correct it."
        )
    return tuple(dict.fromkeys(strings))


def tell_unread(generation: Mapping[str, Any], source: str) -> None:
    """Says what transformers' `generate` would do to greedy answers by these settings, and eggroll does not."""
    given = {name: generation[name] for name in UNREAD if generation.get(name) is not None}
    asked = [f"{name}={str(value)[:40]}" for name, value in given.items() if value not in UNREAD[name]]
    if asked:
        LOGGER.warning(
            "%s: generation_config.json asks for %s, which eggroll applies neither in training nor in evaluation: its "
            "answers follow the model's own probabilities. Generate without it to get the answers that were rewarded.",
            source,
            ", ".join(asked),
        )


def pad_token(tokenizer: Any, stop: tuple[int, ...], config: DecoderConfig) -> int:
    """The tokenizer's pad token, or a token that ends answers, or 0."""
    choices = [token for token in (tokenizer.pad_token_id, *stop) if token is not None and token < config.vocabulary]
    return choices[0] if choices else 0
