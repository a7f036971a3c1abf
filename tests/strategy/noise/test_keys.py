"""Keys: which are taken and which refused, and that a stream depends on the path and generation alone."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eggroll.strategy.noise.keys import as_threefry, generation_key

KEY = jax.random.key(0, impl="threefry2x32")


def words(key: jax.Array) -> list[int]:
    return jax.random.key_data(key).tolist()


@pytest.mark.parametrize("seed", [0, 3, 2**31 - 1])
def test_threefry_keys_keep_their_data(seed):
    typed = jax.random.key(seed, impl="threefry2x32")
    assert as_threefry(typed) is typed
    legacy = np.asarray(jax.random.key_data(typed))
    for raw in (legacy, jnp.asarray(legacy)):
        assert as_threefry(raw) == typed
        assert as_threefry(raw).dtype == typed.dtype


@pytest.mark.parametrize("impl", ["rbg", "unsafe_rbg"])
def test_other_generators_become_distinct_threefry_keys(impl):
    converted = [as_threefry(jax.random.key(seed, impl=impl)) for seed in range(20)]
    converted += [as_threefry(jax.random.split(jax.random.key(0, impl=impl), 5)[index]) for index in range(5)]
    assert all(key.dtype == KEY.dtype and key.shape == () for key in converted)
    assert len({tuple(words(key)) for key in converted}) == 25
    assert words(as_threefry(jax.random.key(4, impl=impl))) == words(converted[4])


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_as_threefry_under_jit_and_vmap(impl):
    keys = jax.vmap(lambda seed: jax.random.key(seed, impl=impl))(jnp.arange(4))
    expected = [words(as_threefry(key)) for key in keys]
    assert words(jax.vmap(as_threefry)(keys)) == expected
    assert [words(jax.jit(as_threefry)(key)) for key in keys] == expected
    legacy = jax.vmap(jax.random.PRNGKey)(jnp.arange(4))
    assert words(jax.vmap(as_threefry)(legacy)) == legacy.tolist()


def test_as_threefry_under_another_default_generator():
    expected = words(as_threefry(jax.random.key(3, impl="rbg")))
    with jax.default_prng_impl("rbg"):
        assert words(as_threefry(jax.random.key(3))) == expected
        assert words(as_threefry(jax.random.PRNGKey(3))) == expected


@pytest.mark.parametrize(
    ("key", "error", "text"),
    [
        (0, TypeError, "got int as a key"),
        (None, TypeError, "got NoneType as a key"),
        ("0", TypeError, "got str as a key"),
        (np.zeros(2, np.int32), TypeError, r"got int32 of shape \(2,\)"),
        (np.zeros(2, np.float32), TypeError, "got float32"),
        (np.zeros(4, np.uint32), ValueError, r"shape \(4,\)"),
        (np.zeros((3, 2), np.uint32), ValueError, r"shape \(3, 2\)"),
        (np.uint32(1), ValueError, r"shape \(\)"),
        (jax.random.split(KEY, 3), ValueError, r"array of keys of shape \(3,\)"),
    ],
)
def test_what_is_no_key_is_refused_with_a_remedy(key, error, text):
    with pytest.raises(error, match=rf"{text}.* required|{text}.* has shape") as raised:
        as_threefry(key)
    assert "jax.random.key(0)" in str(raised.value)


@given(generation=st.integers(0, 2**31 - 1), reuse=st.integers(1, 1000))
def test_generation_key_is_constant_over_the_reused_generations(generation, reuse):
    expected = words(jax.random.fold_in(KEY, generation // reuse))
    assert words(generation_key(KEY, generation, reuse)) == expected
    assert words(generation_key(KEY, jnp.int32(generation), reuse)) == expected


def test_generation_key_traced():
    got = jax.jit(jax.vmap(lambda generation: generation_key(KEY, generation, 3)))(jnp.arange(9, dtype=jnp.int32))
    assert words(got) == [words(generation_key(KEY, generation, 3)) for generation in range(9)]
    assert len({tuple(key) for key in words(got)}) == 3


@pytest.mark.parametrize("reuse", [0, -1, 1.5, True, None])
def test_noise_reuse_must_be_a_positive_integer(reuse):
    with pytest.raises(ValueError, match="noise_reuse"):
        generation_key(KEY, 0, reuse)


@pytest.mark.parametrize("generation", [1.0, np.float32(2), True])
def test_generation_must_be_an_integer(generation):
    with pytest.raises(TypeError, match="generation"):
        generation_key(KEY, generation, 1)
