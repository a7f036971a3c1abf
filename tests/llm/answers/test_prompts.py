"""Prompts to rows of tokens and answers back to text, with a tokenizer made of ten words."""

from __future__ import annotations

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from eggroll.llm.answers.decoding import Answers
from eggroll.llm.answers.prompts import answer_texts, encode
from eggroll.training.errors import RunError
from tests.llm.tiny import tokenizer as byte_tokenizer

WORDS = ["<pad>", "<s>", "<end>", "say", "one", "two", "be", "short", "user", "system"]
TEMPLATE = (
    "{% for m in messages %}{{ m.role }} {{ m.content }} <end> {% endfor %}{% if add_generation_prompt %}<s>{% endif %}"
)
STRICT = "{% if messages[0].role == 'system' %}{{ raise_exception('no system here') }}{% endif %}" + TEMPLATE


def tokenizer(template: str | None = None) -> PreTrainedTokenizerFast:
    inner = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}))
    inner.pre_tokenizer = WhitespaceSplit()
    inner.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    made = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="<end>")
    made.chat_template = template
    return made


def words(row: np.ndarray) -> str:
    return " ".join(WORDS[i] for i in row)


def test_rows_are_padded_on_the_left_to_a_multiple():
    rows = encode(tokenizer(), ["say one two", "say"], multiple=3)
    assert [words(r) for r in rows.tokens] == ["<pad> <pad> <s> say one two", "<pad> <pad> <pad> <pad> <s> say"]
    assert rows.start.tolist() == [2, 4]
    assert rows.tokens.dtype == rows.start.dtype == np.int32
    assert encode(tokenizer(), ["say"]).tokens.shape == (1, 16)
    assert encode(tokenizer(), ["say"], pad=7).tokens[0, 0] == 7


def test_a_chat_template_writes_the_turns_and_the_special_tokens():
    rows = encode(tokenizer(TEMPLATE), ["say one"], system="be short", multiple=1)
    assert words(rows.tokens[0]) == "system be short <end> user say one <end> <s>"
    rows = encode(tokenizer(TEMPLATE), ["say one"], multiple=1, template={"add_generation_prompt": False})
    assert words(rows.tokens[0]) == "user say one <end>"


def test_without_the_template_and_with_a_beginning_of_the_answer():
    said = {"system": "be short", "chat": False, "multiple": 1, "prefix": " two"}
    rows = encode(tokenizer(TEMPLATE), ["say one", [{"role": "user", "content": "say one"}]], **said)
    assert {words(row) for row in rows.tokens} == {"<s> be short say one two"}
    rows = encode(tokenizer(TEMPLATE), ["say one"], multiple=1, prefix="two")
    assert words(rows.tokens[0]) == "user say one <end> <s> two"
    talk = [{"role": role, "content": "say"} for role in ("user", "assistant", "user")]
    with pytest.raises(RunError, match="a conversation of 3 messages that ends with 'say', and no chat template"):
        encode(tokenizer(), [talk])


def test_answers_begin_with_what_was_given():
    made = byte_tokenizer()
    row = made("one|two", add_special_tokens=False)["input_ids"]
    answers = Answers(np.array([row]), np.array([len(row)]))
    assert answer_texts(made, answers, strings=["|"], prefix="It|is ") == ["It|is one"]


def test_a_system_message_goes_in_front_where_there_is_no_place_for_it():
    rows = encode(tokenizer(STRICT), ["say one"], system="be short", multiple=1)
    assert words(rows.tokens[0]) == "user be short say one <end> <s>"
    rows = encode(tokenizer(), ["say one"], system="be short", multiple=1)
    assert words(rows.tokens[0]) == "<s> be short say one"
    for strict in (None, STRICT):  # an empty one is none
        own = encode(tokenizer(strict), ["say one"], system="", multiple=1)
        np.testing.assert_array_equal(own.tokens, encode(tokenizer(strict), ["say one"], multiple=1).tokens)


def test_tokens_that_the_model_does_not_know_are_refused():
    encode(tokenizer(), ["say one"], vocabulary=5)
    with pytest.raises(RunError, match="'say two' with the token 5; the model has embeddings for 0 to 4"):
        encode(tokenizer(), ["say one", "say two"], vocabulary=5)


def test_a_prompt_that_leaves_no_room_is_named():
    encode(tokenizer(), ["say one two"], context=10, max_tokens=6, multiple=64)  # pads need no room
    with pytest.raises(ValueError, match=r"prompt 1 \('say one two'\) of 4 tokens; .*7 tokens at most 3 fit .* of 10"):
        encode(tokenizer(), ["say", "say one two"], context=10, max_tokens=7)


def test_nothing_to_say_is_refused():
    with pytest.raises(ValueError, match="got no prompts"):
        encode(tokenizer(), [])
    bare = tokenizer("{{ messages[0].content }}")
    with pytest.raises(ValueError, match=r"prompt 1 \(''\) without tokens"):
        encode(bare, ["say", ""])


def test_answers_become_text_without_what_ends_them():
    tokens = np.array([[[3, 4, 2, 0, 0], [4, 4, 5, 5, 7]], [[7, 2, 0, 0, 0], [2, 0, 0, 0, 0]]])
    answers = Answers(tokens, np.array([[3, 5], [2, 1]]))
    assert answer_texts(tokenizer(), answers, stop=(2, 7)) == ["say one", "one one two two", "short", ""]
    assert answer_texts(tokenizer(), answers)[1] == "one one two two short"


def test_a_template_that_fails_is_told():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    for system in (None, "Be brief."):
        with pytest.raises(RunError, match=r"chat template fails for the prompt 'hello' .*roles must alternate"):
            encode(tokenizer, ["hello"], system=system)
