"""From a plan and keys to noise, and from noise to the parameters that one member sees.

Noise is computed once and stored: XLA would compute it anew inside every operation that reads it, for every row that a
factor meets. On CPUs it ignores `optimization_barrier` as it fuses, but does not fuse out of a call that stays one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.typing import DTypeLike

from eggroll.engine import jax_compat
from eggroll.engine.annotations import Index, PyTree, Scalar
from eggroll.engine.lowrank import LowRank, Source, accumulator_dtype
from eggroll.ops import kernel_for
from eggroll.strategy.noise.streams import LEFT, Side, Streams, sides
from eggroll.strategy.plan.leaves import LeafPlan, Plan

Noise = Sequence[Any]  # per leaf: (left, right), a dense array, or None


@dataclass(frozen=True)
class Sampler:
    """Draws the noise of a unit: a pair of members, or one member without antithetic pairs.

    Attributes:
        plan: what each parameter gets.
        distribution: `"rademacher"` or `"normal"`.
        members: population, which decides signs at sites, and for messages about dense fallbacks; None: unknown.
    """

    plan: Plan
    distribution: str
    members: int | None

    def seeded(self, leaf: LeafPlan) -> bool:
        """Whether a parameter's factors stay keys, for a kernel that makes the same numbers where it needs them."""
        if leaf.matrix is None:
            return False
        stack = math.prod(leaf.shape[a] for a in leaf.stack_axes)
        rows, columns = (math.prod(shape) // stack for shape in (leaf.left_shape, leaf.right_shape))
        return kernel_for(rows, columns, leaf.rank, self.distribution, leaf.matrix) is not None

    @cached_property
    def _sides(self) -> list[list[Side]]:
        return [sides(leaf, self.distribution, self.seeded(leaf)) for leaf in self.plan.leaves]

    @cached_property
    def streams(self) -> Streams:
        """Where the random words of each parameter's noise come from, and lie in a unit's row of words."""
        return Streams(tuple(side.stream for own in self._sides for side in own))

    def words(self, key: jax.Array, kept: jax.Array | None, start: Index, first: Index, count: int) -> jax.Array:
        """Words of units `start + first` to `start + first + count − 1`.

        Args:
            key: the generation's key.
            kept: `[U, W]`, the words of the units from `start` on, or None to draw.
            start: this device's first unit.
            first: number of the first unit among this device's.
            count: how many.

        Returns:
            `[count, W]` uint32.
        """
        if kept is None:
            return self.streams.draw(key, start + first + jnp.arange(count))
        return jax.lax.dynamic_slice_in_dim(kept, first, count)

    def all_noise(self, key: jax.Array, units: int) -> Noise:
        """Noise of units 0 to `units − 1`, as `draw` makes it."""
        return self.draw(self.streams.draw(key, np.arange(units, dtype=np.uint32)))

    def draw(self, words: jax.Array, *, for_update: bool = False, signs: int = 0) -> Noise:
        """Noise of several units, unscaled, in each parameter's dtype.

        Args:
            words: `[U, W]`, from `streams.draw`.
            for_update: whether it is to be summed up, which wants its axes in another order: see
                `Side.draw_for_update`.
            signs: if it is not 0, each unit's noise is there so many times in a row, as the noise of `U·signs`
                members; in memory as signed bytes, which their readers widen: see
                `jax_compat.CORRECTIONS_ARE_FREE`.

        Returns:
            Per parameter `(left, right)`, a dense array, or None, with the units first; factors that stay keys are
            `Seeded`.
        """
        made = iter(self._drawn(words, for_update, signs))
        drawn = [tuple(next(made) for _ in own) for own in self._sides]
        leaves = zip(self.plan.leaves, drawn, strict=True)
        noise = [both if leaf.kind == "low_rank" else both[0] if both else None for leaf, both in leaves]
        return noise if for_update or jax.default_backend() == "cpu" else lax.optimization_barrier(noise)

    def _drawn(self, words: jax.Array, for_update: bool, signs: int) -> list[Any]:
        """The numbers of every side, in order."""
        flat = [side for own in self._sides for side in own]
        made: dict[int, Any] = {}
        start = lax.optimization_barrier(jnp.int32(0))  # for XLA no constant: see `_drawn_apart`
        for i in self.streams.order:
            side = flat[i]
            if jax.default_backend() == "cpu" and side.stream.width and not side.seeded:
                made[i], start = _drawn_apart(words, start, side=side.alike(), for_update=for_update, signs=signs)
            else:
                made[i] = _numbers(side, words[:, self.streams.place(i)], for_update, signs)
        return [made[i] for i in range(len(flat))]

    def draw_one(self, words: jax.Array) -> Noise:
        """Noise of one unit, without the axis of units, from its `[1, W]` words."""
        return jax.tree.map(lambda x: jnp.squeeze(x, 0), self.draw(words))

    def perturb(self, params: PyTree, noise: Noise, sign: Index, sigma: Scalar) -> PyTree:
        """`params` with `LowRank` leaves where the plan says so: `W + sign·σ·c·A·Bᵀ/√r`."""
        leaves, tree = jax.tree.flatten(params)
        seen = [
            self._perturb_leaf(leaf, value, drawn, sign, sigma)
            for leaf, value, drawn in zip(self.plan.leaves, leaves, noise, strict=True)
        ]
        return tree.unflatten(seen)

    def _perturb_leaf(self, leaf: LeafPlan, value: Any, noise: Any, sign: Index, sigma: Scalar) -> Any:
        scale = noise_scale(leaf, sigma)
        if leaf.kind == "low_rank":
            source = Source(leaf.path, self.members)
            signed = _signed(sign, scale, jnp.finfo(accumulator_dtype(value.dtype)).dtype)
            left, right = noise
            return LowRank(value, left, right, leaf.left_axes, leaf.right_axes, source, signed)
        if leaf.kind == "dense":
            wide = accumulator_dtype(value.dtype)
            return (value.astype(wide) + noise.astype(wide) * _signed(sign, scale, wide)).astype(value.dtype)
        return value


def noise_scale(leaf: LeafPlan, sigma: Scalar) -> Any:
    """σ·c for dense noise, σ·c/√r for factors; a Python float stays one, to be exact in float64."""
    return sigma * leaf.sigma_scale / math.sqrt(leaf.rank or 1)


def check_noise_is_seen(plan: Plan, sigma: Scalar) -> None:
    """Raises `ValueError` where a sigma known beforehand is zero in a parameter's dtype: all members would be alike."""
    if isinstance(sigma, Tracer):
        return
    sigma = float(sigma)  # under jit, arithmetic on a JAX number would be traced
    for leaf in plan.leaves:
        if leaf.kind not in ("low_rank", "dense"):
            continue
        scale, least = noise_scale(leaf, sigma), _least(leaf.dtype)
        if scale < least:
            raise ValueError(
                f"got sigma={sigma:g}, which gives '{leaf.path}' noise of size {scale:.3g}: zero in its dtype "
                f"{leaf.dtype}, whose smallest number is {least:.3g}. Use a larger sigma (0.01 to 0.1 times the size "
                "of a weight is sensible), or float32 parameters."
            )


def _least(dtype: str) -> float:
    """The smallest number > 0 that is not flushed to zero: XLA keeps subnormal numbers of narrow exponents only."""
    info = jnp.finfo(dtype)
    return float(info.tiny if info.nexp >= 8 else info.smallest_subnormal)


def member_sign(index: Index) -> Any:
    """+1 for the first member of a unit, −1 for the second."""
    return 1 - 2 * index


def _signed(sign: Index, scale: Scalar, dtype: DTypeLike) -> jax.Array:
    return jnp.asarray(scale, dtype) * jnp.asarray(sign, dtype)


@partial(jax.jit, static_argnames=("side", "for_update", "signs"))
def _drawn_apart(
    words: jax.Array, start: jax.Array, *, side: Side, for_update: bool, signs: int
) -> tuple[jax.Array, jax.Array]:
    """A side's numbers from its words, which begin at `start` in every row, and where the next side's begin.

    Every call of alike sides is the same program, in which nothing says which one it is: traced once, and its kernels
    compiled once. That is why each call counts on for the next one: XLA would put a number that it knows into them.
    """
    dtype, width = side.dtype, side.stream.width
    side = replace(side, leaf=replace(side.leaf, dtype="int8")) if signs else side

    def apart(words: jax.Array, start: jax.Array) -> tuple[jax.Array, jax.Array]:
        own = lax.dynamic_slice_in_dim(words, start, width, 1, allow_negative_indices=False)
        return _numbers(side, own, for_update, signs).reshape(matrix), start + np.int32(width)

    row = jax.ShapeDtypeStruct((len(words), width), words.dtype)
    like = jax.eval_shape(lambda words: _numbers(side, words, for_update, signs), row)
    # As a matrix: XLA lays a trailing axis of length one out its own way, and copies at the call's end to undo it.
    rows = math.prod(side.stack) * len(words) if for_update else like.shape[0]
    matrix = (-1, len(words)) if for_update and side.side == LEFT else (rows, -1)
    flat, start = jax_compat.call_apart(apart, words, start)
    return flat.reshape(like.shape).astype(dtype), start


def _numbers(side: Side, words: jax.Array, for_update: bool, signs: int) -> Any:
    drawn = side.draw_for_update(words) if for_update else side.draw(words)
    return repeated(drawn, signs) if signs else drawn


def repeated(noise: PyTree, times: int) -> Any:
    """Every row, `times` in a row; a gather, as `jnp.repeat` makes it, would take longer than drawing."""

    def one(x: jax.Array) -> jax.Array:
        copies = jnp.broadcast_to(x[:, None], (len(x), times, *x.shape[1:]))
        return copies.reshape(len(x) * times, *x.shape[1:])

    return jax.tree.map(one, noise)
