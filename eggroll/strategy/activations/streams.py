"""Random numbers of every site: which, how drawn, and their sums.

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

from eggroll.engine.lowrank import accumulator_dtype
from eggroll.ops import unpack, words_for
from eggroll.ops.noise import DISTRIBUTIONS
from eggroll.strategy.activations.walk import Frame, Linear, Where
from eggroll.strategy.noise.keys import folded, words
from eggroll.strategy.plan.sites import Site

ACTIVATION = 3  # a side, beside those of `eggroll.strategy.noise.streams`; part of what a seed means
SPREAD = np.uint32(0x9E3779B1)  # odd: a permutation of columns, among which neighbours' products would be columns again


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
        if not self._crosses(place):
            return self._drawn(self._keys(place.number, *at, units)[..., None], like)[:, 0]
        columns = self._columns(place)
        own = self._of_blocks(place, like.dtype, units, *at)[..., None]
        own = jnp.broadcast_to(own, (*own.shape[:-1], self.block)).reshape(*own.shape[:-2], -1)
        own = own[..., place.first % self.block :][..., : len(columns)]
        crossed = self._crossed(units, columns, own.dtype).reshape(len(units), 1, *[1] * len(place.rows), len(columns))
        crossed = own.reshape(len(units), -1, *own.shape[1:]) * crossed
        return (self._shared(place, like, *at) * crossed.reshape(len(units), -1, *like.shape)).reshape(-1, *like.shape)

    def total(self, made: Linear, frame: Frame, units: jax.Array, credit: jax.Array) -> jax.Array:
        """`Σ cᵤ·εᵤ` of units `[U]`, `[*shape]`.

        Where all numbers of a row have one credit, a product of matrices: `ε` is one but for the number's own sign.

        Args:
            made: as in `noise`.
            frame: as in `noise`.
            units: as in `noise`.
            credit: `[U, *axes]`, which broadcasts against `[U, *shape]`.
        """
        place, rows = self.places[made.where], len(self.places[made.where].rows)
        if not self._crosses(place) or any(n > 1 for n in credit.shape[1 + rows :]):
            noise = self.noise(made, frame, units)
            if credit.size == len(units):  # one number a unit
                return jnp.tensordot(credit.reshape(-1), noise, 1, precision=lax.Precision.HIGHEST)
            return jnp.sum(credit * noise, 0)
        like, columns = jax.ShapeDtypeStruct(place.shape, made.value.dtype), self._columns(place)
        own = self._of_blocks(place, like.dtype, units, frame, None)
        own = own * credit.reshape(*credit.shape[: 1 + rows], 1)

        def product(own: jax.Array, columns: np.ndarray) -> jax.Array:
            crossed = self._crossed(units, columns, own.dtype)
            return jnp.einsum("u...,uc->...c", own, crossed, precision=lax.Precision.HIGHEST)

        low = place.first % self.block
        if own.shape[-1] > 2:
            found = product(own, np.arange(self.block)).reshape(*place.rows, -1)[..., low : low + len(columns)]
        else:  # of a block that is larger than a row, only what the row has of it
            cut = self.block - low
            parts = [part for part in (columns[:cut], columns[cut:]) if len(part)]
            found = jnp.concatenate([product(own[..., k], part) for k, part in enumerate(parts)], -1)
        return self._shared(place, like, frame, None)[0] * found.reshape(like.shape)

    def made_at_once(self, made: Linear, credit: jax.Array) -> int:
        """How many numbers `total` makes for each unit."""
        place = self.places[made.where]
        if not self._crosses(place) or any(n > 1 for n in credit.shape[1 + len(place.rows) :]):
            return max(made.value.size, 1)
        numbers = math.prod(place.rows) * len(self._blocks(place)) + min(self.block, len(self._columns(place)))
        return 4 * numbers  # products are as fast in parts, and memory grows with the population up to one

    def _crosses(self, place: Place) -> bool:
        """Whether a site's numbers are signs of the matrix, and not drawn alone."""
        return DISTRIBUTIONS[self.distribution].bits == 1 and math.prod(place.shape) > 0

    def _columns(self, place: Place) -> np.ndarray:
        """Of a row's numbers."""
        return np.arange(place.first, place.first + math.prod(place.shape[len(place.rows) :]))

    def _blocks(self, place: Place) -> np.ndarray:
        """Of a row's columns."""
        return np.unique(self._columns(place) // self.block).astype(np.uint32)

    def _of_blocks(
        self, place: Place, dtype: Any, units: jax.Array, frame: Frame, turns: jax.Array | None
    ) -> jax.Array:
        """A sign of each unit, row and block of columns, `[U, *rows, blocks]`."""
        # Those of a block of columns are the same at every site: so numbers of two sites are orthogonal, too.
        keys = folded(self._keys(len(self.places), frame, turns, units)[..., None], self._blocks(place))
        return jnp.moveaxis(self._drawn(keys, jax.ShapeDtypeStruct(place.rows, dtype)), 1, -1)

    def _crossed(self, units: jax.Array, columns: np.ndarray, dtype: Any) -> jax.Array:
        """`[U, C]`, `H` of units and columns."""
        columns = columns.astype(np.uint32) % np.uint32(self.block) * SPREAD % np.uint32(self.block)
        odd = lax.population_count(units.astype(jnp.uint32)[:, None] & columns) & 1
        return 1 - 2 * odd.astype(dtype)

    def _shared(self, place: Place, like: Any, frame: Frame, turns: jax.Array | None) -> jax.Array:
        """`[T, *shape]`, a sign of each number that all units share; one turn's if there are none."""
        return self._drawn(self._keys(place.number, frame, turns)[..., None], like)[:, 0]

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
