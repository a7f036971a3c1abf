"""A tiny decoder, prompts, and the slow truth about what it writes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import jax
import numpy as np
from flax import nnx

import eggroll
from eggroll.llm.answers.decoding import Decoding, split
from eggroll.llm.answers.prompts import Prompts, pad_left
from eggroll.llm.model.config import DecoderConfig
from eggroll.llm.model.decoder import Decoder
from eggroll.strategy.members import Members

CONFIG = DecoderConfig(vocabulary=37, width=16, layers=2, heads=4, key_value_heads=2, hidden=24, head_width=8)
ROWS = ((3, 14, 15, 9, 26, 5), (35, 8), (9, 7, 9, 3))
MAX_TOKENS = 7
PAD = 35
POPULATION = 8


STOP = tuple(range(0, CONFIG.vocabulary, 2))  # one token in two: answers of all lengths

ENDING = Decoding(MAX_TOKENS, stop=STOP, pad=PAD)


@cache
def model() -> tuple[Any, Any]:
    """`(graphdef, params)`, with weights by NumPy: nothing is compiled."""
    graphdef, shapes = split(nnx.eval_shape(lambda: Decoder(CONFIG, rngs=nnx.Rngs(0))))
    rng = np.random.default_rng(0)

    def draw(x: Any) -> jax.Array:  # a small embedding, which is the output matrix too: tokens are not just repeated
        return jax.device_put(rng.normal(0, 0.3 if x.shape[0] == CONFIG.vocabulary else 1.0, x.shape).astype(x.dtype))

    return graphdef, jax.tree.map(draw, shapes)


def prompts(multiple: int = 1) -> Prompts:
    return pad_left(ROWS, multiple=multiple)


def ask(params: Any, *, population: int = POPULATION, sigma: float = 0.1, **options: Any) -> Members:
    """Members whose evaluation raises where a weight is made dense."""
    es = eggroll.ES(population=population, sigma=sigma, fallback="error", **options)
    return es.ask(es.init(params, jax.random.key(7)))


@cache
def texts() -> list[list[list[int]]]:
    """What every member of `ask` writes after every prompt, without stop tokens."""
    graphdef, params = model()
    members = ask(params)
    members.apply(whole(graphdef), np.zeros(4, np.int32))  # decides the plan
    dense = [members.materialize(i) for i in range(len(members))]
    return [[greedy(graphdef, one, row) for row in ROWS] for one in dense]


@cache
def whole(graphdef: Any) -> Any:
    """Logits `[time, vocabulary]` of one text without a cache; what stands later in it has no part in them."""
    return jax.jit(lambda params, text: nnx.merge(graphdef, params)(text[None])[0])


def greedy(graphdef: Any, params: Any, prompt: Sequence[int], tokens: int = MAX_TOKENS) -> list[int]:
    """The likeliest continuation, with a full forward pass for every token, unpadded."""
    text = list(prompt)
    longest = max(map(len, ROWS)) + MAX_TOKENS  # one shape is compiled
    for _ in range(tokens):
        filled = np.array([*text, *[0] * (longest - len(text))], np.int32)
        text.append(int(np.argmax(whole(graphdef)(params, filled)[len(text) - 1])))
    return text[len(prompt) :]


def ended(tokens: Sequence[int]) -> tuple[list[int], int]:
    """An answer cut after its first stop token and filled with `PAD`; and its length."""
    ends = [i + 1 for i, token in enumerate(tokens) if token in STOP]
    length = ends[0] if ends else len(tokens)
    return [*tokens[:length], *[PAD] * (len(tokens) - length)], length


def check(answers: Any) -> None:
    """Raises unless the members' answers are what a loop without a cache writes on their dense weights."""
    want = [[ended(text) for text in member] for member in texts()]
    assert answers.tokens.tolist() == [[text for text, _ in member] for member in want]
    assert answers.length.tolist() == [[length for _, length in member] for member in want]
