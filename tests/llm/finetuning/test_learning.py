"""All methods climb a reward that a tiny random model can climb, and not by chance."""

from __future__ import annotations

from functools import cache
from typing import Any

import jax
import numpy as np
import pytest

import eggroll
from eggroll.llm.answers.decoding import Decoding, generator, split
from eggroll.llm.answers.writing import UNDER_NOISE
from eggroll.llm.finetuning.evaluation import Evaluator
from eggroll.llm.finetuning.step import Answered
from eggroll.training import fit, named
from eggroll.training.metrics import not_counted
from tests.llm.climbing import asked, language, letters, marker
from tests.quick import quickest

SEEDS, GENERATIONS = 7, 6
STRATEGIES: dict[str, Any] = {
    "eggroll": lambda: eggroll.ES(
        population=64,
        sigma=0.1,
        optimizer=named("sgd", learning_rate=0.06),
        groups=4,
        shaping="group",
        fallback="error",
    ),
    "activations": lambda: eggroll.ES(
        population=128,
        sigma=0.3,
        optimizer=named("adam", learning_rate=0.03),
        groups=4,
        shaping="group",
        fallback="error",
        **UNDER_NOISE["activations"],
    ),
    "full-rank": lambda: eggroll.FullRankES(population=30, sigma=0.1, learning_rate=0.4),
}


@cache
def parts() -> Any:
    model = language()
    graphdef, params = split(model.model)
    return model, params, generator(graphdef, Decoding(6, stop=model.stop, pad=model.pad))


@pytest.mark.parametrize("method", quickest(STRATEGIES))
def test_a_held_out_reward_rises_and_without_information_it_does_not(method: str) -> None:
    """The same run with rewards that tell nothing is the control.

    Were fitness not used, or used wrongly, a run and its control would be exchangeable, and each as likely to end
    higher as the other: all `SEEDS` runs end higher than theirs with a probability of at most 2^-7 = 0.8 %, which is
    the chance that this test passes though nothing is learnt. The gain in size keeps it from passing by a hair.
    """
    model, params, fun = parts()
    es, questions = STRATEGIES[method](), asked(model, 24)
    held_out = Evaluator(fun, questions.take(range(12, 24)), marker(model))
    rng = np.random.default_rng(0)
    before = held_out(params).reward

    def after(reward: Any, seed: int) -> float:
        result = fit(
            es,
            es.init(params, jax.random.key(seed)),
            Answered(fun, marker(model, reward)),
            lambda generation: (questions.take(np.arange(4) + 4 * (generation % 3)),),
            generations=GENERATIONS,
            carry=not_counted(),
        )
        return held_out(result.state.params).reward

    gains = []
    for seed in range(SEEDS):
        learnt, control = after(letters, seed), after(lambda text, problem: rng.random(), seed)
        assert learnt > control, f"seed {seed}: {learnt} after learning, {control} without information"
        gains.append(learnt - before)
    assert np.mean(gains) > 0.5, gains
