"""What the interpreter carries instead of a dense perturbed array: a base and a sum of terms over named axes.

A term is a product of factors, each of which owns some axes of the base; axis bookkeeping is then one idea for every
rule.
"""

from __future__ import annotations

import math
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
    `quiet`: part of a sum over a weight, or of its product with an array that members share, which may be an
    activation: nothing is said where that is made dense.
    """

    factors: tuple[Factor, ...]
    source: Source = field(default=Source(), metadata={"static": True})
    added: bool = field(default=False, metadata={"static": True})
    looked_up: frozenset[int] = field(default=frozenset(), metadata={"static": True})
    walked: frozenset[int] = field(default=frozenset(), metadata={"static": True})
    quiet: bool = field(default=False, metadata={"static": True})
    scale: Array | None = None

    @property
    def rank(self) -> int:
        """Size of the trailing axis that the factors share."""
        return self.factors[0].rank

    @property
    def size(self) -> int:
        """How many numbers the factors hold."""
        return sum(math.prod(f.numbers.shape) for f in self.factors)

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
    """`scale·(base + Σ terms)`: what the interpreter carries instead of a dense perturbed array.

    `scale` is a product of the member's own numbers along some axes, of rank one: inside the base they would give each
    member one of its own. `times` is another value that this one is multiplied by, number by number, once something
    asks for it; a sum of the products does not need them. `casts` are made of the result, in order; the rest is as
    before them, so that what moves numbers, looks them up or makes them dense rounds each member's own sum, as a dense
    weight would be.
    """

    base: Array
    terms: tuple[Term, ...]
    casts: tuple[Any, ...] = field(default=(), metadata={"static": True})
    scale: Term | None = None
    times: Perturbed | None = None

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

    @property
    def pays(self) -> bool:
        """Whether the factors are fewer numbers than the dense value."""
        return sum(t.size for t in self.terms) < self.base.size

    def map(self, base: Array, change: Callable[[Term], Term]) -> Perturbed:
        """A new base, and every term and the scale changed."""
        scale = None if self.scale is None else change(self.scale)
        return replace(self, base=base, terms=tuple(change(t) for t in self.terms), scale=scale)

    def scaled_by(self, own: Factor) -> Perturbed:
        """Multiplied by a member's own numbers."""
        factors = list(self.scale.factors) if self.scale is not None else []
        same = next((i for i, f in enumerate(factors) if f.axes == own.axes), None)
        if same is None:
            factors.append(own)
        else:
            factors[same] = own.with_array(factors[same].array * own.array)
        return replace(self, scale=Term(tuple(factors)))

    def cast_apart(self) -> Perturbed:
        """The casts made of base and factors each: linear, so the sum is not rounded."""
        if not self.casts:
            return self
        terms = (t.map(lambda f: f.with_array(_cast(f.numbers, self.casts))) for t in self.terms)
        return replace(self, base=_cast(self.base, self.casts), terms=tuple(terms), casts=())

    def dense(self) -> Array:
        """The dense value, summed in float32 or wider, rounded to the base's dtype, and cast."""
        wide = accumulator_dtype(self.base.dtype)
        total = self.base.astype(wide)
        for term in self.terms:
            total = total + term.dense(self.shape, wide)
        if self.scale is not None:
            total = total * self.scale.dense(self.shape, wide)
        total = total.astype(self.base.dtype)
        return _cast(total if self.times is None else total * self.times.dense(), self.casts)


def _cast(numbers: Any, dtypes: Sequence[Any]) -> Any:
    for dtype in dtypes:
        numbers = numbers.astype(dtype)
    return numbers


def accumulator_dtype(dtype: DTypeLike) -> Any:
    """float32, or the dtype itself where it is wider."""
    # Not promote_types: it refuses bfloat16 and float32 under strict dtype promotion.
    narrow = jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32
    return jnp.dtype(jnp.float32 if narrow else dtype)
