"""`unpack_flat` against `unpack`."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import pytest

from eggroll.kernels import unpack, unpack_flat, words_for

pytestmark = pytest.mark.optimised  # bits, as users get them

SIZE = 65  # neither words nor vectors are full


@pytest.mark.parametrize(("distribution", "dtype"), [("normal", jnp.bfloat16), ("rademacher", jnp.float32)])
def test_same_numbers_in_the_same_order(distribution: str, dtype: jnp.dtype) -> None:
    """To the last bit."""
    words = jax.random.bits(jax.random.key(1), (words_for(SIZE, distribution),), "uint32")
    flat = partial(unpack_flat, size=SIZE, distribution=distribution, dtype=dtype)
    reference = partial(unpack, shape=(SIZE,), distribution=distribution, dtype=dtype)
    got, want = jax.jit(lambda words: (flat(words), reference(words)))(words)
    assert got.shape == (SIZE,)
    assert (got == want).all()
