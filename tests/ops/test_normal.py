"""The normal numbers: all 2¹⁶ of them against scipy, and the same bits in every program."""

from __future__ import annotations

import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from eggroll.ops.normal import standard_normal

pytestmark = pytest.mark.optimised  # bits, as users get them

BITS = jnp.arange(2**16, dtype="uint32")
ALL = np.asarray(standard_normal(BITS), np.float64)


def test_every_value_is_the_quantile_of_its_midpoint():
    midpoint = (2 * np.arange(2**15) + 1) / 2**16
    np.testing.assert_allclose(ALL[: 2**15], norm.ppf((1 + midpoint) / 2), rtol=4.5e-4)
    np.testing.assert_array_equal(ALL[2**15 :], -ALL[: 2**15])
    assert np.all(np.diff(ALL[: 2**15]) > 0)


def test_the_moments_are_exact_over_all_values():
    assert np.mean(ALL) == 0
    assert np.mean(ALL**2) == pytest.approx(1, abs=1e-6)
    assert np.mean(ALL**4) == pytest.approx(3, abs=2e-3)
    assert np.mean(ALL**6) == pytest.approx(15, abs=5e-2)


def test_the_distribution_function_is_the_normal_one():
    ordered = np.sort(ALL)
    empirical = (np.arange(2**16) + 0.5) / 2**16
    assert np.max(np.abs(norm.cdf(ordered) - empirical)) < 2e-4  # as far as 2.5 million samples could tell


def test_golden_values():
    # Of every platform and version: a seed means these numbers.
    assert zlib.crc32(ALL.astype("<f4").tobytes()) == 2764673799


def test_the_high_bits_are_ignored():
    np.testing.assert_array_equal(standard_normal(BITS | jnp.uint32(0xABCD0000)), ALL.astype(np.float32))


@pytest.mark.slow
def test_no_program_around_it_changes_a_bit():
    weights = jnp.linspace(0.1, 3.0, 2**16, dtype=jnp.float32)

    def fused(bits):  # products and sums on both sides invite every contraction
        noise = standard_normal(bits ^ jnp.uint32(0))
        return noise * weights + noise, jnp.sum(noise * noise), noise

    def rolled(bits):
        return jax.lax.scan(lambda _, row: (None, standard_normal(row)), None, bits)[1]

    expected = ALL.astype(np.float32)
    np.testing.assert_array_equal(jax.jit(fused)(BITS)[2], expected)
    np.testing.assert_array_equal(jax.jit(rolled)(BITS.reshape(256, 256)).reshape(-1), expected)
    for length in (1, 3, 13, 1000):  # vectorised loops and their remainders
        np.testing.assert_array_equal(standard_normal(BITS[7 : 7 + length]), expected[7 : 7 + length])
    with jax.disable_jit():
        np.testing.assert_array_equal(standard_normal(BITS[:999]), expected[:999])
