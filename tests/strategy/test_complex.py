"""Complex parameters: noise on real and imaginary parts, against NumPy on dense members and `jax.grad`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import eggroll
from eggroll.training import fit, named, replay
from tests.training.ledger_runs import assert_same_state

KEY = jax.random.key(7)
N = 16


def numbers(seed, *shape):
    rng = np.random.default_rng(seed)
    return jax.device_put((rng.normal(size=shape) + 1j * rng.normal(size=shape)).astype(np.complex64))


def params():
    """A state space as S4 has it: complex poles, input, stacked and output matrices, and a real scale."""
    shapes = {"poles": (9,), "enter": (7, 9), "layers": (2, 9, 9), "leave": (9, 6), "bias": ()}
    made = {name: np.complex64(0.5) * np.asarray(numbers(i, *shape)) for i, (name, shape) in enumerate(shapes.items())}
    return {**made, "scale": jnp.linspace(0.5, 1, 6)}


X = numbers(9, 5, 7)


def loss(p, x):
    h = jnp.tanh(x @ p["enter"]) * jnp.exp(p["poles"]) + p["bias"]
    h, _ = jax.lax.scan(lambda h, w: (h @ jnp.conj(w) * 0.3, None), h, p["layers"])
    return jnp.mean((h @ p["leave"]).real * p["scale"]) + jnp.mean(jnp.abs(h) ** 2)


def fitness(p, x):
    return -loss(p, x)


def strategy(**options):
    return eggroll.ES(population=N, sigma=0.1, optimizer=named("adam", learning_rate=0.01), fallback="error", **options)


@pytest.mark.first(1)
@pytest.mark.parametrize("distribution", ["rademacher", "normal"])
def test_members_and_direction_are_those_of_dense_members(distribution):
    p, es = params(), strategy(distribution=distribution, rank=2)
    members = es.ask(es.init(p, KEY))
    got = members.apply(lambda p, x: (loss(p, x), x @ p["enter"]), X)
    each, alone = list(members), jax.jit(lambda q: (loss(q, X), X @ q["enter"]))
    wanted = [alone(q) for q in each]
    np.testing.assert_allclose(got[0], [value for value, _ in wanted], rtol=2e-5)
    np.testing.assert_allclose(got[1], [product for _, product in wanted], rtol=0, atol=1e-5)
    kinds = {leaf.path: leaf.kind for leaf in members.plan.leaves}
    assert [path for path, kind in kinds.items() if kind == "low_rank"] == ["enter", "layers", "leave"]
    weights = np.random.default_rng(3).normal(size=N)
    direction = members.gradient(jnp.asarray(weights, jnp.float32))
    for name, value in p.items():
        noise = np.stack([np.asarray(q[name], np.complex128) - np.asarray(value) for q in each]) / 0.1
        assert np.iscomplexobj(value) == bool(np.abs(noise.imag).max() > 0.1)
        want = -np.tensordot(weights, noise, 1) / (N * 0.1)
        np.testing.assert_allclose(direction[name], want, rtol=0, atol=2e-4 * np.abs(want).max())
        if distribution == "rademacher" and kinds[name] == "dense":
            np.testing.assert_allclose(np.abs(noise.real), 1, atol=1e-4)
    enter = np.stack([np.asarray(q["enter"] - p["enter"]) for q in each])
    assert np.linalg.matrix_rank(enter[0], tol=1e-4) == 2
    assert 0.5 < np.mean(np.real(enter) ** 2) / 0.01 < 1.6
    assert 0.5 < np.mean(np.imag(enter) ** 2) / 0.01 < 1.6


def test_gradients_have_the_convention_of_jax():
    """Of a loss that is linear in every part, with few numbers: du − i·dv, which is not its conjugate."""
    target = {"w": numbers(1, 2, 3), "s": numbers(2)}

    def linear(p, x):
        return jnp.real(jnp.sum(jnp.conj(target["w"]) * p["w"]) + x * p["s"] * jnp.conj(target["s"]))

    p = {"w": jnp.zeros((2, 3), jnp.complex64), "s": jnp.complex64(1j)}
    value, got = eggroll.value_and_grad(linear, population=4096, sigma=0.1)(p, 1.0, key=KEY)
    want = jax.grad(linear)(p, 1.0)
    for name in p:
        assert got[name].dtype == jnp.complex64
        assert np.linalg.norm(got[name] - want[name]) < 0.15 * np.linalg.norm(want[name])
        assert np.linalg.norm(got[name] - jnp.conj(want[name])) > 0.5 * np.linalg.norm(want[name])
    np.testing.assert_allclose(value, linear(p, 1.0), atol=0.05)


def test_a_complex_target_is_reached():
    target = numbers(4, 6, 5)
    es = eggroll.ES(population=256, sigma=0.05, optimizer=optax.adam(0.1))
    state = es.init({"w": jnp.zeros((6, 5), jnp.complex64)}, KEY)
    with jax.numpy_dtype_promotion("standard"):  # real inputs, complex weights: as a first layer has them
        for _ in range(100):
            state, _ = es.step(state, lambda p, x: -jnp.mean(jnp.abs(x @ p["w"] - x @ target) ** 2), jnp.eye(6))
    assert np.abs(state.params["w"] - target).max() < 0.3


@pytest.mark.slow  # kinds of leaves, not of numbers, are what checkpoints and ledgers tell apart
def test_runs_are_resumed_and_replayed_bit_for_bit(tmp_path):
    es, p = strategy(), params()
    go = {"fitness": fitness, "data": lambda generation: X * (1 + generation)}
    whole = fit(es, es.init(p, KEY), **go, generations=2, folder=tmp_path / "whole").state
    fit(es, es.init(p, KEY), **go, generations=1, folder=tmp_path / "parts")
    parts = fit(es, es.init(p, KEY), **go, generations=2, folder=tmp_path / "parts", resume=True).state
    assert_same_state(parts, whole)
    assert_same_state(replay(p, tmp_path / "whole" / "ledger.bin"), whole)
    members = es.ask(state := es.init(p, KEY))
    told, _ = es.tell(state, members, members.apply(fitness, X))
    stepped, _ = es.step(state, fitness, X)
    for a, b in zip(jax.tree.leaves(told), jax.tree.leaves(stepped), strict=True):
        if a.dtype == jnp.complex64:
            np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.slow  # as `test_full_rank.py` of real parameters; both draw complex noise in the same place
def test_full_rank_has_the_noise_of_dense_rules():
    p = params()
    full = eggroll.FullRankES(population=N, sigma=0.1, learning_rate=0.1, antithetic=True)
    dense = eggroll.ES(
        population=N, sigma=0.1, distribution="normal", rules=[(".*", "dense")], optimizer=optax.sgd(0.01)
    )
    pairs = [(es, es.init(p, KEY)) for es in (full, dense)]
    asked = [es.ask(state) for es, state in pairs]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), *(m[5] for m in asked))
    (a, norms), (b, others) = (es.step(state, fitness, X) for es, state in pairs)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), a.params, b.params)
    np.testing.assert_allclose(norms["update_norm"], others["update_norm"], rtol=1e-5)


def test_explain_and_activations_say_what_noise_complex_parameters_get():
    p = {"w": numbers(0, 7, 9), "small": numbers(1, 9, 2), "head": jnp.ones((9, 4)), "spin": numbers(2, 9)}

    def losses(p, x):
        h = (x @ p["w"]) * p["spin"]
        return ((h.real @ p["head"]) ** 2).sum(-1) + jnp.abs(h @ p["small"]).sum(-1)

    shown = str(eggroll.explain(losses, p, X))
    assert "rank 1, complex" in shown
    assert "dense, complex" in shown
    assert "rank·(2m+n)" in str(eggroll.explain(losses, p, X, rank=2))
    table = eggroll.explain(losses, p, X, noise="activations")
    assert {row.path: row.kind for row in table.rows} == {
        "head": "activations", "small": "low_rank", "spin": "dense", "w": "low_rank"
    }  # fmt: skip
    assert "weight noise: 'w', for `mul`" in str(table)


@pytest.mark.slow  # Flax's parameters are a tree like any other
def test_models_of_flax_with_complex_variables():
    model = nnx.Linear(4, 3, param_dtype=jnp.complex64, dtype=jnp.complex64, rngs=nnx.Rngs(0))
    x = numbers(1, 5, 4)
    estimate = eggroll.nnx.value_and_grad(lambda m, x: jnp.mean(jnp.abs(m(x)) ** 2), population=2048, sigma=0.01)
    _, got = estimate(model, x, key=KEY)
    want = nnx.grad(lambda m, x: jnp.mean(jnp.abs(m(x)) ** 2))(model, x)
    for name in ("kernel", "bias"):
        a, b = np.asarray(got[name][...]), np.asarray(want[name][...])
        assert np.vdot(a, b).real > 0.8 * np.linalg.norm(a) * np.linalg.norm(b)


@pytest.mark.slow  # real parameters lie on meshes by default, too; the noise of complex ones is shared out as theirs
def test_a_mesh_changes_nothing():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("population",))
    both = strategy(mesh=mesh, update="weights"), strategy()
    states = [es.step(es.init(params(), KEY), fitness, X)[0] for es in both]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), *(state.params for state in states))
