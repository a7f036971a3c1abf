"""`FullRankES` against NumPy, against `ES` with dense noise and SGD, and against its members one by one."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import eggroll
from eggroll.kernels import unpack, words_for
from eggroll.strategy.noise import dense as full_rank_noise
from eggroll.strategy.noise.dense import block_size, noise_block, over_blocks

pytestmark = pytest.mark.optimised  # bits, as users get them

KEY = jax.random.key(3)
FITNESS = np.array([1.0, 3.0, 2.0, -4.0, 9.0, 2.5], np.float32)


def parameters(dtype: Any = jnp.float32, scale: float = 1.0) -> dict[str, Any]:
    """Two matrices of one shape, which share what is compiled, and a vector of an odd size."""
    rng = np.random.default_rng(0)
    shapes = {"matrix": (7, 5), "other": (7, 5), "bias": (9,)}
    return {"layer": {k: jnp.asarray(scale * rng.normal(size=s), dtype) for k, s in shapes.items()}}


def leaves(tree: Any) -> list[np.ndarray]:
    """The arrays, on the host, in float64."""
    return [np.asarray(x).astype(np.float64) for x in jax.tree.leaves(tree)]


@pytest.fixture(
    scope="module",
    params=[pytest.param((False, "normal"), marks=pytest.mark.slow), (True, "rademacher")],
    ids=["normal", "rademacher pairs"],
)
def told(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The same generation by `FullRankES` and by `ES` with dense noise and SGD."""
    antithetic, distribution = request.param
    sigma, alpha = 0.25, 0.5
    options: dict[str, Any] = {"population": 6, "sigma": sigma, "antithetic": antithetic, "distribution": distribution}
    rules = [(".*", eggroll.DenseRule())]
    full = eggroll.FullRankES(learning_rate=alpha, **options)
    dense = eggroll.ES(rules=rules, optimizer=optax.sgd(alpha * sigma), **options)
    found: dict[str, Any] = {"sigma": sigma, "alpha": alpha}
    for name, es in (("full", full), ("dense", dense)):
        state = es.init(parameters(), KEY)
        members = es.ask(state)
        new, metrics = es.tell(state, members, FITNESS)
        found[name] = {"es": es, "state": state, "members": members, "new": new, "metrics": metrics}
    return found


def test_members_have_the_noise_of_dense_rules(told: dict[str, Any]) -> None:
    """With nothing to add it to, the noise is the same to the last bit."""
    seen = []
    for es in (told["full"]["es"], told["dense"]["es"]):
        state = es.init(jax.tree.map(jnp.zeros_like, parameters()), KEY)
        seen.append([leaves(es.ask(state).materialize(i)) for i in range(6)])
    for a, b in zip(*seen, strict=True):
        assert all((x == y).all() for x, y in zip(a, b, strict=True))


def test_update_is_the_papers(told: dict[str, Any]) -> None:
    """`θ + α/N·Σ zᵢ·(θᵢ − θ)/σ`, of the members' dense parameters, in NumPy."""
    run = told["full"]
    z = (FITNESS - FITNESS.mean()) / FITNESS.std()
    base = leaves(run["state"].params)
    members = [leaves(run["members"].materialize(i)) for i in range(6)]
    for n, (was, now) in enumerate(zip(base, leaves(run["new"].params), strict=True)):
        noise = [(member[n] - was) / told["sigma"] for member in members]
        want = was + told["alpha"] / 6 * sum(weight * e for weight, e in zip(z, noise, strict=True))
        np.testing.assert_allclose(now, want, atol=3e-6)


def test_update_and_metrics_are_those_of_dense_rules_and_sgd(told: dict[str, Any]) -> None:
    """Everything that `ES.tell` tells, too."""
    full, dense = told["full"], told["dense"]
    assert full["metrics"].keys() == dense["metrics"].keys()
    for name, value in dense["metrics"].items():
        np.testing.assert_allclose(full["metrics"][name], value, rtol=2e-6, err_msg=name)
    for a, b in zip(leaves(full["new"].params), leaves(dense["new"].params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    assert int(full["new"].generation) == 1


def test_apply_evaluates_the_members(told: dict[str, Any]) -> None:
    """Shared and own rows, numbers that are no arrays, and an output that is a parameter itself."""
    members, rows = told["full"]["members"], jnp.arange(42.0).reshape(6, 7)

    def fun(params: Any, x: Any, own: Any, power: int) -> Any:
        return params["layer"]["bias"], (x + own) @ params["layer"]["matrix"] ** power

    bias, product = members.apply(fun, jnp.ones(7), rows, 2, in_axes=(None, 0, None))
    assert product.shape == (6, 5)
    for i in range(6):
        params = members.materialize(i)
        assert (bias[i] == params["layer"]["bias"]).all()
        want = (1 + np.asarray(rows[i])) @ np.asarray(params["layer"]["matrix"]) ** 2
        np.testing.assert_allclose(product[i], want, rtol=1e-5, atol=1e-4)


def test_base_is_never_touched_and_step_does_the_three(told: dict[str, Any]) -> None:
    """`step` equals ask, apply, tell; auxiliary output is averaged."""
    es, state = told["full"]["es"], told["full"]["state"]

    def fitness(params: Any) -> Any:
        return -(params["layer"]["matrix"] ** 2).sum(), {"bias": params["layer"]["bias"], "count": jnp.int32(3)}

    new, metrics = es.step(state, fitness, has_aux=True)
    members = es.ask(state)
    scores, aux = members.apply(fitness)
    same, _ = es.tell(state, members, scores)
    assert all((a == b).all() for a, b in zip(leaves(new.params), leaves(same.params), strict=True))
    np.testing.assert_allclose(metrics["aux"]["bias"], aux["bias"].mean(0), rtol=1e-5, atol=1e-6)
    assert metrics["aux"]["count"] == 3
    assert all((a == b).all() for a, b in zip(leaves(state.params), leaves(parameters()), strict=True))


def test_under_jit_a_generation_is_the_same(told: dict[str, Any]) -> None:
    """And one without finite fitness leaves the state as it is."""
    es, state = told["full"]["es"], told["full"]["state"]
    if es.settings.antithetic:
        return  # the other case is the same code

    @jax.jit
    def tell(state: Any, fitness: Any) -> Any:
        return es.tell(state, es.ask(state), fitness)

    new, metrics = tell(state, jnp.asarray(FITNESS))
    for a, b in zip(leaves(new.params), leaves(told["full"]["new"].params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    np.testing.assert_allclose(metrics["update_norm"], told["full"]["metrics"]["update_norm"], rtol=1e-5)
    lost, _ = tell(state, jnp.full(6, jnp.nan))
    assert all((a == b).all() for a, b in zip(leaves(lost.params), leaves(state.params), strict=True))
    assert int(lost.generation) == 0


def test_dropped_members_weigh_nothing(told: dict[str, Any]) -> None:
    """The rest is normalised among itself."""
    run = told["full"]
    fitness = FITNESS.copy()
    fitness[4:] = np.nan, np.inf
    _, metrics = run["es"].tell(run["state"], run["members"], fitness)
    assert int(metrics["nonfinite"]) == 2
    z = (FITNESS[:4] - FITNESS[:4].mean()) / FITNESS[:4].std() * 6 / 4
    np.testing.assert_allclose(metrics["weights"], [*z, 0, 0], rtol=1e-5)
    with pytest.raises(FloatingPointError, match="no finite fitness"):
        run["es"].tell(run["state"], run["members"], np.full(6, np.nan))


@pytest.mark.parametrize("distribution", ["normal", "rademacher"])
def test_blocks_are_parts_of_one_draw(distribution: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """However a parameter is cut, with a rest or without."""
    monkeypatch.setattr(full_rank_noise, "CPU_BLOCK", 64)
    key = jax.random.key_data(KEY)
    assert [block_size(size) for size in (192, 200, 33, 160)] == [64, 64, 33, 32]
    for size in (160, 200):

        def put(out: Any, start: Any, count: int) -> Any:
            part = noise_block(key, start, count, distribution, np.float32)
            return jax.lax.dynamic_update_slice(out, part, (start,))

        whole = jax.jit(lambda size=size, put=put: over_blocks(put, jnp.zeros(size), size))()
        words = jax.random.bits(KEY, (words_for(size, distribution),), "uint32")
        assert (whole == jax.jit(lambda w, size=size: unpack(w, (size,), distribution, "float32"))(words)).all()


def test_schedules_scales_and_frozen_parameters() -> None:
    """α is σ/2 where nothing is said; `sigma_scale` is as for `ES`; frozen parameters are shared, not copied."""
    rules = [(".*/bias", "frozen"), (".*/other", eggroll.DenseRule(sigma_scale=0.5))]
    sigma = optax.linear_schedule(0.2, 0.1, 10)
    es = eggroll.FullRankES(population=6, sigma=sigma, rules=rules)
    dense = [*rules, (".*", eggroll.DenseRule())]
    other = eggroll.ES(
        population=6, sigma=sigma, rules=dense, optimizer=optax.sgd(lambda n: sigma(n) ** 2 / 2), antithetic=False,
        distribution="normal",
    )  # fmt: skip
    state, dense_state = es.init(parameters(), KEY), other.init(parameters(), KEY)
    for _ in range(2):
        state, metrics = es.tell(state, es.ask(state), FITNESS)
        dense_state, dense_metrics = other.tell(dense_state, other.ask(dense_state), FITNESS)
    for a, b in zip(leaves(state.params), leaves(dense_state.params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    np.testing.assert_allclose(metrics["gradient_norm"], dense_metrics["gradient_norm"], rtol=1e-5)
    assert es.ask(state).materialize(0)["layer"]["bias"] is state.params["layer"]["bias"]
    rate = eggroll.FullRankES(population=6, sigma=sigma, rules=rules, learning_rate=lambda n: sigma(n) / 2)
    again, _ = rate.tell(state, rate.ask(state), FITNESS)
    want, _ = es.tell(state, es.ask(state), FITNESS)
    for a, b in zip(leaves(again.params), leaves(want.params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_reused_noise_repeats() -> None:
    """For as many generations as asked."""
    es = eggroll.FullRankES(population=2, noise_reuse=2)
    state = es.init(parameters(), KEY)
    one = leaves(es.ask(state).materialize(1))
    state, _ = es.tell(state, es.ask(state), [0.0, 0.0])
    same = leaves(es.ask(state).materialize(1))
    state, _ = es.tell(state, es.ask(state), [0.0, 0.0])
    new = leaves(es.ask(state).materialize(1))
    assert all((a == b).all() and (a != c).any() for a, b, c in zip(one, same, new, strict=True))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"population": 0}, "population=0"),
        ({"population": 7, "antithetic": True}, "even population"),
        ({"sigma": 0.0}, "sigma=0.0"),
        ({"learning_rate": 0.0}, "learning_rate=0.0"),
        ({"learning_rate": float("nan")}, "learning_rate=nan"),
        ({"learning_rate": True}, "learning_rate=True"),
        ({"distribution": "cauchy"}, "distribution='cauchy'"),
        ({"shaping": "rank"}, "shaping='rank'"),
        ({"noise_reuse": 0}, "noise_reuse=0"),
    ],
)
def test_refuses_settings(options: dict[str, Any], says: str) -> None:
    """In a sentence that names them."""
    with pytest.raises(ValueError, match=says):
        eggroll.FullRankES(**options)


def test_refuses_what_does_not_fit() -> None:
    """Low-rank rules, integers, members of another strategy or generation, functions without a scalar."""
    with pytest.raises(ValueError, match="low-rank rule for 'layer/matrix'"):
        eggroll.FullRankES(rules=[(".*/matrix", "low_rank")]).init(parameters(), KEY)
    with pytest.raises(TypeError, match="int32"):
        eggroll.FullRankES().init({"n": jnp.zeros(3, jnp.int32)}, KEY)
    with pytest.raises(ValueError, match='every parameter is "frozen"'):
        eggroll.FullRankES(rules=[(".*", "frozen")]).init(parameters(), KEY)
    with pytest.raises(ValueError, match="zero in its dtype float16"):
        eggroll.FullRankES(sigma=1e-9).ask(eggroll.FullRankES().init(parameters(jnp.float16), KEY)).materialize(0)
    es = eggroll.FullRankES(population=6)
    state = es.init(parameters(), KEY)
    low = eggroll.ES(population=6, antithetic=False, distribution="normal", sigma=1e-3)
    with pytest.raises(ValueError, match=r"eggroll\.ES for an eggroll\.FullRankES"):
        es.tell(state, low.ask(low.init(parameters(), KEY)), FITNESS)
    new, _ = es.tell(state, es.ask(state), FITNESS)
    with pytest.raises(ValueError, match="generation 0"):
        es.tell(new, es.ask(state), FITNESS)
    with pytest.raises(ValueError, match="scalar fitness"):
        es.step(state, lambda params: params["layer"]["bias"])
    with pytest.raises(IndexError, match="member 6"):
        es.ask(state).materialize(6)
