"""`eggroll.nnx.ES`: a model's other state goes along as with the drop-in, however its members are evaluated."""

from __future__ import annotations

import inspect
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import eggroll.nnx
from eggroll.nnx.es import Options
from eggroll.strategy.noise.keys import generation_key
from eggroll.training import Saving, Scored, fit, named, replay
from tests.flax.test_model_state import RUN, Dropping, data, float64_mean, mean_square
from tests.flax.truth import ROUNDING, assert_close, normal
from tests.quick import quickest

SETTINGS = {"population": 6, "sigma": 0.1, "fallback": "error"}
BATCHES = [normal(i, 8, 4) for i in range(3)]
X = BATCHES[0]


def fitness(model, x):
    return -mean_square(model, x)


def made(**options: Any) -> tuple[eggroll.nnx.ES, eggroll.nnx.ModelState]:
    es = eggroll.nnx.ES(**{**SETTINGS, "optimizer": optax.sgd(0.5), "shaping": "none", **options})
    return es, es.init(Dropping(nnx.Rngs(0)), RUN)


def stepped(es, state, *args, **options):
    return es.step(state, fitness, *args, **options)


def asked(es, state, *args, **options):
    members = es.ask(state)
    return es.tell(state, members, members.apply(fitness, *args, **options))


@pytest.mark.parametrize(
    ("how", "share_rngs"),
    quickest([(asked, True), (asked, False), (stepped, False)], (asked, True)),
)
def test_a_model_is_trained_as_by_the_drop_in(how, share_rngs):
    """Parameters, batch statistics and dropout's count, and so what the model answers when it is used."""
    model = Dropping(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.sgd(0.5), wrt=nnx.Param)
    estimate = eggroll.nnx.value_and_grad(mean_square, share_rngs=share_rngs, **SETTINGS)
    es, state = made(share_rngs=share_rngs)
    for generation, x in enumerate(BATCHES):
        loss, grads = estimate(model, x, key=generation_key(RUN, generation))
        optimizer.update(model, grads)
        state, metrics = how(es, state, x)
        np.testing.assert_allclose(metrics["fitness_mean"], -loss, rtol=ROUNDING)
    mine = es.model(state)
    assert_close(data(nnx.state(mine)), data(nnx.state(model)))
    assert int(mine.dropout.rngs.count[...]) == len(BATCHES)
    mine.eval()
    model.eval()
    np.testing.assert_allclose(mine(X), model(X), rtol=1e-4)
    np.testing.assert_allclose(mine(X[:1]), mine(X)[:1], rtol=1e-4)  # not the batch's statistics, but the model's own


def test_statistics_are_those_of_the_members_that_count():
    def some(model, x):  # members 0 to 3 have fitness
        value = fitness(model, x)
        return jnp.where(jnp.abs(value - fitnesses[4]) < 1e-6, jnp.nan, value)

    es, state = made()
    fitnesses = es.ask(state).apply(fitness, X)
    members = es.ask(state)
    told = members.apply(fitness, X).at[4].set(jnp.nan)
    each = [nnx.state(members[i], nnx.BatchStat) for i in range(6) if i != 4]
    (tell, metrics), (step, _) = es.tell(state, members, told), es.step(state, some, X)
    for new in (tell, step):
        assert_close(nnx.state(es.model(new), nnx.BatchStat), float64_mean(each))
    assert metrics["nonfinite"] == 2


def test_every_member_goes_on_with_its_own_state():
    es, state = made()
    members = es.ask(state)
    alone = members[-1]
    for x in BATCHES[:2]:
        found = members.apply(fitness, x)[5]
        np.testing.assert_allclose(found, fitness(alone, x), rtol=1e-4)  # which changes `alone`
    assert_close(data(nnx.state(members.materialize(5))), data(nnx.state(alone)))
    assert len(list(members)) == 6 and int(state.generation) == 0
    untouched = nnx.state(es.model(state), nnx.BatchStat)["norm"]["mean"][...]
    assert not untouched.any()


def test_under_jit_a_generation_without_a_finite_fitness_changes_nothing():
    es, state = made()
    step = nnx.jit(lambda state, x, bad: es.step(state, lambda m, x, bad: fitness(m, x) * bad, x, bad))
    lost, metrics = step(state, X, jnp.float32("nan"))
    assert jnp.isnan(metrics["fitness_mean"])
    jax.tree.map(np.testing.assert_array_equal, data(lost), data(state))
    new, _ = step(state, X, jnp.float32(1))
    assert_close(data(new), data(es.step(state, fitness, X)[0]))


def test_rows_aux_and_streams_among_the_arguments():
    def noisy(model, x, rngs):
        return fitness(model, x) + 0 * rngs.normal(), rngs.normal()

    es, state = made()
    same = nnx.Rngs(3)
    _, second = same.normal(), same.normal()
    rngs, rows = nnx.Rngs(3), jnp.stack([normal(i, 8, 4) for i in range(6)])
    state, metrics = es.step(state, noisy, rows, rngs, in_axes=(0, None), has_aux=True)
    assert int(rngs.default.count[...]) == 2 and np.isclose(metrics["aux"], second)
    out, _ = es.ask(state).apply(noisy, rows, rngs, in_axes=(0, None))
    assert int(rngs.default.count[...]) == 4 and len(set(np.asarray(out).tolist())) == 6


def test_runs_are_saved_and_go_on_with_the_models_state(tmp_path):
    es, state = made(optimizer=named("sgd", learning_rate=0.5), distribution="normal")
    batches = lambda generation: BATCHES[generation % 3]  # noqa: E731
    whole = fit(es, state, fitness, batches, generations=4)
    options = {"folder": tmp_path, "saving": Saving(every=1)}
    fit(es, state, fitness, batches, generations=2, **options)
    again = fit(es, state, fitness, batches, generations=4, resume=True, **options)
    assert again.resumed == 2
    jax.tree.map(np.testing.assert_array_equal, data(again.state), data(whole.state))
    rebuilt = replay(state.params, tmp_path / "ledger.bin")
    jax.tree.map(np.testing.assert_array_equal, rebuilt.params, whole.state.params)
    scored = fit(es, state, Scored(fitness, lambda out, x: float(out)), batches, generations=1)
    assert_close(data(scored.state), data(es.step(state, fitness, X)[0]))


def test_what_is_no_model_is_refused():
    es, state = made()
    plain = eggroll.ES(population=6, sigma=0.1)
    arrays = plain.init(state.params, RUN)
    with pytest.raises(TypeError, match=r"got dict as the model; an NNX module is required.*eggroll.ES"):
        es.init({"w": jnp.ones(3)}, RUN)
    with pytest.raises(TypeError, match=r"got State as the state; an eggroll.nnx.ModelState.*es.init\(model, key\)"):
        es.step(arrays, fitness, X)
    with pytest.raises(TypeError, match=r"members of an eggroll.ES for an eggroll.nnx.ES"):
        es.tell(state, plain.ask(arrays), np.zeros(6))
    with pytest.raises(TypeError, match=r"got ModelState as the state.*eggroll.nnx.ES"):
        plain.step(state, lambda params: params["layer"]["kernel"].sum())
    with pytest.raises(ValueError, match="selects no variable"):
        made(wrt=nnx.LoRAParam)


def test_options_are_those_of_the_strategy_of_arrays():
    own = inspect.signature(eggroll.ES).parameters
    assert set(Options.__annotations__) == set(own)
    assert set(eggroll.nnx.ES.parameters()) == {*own, "wrt", "share_rngs"}
    assert repr(made(rank=2, share_rngs=False)[0]).startswith("nnx.ES(population=6, sigma=0.1, ")


def test_linen_batch_statistics_go_along_as_auxiliary_output():
    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x, training=True):
            return nn.BatchNorm(use_running_average=not training, momentum=0.5)(nn.Dense(3)(x))

    layer = Layer()
    variables = layer.init(jax.random.key(0), X)

    def of_members(params, stats, x):
        out, new = layer.apply({"params": params, "batch_stats": stats}, x, mutable=["batch_stats"])
        return -jnp.mean((out - 0.3) ** 2), new["batch_stats"]

    es = eggroll.ES(**SETTINGS, optimizer=optax.sgd(0.5))
    state, stats = es.init(variables["params"], RUN), variables["batch_stats"]
    members = es.ask(state)
    members.apply(of_members, stats, X)  # the plan follows the function
    alone = jax.jit(of_members)
    each = [alone(member, stats, X)[1] for member in members]
    state, metrics = es.step(state, of_members, stats, X, has_aux=True)
    stats = metrics["aux"]
    assert_close(stats, float64_mean(each))
    used = layer.apply({"params": state.params, "batch_stats": stats}, X, training=False)
    assert bool(jnp.isfinite(used).all())


def test_a_model_that_is_changed_from_outside_is_told_where_it_belongs():
    graph, params, rest = nnx.split(Dropping(nnx.Rngs(0)), nnx.Param, ...)
    es = eggroll.ES(population=2, sigma=0.1)
    with pytest.raises(Exception, match=r"(?s)^/.*Give the model itself to eggroll.nnx.ES.*TraceContextError"):
        es.step(es.init(params, RUN), lambda p, x: fitness(nnx.merge(graph, p, rest), x), X)
