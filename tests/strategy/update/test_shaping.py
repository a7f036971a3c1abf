"""Shaping against formulas in float64, with non-finite, constant, nearly constant and huge fitness."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata

from eggroll.strategy.update.shaping import SHAPINGS, shape_fitness, validate_shaping
from tests.quick import quickest

pytestmark = pytest.mark.optimised

NAMES = ["none", "zscore", "group", "centered_rank", "sign"]
SIZE, GROUPS = 12, 3


def truth(fitness, name, antithetic, groups=1):
    """Apply the documented formula member by member in float64."""
    fitness = np.asarray(fitness, np.float64)
    size = fitness.size
    valid = np.isfinite(fitness)
    if antithetic:
        valid = np.array([valid[i] and valid[i ^ 1] for i in range(size)])
    weights = np.zeros(size)
    good = np.flatnonzero(valid)
    if good.size and np.ptp(fitness[good]) > 0:
        weights[good] = [member_weight(fitness, good, i, name, antithetic, size // groups) for i in good]
        weights *= size / good.size
    return weights, valid


def member_weight(fitness, good, i, name, antithetic, group_size):
    f, values = fitness[i], fitness[good]
    if name == "none":
        return f - (values.mean() if antithetic else fitness[good[good != i]].mean())
    if name == "zscore":
        return (f - values.mean()) / values.std()
    if name == "group":
        return (f - fitness[good[good // group_size == i // group_size]].mean()) / values.std()
    if name == "centered_rank":
        return (rankdata(values)[np.searchsorted(good, i)] - 1) / (good.size - 1) - 0.5
    return np.sign(f - (fitness[i ^ 1] if antithetic else values.mean()))


@functools.cache
def jitted(name, antithetic, groups):
    return jax.jit(functools.partial(shape_fitness, shaping=name, antithetic=antithetic, groups=groups))


def check(fitness, name, antithetic, groups=1):
    fitness = np.asarray(fitness, np.float32)
    expected, expected_valid = truth(fitness, name, antithetic, groups)
    weights, valid = jitted(name, antithetic, groups)(fitness)
    assert weights.dtype == jnp.float32 and weights.shape == fitness.shape
    np.testing.assert_array_equal(valid, expected_valid)
    assert np.all(np.asarray(weights)[~expected_valid] == 0)
    atol = 1e-5 * max(np.abs(expected).max(), 1e-35)
    np.testing.assert_allclose(np.asarray(weights, np.float64), expected, rtol=1e-5, atol=atol)


# Values that tie or lie far apart, and those that are no fitness.
plain = st.floats(-1e4, 1e4, width=32, allow_subnormal=False).filter(lambda x: x == 0 or abs(x) > 1e-20)
ties = st.sampled_from([0.0, -0.0, 0.1, 0.3, -7.0])
broken = st.sampled_from([np.nan, np.inf, -np.inf])


def populations(*values):
    return st.lists(st.one_of(*values), min_size=SIZE, max_size=SIZE)


@pytest.mark.parametrize("antithetic", [True, False])
@pytest.mark.parametrize("name", ["none", "zscore", "group", "centered_rank"])
@given(whole=populations(plain, ties), fitness=populations(plain, ties, broken))
def test_formula(name, antithetic, whole, fitness):
    """Of finite fitness, and where some members have none."""
    check(whole, name, antithetic, GROUPS)
    check(fitness, name, antithetic, GROUPS)


@given(fitness=populations(plain, ties, broken))
def test_sign_of_pairs(fitness):
    check(fitness, "sign", antithetic=True)


@given(fitness=populations(st.sampled_from([-3.0, 1.0, 2.0, 9.0]), broken), odd=st.sampled_from([100.25, -50.5]))
def test_sign_without_pairs(fitness, odd):
    check([odd, *fitness[1:]], "sign", antithetic=False)


@pytest.mark.parametrize("name", ["zscore", "group", "centered_rank"])
@given(fitness=populations(st.floats(width=32, allow_nan=False, allow_subnormal=False)))
def test_scale_free_shapings_bear_the_whole_range_of_float32(name, fitness):
    fitness = np.where(np.abs(fitness) < 1e-28, 0, fitness)  # float32 differences of smaller values underflow
    check(fitness, name, False, GROUPS)


@given(ulps=st.lists(st.integers(0, 3), min_size=SIZE, max_size=SIZE), base=st.sampled_from([0.1, 1.0, -1e6, 3e-5]))
def test_differences_of_a_few_ulp_are_not_drowned_by_the_mean(ulps, base):
    base = np.float32(base)
    fitness = base + np.asarray(ulps, np.float32) * np.spacing(base)
    for name in ("none", "zscore", "group"):
        check(fitness, name, False, GROUPS)


@pytest.mark.parametrize("antithetic", [True, False])
@pytest.mark.parametrize("name", [*NAMES, jnp.cos])
@pytest.mark.parametrize("size", quickest([2, 1000], 1000))
def test_constant_fitness_gives_exact_zero(name, antithetic, size):
    groups = 2 if size % 4 == 0 else 1
    shape = jitted(name, antithetic, groups)
    for value in (0.1, -1 / 3, 0.0, 1e-30, 3.4e38, 16777217.0, 7):
        fitness = np.full(size, value, np.float32)
        with_gap = np.where(np.arange(size) == 1, np.nan, fitness)
        weights, valid = shape(fitness)
        assert np.all(np.asarray(weights) == 0) and np.all(valid)
        weights, valid = shape(with_gap)
        assert np.all(np.asarray(weights) == 0) and int(valid.sum()) == size - (2 if antithetic else 1)


def test_constant_group_beside_a_varying_one_is_exactly_zero():
    fitness = jnp.concatenate([jnp.full(101, 0.1), jnp.arange(101.0)])
    weights, _ = jitted("group", False, 2)(fitness)
    assert np.all(np.asarray(weights[:101]) == 0) and np.all(np.abs(weights[101:151]) > 0)


@pytest.mark.parametrize("antithetic", [True, False])
@pytest.mark.parametrize("name", [*NAMES, jnp.cos])
def test_nothing_finite_gives_zero(name, antithetic):
    weights, valid = shape_fitness([np.nan, np.inf] * 3, shaping=name, antithetic=antithetic)
    assert weights.tolist() == [0.0] * 6 and valid.tolist() == [False] * 6


@pytest.mark.parametrize("name", ["none", "zscore", "centered_rank", "sign"])
def test_one_valid_member_has_nothing_to_be_compared_with(name):
    weights, valid = shape_fitness([np.nan, 5.0, np.inf], shaping=name, antithetic=False)
    assert weights.tolist() == [0.0] * 3 and valid.tolist() == [False, True, False]


@pytest.mark.parametrize("name", NAMES)
def test_a_lost_pair_leaves_the_estimate_of_the_rest(name):
    # With the factor N/n_valid, (1/N)·Σ over all equals (1/n)·Σ over the valid ones alone.
    rest = np.float32([1, 4, 2, -3, 0.5, 0.25])
    alone, _ = jitted(name, True, 1)(rest)
    fitness = np.insert(rest, 2, [np.nan, 1e9])
    weights, valid = jitted(name, True, 1)(fitness)
    np.testing.assert_allclose(np.asarray(weights)[valid] / 8, alone / 6, rtol=1e-6)


def test_weights_without_pairs_are_leave_one_out_differences():
    fitness = np.float32([1, 2, 4, 9])
    weights, _ = shape_fitness(fitness, shaping="none", antithetic=False)
    np.testing.assert_allclose(weights, [1 - 5, 2 - 14 / 3, 4 - 4, 9 - 7 / 3], rtol=1e-6)


def test_only_group_shaping_looks_at_groups():
    fitness = np.float32([1, 2, 30, 50])
    for name in ("none", "zscore", "centered_rank", "sign"):
        np.testing.assert_array_equal(jitted(name, False, 1)(fitness)[0], jitted(name, False, 2)(fitness)[0])
    weights, _ = jitted("group", False, 2)(fitness)
    np.testing.assert_allclose(weights, np.array([-0.5, 0.5, -10, 10]) / fitness.std(), rtol=1e-6)


@pytest.mark.parametrize("name", quickest([*NAMES, jnp.tanh], "none", "group", "centered_rank"))
def test_jit_and_vmap_agree_with_eager(name):
    fitness = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)
    fitness[1, 3] = np.nan
    shape = functools.partial(shape_fitness, shaping=name, antithetic=True, groups=2)
    eager = [shape(row) for row in fitness]
    for got in ([jax.jit(shape)(row) for row in fitness], list(zip(*jax.vmap(shape)(fitness), strict=True))):
        for (weights, valid), (expected, expected_valid) in zip(got, eager, strict=True):
            np.testing.assert_allclose(weights, expected, rtol=1e-6, atol=1e-7)
            np.testing.assert_array_equal(valid, expected_valid)


# ---- a callable


def test_callable_sees_the_mean_of_the_valid_members_and_is_masked_and_rescaled():
    seen = []

    def shaping(fitness):
        seen.append(np.asarray(fitness))
        return 10 * fitness

    weights, valid = shape_fitness([1.0, np.nan, 2.0, 6.0], shaping=shaping, antithetic=False)
    np.testing.assert_allclose(seen[0], [1, 3, 2, 6], rtol=1e-6)
    np.testing.assert_allclose(weights, np.array([10, 0, 20, 60]) * 4 / 3, rtol=1e-6)
    assert valid.tolist() == [True, False, True, True]
    # The fill of a constant is that constant: with a difference to the fill, every weight is exactly 0.
    from_fill = jax.jit(lambda f: shape_fitness(f, shaping=lambda f: f - f[1], antithetic=False)[0])
    for value in (0.1, 41.0, 47.0, 55.0, 61.0, -83.0):
        assert np.all(np.asarray(from_fill(np.float32([value, np.nan] + [value] * 98))) == 0)


def test_callable_may_return_numpy():
    weights, _ = shape_fitness([1.0, 2.0], shaping=lambda f: np.asarray(f, np.float64) ** 2, antithetic=True)
    assert isinstance(weights, jax.Array) and weights.dtype == jnp.float32 and weights.tolist() == [1.0, 4.0]


@pytest.mark.parametrize(
    ("shaping", "error", "text"),
    [
        (lambda f: f[:1], ValueError, r"returned shape \(1,\) for fitness of shape \(2,\)"),
        (lambda f: f[None], ValueError, r"returned shape \(1, 2\)"),
        (lambda f: f.sum(), ValueError, r"returned shape \(\)"),
        (lambda f: f > 0, TypeError, "returned bool"),
        (lambda f: f.astype("int32"), TypeError, "returned int32"),
        (lambda f: None, TypeError, "returned NoneType"),
        (lambda f: list(f), TypeError, "returned list"),
    ],
)
def test_callable_with_a_wrong_result(shaping, error, text):
    with pytest.raises(error, match=text):
        shape_fitness([1.0, 2.0], shaping=shaping, antithetic=False)


# ---- dtypes and host values


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint32", "int64", "bfloat16", "float32", "float64"])
def test_fitness_of_any_real_dtype_gives_float32(dtype):
    values = np.array([1, 0, 0, 1]).astype(jnp.dtype(dtype))
    for fitness in (values, jnp.asarray(values)):
        weights, _ = shape_fitness(fitness, shaping="zscore", antithetic=True)
        assert weights.dtype == jnp.float32 and weights.tolist() == [1.0, -1.0, -1.0, 1.0]


def test_host_values_beyond_float32():
    big_integers = np.array([2**40, 2**40 + 2**20], np.int64)  # jnp.asarray would wrap them around to 32 bits
    weights, _ = shape_fitness(big_integers, shaping="none", antithetic=True)
    assert weights.tolist() == [-(2.0**19), 2.0**19]
    _, valid = shape_fitness([1.0, 2.0, 1e300, 0.0], shaping="none", antithetic=True)
    assert valid.tolist() == [True, True, False, False]


def test_float64_fitness_gives_float64_weights():
    fitness = np.array([1.0, 1.0 + 1e-12, 3.0, np.nan, 2.0, 5.0])
    with jax.enable_x64(True):
        for name, antithetic in itertools.product(NAMES, (True, False)):
            weights, valid = jitted(name, antithetic, 1)(fitness)
            expected, expected_valid = truth(fitness, name, antithetic)
            assert weights.dtype == jnp.float64
            np.testing.assert_allclose(weights, expected, rtol=1e-13, atol=1e-15)
            np.testing.assert_array_equal(valid, expected_valid)
        assert jitted("none", True, 1)(fitness.astype(np.float32))[0].dtype == jnp.float32


# ---- bad arguments


@pytest.mark.parametrize(
    ("fitness", "options", "error", "text"),
    [
        (np.ones(4, np.complex64), {}, TypeError, "dtype complex64"),
        (["a", "b"], {}, TypeError, "real numbers are required"),
        ([None, None], {}, TypeError, "dtype object"),
        (1.0, {}, ValueError, r"shape \(\); shape \[population\]"),
        (np.ones((4, 2)), {}, ValueError, r"shape \(4, 2\)"),
        ([], {}, ValueError, r"shape \(0,\)"),
        (np.ones(5), {}, ValueError, "5 members; antithetic pairs need an even number"),
        (np.ones(4), {"groups": 3}, ValueError, "groups=3 for 4 members"),
        (np.ones(4), {"groups": 0}, ValueError, "groups=0"),
        (np.ones(4), {"groups": 2.0}, ValueError, r"groups=2\.0"),
        (np.ones(6), {"groups": 2, "shaping": "group"}, ValueError, "3 in each.*even number"),
        (np.ones(2), {"groups": 2, "shaping": "group", "antithetic": False}, ValueError, "at least 2"),
    ],
)
def test_bad_fitness_or_layout(fitness, options, error, text):
    with pytest.raises(error, match=text):
        shape_fitness(fitness, **{"shaping": "none", "antithetic": True, **options})


@pytest.mark.parametrize("name", ["rank", "", None, 3, ["none"]])
def test_unknown_shaping_lists_the_names(name):
    with pytest.raises(ValueError, match="'none', 'zscore', 'group', 'centered_rank', 'sign'"):
        validate_shaping(name)
    with pytest.raises(ValueError, match="'none', 'zscore', 'group', 'centered_rank', 'sign'"):
        shape_fitness([1.0], shaping=name, antithetic=False)


def test_the_names():
    assert list(SHAPINGS) == NAMES
    for name in NAMES:
        validate_shaping(name)
    validate_shaping(jnp.tanh)
