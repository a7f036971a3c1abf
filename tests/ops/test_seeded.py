"""Seeded factors: the same numbers as `jax.random` gives, and the whole population in one call of an implementation."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bench.tools.kernel_shapes import Shape
from eggroll.kernels import Seeded, lowrank_dot, rank_update
from eggroll.ops import members, registry
from eggroll.ops.noise import unpack, words_for
from eggroll.ops.operations import lowrank_dot_reference
from tests.kernels.seeds import dot_operands, dot_truth, seeded
from tests.quick import quickest

pytestmark = pytest.mark.optimised  # bits, as users get them


@pytest.mark.parametrize("distribution", ["rademacher", "normal"])
@pytest.mark.parametrize(("size", "rank"), quickest([(1, 1), (70, 3), (33, 5)], (33, 5)))
def test_numbers_are_words_of_jax_random(size, rank, distribution):
    keys = jax.random.split(jax.random.key(size, impl="threefry2x32"), 3)
    got = jax.jit(lambda data: Seeded(data, size, rank, distribution).array())(jax.random.key_data(keys))

    @jax.jit
    def wanted(key):
        return unpack(jax.random.bits(key, (words_for(size * rank, distribution),), "uint32"), (size, rank),
                      distribution, "float32")  # fmt: skip

    for key, own in zip(keys, got, strict=True):
        np.testing.assert_array_equal(own, wanted(key))


@pytest.fixture
def calls(monkeypatch):
    """Registers an implementation that writes down, when it runs, the shapes it is given."""
    seen = []

    def spy(x, w, left, right, *, scale, **options):
        shapes = x.shape, w.shape, left.key.shape, right.key.shape, scale.shape
        if not registry._within.unchecked:  # by its own check
            jax.debug.callback(lambda: seen.append(shapes))
        return lowrank_dot_reference(x, w, left, right, scale=scale, **options)

    registry.implementations("lowrank_dot")  # all are loaded: none registers itself in what is undone after the test
    known = {"spy": registry.Implementation("spy", spy, ("cpu",)), **registry._OPERATIONS["lowrank_dot"]}
    monkeypatch.setitem(registry._OPERATIONS, "lowrank_dot", known)
    members._dot.cache_clear()
    yield seen
    members._dot.cache_clear()


def population(shape, operands, *, wrap=lambda f: f):
    """Every member's product, as the engine calls it: pairs under vmap, in them the signs under vmap."""
    x, w, left, right, scale = operands

    def member(left_key, right_key, x, scale):
        left_own, right_own = (Seeded(k, f.size, f.rank, f.distribution, f.dtype) for k, f in
                               ((left_key, left), (right_key, right)))  # fmt: skip
        return wrap(lambda x: lowrank_dot(x, w, left_own, right_own, scale=scale))(x)

    own = [a.reshape(shape.units, shape.signs, *a.shape[1:]) for a in (x, scale)]
    out = jax.vmap(jax.vmap(member, in_axes=(None, None, 0, 0)))(left.key, right.key, *own)
    return out.reshape(shape.members, *out.shape[2:])


def scanned(f):
    """The product inside a loop of two turns, of which the second counts."""
    return lambda x: jax.lax.scan(lambda carry, _: (f(x), None), jnp.zeros_like(f(x)), None, length=2)[0]


WRAPS = {"plain": lambda f: f, "jit": jax.jit, "remat": jax.checkpoint, "scan": scanned}


@pytest.mark.first(2)
@pytest.mark.parametrize(("wrap", "signs"), [("scan", 2), ("remat", 1), ("jit", 2), ("plain", 1)])
def test_a_population_is_one_call(calls, wrap, signs):
    shape = Shape(units=3, signs=signs, rows=2, depth=5, columns=4, rank=2)
    operands = dot_operands(shape, "rademacher", jnp.float32)
    got = population(shape, operands, wrap=WRAPS[wrap])
    jax.block_until_ready(got)
    jax.effects_barrier()
    assert set(calls) == {((3 * signs, 2, 5), (5, 4), (3, 2), (3, 2), (3 * signs,))}
    np.testing.assert_allclose(got, dot_truth(*operands)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_a_vmap_over_data_becomes_rows(calls):
    """Inside of a member and around the whole population: rows, not more members."""
    shape = Shape(units=3, signs=2, rows=2, depth=5, columns=4)
    operands = dot_operands(shape, "normal", jnp.float32)
    truth = dot_truth(*operands)[0]
    inside = population(shape, operands, wrap=jax.vmap)
    np.testing.assert_allclose(inside, truth, rtol=1e-5, atol=1e-5)
    x = operands[0]
    around = jax.vmap(lambda x: population(shape, (x, *operands[1:])))(jnp.stack([x, 2 * x, -x]))
    jax.block_until_ready(around)
    jax.effects_barrier()
    assert {call[0] for call in calls} == {(6, 2, 5), (6, 6, 5)} and {call[2] for call in calls} == {(3, 2)}
    np.testing.assert_allclose(around[0], truth, rtol=1e-5, atol=1e-5)
    assert around.shape == (3, *truth.shape)


def test_members_with_scales_of_their_own_around_units(calls):
    """An axis of members outside of the units' is sorted in between, so that units stay neighbours."""
    shape = Shape(units=3, signs=2, rows=1, depth=5, columns=4)
    x, w, left, right, scale = dot_operands(shape, "rademacher", jnp.float32)
    scales = jnp.stack([scale, 2 * scale])
    got = jax.vmap(lambda s: population(shape, (x * s[0], w, left, right, s)))(scales)
    for own, s in zip(got, scales, strict=True):
        np.testing.assert_allclose(own, dot_truth(x * s[0], w, left, right, s)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shared", quickest(["x", "w of their own"], "w of their own"))
def test_what_no_kernel_does_goes_to_the_reference(calls, shared):
    shape = Shape(units=3, signs=1, rows=2, depth=5, columns=4)
    x, w, left, right, scale = dot_operands(shape, "rademacher", jnp.float32)
    one = Seeded(None, 5, 1, "rademacher"), Seeded(None, 4, 1, "rademacher")

    def member(x, w, a, b, s, implementation=None):
        own = [Seeded(k, f.size, f.rank, f.distribution) for k, f in zip((a, b), one, strict=True)]
        return lowrank_dot(x, w, *own, scale=s, implementation=implementation)

    axes = (None, None, 0, 0, 0) if shared == "x" else (0, 0, 0, 0, 0)
    args = (x[0], w) if shared == "x" else (x, jnp.stack([w, 2 * w, -w]))
    got = jax.vmap(member, in_axes=axes)(*args, left.key, right.key, scale)
    for i in range(3):
        own_x, own_w = (x[0], w) if shared == "x" else (x[i], args[1][i])
        a, b = np.asarray(left.array()[i], np.float64), np.asarray(right.array()[i], np.float64)
        truth = np.asarray(own_x, np.float64) @ (np.asarray(own_w, np.float64) + float(scale[i]) * a @ b.T)
        np.testing.assert_allclose(got[i], truth, rtol=1e-5, atol=1e-5)
    jax.effects_barrier()
    assert not calls
    with pytest.raises(NotImplementedError, match="mosaic_tpu"):
        jax.vmap(lambda *a: member(*a, implementation="mosaic_tpu"), in_axes=axes)(*args, left.key, right.key, scale)


def test_rank_update_of_seeds_is_that_of_their_arrays():
    left, right = seeded(1, 7, 33, 2), seeded(2, 7, 9, 2)
    weights = jnp.arange(7.0) - 3
    want = rank_update(weights, left.array(), right.array())
    np.testing.assert_array_equal(rank_update(weights, left, right), want)


def test_bad_seeds():
    left, right = seeded(1, 1, 5, 1), seeded(2, 1, 4, 1, "normal")
    x, w = jnp.ones((2, 5)), jnp.ones((5, 4))
    one = [Seeded(f.key[0], f.size, f.rank, f.distribution) for f in (left, right)]
    with pytest.raises(ValueError, match="one distribution"):
        lowrank_dot(x, w, *one)
    with pytest.raises(ValueError, match="both"):
        lowrank_dot(x, w, one[0], jnp.ones((4, 1)))
    with pytest.raises(ValueError, match="lowrank_dot got x"):
        lowrank_dot(x, w, left, seeded(2, 1, 4, 1))
    with pytest.raises(TypeError, match="key_data"):
        lowrank_dot(x, w, Seeded(jnp.ones(2), 5, 1, "rademacher"), Seeded(jnp.ones(2), 4, 1, "rademacher"))


@pytest.mark.parametrize("distribution", ["rademacher", "normal"])
@pytest.mark.parametrize(("of", "to"), [("float32", "bfloat16"), ("float32", "float16"), ("bfloat16", "float32")])
def test_a_cast_key_stands_for_the_cast_numbers(distribution, of, to):
    factor = seeded(3, 2, 40, 2, distribution, of)
    cast = factor.astype(to)
    assert isinstance(cast, Seeded) == (distribution == "rademacher" or of == "float32")
    numbers = cast.array() if isinstance(cast, Seeded) else cast
    assert numbers.dtype == to
    np.testing.assert_array_equal(numbers, factor.array().astype(to))


def test_rows_on_several_axes():
    factor = seeded(3, 2, 12, 2)
    split = replace(factor, sizes=(3, 4))
    assert split.shape == (2, 3, 4, 2) and split.matrix().shape == factor.shape == (2, 12, 2)
    np.testing.assert_array_equal(split.array().reshape(2, 12, 2), factor.array())
    with pytest.raises(ValueError, match=r"got left of size 12 with axes of sizes \(3, 5\)"):
        replace(factor, sizes=(3, 5)).check("left")
