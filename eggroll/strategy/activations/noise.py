"""Noise at sites, as members see it and as it is summed up for the update.

Made twice and never stored, the same whatever the chunk and the mesh. A loss tells of its own row's numbers at all
sites at once, and what it says of one is blurred by all others: so ±1 noise is orthogonal, not only independent. Of as
many numbers of a row as there are pairs, any two agree in as many units as they differ in. One unit's are independent.

References:
    A. S. Hedayat, W. D. Wallis, "Hadamard matrices and their applications", Annals of Statistics 1978 (Sylvester's).
    K. Choromanski et al., "Structured evolution with compact architectures for scalable policy optimization",
    arXiv 1804.02395 (orthogonal directions in evolution strategies, of weights).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from eggroll.engine.annotations import Index, Scalar
from eggroll.engine.lowrank import accumulator_dtype
from eggroll.ops import unpack, words_for
from eggroll.ops.noise import DISTRIBUTIONS
from eggroll.strategy.activations.walk import Frame, Linear, Planned, Where, transposed
from eggroll.strategy.noise.keys import folded, words
from eggroll.strategy.plan.sites import Site

ACTIVATION = 3  # a side, beside those of `eggroll.strategy.noise.streams`; part of what a seed means
SPREAD = np.uint32(0x9E3779B1)  # odd: a permutation of columns, among which neighbours' products would be columns again
BLOCK = 1 << 20  # numbers of noise that are summed at once: what memory they take grows with the population up to it


@dataclass(frozen=True)
class Place:
    """Which of the random words are a site's.

    Attributes:
        number: of the site.
        shape: of its output.
        rows: its leading axes, which most sites share: the batch, and tokens.
        first: column of its first number in a row; a row's columns at all sites are counted on.
    """

    number: int
    shape: tuple[int, ...]
    rows: tuple[int, ...]
    first: int


@dataclass(frozen=True)
class Streams:
    """Noise of every site.

    Signs are Sylvester's Hadamard matrix `H` of `2^k` units and columns, times a sign of the number that the units of a
    block of `2^k` share, times one of the unit, the row and the block of columns.

    Attributes:
        key: typed threefry key of the generation.
        places: of each site.
        distribution: of the noise; of one that is no signs every unit's numbers are drawn alone.
        block: `2^k`, the largest that is no more than the pairs.
    """

    key: jax.Array
    places: Mapping[Where, Place]
    distribution: str
    block: int

    @classmethod
    def of(cls, key: jax.Array, sites: Sequence[Site], distribution: str, members: int | None) -> Streams:
        """Those of the sites of a plan, in their order, for a population of so many."""
        rows = _rows(sites)
        own = [rows if site.shape[: len(rows)] == rows else () for site in sites]
        each = [math.prod(site.shape[len(lead) :]) for site, lead in zip(sites, own, strict=True)]
        firsts = [end - size for end, size in zip(accumulate(each), each, strict=True)]
        numbered = enumerate(zip(sites, own, firsts, strict=True))
        places = {site.where: Place(i, site.shape, lead, first) for i, (site, lead, first) in numbered}
        if any(None in site.loops for site in sites):  # what is made in turns depends on products of their noise
            members = None
        return cls(key, places, distribution, 1 << (max(2, members or 2) // 2).bit_length() - 1)

    def noise(self, made: Linear, frame: Frame, units: jax.Array, turns: jax.Array | None = None) -> jax.Array:
        """Noise of units `[U]` at one turn of the loops around, in float32 or wider.

        Args:
            made: the site's output.
            frame: in which loops.
            units: numbers of the units.
            turns: `[T]`, of the outermost loop, where that is an axis of `made`.

        Returns:
            `[U, *shape]`, or `[U·T, *shape]` of the turns, in the shape that the site has at one turn.
        """
        place = self.places[made.where]
        like, at = jax.ShapeDtypeStruct(place.shape, made.value.dtype), (frame, turns)
        if DISTRIBUTIONS[self.distribution].bits > 1 or not math.prod(like.shape):
            return self._drawn(self._keys(place.number, *at, units)[..., None], like)[:, 0]
        size = math.prod(like.shape[len(place.rows) :])
        low, end = place.first % self.block, place.first % self.block + size
        blocks = np.arange(place.first // self.block, (place.first + size - 1) // self.block + 1, dtype=np.uint32)
        # Those of a block of columns are the same at every site: so numbers of two sites are orthogonal, too.
        keys = folded(self._keys(len(self.places), *at, units)[..., None], blocks)
        own = self._drawn(keys, jax.ShapeDtypeStruct(place.rows, like.dtype))
        own = jnp.moveaxis(own, 1, -1)[..., None]
        own = jnp.broadcast_to(own, (*own.shape[:-1], self.block)).reshape(*own.shape[:-2], -1)[..., low:end]
        columns = np.arange(low, end, dtype=np.uint32) * SPREAD % np.uint32(self.block)
        odd = lax.population_count(units.astype(jnp.uint32)[:, None] & columns) & 1
        crossed = (1 - 2 * odd.astype(own.dtype)).reshape(len(units), 1, *[1] * len(place.rows), size)
        crossed = own.reshape(len(units), -1, *own.shape[1:]) * crossed
        shared = self._drawn(self._keys(place.number, *at)[..., None], like)[:, 0]
        return (shared * crossed.reshape(len(units), -1, *like.shape)).reshape(-1, *like.shape)

    def _keys(self, number: int, frame: Frame, turns: jax.Array | None, units: jax.Array | None = None) -> jax.Array:
        """`[2, U]` of the units `[U]`, `[2, U·T]` with turns; of all units together if there are none given."""
        own = folded(folded(jax.random.key_data(self.key), np.uint32(number)), np.uint32(ACTIVATION))[:, None]
        own = own if units is None else folded(own, units.astype(jnp.uint32))
        if turns is not None:
            own = folded(own[:, :, None], turns.astype(jnp.uint32)).reshape(2, -1)
        for turn, _ in frame.loops:
            own = folded(own, jnp.asarray(turn).astype(jnp.uint32))
        return own

    def _drawn(self, keys: jax.Array, like: Any) -> jax.Array:
        """Numbers `[U, K, *shape]` of keys `[2, U, K]`, in float32 or wider."""
        _, units, count = keys.shape
        each = words_for(math.prod(like.shape), self.distribution)
        if not each:
            return jnp.zeros((units, count, *like.shape), accumulator_dtype(like.dtype))
        drawn = words(keys, np.arange(count), [each] * count).reshape(units, count, each)
        return unpack(drawn, like.shape, self.distribution, accumulator_dtype(like.dtype))


def _rows(sites: Sequence[Site]) -> tuple[int, ...]:
    """The leading axes that sites share: those with most numbers where they have no first axis in common."""
    rows: tuple[int, ...] = ()
    while True:
        longer: Counter[tuple[int, ...]] = Counter()
        inside = [s for s in sites if len(s.shape) > 1 and s.shape[: len(rows)] == rows]
        for site in inside:
            longer[site.shape[: len(rows) + 1]] += site.size
        # A row keeps an axis, and where some sites have the same rows those decide.
        if not inside or (rows and len(longer) > 1) or any(len(s.shape) == len(rows) + 1 for s in inside):
            return rows
        rows = max(longer, key=lambda lead: longer[lead])


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
        at_once = max(1, min(units, BLOCK // max(like.size, 1)))

        def add(total: jax.Array, first: Index, count: int) -> jax.Array:
            at = jnp.asarray(self.start).astype(jnp.uint32) + jnp.asarray(first).astype(jnp.uint32)
            noise = self.streams.noise(made, frame, at + lax.iota(jnp.uint32, count))
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
        noise = self.streams.noise(made, frame, units, jnp.arange(turns))
        noise = jnp.stack([noise, -noise][: self.signs]).reshape(self.signs, -1, turns, *rest)
        noise = jnp.moveaxis(jnp.moveaxis(noise, 0, 1).reshape(members, turns, *rest), 1, axis)
        size = sizes(made.value, self.relative)
        told = self.credit.reshape(members, *(turns if i == axis else 1 for i in range(1, noise.ndim)))
        frame.add(transposed(made, frame, told.astype(noise.dtype) * noise / size))
        return (made.value + noise * (jnp.asarray(self.sigma, noise.dtype) * size)).astype(made.value.dtype)
