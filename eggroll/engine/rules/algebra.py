"""What stays perturbed: products of perturbed values with each other and with what all members share, and sums.

`(W + A·Bᵀ)·(V + C·Dᵀ) = W·V + A·(BᵀV) + (W·C)·Dᵀ + (A·BᵀC)·Dᵀ`: a base that all members share, and terms of no higher
rank than those of the operands. Squares are such products, too: summed, they need no array as large as the weight.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from eggroll.engine import jax_compat
from eggroll.engine.annotations import JaxprEqn
from eggroll.engine.interpreter import Interpreter, Unsupported
from eggroll.engine.perturbed import Array, Factor, Perturbed, Term, accumulator_dtype

Part = tuple[Array, tuple[int, ...]]  # an array and the name of each of its axes; the rank has a name, too


@dataclass(frozen=True)
class Product:
    """A `dot_general` whose axes have names, `left` and `right` those of its operands and `out` of its result.

    Attributes:
        left: names of the left operand's axes.
        right: names of the right operand's axes.
        out: names of the result's axes.
        sizes: of every name.
        precision: of the sums.
        dtype: of the result.
    """

    left: tuple[int, ...]
    right: tuple[int, ...]
    out: tuple[int, ...]
    sizes: dict[int, int]
    precision: Any
    dtype: DTypeLike

    @classmethod
    def of(cls, lhs: Any, rhs: Any, numbers: Any, precision: Any, dtype: DTypeLike) -> Product:
        """The product of two values by `dot_general`'s dimension numbers."""
        (summed, summed_right), (batch, batch_right) = numbers
        left = tuple(range(len(lhs.shape)))
        right = [len(left) + i for i in range(len(rhs.shape))]
        for a, b in zip((*summed, *batch), (*summed_right, *batch_right), strict=True):
            right[b] = left[a]
        free = [left[a] for a in left if a not in summed and a not in batch]
        own = [name for name in right if name not in left]
        sizes = dict(zip((*left, *right), (*lhs.shape, *rhs.shape), strict=True))
        return cls(left, tuple(right), (*(left[a] for a in batch), *free, *own), sizes, precision, dtype)

    @property
    def rank(self) -> int:
        """The name of the axis that factors are summed over."""
        return len(self.left) + len(self.right)

    @property
    def summed(self) -> set[int]:
        """Names that the result lacks."""
        return set(self.left) - set(self.out)

    def apply(self, base: Array, lhs: Any, rhs: Any) -> Perturbed:
        """The product of two values, of which at least one is perturbed, with `base` that of their bases."""
        scale = self._scale(lhs, self.left) + self._scale(rhs, self.right)
        terms = [self._with_array(t, self.left, _base(rhs), self.right) for t in _terms(lhs)]
        terms += [self._with_array(t, self.right, _base(lhs), self.left) for t in _terms(rhs)]
        terms += [self._of_terms(t, u) for t in _terms(lhs) for u in _terms(rhs)]
        return Perturbed(base, tuple(terms), scale=Term(scale) if scale else None)

    def _scale(self, value: Any, names: Sequence[int]) -> tuple[Factor, ...]:
        factors = value.scale.factors if isinstance(value, Perturbed) and value.scale is not None else ()
        if any(names[a] in self.summed for f in factors for a in f.axes):
            raise Unsupported("a product that sums over an axis along which every member scales by its own numbers")
        return tuple(self._renamed(f, names) for f in factors)

    def _renamed(self, f: Factor, names: Sequence[int]) -> Factor:
        return f.relabel({a: self.out.index(names[a]) for a in f.axes})

    def _parts(self, term: Term, names: Sequence[int], rank: int) -> list[Part]:
        return [(f.array, (*(names[a] for a in f.axes), rank)) for f in term.factors]

    def _with_array(self, term: Term, names: Sequence[int], array: Array, others: Sequence[int]) -> Term:
        """A term's factors that the sum touches become one with the array; the rest keep apart."""
        touched = _touched(term, names, self.summed)
        kept = tuple(self._renamed(f, names) for i, f in enumerate(term.factors) if i not in touched)
        parts = self._parts(term, names, self.rank)
        merged = self._merged([(array, tuple(others)), *(parts[i] for i in touched)], self.rank, term.rank)
        return replace(term, factors=(merged, *kept))

    def _of_terms(self, first: Term, second: Term) -> Term:
        """The rank is the smaller of both: all factors of one term become one with those that the sum touches."""
        (one, names), (other, others) = sorted([(first, self.left), (second, self.right)], key=lambda t: -t[0].rank)
        touched = _touched(other, others, self.summed)
        kept = tuple(self._renamed(f, others) for i, f in enumerate(other.factors) if i not in touched)
        parts = self._parts(other, others, self.rank)
        parts = [*self._parts(one, names, self.rank + 1), *(parts[i] for i in touched)]
        merged = self._merged(parts, self.rank, other.rank)
        scales = [t.scale for t in (first, second) if t.scale is not None]
        scale = math.prod(scales[1:], start=scales[0]) if scales else None
        marks = {"added": first.added or second.added, "quiet": first.quiet or second.quiet}
        return replace(other, factors=(merged, *kept), scale=scale, **marks)

    def _merged(self, parts: Sequence[Part], rank_name: int, rank: int) -> Factor:
        wide = accumulator_dtype(self.dtype)
        known = {name for _, names in parts for name in names}
        out = [name for name in self.out if name in known]
        # XLA's CPU widens the operands of most products itself, and refuses the others as it runs.
        widen = len({a.dtype for a, _ in parts}) > 1 or jax.default_backend() == "cpu"
        operands: list[Any] = []
        for array, names in parts:
            operands += [array.astype(wide) if widen else array, list(names)]
        precision = self.precision if isinstance(self.precision, lax.Precision) else None
        options = {"precision": precision, "preferred_element_type": wide}
        array = jnp.einsum(*operands, [*out, rank_name], **options)
        if constant := math.prod(self.sizes[name] for name in self.summed - known):
            array = array * constant if constant != 1 else array
        return Factor(array.astype(self.dtype), tuple(self.out.index(name) for name in out))


@dataclass(frozen=True)
class Made:
    """A product that stayed perturbed, and what it is a product of."""

    value: Perturbed  # kept, so its id stays its own
    eqn: JaxprEqn
    args: Sequence[Any]


def reassociated(ctx: Interpreter, eqn: JaxprEqn, args: Sequence[Any]) -> tuple[Any, list[Any]] | None:
    """`x·(C·W)` as `(x·C)·W`, or `(C·W)·x` as `C·(W·x)`, where members share `x` and it has fewer rows than `C·W`."""
    contract, batch = eqn.params["dimension_numbers"]
    for side, x in ((1, args[0]), (0, args[1])):
        made = ctx.made.get(id(args[side]))
        if made is None or batch[0] or made.eqn.params["dimension_numbers"][1][0] or ctx.is_own(_base(x)):
            continue
        inner = made.eqn.params["dimension_numbers"][0]
        operands = [_base(a) for a in made.args]
        free = [[a for a in range(o.ndim) if a not in inner[i]] for i, o in enumerate(operands)]
        nearest, first = 1 - side, 0 if side == 1 else len(free[0])
        if sorted(contract[side]) != [first + i for i in range(len(free[nearest]))]:
            continue
        rows = math.prod(x.shape) // math.prod(x.shape[a] for a in contract[1 - side])
        summed = math.prod(operands[0].shape[a] for a in inner[0])
        if rows * sum(o.size for o in operands) >= made.value.base.size * (summed + rows):
            continue
        return _chained(eqn, x, made, side, free), [x, *made.args]
    return None


def _chained(eqn: JaxprEqn, x: Any, made: Made, side: int, free: Sequence[Sequence[int]]) -> Any:
    """Both products as a jaxpr of `x` and the operands of the one that is there; `free` axes of each go into that."""
    contract, _ = eqn.params["dimension_numbers"]
    inner = made.eqn.params["dimension_numbers"][0]
    options = {k: eqn.params[k] for k in ("precision", "preferred_element_type")}
    first = 0 if side == 1 else len(free[0])

    def product(x: Array, *operands: Array) -> Array:
        near, far = operands if side == 1 else operands[::-1]
        mine, theirs = tuple(contract[1 - side]), tuple(free[1 - side][a - first] for a in contract[side])
        left = [a for a in range(near.ndim) if a not in theirs]
        n_free = x.ndim - len(mine)
        if side == 1:
            thin = lax.dot_general(x, near, ((mine, theirs), ((), ())), **options)
            places = tuple(n_free + left.index(a) for a in inner[0])
            return lax.dot_general(thin, far, ((places, inner[1]), ((), ())), **options)
        thin = lax.dot_general(near, x, ((theirs, mine), ((), ())), **options)
        places = tuple(left.index(a) for a in inner[1])
        return lax.dot_general(far, thin, ((inner[0], places), ((), ())), **options)

    return jax.make_jaxpr(product)(*(jax_compat.abstract(_base(a)) for a in (x, *made.args)))


def _base(value: Any) -> Array:
    return value.base if isinstance(value, Perturbed) else value


def _terms(value: Any) -> tuple[Term, ...]:
    return value.terms if isinstance(value, Perturbed) else ()


def _touched(term: Term, names: Sequence[int], summed: set[int]) -> list[int]:
    """Which factors own an axis that is summed over; if none does, the smallest."""
    found = [i for i, f in enumerate(term.factors) if any(names[a] in summed for a in f.axes)]
    return found or [min(range(len(term.factors)), key=lambda i: math.prod(term.factors[i].numbers.shape))]


def reduce_sum(ctx: Interpreter, eqn: JaxprEqn, args: Sequence[Any]) -> list[Any]:
    """Sums factors along the axes that they own; the sum of a product number by number is a `dot_general`."""
    (value,) = args
    axes = set(eqn.params["axes"])
    if ctx.observer is not None or eqn.params.get("out_sharding") is not None:
        raise Unsupported("a sum over axes of a weight")
    if value.times is not None:
        return [_sum_of_products(eqn, value, axes)]
    if value.scale is not None and any(axes & set(f.axes) for f in value.scale.factors):
        raise Unsupported("a sum over an axis along which every member scales by its own numbers")
    if any(len(t.owners(a)) > 1 for t in value.terms for a in axes):
        raise Unsupported("a sum over an axis of both factors")
    places = {a: i for i, a in enumerate(a for a in range(len(value.shape)) if a not in axes)}

    def change(f: Factor) -> Factor:
        summed = jnp.sum(f.array, [f.position(a) for a in f.axes if a in axes]) if axes & set(f.axes) else f.array
        return f.with_array(summed, axes=tuple(places[a] for a in f.axes if a not in axes))

    def reduced(term: Term) -> Term:
        constant = math.prod(value.shape[a] for a in axes if not term.owners(a))
        term = replace(term.map(change), quiet=True)
        return term.scaled(lambda s: s * constant) if constant != 1 else term

    scale = None if value.scale is None else value.scale.map(change)
    return [replace(value, base=ctx.base(eqn, args), terms=tuple(map(reduced, value.terms)), scale=scale)]


def _sum_of_products(eqn: Any, value: Perturbed, axes: set[int]) -> Any:
    assert value.times is not None
    rest = tuple(a for a in range(len(value.shape)) if a not in axes)
    summed = tuple(sorted(axes))
    numbers = ((summed, summed), (rest, rest))
    lhs, rhs = replace(value, times=None, casts=()), value.times
    dtype = eqn.outvars[0].aval.dtype
    wide, highest = accumulator_dtype(dtype), lax.Precision.HIGHEST
    product = Product.of(lhs, rhs, numbers, highest, wide)
    base = lax.dot_general(
        lhs.base.astype(wide), rhs.base.astype(wide), numbers, precision=highest, preferred_element_type=wide
    )
    return product.apply(base, lhs, rhs).dense().astype(dtype)


def joined(terms: Sequence[Term]) -> tuple[Term, ...]:
    """A weight's own sums join its terms, from which they differ in one factor: `A·Bᵀ − a·Bᵀ = (A − a)·Bᵀ`."""
    found: list[Term] = []
    for term in terms:
        sums = ((i, _joined(*sorted([t, term], key=lambda t: t.quiet))) for i, t in enumerate(found))
        i, both = next(((i, both) for i, both in sums if both is not None), (len(found), term))
        found[i : i + 1] = [both]
    return tuple(found)


def _joined(term: Term, total: Term) -> Term | None:
    pairs = list(zip(term.factors, total.factors, strict=False))
    apart = [i for i, (f, g) in enumerate(pairs) if f.numbers is not g.numbers or f.axes != g.axes]
    if not total.quiet or len(term.factors) != len(total.factors) or len(apart) != 1:
        return None
    f, g = (t.factors[apart[0]] for t in (term, total))
    if not set(g.axes) < set(f.axes) or f.numbers.dtype != g.numbers.dtype:
        return None
    numbers, more = (t.times_scale(h.array) for t, h in ((term, f), (total, g)))
    numbers = numbers + jnp.expand_dims(more, [i for i, a in enumerate(f.axes) if a not in g.axes])
    factors = tuple(f.with_array(numbers) if i == apart[0] else h for i, h in enumerate(term.factors))
    return replace(term, factors=factors, scale=None)


RULES = {"reduce_sum": reduce_sum}
