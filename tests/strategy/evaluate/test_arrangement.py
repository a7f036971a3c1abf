"""Copies of a pair's noise: where members get them, and that nothing but time depends on it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import eggroll
from eggroll.engine import jax_compat
from eggroll.strategy.evaluate import chunking, compiled
from eggroll.strategy.evaluate.chunking import LARGE, Need, arrange
from eggroll.strategy.noise.sampler import Sampler
from eggroll.strategy.plan.leaves import make_plan
from eggroll.strategy.population import Population
from tests.quick import quickest
from tests.strategy.common import KEY, dense

pytestmark = pytest.mark.optimised  # bits, as users get them

WIDTH = 256
ONE_ROW = Need(bytes=12 * WIDTH, flops=LARGE, rows=1, columns=frozenset((WIDTH,)))
PLAN = make_plan({"w": jnp.zeros((WIDTH, WIDTH)), "b": jnp.zeros(WIDTH)}, None)


@pytest.fixture(autouse=True)
def free_corrections(monkeypatch):
    """As on JAX 0.10, whichever runs."""
    monkeypatch.setattr(jax_compat, "CORRECTIONS_ARE_FREE", True)


@pytest.fixture
def told(monkeypatch):
    """Every arrangement that a generation was told."""
    found = []
    monkeypatch.setattr("eggroll.strategy.generation.arrange", lambda *args: found.append(arrange(*args)) or found[-1])
    return found


def arranged(need=ONE_ROW, units=64, plan=PLAN, **population):
    population.setdefault("size", 2 * units)
    distribution = population.get("distribution", "rademacher")
    return arrange(Population(**population), Sampler(plan, distribution, 2 * units), need, units)


def test_a_pair_gets_copies_where_each_member_has_one_row():
    assert arranged().copies
    for need in (
        ONE_ROW._replace(rows=2),
        ONE_ROW._replace(rows=0, flops=0),
        ONE_ROW._replace(flops=LARGE - 1),
        ONE_ROW._replace(loops=True),
        ONE_ROW._replace(columns=frozenset((512, 128))),  # as many members at once as outputs
    ):
        assert not arranged(need).copies
    assert arranged(antithetic=False, size=64).copies, "bytes, if no copies"
    assert not arranged(distribution="normal").copies
    assert not arranged(plan=make_plan({"w": jnp.zeros((WIDTH, WIDTH))}, None, rank=2)).copies


def test_where_corrections_are_not_free_the_noise_is_shared(monkeypatch):
    monkeypatch.setattr(jax_compat, "CORRECTIONS_ARE_FREE", False)
    assert not arranged().copies
    monkeypatch.setattr(jax_compat, "CORRECTIONS_ARE_FREE", True)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert not arranged().copies


def test_a_small_population_is_one_chunk_of_copies_and_several_of_shared_noise():
    """Unless as many members as columns are evaluated at once; then it is sized for what it gets."""
    need = ONE_ROW._replace(bytes=chunking.FEW_BYTES * 3 // 4 // 1024)
    assert arranged(need, units=1024) == (1024, True)
    assert arranged(need._replace(columns=frozenset((2048,))), units=1024) == (chunking.ENOUGH_ROWS // 2, False)


def test_what_is_left_after_whole_chunks_is_not_square_either():
    assert arranged(chunk=100, units=150) == (50, True)
    assert arranged(chunk=100, units=50 + WIDTH // 2) == (50, True)
    assert arranged(chunk=400, units=200 + WIDTH // 2) == (200, False)


def test_a_number_of_members_at_once_is_kept():
    assert arranged(chunk=32) == (16, True)
    assert arranged(chunk=WIDTH, units=512) == (WIDTH // 2, False), "a square product"


@pytest.mark.first(1)
@pytest.mark.parametrize("signs", [1, 2, 3])
def test_copies_are_the_noise_itself(signs):
    plan = make_plan(
        {"w": jnp.zeros((5, 33)), "s": jnp.zeros((3, 4, 4), jnp.bfloat16), "b": jnp.zeros(7), "f": jnp.zeros(2)},
        None,
        rules=[("f", "frozen"), ("s", eggroll.LowRankRule(rank=2))],
    )
    sampler = Sampler(plan, "rademacher", None)
    words = sampler.streams.draw(KEY, jnp.arange(6))
    once, copies = jax.jit(sampler.draw)(words), sampler.draw(words, signs=signs)
    assert jax.tree.structure(once) == jax.tree.structure(copies)
    for one, copied in zip(jax.tree.leaves(once), jax.tree.leaves(copies), strict=True):
        assert copied.dtype == one.dtype and set(np.unique(np.asarray(one, np.float32))) <= {-1.0, 1.0}
        np.testing.assert_array_equal(np.asarray(copied), np.repeat(np.asarray(one), signs, axis=0))


def network(params, row):
    """Two dense layers with a norm between them; the last output is auxiliary."""
    hidden = jnp.tanh(row @ params["in"] + params["bias"])
    hidden = hidden * params["scale"] / jnp.sqrt(jnp.mean(hidden**2) + 1e-3)
    out = hidden @ params["out"].T
    return jnp.mean(out**2), (out[:3], jnp.argmax(row))


def parameters(dtype):
    shapes = {"in": (24, 40), "bias": (40,), "scale": (40,), "out": (16, 40), "left alone": (2,)}
    rng = np.random.default_rng(0)
    return {k: jnp.asarray(rng.normal(size=s) * 0.3, dtype) for k, s in shapes.items()}


@pytest.mark.parametrize(
    ("dtype", "chunk", "antithetic", "bound"),
    quickest(
        [("float32", "auto", True, 2e-6), ("float16", 8, False, 4e-3), ("bfloat16", 8, True, 0.02)],
        ("float16", 8, False, 4e-3),
    ),
)
def test_both_arrangements_evaluate_the_same_members(monkeypatch, told, dtype, chunk, antithetic, bound):
    rows = jnp.asarray(np.random.default_rng(1).normal(size=(20, 24)), dtype)
    rules = [("left alone", "frozen"), ("out", eggroll.LowRankRule(sigma_scale=0.5)), ("scale", "dense")]
    options = {"chunk": chunk, "antithetic": antithetic, "rules": rules}
    found, seen = {}, []
    for least in (0, 1 << 60):
        monkeypatch.setattr(chunking, "LARGE", least)
        compiled.forget()  # it does not know of that
        es = eggroll.ES(population=20, sigma=0.1, optimizer=optax.sgd(0.1), **options)
        state = es.init(parameters(dtype), KEY)
        step = jax.jit(lambda state, es=es: es.step(state, network, rows, in_axes=0, has_aux=True)).lower(state)
        assert ("xi8>" in step.as_text()) == (least == 0)
        members = es.ask(state)
        outputs = members.apply(network, rows, in_axes=0)
        state, metrics = step.compile()(state)
        found[least] = outputs, state.params, metrics["fitness"], metrics["aux"]
        seen.append(members)
    assert [each.copies for each in told] == [True] * (len(told) // 2) + [False] * (len(told) // 2)
    alike = [jax.tree.leaves(found[least]) for least in (0, 1 << 60)]
    for a, b in zip(*alike, strict=True):
        np.testing.assert_allclose(np.asarray(a, np.float64), np.asarray(b, np.float64), atol=10 * bound, rtol=bound)
    # Independently of both: every member's dense parameters in float64.
    weights = dense(seen[0])
    for i in (0, 1, 18, 19):
        own = {k: v[i] for k, v in weights.items()}
        hidden = np.tanh(np.asarray(rows[i], np.float64) @ own["in"] + own["bias"])
        hidden *= own["scale"] / np.sqrt(np.mean(hidden**2) + 1e-3)
        expected = np.mean((hidden @ own["out"].T) ** 2)
        np.testing.assert_allclose(float(found[0][0][0][i]), expected, rtol=20 * bound)


def test_what_the_step_needs_decides(told):
    """A wide layer is arranged in copies; in a loop, or with two rows, it is not."""
    params, rows = {"w": jnp.eye(WIDTH)}, jnp.ones((6, WIDTH))

    def looped(p, row):
        return jnp.sum(lax.fori_loop(0, 2, lambda _, h: jnp.tanh(h @ p["w"]), row))

    for fun in (lambda p, row: jnp.sum(row @ p["w"]), looped, lambda p, row: jnp.sum(jnp.stack([row, row]) @ p["w"])):
        es = eggroll.ES(population=6, sigma=0.1, optimizer=optax.sgd(0.1))
        es.step(es.init(params, KEY), fun, rows, in_axes=0)
    assert [each.copies for each in told] == [True, False, False]


def test_alike_parameters_draw_by_one_traced_program():
    """However many there are, of whatever name; those of another shape or dtype by their own."""
    shapes = {f"layer{i}": jnp.zeros((5, 33)) for i in range(6)} | {"half": jnp.zeros((5, 33), jnp.bfloat16)}
    sampler = Sampler(make_plan(shapes, None), "rademacher", None)
    words = sampler.streams.draw(KEY, jnp.arange(4))
    calls = [e for e in jax.make_jaxpr(sampler.draw)(words).eqns if e.params.get("name") == "_drawn_apart"]
    assert len(calls) == 14 and len({id(call.params["jaxpr"]) for call in calls}) == 4
