"""The cache of compiled functions: one per structure and static leaf, and right when nothing can be hashed."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eggroll.strategy.evaluate import compiled
from eggroll.strategy.evaluate.compiled import CompiledCache


class Counted:
    """A function that counts how often it is traced."""

    def __init__(self):
        self.traces = 0

    def __call__(self, *args):
        self.traces += 1
        arrays = [x for x in jax.tree.leaves(args) if isinstance(x, jax.Array)]
        return sum(arrays, start=jnp.zeros(())) if arrays else jnp.zeros(())


def test_arrays_are_traced_once_per_shape():
    cache, fun = CompiledCache(), Counted()
    for value in (1.0, 2.0, 3.0):
        assert cache(fun, None, {"x": jnp.float32(value)}) == value
    assert fun.traces == 1
    cache(fun, None, {"x": jnp.ones(3)})
    assert fun.traces == 2
    cache(fun, None, {"y": jnp.float32(1)})
    assert fun.traces == 3


def describe(*args):
    """What is not an array reaches the function as it is."""
    return [jnp.float32(len(f"{type(leaf).__name__} {leaf!r}")) for leaf in jax.tree.leaves(args) if not is_array(leaf)]


def is_array(leaf):
    return isinstance(leaf, jax.Array | np.ndarray)


@pytest.mark.parametrize("leaf", [1, 1.0, True, "one", 1 + 0j, len])
def test_other_leaves_are_part_of_the_variant(leaf):
    """1, 1.0 and True are equal and hash alike, but are not the same argument."""
    cache, other = CompiledCache(), Counted()
    cache(other, None, 1 if leaf is True else True, jnp.ones(()))
    assert [float(x) for x in cache(describe, None, leaf, jnp.ones(()))] == [float(x) for x in describe(leaf)]


def test_positions_of_arrays_and_other_leaves_are_told_apart():
    cache = CompiledCache()

    def first(a, b):
        return jnp.float32(isinstance(a, jax.Array))

    assert cache(first, None, jnp.ones(()), 3) == 1
    assert cache(first, None, 3, jnp.ones(())) == 0
    assert cache(first, None, None, jnp.ones(())) == 0


def test_the_static_key_separates_functions():
    cache, one, two = CompiledCache(), Counted(), Counted()
    cache(one, "one", jnp.ones(()))
    cache(two, "two", jnp.ones(()))
    cache(two, "one", jnp.ones(()))
    assert (one.traces, two.traces) == (1, 1)


class Unhashable:
    __hash__ = None

    def __init__(self, factor):
        self.factor = factor


def test_what_cannot_be_hashed_is_right_though_compiled_every_time():
    cache = CompiledCache()

    def scaled(x, options):
        return x * options.factor

    assert [float(cache(scaled, None, jnp.float32(3), Unhashable(f))) for f in (2.0, 5.0)] == [6.0, 15.0]
    assert float(cache(scaled, Unhashable(0), jnp.float32(3), Unhashable(2.0))) == 6.0


def test_the_cache_forgets_what_was_used_longest_ago(monkeypatch):
    monkeypatch.setattr(compiled, "KEPT", 2)
    cache, fun = CompiledCache(), Counted()
    for static in ("a", "b", "a", "c", "a"):  # "b" makes room for "c"
        cache(fun, static, jnp.ones(()))
    assert fun.traces == 3
    cache(fun, "b", jnp.ones(()))
    assert fun.traces == 4


def test_under_an_outer_transformation():
    cache = CompiledCache()

    def square(x):
        return x**2

    assert cache(square, None, jnp.float32(3)) == 9
    np.testing.assert_array_equal(jax.vmap(lambda x: cache(square, None, x))(jnp.arange(3.0)), [0, 1, 4])
    assert jax.jit(jax.grad(lambda x: cache(square, None, x)))(3.0) == 6
