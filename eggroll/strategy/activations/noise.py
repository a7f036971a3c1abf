"""Noise at sites, as members see it and as it is summed up for the update.

Element `e` of a site's noise is made of word `⌊e·bits/32⌋` of a stream that the generation's key, the site's number,
the unit and the turns of the loops around name: the same whatever the chunk and the mesh, made twice and never stored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from eggroll.engine.annotations import Index, Scalar
from eggroll.engine.lowrank import accumulator_dtype
from eggroll.ops import unpack, words_for
from eggroll.strategy.activations.walk import Frame, Linear, Planned, Where, transposed
from eggroll.strategy.noise.keys import folded, words
from eggroll.strategy.plan.sites import Site

ACTIVATION = 3  # a side, beside those of `eggroll.strategy.noise.streams`; part of what a seed means
BLOCK = 1 << 20  # numbers of noise that are summed at once: what memory they take grows with the population up to it


@dataclass(frozen=True)
class Streams:
    """Where the random words of every site come from.

    Attributes:
        key: typed threefry key of the generation.
        numbers: of each site.
        distribution: of the noise.
    """

    key: jax.Array
    numbers: Mapping[Where, int]
    distribution: str

    @classmethod
    def of(cls, key: jax.Array, sites: Sequence[Site], distribution: str) -> Streams:
        """Those of the sites of a plan, numbered in their order."""
        return cls(key, {site.where: i for i, site in enumerate(sites)}, distribution)

    def keys(self, made: Linear, frame: Frame, units: jax.Array) -> jax.Array:
        """`[2, U]`, of the units `[U]` at one turn of the loops around."""
        number = np.uint32(self.numbers[made.where])
        own = folded(folded(jax.random.key_data(self.key), number), np.uint32(ACTIVATION))
        own = folded(own[:, None], units.astype(jnp.uint32))
        for turn, _ in frame.loops:
            own = folded(own, jnp.asarray(turn).astype(jnp.uint32))
        return own

    def draw(self, keys: jax.Array, like: Any) -> jax.Array:
        """Noise `[U, *shape]` of keys `[2, U]`, in float32 or wider."""
        count = words_for(math.prod(like.shape), self.distribution)
        if not count:
            return jnp.zeros((keys.shape[1], *like.shape), accumulator_dtype(like.dtype))
        drawn = words(keys[:, :, None], np.zeros(1, int), [count])
        return unpack(drawn, like.shape, self.distribution, accumulator_dtype(like.dtype))


@dataclass(frozen=True)
class Seen(Planned):
    """What one member sees: every site with noise on it.

    Attributes:
        streams: of the noise.
        unit: number of the member's unit.
        sign: of the member, 1 or −1.
        sigma: noise scale.
    """

    streams: Streams
    unit: Index
    sign: Index
    sigma: Scalar

    def site(self, made: Linear, frame: Frame) -> Any:
        """The output and its noise, added in float32 or wider."""
        wide = accumulator_dtype(made.value.dtype)
        keys = self.streams.keys(made, frame, jnp.asarray(self.unit)[None])
        noise = self.streams.draw(keys, made.value)[0]
        scale = jnp.asarray(self.sigma, wide) * jnp.asarray(self.sign, wide)
        return (made.value.astype(wide) + noise * scale).astype(made.value.dtype)


@dataclass(frozen=True)
class Credited(Planned):
    """What sites give their parameters on a walk without noise: the sum of what units are credited with.

    Attributes:
        streams: of the noise.
        start: the first unit.
        credits: of each site `[U, *axes]`, axes as those of its loops of known length and then its own, or 1.
    """

    streams: Streams
    start: Index
    credits: Mapping[Where, jax.Array]

    def site(self, made: Linear, frame: Frame) -> Any:
        """Gives the parameters what they receive; the function goes on as if nothing was."""
        credit = self.credits.get(made.where)
        if credit is not None:
            for turn, length in frame.loops:
                if length is not None:
                    at = jnp.asarray(turn) if credit.shape[1] > 1 else 0
                    credit = lax.dynamic_index_in_dim(credit, at, 1, keepdims=False)
            frame.add(transposed(made, frame, self._sum(made, frame, credit)))
        return made.value

    def _sum(self, made: Linear, frame: Frame, credit: jax.Array) -> jax.Array:
        """`Σ cᵤ·εᵤ` of all units, `[*shape]`."""
        units, like = credit.shape[0], made.value
        keys = self.streams.keys(made, frame, self.start + jnp.arange(units))
        at_once = max(1, min(units, BLOCK // max(like.size, 1)))

        def add(total: jax.Array, first: Index, count: int) -> jax.Array:
            noise = self.streams.draw(lax.dynamic_slice_in_dim(keys, first, count, 1), like)
            own = lax.dynamic_slice_in_dim(credit, first, count).astype(total.dtype)
            if own.size == count:  # one number a unit
                return total + jnp.tensordot(own.reshape(count), noise, 1, precision=lax.Precision.HIGHEST)
            return total + jnp.sum(own * noise, 0)

        total = jnp.zeros(like.shape, accumulator_dtype(like.dtype))
        whole, left = divmod(units, at_once)
        if whole == 1:
            total = add(total, 0, at_once)
        else:
            total = lax.fori_loop(0, whole, lambda i, t: add(t, i * at_once, at_once), total)
        return add(total, whole * at_once, left) if left else total
