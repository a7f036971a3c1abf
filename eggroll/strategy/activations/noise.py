"""Noise at sites, as members see it and as it is summed up for the update."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from eggroll.engine.annotations import Index, Scalar
from eggroll.engine.lowrank import accumulator_dtype
from eggroll.strategy.activations.streams import Streams
from eggroll.strategy.activations.walk import Frame, Linear, Planned, Where, transposed

BLOCK = 1 << 20  # numbers of noise that are summed at once: what memory they take grows with the population up to it


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
        noise = self.streams.noise(made, frame, jnp.asarray(self.unit)[None])[0]
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
        at_once = max(1, min(units, BLOCK // self.streams.made_at_once(made, credit)))

        def add(total: jax.Array, first: Index, count: int) -> jax.Array:
            at = jnp.asarray(self.start).astype(jnp.uint32) + jnp.asarray(first).astype(jnp.uint32)
            own = lax.dynamic_slice_in_dim(credit, first, count).astype(total.dtype)
            return total + self.streams.total(made, frame, at + lax.iota(jnp.uint32, count), own)

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
        noise = self.streams.noise(made, frame, units, jnp.arange(turns))
        noise = jnp.stack([noise, -noise][: self.signs]).reshape(self.signs, -1, turns, *rest)
        noise = jnp.moveaxis(jnp.moveaxis(noise, 0, 1).reshape(members, turns, *rest), 1, axis)
        size = sizes(made.value, self.relative)
        told = self.credit.reshape(members, *(turns if i == axis else 1 for i in range(1, noise.ndim)))
        frame.add(transposed(made, frame, told.astype(noise.dtype) * noise / size))
        return (made.value + noise * (jnp.asarray(self.sigma, noise.dtype) * size)).astype(made.value.dtype)
