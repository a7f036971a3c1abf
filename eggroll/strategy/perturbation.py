"""From a plan and keys to noise, and from noise to the parameters that one member sees."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from eggroll.engine.lowrank import LowRank, Source, accumulator_dtype
from eggroll.strategy.keys import leaf_key
from eggroll.strategy.noise import dense_noise, low_rank_factors
from eggroll.strategy.plan import LeafPlan, Plan

Noise = Sequence[Any]  # per leaf: (left, right), a dense array, or None


@dataclass(frozen=True)
class Sampler:
    """Draws the noise of a unit: a pair of members, or one member without antithetic pairs.

    Attributes:
        plan: what each parameter gets.
        distribution: `"rademacher"` or `"normal"`.
        members: population, for messages about dense fallbacks.
    """

    plan: Plan
    distribution: str
    members: int

    def leaf_keys(self, key: jax.Array) -> list[jax.Array]:
        """One key per parameter; computed once, outside the loop over members."""
        return [leaf_key(key, leaf.path) for leaf in self.plan.leaves]

    def draw(self, keys: Sequence[jax.Array], unit: Any) -> Noise:
        """The unit's noise, unscaled, in each parameter's dtype."""
        return [self._draw_leaf(leaf, key, unit) for leaf, key in zip(self.plan.leaves, keys, strict=True)]

    def _draw_leaf(self, leaf: LeafPlan, key: jax.Array, unit: Any) -> Any:
        if leaf.kind == "low_rank":
            shapes = leaf.left_shape, leaf.right_shape
            return low_rank_factors(key, unit, *shapes, leaf.rank, self.distribution, leaf.dtype)
        if leaf.kind == "dense":
            return dense_noise(key, unit, leaf.shape, self.distribution, leaf.dtype)
        return None

    def perturb(self, params: Any, noise: Noise, sign: Any, sigma: Any) -> Any:
        """`params` with `LowRank` leaves where the plan says so: `W + sign·σ·c·A·Bᵀ/√r`."""
        leaves, tree = jax.tree.flatten(params)
        seen = [
            self._perturb_leaf(leaf, value, drawn, sign, sigma)
            for leaf, value, drawn in zip(self.plan.leaves, leaves, noise, strict=True)
        ]
        return tree.unflatten(seen)

    def _perturb_leaf(self, leaf: LeafPlan, value: Any, noise: Any, sign: Any, sigma: Any) -> Any:
        scale = noise_scale(leaf, sigma)
        if leaf.kind == "low_rank":
            left, right = noise
            # The sign sits on the right, so that products with `left` are shared by a pair on shared inputs.
            right = right * _signed(sign, scale, leaf.dtype)
            return LowRank(value, left, right, leaf.left_axes, leaf.right_axes, Source(leaf.path, self.members))
        if leaf.kind == "dense":
            wide = accumulator_dtype(value.dtype)
            return (value.astype(wide) + noise.astype(wide) * _signed(sign, scale, wide)).astype(value.dtype)
        return value


def noise_scale(leaf: LeafPlan, sigma: Any) -> Any:
    """σ·c for dense noise, σ·c/√r for factors; a Python float stays one, to be exact in float64."""
    return sigma * leaf.sigma_scale / math.sqrt(leaf.rank or 1)


def check_noise_is_seen(plan: Plan, sigma: Any) -> None:
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


def member_sign(index: Any) -> Any:
    """+1 for the first member of a unit, −1 for the second."""
    return 1 - 2 * index


def _signed(sign: Any, scale: Any, dtype: Any) -> jax.Array:
    return jnp.asarray(scale, dtype) * jnp.asarray(sign, dtype)
