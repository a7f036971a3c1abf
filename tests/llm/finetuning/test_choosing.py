"""How far noise may move a language model: by the divergence of dense members, whatever the method."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from eggroll.llm.answers.decoding import Decoding, generator, split
from eggroll.llm.answers.generation import generate_plain
from eggroll.llm.answers.prompts import pad_left
from eggroll.llm.finetuning.settings import settings_for
from eggroll.llm.finetuning.statistics import divergence
from eggroll.llm.finetuning.strategy import SIZE, TRIED, _optimizer, choose, strategy
from eggroll.training import named, schedule
from tests.llm.climbing import language


def test_an_update_by_adam_is_of_the_rate_that_is_chosen():
    """Each of its numbers; one by "sgd" is below."""
    settings = settings_for("eggroll", model="m", task="countdown", optimizer="adam")
    falling = schedule("inverse_sqrt_schedule", init_value=1.0) * 0.02
    assert _optimizer(settings)(0.02).spec == named("adam", learning_rate=falling).spec


@pytest.mark.slow
@pytest.mark.parametrize(("method", "optimizer"), [("eggroll", "sgd"), ("full-rank", None)])
def test_noise_moves_a_model_by_a_fifth_of_a_nat(method, optimizer):
    model = language()
    graphdef, params = split(model.model)
    prompts, greedy = pad_left([[5, 9, 4], [7]]), generator(graphdef, Decoding(4, stop=model.stop))
    given = {} if optimizer is None else {"optimizer": optimizer}
    es = strategy(settings_for(method, model="m", task="countdown", population=TRIED, prompts=1, **given))
    state = es.init(params, jax.random.key(0))
    choose(es, state, params, greedy, prompts, None)
    answers, members = jax.device_get(generate_plain(params, greedy, prompts)), es.ask(state)
    dense = [divergence(graphdef, members.materialize(i), params, prompts, answers) for i in range(TRIED)]
    assert np.mean(dense) == pytest.approx(0.2, rel=0.3)
    told = np.random.default_rng(0).normal(size=TRIED)
    after, metrics = es.tell(state, members, told)
    count = sum(x.size for x in jax.tree.leaves(params))  # of noise alone: a part of its size
    assert float(metrics["update_norm"]) / count**0.5 == pytest.approx(SIZE * es.sigma, rel=0.3)
    for _ in range(3):  # and with the root of the generations less
        after, metrics = es.tell(after, es.ask(after), told)
    assert float(metrics["update_norm"]) / count**0.5 == pytest.approx(SIZE * es.sigma / 2, rel=0.3)
