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
BLOCK = 1 << 22  # numbers of noise that are summed at once


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

    def keys(self, made: Linear, frame: Frame, units: jax.Array, turns: jax.Array | None = None) -> jax.Array:
        """`[2, U]`, of the units `[U]` at one turn of the loops around; `[2, U·T]` of `turns [T]` of one more loop."""
        number = np.uint32(self.numbers[made.where])
        own = folded(folded(jax.random.key_data(self.key), number), np.uint32(ACTIVATION))
        own = folded(own[:, None], units.astype(jnp.uint32))
        if turns is not None:  # of the outermost loop, which here is an axis
            own = folded(own[:, :, None], turns.astype(jnp.uint32)).reshape(2, -1)
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


def sizes(value: jax.Array, relative: bool) -> jax.Array:
    """What noise on an output is multiplied by beside sigma: 1, or the RMS over its last axis (1 where that is 0)."""
    wide = value.astype(accumulator_dtype(value.dtype))
    if not relative:
        return jnp.ones((), wide.dtype)
    found = jnp.sqrt(jnp.mean(jnp.square(wide), axis=-1 if wide.ndim else None, keepdims=True))
    return jnp.where(found > 0, found, 1)


@dataclass(frozen=True)
class Seen(Planned):
    """What one member sees: every site with noise on it.

    Attributes:
        streams: of the noise.
        unit: number of the member's unit.
        sign: of the member, 1 or −1.
        sigma: noise scale.
        relative: whether it is in units of each output's RMS.
    """

    streams: Streams
    unit: Index
    sign: Index
    sigma: Scalar
    relative: bool = False

    def site(self, made: Linear, frame: Frame) -> Any:
        """The output and its noise, added in float32 or wider."""
        wide = accumulator_dtype(made.value.dtype)
        keys = self.streams.keys(made, frame, jnp.asarray(self.unit)[None])
        noise = self.streams.draw(keys, made.value)[0]
        scale = jnp.asarray(self.sigma, wide) * jnp.asarray(self.sign, wide)
        size = sizes(made.value, self.relative)
        return (made.value.astype(wide) + noise * (scale * size)).astype(made.value.dtype)


@dataclass(frozen=True)
class Credited(Planned):
    """What sites give their parameters on a walk without noise: the sum of what units are credited with.

    Attributes:
        streams: of the noise.
        start: the first unit.
        credits: of each site `[U, *axes]`, axes as those of its loops of known length and then its own, or 1.
        relative: whether noise was in units of each output's RMS.
    """

    streams: Streams
    start: Index
    credits: Mapping[Where, jax.Array]
    relative: bool = False

    def site(self, made: Linear, frame: Frame) -> Any:
        """Gives the parameters what they receive; the function goes on as if nothing was."""
        credit = self.credits.get(made.where)
        if credit is not None:
            for turn, length in frame.loops:
                if length is not None:
                    at = jnp.asarray(turn) if credit.shape[1] > 1 else 0
                    credit = lax.dynamic_index_in_dim(credit, at, 1, keepdims=False)
            total = self._sum(made, frame, credit)
            frame.add(transposed(made, frame, total / sizes(made.value, self.relative) if self.relative else total))
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


@dataclass(frozen=True)
class Retold(Planned):
    """What sites give their parameters where members wrote something turn by turn, and all turns are seen at once.

    Every output is `[R, ..., T, ...]`, of the members `[R]` and their turns `[T]`, and has the noise that it had when
    it was written: the inputs are those of the member.

    Attributes:
        streams: of the noise.
        start: the first unit.
        signs: members of a unit.
        sigma: noise scale.
        relative: as in `Seen`.
        credit: `[R, T]`, weights of the members, 0 where a turn counts for nothing.
        axes: of the turns, site by site.
    """

    streams: Streams
    start: Index
    signs: int
    sigma: Scalar
    relative: bool
    credit: jax.Array
    axes: Mapping[Where, int]

    def site(self, made: Linear, frame: Frame) -> Any:
        """The output with its noise; gives the parameters what they receive."""
        (members, turns), axis = self.credit.shape, self.axes[made.where]
        rest = tuple(n for i, n in enumerate(made.value.shape) if i not in (0, axis))
        units = self.start + jnp.arange(members // self.signs)
        keys = self.streams.keys(made, frame, units, jnp.arange(turns))
        noise = self.streams.draw(keys, jax.ShapeDtypeStruct(rest, made.value.dtype))
        noise = jnp.stack([noise, -noise][: self.signs]).reshape(self.signs, -1, turns, *rest)
        noise = jnp.moveaxis(jnp.moveaxis(noise, 0, 1).reshape(members, turns, *rest), 1, axis)
        size = sizes(made.value, self.relative)
        told = self.credit.reshape(members, *(turns if i == axis else 1 for i in range(1, noise.ndim)))
        frame.add(transposed(made, frame, told.astype(noise.dtype) * noise / size))
        return (made.value + noise * (jnp.asarray(self.sigma, noise.dtype) * size)).astype(made.value.dtype)
