"""Noise: exact against numpy, golden values, moments within bounds, equal however evaluated."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy.special import erfinv

from eggroll.engine.paths import path_hash
from eggroll.ops.noise import DISTRIBUTIONS, check_distribution, unpack, words_for
from eggroll.strategy.noise.keys import as_threefry, generation_key
from eggroll.strategy.noise.streams import LONG, Stream, Streams
from tests.quick import quickest
from tests.strategy.single_stream import dense_noise, draw, key_of, low_rank_factors, stream

pytestmark = pytest.mark.optimised
KEY = jax.random.key(0, impl="threefry2x32")
LEAF = key_of(KEY, "dense/kernel")
Z_BOUND = 5.0  # standard deviations, left with probability 6e-7: over some dozen statistics, by one seed in 50,000


def words(key: jax.Array) -> list[int]:
    return jax.random.key_data(key).tolist()


def numpy_rademacher(key: jax.Array, shape: tuple[int, ...]) -> np.ndarray:
    size = int(np.prod(shape))
    raw = np.asarray(jax.random.bits(key, ((size + 31) // 32,), "uint32"))
    bits = np.unpackbits(raw.astype("<u4").view(np.uint8), bitorder="little")[:size]
    return (1 - 2 * bits.astype(np.int64)).reshape(shape)


def numpy_normal(key: jax.Array, shape: tuple[int, ...]) -> np.ndarray:
    """The quantiles that the 16-bit halves of the words number, in float64."""
    size = int(np.prod(shape))
    raw = np.asarray(jax.random.bits(key, ((size + 1) // 2,), "uint32"))
    halves = raw.astype("<u4").view("<u2")[:size].astype(np.int64).reshape(shape)
    magnitude = np.sqrt(2.0) * erfinv((2 * (halves & 0x7FFF) + 1) / 2**16)
    return np.where(halves & 0x8000, -magnitude, magnitude)


SHAPES = [(), (1,), (31,), (32,), (33,), (5, 7), (2, 3, 11), (64, 2), (0,), (4, 0, 2)]
DTYPES = ["float32", "bfloat16", "float16", "int8"] * 3  # in turn


@pytest.mark.parametrize(("shape", "dtype"), list(zip(SHAPES, DTYPES, strict=False)))
def test_rademacher_is_the_unpacked_bits(shape, dtype):
    got = draw(KEY, shape, "rademacher", dtype)
    assert got.shape == shape and got.dtype == jnp.dtype(dtype)
    np.testing.assert_array_equal(np.asarray(got, np.int64), numpy_rademacher(KEY, shape))


@pytest.mark.parametrize("shape", [(), (33,), (64, 2), (4, 0, 2)])
def test_normal_inverts_the_distribution_function_of_the_bits(shape):
    got = draw(KEY, shape, "normal", "float32")
    assert got.shape == shape and got.dtype == jnp.float32
    np.testing.assert_allclose(np.asarray(got, np.float64), numpy_normal(KEY, shape), rtol=4.5e-4)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_normal_of_half_precision_is_the_rounded_float32_draw(dtype):
    exact = np.asarray(draw(KEY, (1000,), "normal", "float32"))
    exact = exact[np.abs(exact) > jnp.finfo(jnp.float16).smallest_normal]
    got = np.asarray(draw(KEY, (1000,), "normal", dtype))
    got = got[np.abs(got) > jnp.finfo(jnp.float16).smallest_normal]
    np.testing.assert_array_equal(got, exact.astype(jnp.dtype(dtype)))


def test_half_precision_noise_widened_in_a_fusion_is_still_rounded():
    widened = jax.jit(lambda key: draw(key, (1000,), "normal", "bfloat16").astype(jnp.float32))
    np.testing.assert_array_equal(widened(KEY), draw(KEY, (1000,), "normal", "bfloat16").astype(jnp.float32))
    assert "reduce_precision" in str(jax.make_jaxpr(widened)(KEY))  # not every compiler skips the conversions


def test_golden_stream():
    # Seeds in papers and checkpoints mean these numbers. A change here is a breaking change.
    assert path_hash("") == 634351890
    assert path_hash("dense/kernel") == 1344830336
    assert path_hash("layers/0/attention/query/kernel") == 3692036547
    assert path_hash("π") == 1846254727
    assert words(generation_key(jax.random.key(7, impl="threefry2x32"), 5, 2)) == [966301609, 1948237315]
    assert words(LEAF) == [3568500022, 920625260]
    assert words(as_threefry(jax.random.key(3, impl="rbg"))) == [593076697, 190555793]
    left, right = low_rank_factors(LEAF, 3, (4,), (5,), 2, "rademacher", "int8")
    assert signs(left) == "-+-++---"
    assert signs(right) == "++-++-++-+"
    assert signs(dense_noise(LEAF, 3, (40,), "rademacher", "int8")) == "+-+-++-+--+++-++++--+++----+-+++-+-++++-"
    normal = dense_noise(LEAF, 3, (4,), "normal", "float32")
    assert [float(x).hex() for x in normal] == [
        "0x1.693b820000000p-2",
        "0x1.dc952a0000000p-3",
        "0x1.0ff8600000000p-3",
        "0x1.6670860000000p-5",
    ]


def signs(noise: jax.Array) -> str:
    return "".join("-" if value < 0 else "+" for value in np.asarray(noise).ravel())


# ---- equal however it is evaluated


def member_noise(pair, distribution, dtype="float32"):
    left, right = low_rank_factors(LEAF, pair, (5, 3), (7,), 3, distribution, dtype)
    return left, right, dense_noise(LEAF, pair, (37,), distribution, dtype)


@pytest.mark.first(1)
@pytest.mark.parametrize(("distribution", "dtype"), [("rademacher", "float32"), ("normal", "bfloat16")])
def test_bits_are_equal_eager_jitted_vmapped_mapped_and_chunked(distribution, dtype):
    pairs = jnp.arange(7)

    def one(pair):
        return member_noise(pair, distribution, dtype)

    eager = [one(pair) for pair in range(7)]
    expected = [np.stack(parts) for parts in zip(*eager, strict=True)]
    chunks = [jax.jit(jax.vmap(one))(pairs[start : start + 3]) for start in (0, 3, 6)]
    jitted = [jax.jit(one)(pair) for pair in pairs]
    ways = {
        "jit": [np.stack(parts) for parts in zip(*jitted, strict=True)],
        "vmap": jax.vmap(one)(pairs),
        "vmap of jit": jax.vmap(jax.jit(one))(pairs),
        "scan": jax.jit(lambda pairs: jax.lax.map(one, pairs))(pairs),
        "chunks": [np.concatenate(parts) for parts in zip(*chunks, strict=True)],
        "other integer dtype": jax.vmap(one)(pairs.astype(jnp.uint32)),
    }
    for way, got in ways.items():
        for part, truth in zip(got, expected, strict=True):
            np.testing.assert_array_equal(np.asarray(part), truth, err_msg=way)


@pytest.mark.parametrize("distribution", quickest(DISTRIBUTIONS, "normal"))
def test_a_user_who_turns_partitionable_threefry_off_gets_the_same_noise(distribution):
    def one(pair):
        return dense_noise(LEAF, pair, (45,), distribution, "float32")

    pairs = jnp.arange(3)
    expected = jax.vmap(one)(pairs)
    with jax.threefry_partitionable(False):
        assert not np.array_equal(jax.random.bits(KEY, (45,)), jax.random.bits(KEY, (46,))[:45])  # it matters
        np.testing.assert_array_equal(jax.jit(jax.vmap(one))(pairs), expected)
        np.testing.assert_array_equal(np.stack([one(pair) for pair in range(3)]), expected)


@pytest.mark.parametrize("distribution", quickest(DISTRIBUTIONS, "normal"))
@given(size=st.sampled_from([1, 2, 31, 32, 33, 64, 99]), seed=st.integers(0, 2**31 - 1))
def test_an_element_does_not_depend_on_the_size_of_the_draw(distribution, size, seed):
    key = jax.random.key(seed, impl="threefry2x32")
    short, long = (draw(key, (length,), distribution, "float32") for length in (size, 100))
    np.testing.assert_array_equal(short, long[:size])


def test_factors_have_the_asked_shapes_and_streams():
    left, right = low_rank_factors(LEAF, 0, (4, 6), (4, 6), 2, "normal", "bfloat16")
    dense = dense_noise(LEAF, 0, (4, 6, 2), "normal", "bfloat16")
    assert left.shape == right.shape == (4, 6, 2)
    assert left.dtype == right.dtype == dense.dtype == jnp.bfloat16
    for a, b in ((left, right), (left, dense), (right, dense)):
        assert not np.array_equal(a, b)
    scalar, vector = low_rank_factors(LEAF, 0, (), (3,), 1, "rademacher", "float32")
    assert scalar.shape == (1,) and vector.shape == (3, 1)


# ---- moments


def check_mean(samples: np.ndarray, mean: float, variance: float) -> None:
    bound = Z_BOUND * np.sqrt(variance / samples.size)
    assert abs(samples.mean(dtype=np.float64) - mean) <= bound


# The variances of x, x², x⁴ are E[x²], E[x⁴] − 1, E[x⁸] − 9: for the normal E[x⁴] = 3 and E[x⁸] = 105.
@pytest.mark.parametrize(("distribution", "moments"), [("rademacher", {}), ("normal", {2: (1, 2), 4: (3, 96)})])
def test_moments(distribution, moments):
    samples = np.asarray(draw(KEY, (400_000,), distribution, "float32"), np.float64)
    check_mean(samples, 0.0, 1.0)
    for power, (mean, variance) in moments.items():
        check_mean(samples**power, mean, variance)
    if distribution == "rademacher":
        assert set(np.unique(samples)) == {-1.0, 1.0}


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_left_right_pairs_paths_and_columns_are_uncorrelated(distribution):
    size = 20_000

    def both(key, pair):
        return [np.asarray(x) for x in low_rank_factors(key, pair, (size,), (size,), 2, distribution, "float32")]

    left, right = both(LEAF, 0)
    other_left, other_right = both(LEAF, 1)
    path_left, path_right = both(key_of(KEY, "dense/bias"), 0)
    next_left, _ = both(key_of(generation_key(KEY, 1), "dense/kernel"), 0)
    dense = np.asarray(dense_noise(LEAF, 0, (size, 2), distribution, "float32"))
    # A product of independent entries of unit variance has mean 0 and variance 1.
    for a, b in [
        (left, right),
        (left, dense),
        (right, dense),
        (left, other_left),
        (right, other_right),
        (left, other_right),
        (left, path_left),
        (right, path_right),
        (left, next_left),
        (left[:, 0], left[:, 1]),
        (left[:-1], left[1:]),
        (left[:-32], left[32:]),
    ]:
        check_mean(a * b, 0.0, 1.0)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_perturbation_has_unit_variance_over_pairs(distribution):
    pairs, rank = 4000, 4

    def one(pair):
        left, right = low_rank_factors(LEAF, pair, (2,), (2,), rank, distribution, "float32")
        return left @ right.T / np.float32(np.sqrt(rank))

    noise = np.asarray(jax.vmap(one)(jnp.arange(pairs)), np.float64)
    # E[e⁴] of e = Σₖ aₖbₖ/√r is 3 + (E[a⁴]² − 3)/r, and var(e²) = E[e⁴] − 1.
    kurtosis = {"rademacher": 1.0, "normal": 3.0}[distribution]
    fourth = 3 + (kurtosis**2 - 3) / rank
    entry = noise[:, 0, 1]
    check_mean(entry, 0.0, 1.0)
    check_mean(entry**2, 1.0, fourth - 1)
    check_mean(noise[:, 0, 1] * noise[:, 1, 0], 0.0, 1.0)


# ---- bad arguments


@pytest.mark.parametrize("name", ["gaussian", "", None, 1, ["normal"]])
def test_unknown_distribution_names_the_known_ones(name):
    for call in (lambda: check_distribution(name), lambda: draw(KEY, (2,), name, "float32")):
        with pytest.raises(ValueError, match=r"'rademacher', 'normal'"):
            call()


@pytest.mark.parametrize(
    ("distribution", "dtype"),
    [("normal", "int8"), ("normal", "complex64"), ("rademacher", "uint8"), ("rademacher", "bool")],
)
def test_dtype_that_cannot_hold_the_noise(distribution, dtype):
    with pytest.raises(TypeError, match=f"{dtype} for {distribution}"):
        draw(KEY, (2,), distribution, dtype)


# ---- the words of all streams at once


@given(
    words=st.lists(st.sampled_from([0, 1, 2, 2, 5, 33]), min_size=1, max_size=6),
    seed=st.integers(0, 2**31 - 1),
    first=st.integers(0, 2**31 - 5),
)
@example(words=[LONG + 1, 3, LONG, LONG + 1, 5], seed=3, first=7)
def test_words_of_many_streams_are_those_of_jax_random(words, seed, first):
    streams = Streams(tuple(Stream(1000 * i, i % 3, n) for i, n in enumerate(words)))
    key = jax.random.key(seed, impl="threefry2x32")
    got = np.asarray(streams.draw(key, first + jnp.arange(3)))
    assert got.shape == (3, streams.words) == (3, sum(words))
    for i, n in enumerate(words):
        leaf = jax.random.fold_in(key, np.uint32(1000 * i))
        for unit in range(3):
            own = stream(leaf, i % 3, first + unit)
            with jax.threefry_partitionable(True):
                np.testing.assert_array_equal(got[unit, streams.place(i)], jax.random.bits(own, (n,), "uint32"))


@pytest.mark.parametrize("handed_on", [False, True])
def test_matrices_of_a_stack_have_keys_of_their_own(handed_on):
    listed = (Stream(5, 0, 3), Stream(7, 1, 2, handed_on, 4), Stream(9, 0, 2), Stream(11, 1, 2, handed_on, 1))
    streams = Streams(listed)
    got = np.asarray(streams.draw(KEY, jnp.arange(2)))
    assert got.shape == (2, 3 + 8 + 2 + 2) == (2, streams.words)
    for i, each in enumerate(listed):
        for unit in range(2):
            key = stream(jax.random.fold_in(KEY, np.uint32(each.path)), each.side, unit)
            keys = [key] if each.stack is None else [jax.random.fold_in(key, m) for m in range(each.stack)]
            with jax.threefry_partitionable(True):
                drawn = [jax.random.key_data(k) if each.key else jax.random.bits(k, (each.words,)) for k in keys]
            np.testing.assert_array_equal(got[unit, streams.place(i)], np.concatenate(drawn))


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("shape", [(3, 5), (), pytest.param((33,), marks=pytest.mark.slow), (0, 2)])
def test_members_last_is_members_first_transposed(distribution, shape):
    raw = jax.random.bits(KEY, (4, words_for(int(np.prod(shape)), distribution)), "uint32")
    first = unpack(raw, shape, distribution, "float32")
    last = unpack(raw.T, shape, distribution, "float32", members_last=True)
    assert first.shape == (4, *shape)
    np.testing.assert_array_equal(np.moveaxis(np.asarray(last), -1, 0), first)
