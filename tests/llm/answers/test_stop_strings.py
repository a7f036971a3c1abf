"""Stop strings: found whatever tokens they are written with, and no answer goes on after them."""

from __future__ import annotations

import random

import jax.numpy as jnp
import numpy as np
import pytest

from eggroll import llm
from eggroll.llm.answers.decoding import Answers, Decoding, generator, split
from eggroll.llm.answers.generation import generate_plain
from eggroll.llm.answers.prompts import answer_texts, pad_left
from eggroll.llm.answers.stop_strings import _followed, stop_strings
from eggroll.training.errors import RunError
from tests.llm import tiny


def test_the_table_finds_what_a_search_finds():
    draw = random.Random(0)
    strings = ("ab", "bcb", "cc\n", "bab")
    texts = tuple("".join(draw.choice("abc\nx") for _ in range(draw.randint(0, 4))) for _ in range(200))
    follow = _followed(strings, texts)
    for _ in range(500):
        state, text = jnp.zeros(1, jnp.int32), ""
        for token in draw.choices(range(200), k=5):
            state, text = np.asarray(follow.table)[state, token], text + texts[token]
            assert bool(follow.ended(state)[0]) == any(string in text for string in strings)


def test_an_answer_ends_with_a_stop_string_over_several_tokens(tmp_path, caplog):
    tiny.folder(tmp_path)
    model = llm.load(tmp_path)
    graphdef, params = split(model.model)
    prompts = pad_left([model.tokenizer.encode(text, add_special_tokens=False) for text in ("hello", "abc", "7+5")])
    free = generate_plain(params, generator(graphdef, Decoding(12)), prompts)
    whole = answer_texts(model.tokenizer, free)
    string = model.tokenizer.decode(free.tokens[0][3:5])
    assert string and "\ufffd" not in string
    tiny.edit(tmp_path / "config.json")
    (tmp_path / "generation_config.json").write_text("{}")
    unread = {"repetition_penalty": 1.1, "num_beams": 1, "suppress_tokens": None, "top_p": 0.8}
    tiny.edit(tmp_path / "generation_config.json", stop_strings=[string, "never said"], **unread)
    again = llm.load(tmp_path)
    told = [record.getMessage() for record in caplog.records if "generation_config.json" in record.getMessage()]
    assert len(told) == 1 and "asks for repetition_penalty=1.1, which eggroll applies neither" in told[0]
    assert again.stop_strings == (string, "never said")
    strings = stop_strings(again.tokenizer, again.stop_strings, again.config.vocabulary)
    found = generate_plain(params, generator(graphdef, Decoding(12, strings=strings)), prompts)
    for row, text in enumerate(whole):
        at = text.find(string)
        length = (
            12 if at < 0 else next(n for n in range(1, 13) if string in model.tokenizer.decode(free.tokens[row][:n]))
        )
        assert found.length[row] == length and np.all(found.tokens[row][:length] == free.tokens[row][:length])
        one = Answers(found.tokens[row : row + 1], found.length[row : row + 1])
        wanted = text if at < 0 else text[:at]
        assert answer_texts(model.tokenizer, one, strings=again.stop_strings) == [wanted]


@pytest.mark.parametrize("given", [5, [""], ["a", 5], {"a": 1}, ["a" * 600]])
def test_stop_strings_that_are_none_are_refused(tmp_path, given):
    tiny.folder(tmp_path)
    (tmp_path / "generation_config.json").write_text("{}")
    tiny.edit(tmp_path / "generation_config.json", stop_strings=given)
    with pytest.raises(RunError, match=r"generation_config\.json has stop_strings="):
        llm.load(tmp_path)
