"""Noise made by a warpgroup, for 64 rows with a key each: threefry once a word, then every column takes its field.

A word takes 73 integer instructions, of which a multiprocessor executes 64 a cycle, beside 2048 multiply-additions of
bfloat16. Where columns share words, the 128 threads make a word each and pass them on in shared memory: the four
threads that hold a row in wgmma's layout would else make the same ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from eggroll.ops.noise import DISTRIBUTIONS, threefry2x32
from eggroll.ops.normal import standard_normal
from eggroll.ops.seeded import Seeded

from .hopper import LINES, ROWS, SPREAD, WHOLE, load
from .tiling import Index, Ref

GROUP = 64  # columns that are made at once
MADE = ("rademacher", "normal")  # what `times` multiplies by
LARGEST_SHARED_RANK = 4  # up to it a word serves several columns, above it each column makes its own

_SIGN = np.uint32(1 << 31)


def check_noise(*factors: Seeded) -> None:
    """Raises NotImplementedError for noise that is not made here."""
    for factor in factors:
        if factor.distribution not in MADE:
            raise NotImplementedError(f"{factor.distribution} noise: {' or '.join(MADE)}")
        if factor.distribution == "normal" and jnp.dtype(factor.dtype) not in (jnp.float32, jnp.bfloat16):
            raise NotImplementedError(f"normal noise of {jnp.dtype(factor.dtype)}: float32 or bfloat16")


def lines(left: jax.Array, right: jax.Array, numbers: jax.Array, rows: int) -> jax.Array:
    """What belongs to each row, in one array that one kernel makes.

    Args:
        left: keys `[P, 2]`.
        right: keys `[P, 2]`.
        numbers: `[P]` float32.
        rows: P rounded up to a multiple of 64; there are zeros beyond P.

    Returns:
        `[6, rows/64, 128]` uint32, every 64 rows twice: `[:2]` and `[2:4]` are keys as `Noise` reads them, `[4]` is
        what `number_of` reads, `[5]` what `one_of` does.
    """
    numbers = numbers.astype(jnp.float32)
    columns = [left, right, *(_as_bits(x)[:, None] for x in (numbers, jnp.ones_like(numbers)))]
    table = jnp.pad(jnp.concatenate(columns, axis=1), ((0, rows - numbers.shape[0]), (0, 0)))
    blocks = table.T.reshape(6, rows // ROWS, 1, ROWS)
    return jnp.broadcast_to(blocks, (6, rows // ROWS, 2, ROWS)).reshape(6, rows // ROWS, 2 * ROWS)


def number_of(lines: Ref, block: Index) -> jax.Array:
    """The numbers in `lines`, `[64]` float32 in layout `LINES`."""
    return _as_float(load(lines.at[4, block, _half(0)], LINES))


def one_of(lines: Ref, block: Index) -> jax.Array:
    """The same of ones: the sign of a number that the compiler knows takes two instructions, of another one.

    Beyond the last row they are zeros: what is multiplied with them is of weight zero.
    """
    return _as_float(load(lines.at[5, block, _half(0)], LINES))


def shared_words(columns: int, factor: Seeded) -> int:
    """Pairs of words that `columns` columns share; 0 where each column makes its own."""
    shared = factor.distribution == "rademacher" and factor.rank <= LARGEST_SHARED_RANK
    return columns // GROUP * factor.rank if shared else 0


def stored_words(key: jax.Array, factor: Seeded, units: int) -> jax.Array:
    """Words for all columns, in memory: 1/32 of the factor, where many tiles would make them again.

    Args:
        key: of every unit, `[U, 2]`.
        factor: one whose columns share words.
        units: U rounded up to a multiple of 64.

    Returns:
        `[units/64, pairs, 128]` uint32: each block's pairs of words as `scratch` has them, from column 0 on.
    """
    pairs = shared_words(-(-factor.size // GROUP) * GROUP, factor)
    rows = jnp.pad(key, ((0, units - key.shape[0]), (0, 0))).reshape(-1, 1, 1, ROWS, 2)
    count = jnp.arange(2 * pairs, dtype=jnp.uint32).reshape(1, pairs, 2, 1)
    return _word((rows[..., 0], rows[..., 1]), count).reshape(-1, pairs, 2 * ROWS)


def scratch(columns: int, factor: Seeded, *leading: int) -> list[Any]:
    """What `Noise` wants of shared memory: a list of one, or none."""
    pairs = shared_words(columns, factor)
    return [plgpu.SMEM((*leading, pairs, 2 * ROWS), jnp.uint32)] if pairs else []


@dataclass(frozen=True)
class Noise:
    """The transposed factors of 64 members, from column `first` on.

    Attributes:
        factor: what is drawn; its key is not used.
        keys: reference to these members' keys in `lines`, `[2, 128]`; None where `words` are there already.
        words: reference to `[pairs, 128]` as `scratch` or `stored_words` gives it, or None.
        first: a multiple of `GROUP`; may be traced. Beyond the factor's size the bits are arbitrary.
    """

    factor: Seeded
    keys: Ref
    words: Ref
    first: Index

    def prepare(self) -> None:
        """Makes the words that columns share, before anything else is asked for."""
        self.prepared(self.own_keys())

    def own_keys(self) -> list[jax.Array]:
        """Each thread's key, where words are shared; to be loaded before what they have to wait for."""
        return [] if self.words is None or self.keys is None else [load(self.keys.at[half], SPREAD) for half in (0, 1)]

    def prepared(self, keys: list[jax.Array]) -> None:
        """As `prepare`, with `own_keys` at hand."""
        if not keys:
            return
        thread = plgpu.layout_cast(lax.broadcasted_iota(jnp.uint32, (2 * ROWS,), 0), SPREAD)
        start = _unsigned(self.first) // np.uint32(32) * np.uint32(self.factor.rank) + thread // np.uint32(ROWS)

        @pl.loop(0, self.words.shape[0])  # unrolled, Mosaic works out the layout of each instruction for minutes
        def _(pair: Index) -> None:
            self.words[pair] = _word((keys[0], keys[1]), start + _unsigned(2 * pair))

    def turns(self) -> tuple[int, int]:
        """In how many turns the ranks are made, and how many a turn."""
        rank, each = self.factor.rank, 32 // DISTRIBUTIONS[self.factor.distribution].bits
        if self.words is not None or each % rank == 0:
            return 1, rank
        return (rank // each, each) if rank % each == 0 else (rank, 1)

    def bits(self, start: int, turn: Index = 0) -> list[jax.Array]:
        """Random bits of the columns from `start` on: per rank of the turn `[64, GROUP]` uint32 for `times`."""
        _, count = self.turns()
        return self._picked(start, range(count)) if self.words is not None else self._own(start, turn * count, count)

    def of_rank(self, start: int, rank: Index) -> jax.Array:
        """As `bits`, of one rank that may be traced."""
        return self._picked(start, [rank])[0] if self.words is not None else self._own(start, rank, 1)[0]

    def _picked(self, start: int, ranks: Sequence[Index]) -> list[jax.Array]:
        rank = self.factor.rank
        own = range(start // 32 * rank, (start + GROUP) // 32 * rank)
        words = [across(load(self.words.at[w // 2, _half(w % 2)], LINES)) for w in own]
        result = []
        for j in ranks:
            place = _columns() * np.uint32(rank) + _unsigned(j)
            word = words[0]
            for w in range(1, len(words)):  # of which the compiler keeps few: it knows a register's columns
                word = jnp.where(place >= np.uint32(32 * w), words[w], word)
            result.append(word << (np.uint32(31) - (place & np.uint32(31))))
        return result

    def _own(self, start: int, first_rank: Index, count: int) -> list[jax.Array]:
        width, rank = DISTRIBUTIONS[self.factor.distribution].bits, self.factor.rank
        each = np.uint32(32 // width)  # numbers a word
        keys = [across(load(self.keys.at[half, _half(0)], LINES)) for half in (0, 1)]
        place = (_unsigned(self.first) + np.uint32(start) + _columns()) * np.uint32(rank) + _unsigned(first_rank)
        word = _word((keys[0], keys[1]), place // each)
        result = []
        for j in range(count):
            field = (place + np.uint32(j)) % each * np.uint32(width)
            if self.factor.distribution == "rademacher":
                result.append(word << (np.uint32(31) - field))
            else:
                result.append((word >> field) & np.uint32(2**width - 1))
        return result


def times(value: jax.Array, bits: jax.Array, factor: Seeded) -> jax.Array:
    """`value` (float32) times the noise that `bits` stand for."""
    if factor.distribution == "rademacher":
        return _as_float(_as_bits(value) ^ (bits & _SIGN))
    if factor.distribution != "normal":
        raise NotImplementedError(f"{factor.distribution} noise: {' or '.join(MADE)}")
    # Without a barrier XLA, which compiles what the interpreter does, fuses for minutes.
    noise = standard_normal(lax.optimization_barrier(bits))
    return value * (noise if jnp.dtype(factor.dtype) == jnp.float32 else rounded(noise))


def rounded(x: jax.Array) -> jax.Array:
    """Finite float32 to the nearest bfloat16, as float32: in integers, which no compiler leaves out."""
    bits = _as_bits(x)
    bits = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return _as_float(bits & np.uint32(0xFFFF0000))


def across(values: jax.Array) -> jax.Array:
    """`[64]` → `[64, GROUP]`, every column the same."""
    return lax.broadcast_in_dim(values, (ROWS, GROUP), (0,))


def _half(number: int) -> slice:
    return slice(number * ROWS, (number + 1) * ROWS)


def _columns() -> jax.Array:
    return plgpu.layout_cast(lax.broadcasted_iota(jnp.uint32, (ROWS, GROUP), 1), WHOLE)


def _word(keys: tuple[jax.Array, jax.Array], count: jax.Array) -> jax.Array:
    first, second = threefry2x32(keys, (np.uint32(0), count))
    return first ^ second


def _unsigned(x: Ref) -> jax.Array:
    return jnp.asarray(x, jnp.int32).astype(jnp.uint32)


def _as_bits(x: jax.Array) -> jax.Array:
    return lax.bitcast_convert_type(x, jnp.uint32)


def _as_float(bits: jax.Array) -> jax.Array:
    return lax.bitcast_convert_type(bits, jnp.float32)
