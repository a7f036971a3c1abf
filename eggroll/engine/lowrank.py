"""Values that stand for `base + scale·Σ_r Π_f factor_f` without forming the sum.

`LowRank` is the public leaf (two factors). Inside the engine every perturbed value is a `Perturbed`: a base and a
sum of terms, each a product of factors over named axes. Axis bookkeeping is then one idea for every rule.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from eggroll.ops import Seeded, as_array

Array = jax.Array


@dataclass(frozen=True)
class Source:
    """Where a perturbation comes from: the parameter's path, and how many members share the evaluation."""

    path: str = ""
    members: int | None = None


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
            if factor.dtype != self.dtype:
                raise ValueError(
                    f"LowRank {name} is {factor.dtype} but its base is {self.dtype}: cast the factor to the "
                    "base's dtype first."
                )
        if self.scale is not None and (self.scale.shape or not jnp.issubdtype(self.scale.dtype, jnp.floating)):
            raise ValueError(
                f"LowRank scale is {self.scale.dtype} of shape {tuple(self.scale.shape)}; a floating-point scalar of "
                "shape () is required: put anything else into a factor."
            )


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Factor:
    """`[*(base.shape[a] for a in axes), rank]` numbers; `origin` names the parameter axes they stem from (discovery).

    They may not exist yet: `Seeded` numbers stay a key until something but a kernel asks for `array`.
    """

    numbers: Array | Seeded
    axes: tuple[int, ...] = field(metadata={"static": True})
    origin: frozenset[int] = field(default=frozenset(), metadata={"static": True})

    @property
    def array(self) -> Array:
        """The numbers, drawn if they were a key."""
        return as_array(self.numbers)

    @property
    def rank(self) -> int:
        """Size of the trailing axis."""
        return self.numbers.shape[-1]

    def with_array(self, array: Array | Seeded, **changes: Any) -> Factor:
        """The same with other numbers; `changes` to the other fields."""
        return replace(self, numbers=array, **changes)

    def relabel(self, new_axis: Mapping[int, int]) -> Factor:
        """Renames the owned axes and restores their ascending order."""
        renamed = [new_axis[a] for a in self.axes]
        order = sorted(range(len(renamed)), key=renamed.__getitem__)
        if order == list(range(len(order))):
            return replace(self, axes=tuple(renamed))
        return self.with_array(lax.transpose(self.array, (*order, len(order))), axes=tuple(sorted(renamed)))

    def position(self, axis: int) -> int:
        """Which dimension of `array` holds `axis` of the base."""
        return self.axes.index(axis)

    def squeeze(self, sizes: Sequence[int]) -> Factor:
        """Drops owned axes of size one: they carry no choice and get in the way of reshapes."""
        drop = tuple(i for i, a in enumerate(self.axes) if sizes[a] == 1)
        kept = tuple(a for a in self.axes if sizes[a] != 1)
        return self.with_array(lax.squeeze(self.array, drop), axes=kept) if drop else self

    def expand(self, axis: int, size: int) -> Factor:
        """Makes the factor own `axis` as well, constant along it."""
        axes = tuple(sorted((*self.axes, axis)))
        array = jnp.expand_dims(self.array, axes.index(axis))
        shape = list(array.shape)
        shape[axes.index(axis)] = size
        return self.with_array(jnp.broadcast_to(array, shape), axes=axes)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Term:
    """A product of factors, summed over their shared trailing rank axis, times a scalar (None is 1).

    `added` records that the value was added to something, or set beside a plain array: so activations are told from
    weights. `looked_up` and `walked` record, for discovery, which parameter axes were indexed, and which a loop walks.
    """

    factors: tuple[Factor, ...]
    source: Source = field(default=Source(), metadata={"static": True})
    added: bool = field(default=False, metadata={"static": True})
    looked_up: frozenset[int] = field(default=frozenset(), metadata={"static": True})
    walked: frozenset[int] = field(default=frozenset(), metadata={"static": True})
    scale: Array | None = None

    @property
    def rank(self) -> int:
        """Size of the trailing axis that the factors share."""
        return self.factors[0].rank

    def owners(self, axis: int) -> list[Factor]:
        """The factors that vary along `axis`."""
        return [f for f in self.factors if axis in f.axes]

    def map(self, change: Callable[[Factor], Factor]) -> Term:
        """Changes every factor."""
        return replace(self, factors=tuple(change(f) for f in self.factors))

    def scaled(self, change: Callable[[Array], Array]) -> Term:
        """Applies a linear function of scalars once: to the scale, or to the first factor where there is none."""
        if self.scale is not None:
            return replace(self, scale=change(self.scale))
        first, *rest = self.factors
        return replace(self, factors=(first.with_array(change(first.array)), *rest))

    def without_scale(self) -> Term:
        """The same term, with its scale inside the first factor."""
        if self.scale is None:
            return self
        first, *rest = self.factors
        array = first.array * self.scale.astype(first.array.dtype)
        return replace(self, factors=(first.with_array(array), *rest), scale=None)

    def times_scale(self, array: Array) -> Array:
        """`scale·array`, in the array's dtype."""
        return array if self.scale is None else array * self.scale.astype(array.dtype)

    def dense(self, shape: Sequence[int], dtype: DTypeLike) -> Array:
        """The term as an array of the base's `shape`, accumulated in `dtype`."""
        ndim = len(shape)
        operands: list[Any] = []
        for f in self.factors:
            operands += [f.array.astype(dtype), [*f.axes, ndim]]
        owned = sorted({a for f in self.factors for a in f.axes})
        total = self.times_scale(jnp.einsum(*operands, owned, precision=lax.Precision.HIGHEST))
        return lax.broadcast_in_dim(total, tuple(shape), tuple(owned))


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Perturbed:
    """`base` plus a sum of terms: what the interpreter carries instead of a dense perturbed array.

    `casts` are made of the sum, in order. Base and terms are as before them, so that what moves numbers, looks them up
    or makes them dense rounds each member's own sum, as a dense weight would be.
    """

    base: Array
    terms: tuple[Term, ...]
    casts: tuple[Any, ...] = field(default=(), metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the dense value."""
        return self.base.shape

    @property
    def dtype(self) -> Any:
        """Dtype of the dense value."""
        return self.casts[-1] if self.casts else self.base.dtype

    @property
    def narrowest(self) -> Any:
        """The dtype of fewest bytes that the dense value goes through."""
        return min((self.base.dtype, *self.casts), key=lambda dtype: dtype.itemsize)

    def map(self, base: Array, change: Callable[[Term], Term]) -> Perturbed:
        """A new base, and every term changed."""
        return replace(self, base=base, terms=tuple(change(t) for t in self.terms))

    def cast_apart(self) -> Perturbed:
        """The casts made of base and factors each: linear, so the sum is not rounded."""
        if not self.casts:
            return self
        terms = (t.map(lambda f: f.with_array(_cast(f.numbers, self.casts))) for t in self.terms)
        return Perturbed(_cast(self.base, self.casts), tuple(terms))

    def dense(self) -> Array:
        """The dense value, summed in float32 or wider, rounded to the base's dtype, and cast."""
        wide = accumulator_dtype(self.base.dtype)
        total = self.base.astype(wide)
        for term in self.terms:
            total = total + term.dense(self.shape, wide)
        return _cast(total, (self.base.dtype, *self.casts))


def _cast(numbers: Any, dtypes: Sequence[Any]) -> Any:
    for dtype in dtypes:
        numbers = numbers.astype(dtype)
    return numbers


def accumulator_dtype(dtype: DTypeLike) -> Any:
    """float32, or the dtype itself where it is wider."""
    # Not promote_types: it refuses bfloat16 and float32 under strict dtype promotion.
    narrow = jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32
    return jnp.dtype(jnp.float32 if narrow else dtype)


def as_perturbed(value: LowRank) -> Perturbed:
    """The engine's form of a public leaf."""
    left = Factor(value.left, value.left_axes)
    right = Factor(value.right, value.right_axes)
    return Perturbed(value.base, (Term((left, right), value.source, scale=value.scale),))


def is_low_rank(value: Any) -> bool:
    """True for `LowRank` leaves; for `is_leaf=`."""
    return isinstance(value, LowRank)
