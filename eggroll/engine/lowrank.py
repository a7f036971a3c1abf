"""`LowRank`: the public leaf that stands for `base + scale·left ⊗ right` without forming the sum."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from eggroll.engine.perturbed import Array, Factor, Perturbed, Source, Term
from eggroll.engine.perturbed import accumulator_dtype as accumulator_dtype
from eggroll.ops import Seeded


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class LowRank:
    """A parameter `base + scale·Σ_k left[..., k] ⊗ right[..., k]` whose dense form is never needed.

    Every axis of `base` belongs to `left`, to `right`, to both (a batch axis: layer stack, experts) or to neither
    (the perturbation is constant along it). `σ/√r` and the member's sign go into `scale`: an antithetic pair then
    shares both factors.

    Args:
        base: `[*shape]`, the parameter shared by all members.
        left: `[*(shape[a] for a in left_axes), rank]`; of a matrix also `eggroll.kernels.Seeded`: the key that a kernel
            draws it from.
        right: `[*(shape[a] for a in right_axes), rank]`, in the same form as `left`.
        left_axes: axes of `base` that `left` owns, ascending.
        right_axes: axes of `base` that `right` owns, ascending.
        source: the parameter's path and the population, for messages.
        scale: a floating-point scalar on the perturbation; None (default) is 1.

    Raises:
        ValueError: from `check()` and `eggroll.factored`, if shapes, axes or dtypes do not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> w = LowRank(jnp.zeros((2, 3)), jnp.ones((2, 1)), 2 * jnp.ones((3, 1)), (0,), (1,))
        >>> w.dense().tolist()
        [[2.0, 2.0, 2.0], [2.0, 2.0, 2.0]]

    References:
        Sarkar et al., "Evolution Strategies at the Hyperscale", arXiv 2511.16652, Section 4.
    """

    base: Array
    left: Array | Seeded
    right: Array | Seeded
    left_axes: tuple[int, ...] = field(metadata={"static": True})
    right_axes: tuple[int, ...] = field(metadata={"static": True})
    source: Source = field(default=Source(), metadata={"static": True})
    scale: Array | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the dense parameter."""
        return self.base.shape

    @property
    def dtype(self) -> Any:
        """Dtype of the dense parameter."""
        return self.base.dtype

    @property
    def rank(self) -> int:
        """Number of columns of each factor."""
        return self.left.shape[-1]

    def dense(self) -> Array:
        """The dense parameter `[*shape]`: the factors are summed in float32 or wider, then cast."""
        return as_perturbed(self).dense()

    def check(self) -> None:
        """Raises ValueError unless factors fit the base."""
        for name, factor, axes in (("left", self.left, self.left_axes), ("right", self.right, self.right_axes)):
            if list(axes) != sorted(set(axes)) or any(not 0 <= a < len(self.shape) for a in axes):
                raise ValueError(
                    f"LowRank {name}_axes={axes} must be distinct axes of a base of shape {self.shape}, "
                    "in ascending order; negative axes are not accepted."
                )
            required = (*(self.shape[a] for a in axes), self.rank)
            if tuple(factor.shape) != required:
                raise ValueError(
                    f"LowRank {name} has shape {tuple(factor.shape)}; axes {axes} of a base of shape {self.shape} "
                    f"at rank {self.rank} require {required}."
                )
            if factor.dtype not in (self.dtype, jnp.zeros((), self.dtype).real.dtype):
                raise ValueError(
                    f"LowRank {name} is {factor.dtype} but its base is {self.dtype}: cast the factor to the "
                    "base's dtype first."
                )
        if self.scale is not None and (self.scale.shape or not jnp.issubdtype(self.scale.dtype, jnp.floating)):
            raise ValueError(
                f"LowRank scale is {self.scale.dtype} of shape {tuple(self.scale.shape)}; a floating-point scalar of "
                "shape () is required: put anything else into a factor."
            )


def as_perturbed(value: LowRank) -> Perturbed:
    """The engine's form of a public leaf."""
    left = Factor(value.left, value.left_axes)
    right = Factor(value.right, value.right_axes)
    return Perturbed(value.base, (Term((left, right), value.source, scale=value.scale),))


def is_low_rank(value: Any) -> bool:
    """True for `LowRank` leaves; for `is_leaf=`."""
    return isinstance(value, LowRank)
