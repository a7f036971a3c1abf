"""Products: the base product, which all members share, plus one thin product per term."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from eggroll.engine.ahead import PRODUCT, leads
from eggroll.engine.annotations import JaxprEqn
from eggroll.engine.interpreter import EXACT_BELOW, Interpreter, Unsupported
from eggroll.engine.perturbed import Array, Factor, Perturbed, Term, accumulator_dtype
from eggroll.engine.rules.algebra import Made, Product, reassociated
from eggroll.ops import Seeded, as_array, lowrank_dot

UNROLLED_RANK = 4  # up to here, a sum of outer products fuses into the base product's consumer and beats a dot


def dot_general(ctx: Interpreter, eqn: JaxprEqn, args: Sequence[Any]) -> list[Any]:
    """`x·(W + Σ f₁⊗f₂) = x·W + Σ (x·f₁)·f₂`, for any dimension numbers, the weight on either side."""
    if eqn.params.get("out_sharding") is not None:
        raise Unsupported("a product with an explicit output sharding")
    contract, batch = eqn.params["dimension_numbers"]
    args, discovering = list(args), ctx.observer is not None
    if not discovering:
        refuse_narrow(eqn)
        if (jaxpr := reassociated(ctx, eqn, args)) is not None:
            return ctx.evaluate(*jaxpr)
        if (out := _factored(ctx, eqn, args)) is not None:
            return [out]
    if (given_up := _given_up(ctx, args, discovering)) is not None:
        reason = "a product of two perturbed values: one of them is made dense"
        args[given_up] = ctx.dense(args[given_up], eqn, reason)
    sides = [s for s in (0, 1) if isinstance(args[s], Perturbed)]
    if discovering:
        for s in sides:
            ctx.product(eqn, args[s], contract[s], batch[s])
        return [ctx.base(eqn, args)]
    return [_product(ctx, eqn, args, sides[0])]


def _factored(ctx: Interpreter, eqn: Any, args: list[Any]) -> Perturbed | Array | None:
    """The product as a base and terms, where all bases are shared and it pays.

    It may be an activation, unless it is made of weights alone: then, of those with a plain array, only what leads to
    another product is kept.
    """
    both, alone = all(isinstance(a, Perturbed) for a in args), id(eqn) in ctx.weights.alone
    if any(ctx.is_own(a.base if isinstance(a, Perturbed) else a) for a in args):
        return None
    if not both and not alone and not leads(PRODUCT, ctx.frames):
        return None
    params, out = eqn.params, eqn.outvars[0].aval
    product = Product.of(args[0], args[1], params["dimension_numbers"], params["precision"], out.dtype)
    try:
        value = product.apply(ctx.base(eqn, args), args[0], args[1])
    except Unsupported:
        return None
    if not alone and _may_be_activation(args):
        value = replace(value, terms=tuple(replace(t, quiet=True) for t in value.terms))
    if value.pays:
        ctx.made[id(value)] = Made(value, eqn, args)
        return value
    return value.dense() if both and out.size < min(a.base.size for a in args) else None


def _given_up(ctx: Interpreter, args: Sequence[Any], discovering: bool) -> int | None:
    """Which of two perturbed values is made dense: an activation, or what something was added to, else the smaller."""
    if not all(isinstance(a, Perturbed) for a in args):
        return None
    for told in (_is_sum, _is_quiet):
        known = [told(a) for a in args]
        if known[0] != known[1]:
            return known.index(True)
    return None if discovering else min((0, 1), key=lambda s: (not ctx.is_own(args[s].base), args[s].base.size))


def _may_be_activation(args: Sequence[Any]) -> bool:
    """Whether an operand may be a network's input, or was made of one."""
    perturbed = [a for a in args if isinstance(a, Perturbed)]
    return any(map(_is_quiet, perturbed)) or len(perturbed) == 1 or len(set(map(_is_sum, perturbed))) == 2


def _is_quiet(value: Perturbed) -> bool:
    return all(t.quiet for t in value.terms)


def _is_sum(value: Perturbed) -> bool:
    return any(t.added for t in value.terms)


def _product(ctx: Interpreter, eqn: JaxprEqn, args: Sequence[Any], side: int) -> Array:
    weight, x = args[side], args[1 - side]
    labels = _Labels(eqn, args, side)
    x, outside = labels.scaled(x, weight.scale)
    args = [weight, x] if side == 0 else [x, weight]
    if (out := _canonical(eqn, x, weight, side)) is not None:
        return outside(out).astype(out.dtype)
    base = ctx.base(eqn, args)
    wide = accumulator_dtype(base.dtype)
    total = base.astype(wide)
    for term in weight.terms:
        total = total + labels.correction(x, term, eqn.params["precision"], wide)
    return outside(total).astype(base.dtype)


def _canonical(eqn: JaxprEqn, x: Any, weight: Perturbed, side: int) -> Array | None:
    """The layout of dense layers, `x [..., K] · W [K, N]`, goes to the kernel, which takes floating-point inputs.

    `K` and `N` may be several axes each, such as heads and their depth, where the factors are keys.
    """
    contract, batch = eqn.params["dimension_numbers"]
    n, ndim = len(contract[side]), len(weight.shape)
    summed = sorted(zip(contract[side], contract[1 - side], strict=True))
    in_order = summed == [(a, x.ndim - n + a) for a in range(n)] and not batch[0]
    if side == 0 and x.ndim > n:  # the outputs' axes would come first
        return None
    floating = all(jnp.issubdtype(a.dtype, jnp.floating) for a in (x, weight.base))
    if not in_order or len(weight.terms) != 1 or not floating:
        return None
    (term,) = weight.terms
    numbers = {f.axes: f.numbers for f in term.factors}
    sides = tuple(range(n)), tuple(range(n, ndim))
    if set(numbers) != set(sides):
        return None
    left, right = (numbers[axes] for axes in sides)
    if isinstance(left, Seeded) != isinstance(right, Seeded):  # one of them was changed on the way
        left, right = as_array(left), as_array(right)
    base, shape = weight.base, (*x.shape[: x.ndim - n], *weight.shape[n:])
    if isinstance(left, Seeded) and isinstance(right, Seeded):
        x, base = x.reshape(*x.shape[: x.ndim - n], left.size), base.reshape(left.size, right.size)
        left, right = left.matrix(), right.matrix()
    elif (n, ndim) != (1, 2):
        return None
    precision = eqn.params["precision"]
    if isinstance(precision, tuple) and precision[0] == precision[1]:
        precision = precision[0]  # of both operands: what kernels know
    options = {"precision": precision, "preferred_element_type": eqn.params["preferred_element_type"]}
    return lowrank_dot(x, base, left, right, scale=term.scale, **options).reshape(shape)


def refuse_narrow(eqn: Any) -> None:
    """A base product that is rounded to a byte has lost the places where the correction belongs."""
    if (dtype := eqn.outvars[0].aval.dtype).itemsize < EXACT_BELOW:
        raise Unsupported(f"a product rounded to {dtype}")


class _Labels:
    """Names the axes of a product as einsum does: weight axes first, then the free axes of `x`, then the rank."""

    def __init__(self, eqn: JaxprEqn, args: Sequence[Any], side: int) -> None:
        contract, batch = eqn.params["dimension_numbers"]
        weight, x = args[side], args[1 - side]
        ndim = len(weight.shape)
        pairs = dict(zip(contract[1 - side], contract[side], strict=True))
        pairs |= dict(zip(batch[1 - side], batch[side], strict=True))
        self.x = [pairs.get(i, ndim + i) for i in range(x.ndim)]
        self.rank = ndim + x.ndim
        free_w = [a for a in range(ndim) if a not in contract[side] and a not in batch[side]]
        free_x = [label for i, label in enumerate(self.x) if i not in pairs]
        free = free_w + free_x if side == 0 else free_x + free_w
        self.out = [*batch[side], *free]

    def scaled(self, x: Any, scale: Term | None) -> tuple[Any, Callable[[Array], Array]]:
        """`x` times those of a weight's own scales along whose axes the product sums, and what the rest does after."""
        if scale is None:
            return x, lambda out: out
        inside = [f for f in scale.factors if not set(f.axes) <= set(self.out)]
        if any(not set(f.axes) <= set(self.x) for f in inside):
            raise Unsupported("a scale along axes of both sides of a product")
        for f in inside:
            x = x * aligned(f.array, list(f.axes), self.x)[..., 0].astype(x.dtype)
        after = [aligned(f.array, list(f.axes), self.out)[..., 0] for f in scale.factors if f not in inside]

        def outside(out: Array) -> Array:
            for own in after:
                out = out * own.astype(out.dtype)
            return out

        return x, outside

    def correction(self, x: Any, term: Term, precision: Any, dtype: DTypeLike) -> Array:
        """Σ_r Π factors·x in the layout of the output; size one along axes that no operand knows."""
        contracted = set(self.x) - set(self.out)
        # Factors that are summed over come first, so that no intermediate is as large as the weight.
        first, *rest = sorted(term.factors, key=lambda f: not contracted & set(f.axes))
        rest_labels = [{*f.axes, self.rank} for f in rest]
        acc, labels = x, self.x
        for f, later in zip([first, *rest[:-1]], _suffix_unions(rest_labels), strict=True):
            acc, labels = self._absorb(acc, labels, f, later, precision, dtype)
        acc = term.times_scale(acc)  # thin by now, and two members of a pair share all that came before
        return self._finish(acc, labels, rest[-1], precision, dtype)

    def _absorb(
        self, acc: Any, labels: list[int], f: Factor, later: set[int], precision: Any, dtype: DTypeLike
    ) -> tuple[Array, list[int]]:
        own = [*f.axes, self.rank]
        keep = [a for a in dict.fromkeys([*labels, *own]) if a in self.out or a in later - {self.rank}]
        keep.append(self.rank)
        return _einsum(acc, labels, f.array, own, keep, precision, dtype), keep

    def _finish(self, acc: Array, labels: list[int], f: Factor, precision: Any, dtype: DTypeLike) -> Array:
        known = [a for a in self.out if a in labels or a in f.axes]
        own = [*f.axes, self.rank]
        summed = (set(labels) | set(own)) - set(self.out) - {self.rank}
        if summed or f.array.shape[-1] > UNROLLED_RANK:
            out = _einsum(acc, labels, f.array, own, known, precision, dtype)
        else:
            out = _unrolled(acc, labels, f.array.astype(dtype), own, known)
        return jnp.expand_dims(out, [i for i, a in enumerate(self.out) if a not in known])


def _suffix_unions(sets: Sequence[set[int]]) -> list[set[int]]:
    """What each absorbed factor has to leave for those after it."""
    return [set().union(*sets[i:]) for i in range(len(sets))]


def _einsum(
    a: Any, a_labels: list[int], b: Any, b_labels: list[int], out: list[int], precision: Any, dtype: DTypeLike
) -> Array:
    # An axis of one operand alone is summed beforehand: einsum then mixes dtypes, which strict promotion forbids.
    alone = (set(a_labels) ^ set(b_labels)) - set(out)
    if alone or a.dtype != b.dtype:  # never to the narrower of the two: it would round the factor
        a, b = a.astype(dtype), b.astype(dtype)
    precision = precision if _is_precision(precision) else None
    return jnp.einsum(a, a_labels, b, b_labels, out, precision=precision, preferred_element_type=dtype)


def _is_precision(precision: Any) -> bool:
    """Dot algorithms name operand types that the factors need not have; plain precisions always apply."""
    if isinstance(precision, tuple):
        return all(isinstance(p, lax.Precision) for p in precision)
    return isinstance(precision, lax.Precision)


def _unrolled(a: Array, a_labels: list[int], b: Array, b_labels: list[int], out: list[int]) -> Array:
    """Σ_r a[..., r]·b[..., r] as broadcast multiplies (both have their rank label last)."""
    a, b = aligned(a, a_labels[:-1], out), aligned(b, b_labels[:-1], out)
    total = a[..., 0] * b[..., 0]
    for k in range(1, a.shape[-1]):
        total = total + a[..., k] * b[..., k]
    return total


def aligned(array: Array, labels: list[int], out: Sequence[int]) -> Array:
    """A factor `[..., rank]` of axes named `labels`, with an axis of size one for every other name of `out`."""
    order = sorted(range(len(labels)), key=lambda i: out.index(labels[i]))
    array = jnp.transpose(array, (*order, len(order)))
    return jnp.expand_dims(array, [i for i, a in enumerate(out) if a not in labels])


RULES = {"dot_general": dot_general}
