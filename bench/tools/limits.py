"""What the device can do at most: matrix products, elementwise operations, and moving memory; measured, not read up."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from bench.tools.timing import Timing

HIGHEST = "float32 highest"  # products that keep all of float32; elsewhere a device may round the operands
VECTOR = "elementwise"
CHAINS, LINKS = 4, 32  # of the elementwise probe
MIXED_OPERATIONS = CHAINS * (1 + 5 * LINKS) + CHAINS - 1  # for each element

Rates = Mapping[str, float]


@dataclass(frozen=True)
class Probe:
    """A call that reaches a limit as well as we can.

    Attributes:
        call: without arguments.
        rate: name of the rate that it measures.
        work: FLOP, operations or bytes of one call.
    """

    call: Callable[[], Any]
    rate: str
    work: float


@dataclass(frozen=True)
class Limits:
    """The best rates that were seen.

    Attributes:
        rates: per second: FLOP of matrix products by dtype, and elementwise 32-bit operations under `VECTOR`.
        copies: bytes of an array → bytes read and written per second while it is negated in place.
    """

    rates: Rates
    copies: Mapping[int, float]

    def bandwidth(self, size: float) -> float:
        """Bytes a second for something that moves `size` bytes: the best of all copies of at least that size.

        What fits a cache may move faster than memory allows; what is larger than the largest copy counts as that one.
        """
        large_enough = [rate for copied, rate in self.copies.items() if copied >= size]
        return max(large_enough, default=self.copies[max(self.copies)])


def probes(dtype: str, matmul_sizes: Sequence[int], copy_megabytes: Sequence[float]) -> dict[str, Probe]:
    """The probes of all limits, by name."""
    found = {}
    for name in dict.fromkeys((dtype, "float32", HIGHEST)):  # the MLP is float32 whatever the layer is
        for size in matmul_sizes:
            for rows in (size, 4 * size):
                found[f"matmul {name} {rows}x{size}x{size}"] = _matmul(name, rows, size)
    for megabytes in copy_megabytes:
        found[f"copy {megabytes:g} MB"] = _copy(int(megabytes * 2**20))
    found[VECTOR] = _vector(1 << 18 if jax.default_backend() == "cpu" else 1 << 26)  # in cache; enough for all cores
    return found


def limits(found: Mapping[str, Probe], timings: Mapping[str, Timing]) -> Limits:
    """The best rate of each kind; the fastest round counts, as nothing may be faster than a limit."""
    rates: dict[str, float] = {}
    copies: dict[int, float] = {}
    for name, probe in found.items():
        rate = probe.work / min(timings[name].seconds)
        if probe.rate == "copy":
            copies[int(probe.work / 2)] = rate
        else:
            rates[probe.rate] = max(rate, rates.get(probe.rate, 0.0))
    return Limits(rates, copies)


def _matmul(name: str, rows: int, size: int) -> Probe:
    dtype, precision = ("float32", lax.Precision.HIGHEST) if name == HIGHEST else (name, None)
    left, right = (jax.random.normal(jax.random.key(0), (n, size), dtype) for n in (rows, size))
    multiply = jax.jit(lambda a, b: jnp.matmul(a, b, precision=precision))
    return Probe(lambda: multiply(left, right), name, 2.0 * rows * size * size)


def _copy(size: int) -> Probe:
    """Negates in place: every byte is read and written, and no fresh pages have to be mapped."""
    negate = jax.jit(jnp.negative, donate_argnums=0)
    held = [jnp.ones(size // 4, jnp.float32)]

    def call() -> jax.Array:
        held[0] = negate(held[0])
        return held[0]

    return Probe(call, "copy", 2.0 * held[0].nbytes)


def _vector(size: int) -> Probe:
    mix = jax.jit(mixed)
    x = jnp.arange(size, dtype=jnp.uint32)
    return Probe(lambda: mix(x), VECTOR, float(size * MIXED_OPERATIONS))


def mixed(x: jax.Array) -> jax.Array:
    """Chains of what random bits are made of, add, rotate and xor, several at once so that none waits for itself."""
    chains = [x + jnp.uint32(i) for i in range(1, CHAINS + 1)]
    for _ in range(LINKS):
        chains = [_link(chain) for chain in chains]
    total = chains[0]
    for chain in chains[1:]:
        total = total ^ chain
    return total


def _link(x: jax.Array) -> jax.Array:
    """One addition, one rotation, which counts as two shifts and an or, and one xor."""
    y = x + jnp.uint32(0x9E3779B9)
    return ((y << jnp.uint32(13)) | (y >> jnp.uint32(19))) ^ x
