"""Narrow casts round the sum of a weight and its noise, as they round a dense weight."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from eggroll.engine.interpreter import DenseFallbackError
from tests.engine.truth import check, low_rank

F8 = jnp.float8_e4m3fn
X = jnp.asarray([[1.0, 0.5, -2.0, 0.25, 1.0, -0.5], [0.0, 1.0, 2.0, -1.0, 0.5, 4.0]])


def weight(scale=0.13, dtype=jnp.float32):
    """Of numbers that no narrow type holds."""
    return jax.tree.map(lambda a: (a.astype(jnp.float32) * scale).astype(dtype), low_rank(1, (6, 8), (0,), (1,), 2))


def wide(w):
    return w.astype(jnp.float32)


def walked(w, x):
    def step(c, row):
        return c + jnp.tanh(wide(row.astype(F8))), None

    return lax.scan(jax.checkpoint(step), jnp.zeros(8), w)[0] + x.sum()


def start(w, x):
    return jnp.zeros((len(x), 8)), w.astype(F8)


ROUNDED = {
    "float8": lambda w, x: x @ wide(w.astype(F8)),
    "5 bits of exponent": lambda w, x: x @ wide(w.astype(jnp.float8_e5m2)),
    "moved on the way": lambda w, x: x @ wide(w.T.astype(F8)[::-1].T),
    "vmap": lambda w, x: jax.vmap(lambda row: row @ wide(w.astype(F8)))(x),
    "inside a loop and remat": walked,
    "carried by a loop": lambda w, x: lax.fori_loop(0, 2, lambda _, c: (c[0] + x @ wide(c[1]), c[1]), start(w, x))[0],
    "a branch": lambda w, x: x @ wide(lax.cond(x[0, 0] > 0, lambda w: w.astype(F8), lambda w: (2 * w).astype(F8), w)),
    "custom_jvp": lambda w, x: x @ jax.nn.relu(wide(w.astype(F8))),
    "sum": lambda w, x: x @ wide(w.astype(F8) + jnp.ones((6, 8), F8)),
    "of the product": lambda w, x: wide(jnp.matmul(x, w, preferred_element_type=F8)),
}


@pytest.mark.parametrize("name", ROUNDED)
def test_a_cast_to_a_byte_takes_the_dense_weight(name):
    check(ROUNDED[name], weight(), X, fallback="allow", tolerance=1e-6)


def test_the_policy_speaks_of_it():
    with pytest.raises(DenseFallbackError, match=r"'w'.*`dot_general`.*float8_e4m3fn rounds the sum"):
        check(ROUNDED["float8"], weight(), X)


def test_a_parameter_of_a_byte_is_rounded_like_its_dense_form():
    check(lambda w, x: x @ wide(w), weight(0.25, F8), X, fallback="allow", tolerance=1e-6)


@pytest.mark.parametrize("dtype", [F8, jnp.bfloat16, jnp.float16])
def test_what_is_made_dense_anyway_is_rounded_once(dtype):
    """A lookup of a table that was cast, and a weight that is returned."""
    ids = jnp.array([[0, 3], [5, 5]])
    check(lambda w: w.astype(dtype)[ids], weight())
    check(lambda w: (w.astype(dtype), wide(w.T.astype(dtype)[:, 1])), weight(), fallback="allow")
