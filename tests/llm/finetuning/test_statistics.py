"""What answers are like, against plain counting; how far a model has gone, against NumPy on rows of their own."""

from __future__ import annotations

import math

import jax
import numpy as np
import pytest
from flax import nnx

from eggroll.llm.answers.decoding import Decoding, generator, split
from eggroll.llm.answers.generation import generate_plain
from eggroll.llm.answers.prompts import pad_left
from eggroll.llm.finetuning.evaluation import TOLD, Measured
from eggroll.llm.finetuning.statistics import Statistics, divergence
from tests.llm.climbing import language


def test_shares_and_lengths_are_counted():
    texts = ["yes", " \n", "", "yes", "no"]
    found = Statistics.of(np.array([2, 2, 4, 4, 4]), texts, np.arange(5) > 2)
    assert found.record("test_") == {
        "test_answer_tokens": 3.2,
        "test_answer_tokens_least": 2,
        "test_answer_tokens_most": 4,
        "test_truncated": 0.4,
        "test_empty": 0.4,
        "test_distinct": 0.8,
    }


def test_the_divergence_is_that_of_rows_without_pads():
    model = language()
    graphdef, params = split(model.model)
    prompts = pad_left([[5, 9, 4], [7]])
    answers = jax.device_get(generate_plain(params, generator(graphdef, Decoding(4, stop=model.stop)), prompts))
    answers = answers._replace(length=np.array([4, 2]))  # what stands behind an answer's end says nothing
    other = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(jax.random.key(x.size), x.shape, x.dtype), params)
    total = 0.0
    for tokens, said, length in zip(([5, 9, 4], [7]), answers.tokens, answers.length, strict=True):
        read = np.array([*tokens, *said[: length - 1]])[None]
        own, base = (
            np.asarray(nnx.merge(graphdef, p)(read), np.float64)[0, len(tokens) - 1 :] for p in (params, other)
        )
        own, base = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (own, base))
        total += (np.exp(own) * (own - base)).sum()
    found = divergence(graphdef, params, other, prompts, answers)
    assert found == pytest.approx(total / answers.length.sum(), rel=1e-4) and found > 0.01
    assert divergence(graphdef, params, params, prompts, answers) == 0


@pytest.mark.parametrize(
    ("kl", "empty", "distinct", "told"),
    [
        (None, 0, 1, []),
        (0.9, 0.5, 0.5, []),
        (1.5, 0, 1, ["far"]),
        (0, 0.75, 0.3, ["empty"]),
        (2, 0.1, 0.2, ["far", "alike"]),
    ],
)
def test_what_a_reward_hides_is_told(kl, empty, distinct, told):
    answers = Statistics(3.0, 1, 4, 0.0, empty, distinct)
    measured = Measured(1.0, math.nan, answers, 1.0, 0, ("",) * 8, (1.0,) * 8, kl=kl)
    assert measured.warnings() == told
    for name in told:
        assert "--" in TOLD[name].format(kl=kl, empty=empty, distinct=distinct)
