"""threefry2x32 against JAX's own, bit by bit."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.extend.random import threefry_2x32

from eggroll.kernels import threefry2x32
from eggroll.strategy.noise import keys as threefry

pytestmark = pytest.mark.optimised  # bits, as users get them

WORD = st.integers(0, 2**32 - 1)
CARDS = np.arange(9, dtype=np.uint32) * np.uint32(0x1D2C3B4A)


@given(key=st.tuples(WORD, WORD), count=st.tuples(WORD, WORD))
def test_any_block(key, count):
    key, count = (np.array(pair, np.uint32) for pair in (key, count))
    got = jax.jit(threefry2x32)(tuple(key), tuple(count))
    np.testing.assert_array_equal(jnp.stack(got), threefry_2x32(key, count))


def test_keys_and_counters_broadcast():
    first, second = threefry2x32((CARDS[:, None], CARDS[:, None] + 1), (np.uint32(0), CARDS))
    assert first.shape == second.shape == (9, 9)
    alone = threefry2x32((CARDS[3], CARDS[3] + np.uint32(1)), (np.uint32(0), CARDS[5]))
    assert (int(first[3, 5]), int(second[3, 5])) == tuple(map(int, alone))


@pytest.fixture(params=["written out", "primitive"])
def form(request, monkeypatch):
    """CPUs take the rounds written out, other devices JAX's primitive; both have to be `jax.random`."""
    if request.param == "primitive":
        monkeypatch.setattr(jax, "default_backend", lambda: "gpu")


def halves(keys):
    """`[2, ...]`: the first halves of keys `[...]`, and the second."""
    return jnp.moveaxis(jax.random.key_data(keys), -1, 0)


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("lengths", [(33,), (5, 5, 5), (1, 2, 2, 7)])
@pytest.mark.parametrize("jitted", [False, True])
def test_words_are_those_of_jax_random(lengths, jitted):
    wrap = jax.jit if jitted else lambda f: f
    keys = jax.random.split(jax.random.key(7, impl="threefry2x32"), (4, len(lengths)))
    columns = range(len(lengths))
    got = wrap(lambda k: threefry.words(k, columns, lengths))(halves(keys))
    backwards = threefry.words(halves(keys)[..., ::-1], columns[::-1], lengths)
    np.testing.assert_array_equal(backwards, got, err_msg="other columns")
    drawn = [jax.vmap(lambda k, n=n: jax.random.bits(k, (n,), "uint32"))(keys[:, i]) for i, n in enumerate(lengths)]
    np.testing.assert_array_equal(got, jnp.concatenate(drawn, axis=1))


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("jitted", [False, True])
def test_folds_are_those_of_jax_random(jitted):
    wrap = jax.jit if jitted else lambda f: f
    keys = jax.random.split(jax.random.key(7, impl="threefry2x32"), 5)
    folded = wrap(threefry.folded)(halves(keys), CARDS[:5])
    want = jax.vmap(jax.random.fold_in)(keys, CARDS[:5])
    np.testing.assert_array_equal(folded, halves(want))
    one = wrap(threefry.fold_in.__wrapped__)(keys[2], 123456789)  # not what the other form has compiled
    assert one == jax.random.fold_in(keys[2], 123456789) and one.dtype == keys.dtype


@pytest.mark.usefixtures("form")
def test_under_vmap_and_scan():
    keys = halves(jax.random.split(jax.random.key(3, impl="threefry2x32"), (4, 2)))

    def drawn(keys):
        return threefry.words(keys[:, None], (0, 1), (3, 7))[0]

    want = threefry.words(keys, (0, 1), (3, 7))
    np.testing.assert_array_equal(jax.vmap(drawn, in_axes=1)(keys), want)
    np.testing.assert_array_equal(jax.lax.map(drawn, jnp.moveaxis(keys, 1, 0)), want)
    one = keys[:, 0, 0]
    shared = jax.vmap(lambda c: threefry.folded(one, c), out_axes=1)(CARDS)
    np.testing.assert_array_equal(shared, threefry.folded(one, CARDS))
