"""Products of rows by groups (`lax.ragged_dot`): each row with the weight of its group, as a routed expert does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from eggroll.engine import jax_compat
from eggroll.engine.annotations import JaxprEqn
from eggroll.engine.interpreter import EXACT_BELOW, Interpreter, Unsupported
from eggroll.engine.perturbed import Array, Factor, Perturbed, Term, accumulator_dtype

ROWS_BY_GROUP = ((((1,), (1,)), ((), ())), (0,), (0,))


def ragged_dot(ctx: Interpreter, eqn: JaxprEqn, args: Sequence[Any]) -> list[Any]:
    """`x·(W[e] + A[e]·B[e]) = x·W[e] + (x·A[e])·B[e]` for each row and the group `e` that it belongs to."""
    params = eqn.params
    numbers = params["ragged_dot_dimension_numbers"]
    form = numbers.dot_dimension_numbers, tuple(numbers.lhs_ragged_dimensions), tuple(numbers.rhs_group_dimensions)
    if form != ROWS_BY_GROUP or params["group_offset"] is not None:
        if any(isinstance(a, Perturbed) for a in args):
            raise Unsupported("a ragged product other than of rows by group")
        return jax_compat.bind(eqn, args)
    x, w, sizes = args
    x, sizes = (ctx.dense(a, eqn, "rows or group sizes that are perturbed") for a in (x, sizes))
    if not isinstance(w, Perturbed):
        return [_product(eqn, x, w, sizes)]
    if ctx.product(eqn, w, (1,), (0,)):
        return [ctx.base(eqn, [x, w, sizes])]
    base = _product(eqn, x, w.base, sizes)
    if base.dtype.itemsize < EXACT_BELOW:
        raise Unsupported(f"a product rounded to {base.dtype}")
    wide = accumulator_dtype(base.dtype)
    group = _groups(sizes, x.shape[0])
    total = base.astype(wide)
    for term in w.terms:
        own = _correction(x, term, jnp.minimum(group, w.shape[0] - 1), params["precision"], wide)
        total = total + jnp.where((group < w.shape[0])[:, None], own, jnp.zeros((), wide))
    return [total.astype(base.dtype)]


def _groups(sizes: Array, rows: int) -> Array:
    """The group of each row; their number for rows after the last group."""
    ends = jnp.cumsum(sizes)
    return jnp.searchsorted(ends, jnp.arange(rows, dtype=ends.dtype), side="right")


def _correction(x: Array, term: Term, group: Array, precision: Any, dtype: Any) -> Array:
    """`Σ_r Π factors[e]·x`, `[rows, out]` or constant along `out`."""

    def of_rows(f: Factor) -> Array:
        return jnp.take(f.array, group, axis=0, mode="clip") if 0 in f.axes else f.array

    rows, inner, out, rank = 0, 1, 2, 3
    operands: list[Any] = [x.astype(dtype), [rows, inner]]
    for f in term.factors:
        operands += [of_rows(f).astype(dtype), [*f.axes, rank]]
    known = [rows, out] if any(out in f.axes for f in term.factors) else [rows]
    total = term.times_scale(jnp.einsum(*operands, known, precision=precision, preferred_element_type=dtype))
    return total if out in known else total[:, None]


def _product(eqn: JaxprEqn, x: Array, w: Array, sizes: Array) -> Array:
    """The plain product, for members that share the weight or do not.

    JAX can batch it only once, and where all operands are batched. So rows of all members that share a weight are put
    together, group by group, and multiplied at once; and members' axes are merged where each has a weight of its own.
    """

    @jax.custom_batching.custom_vmap
    def shared(x: Array, w: Array, sizes: Array) -> Array:
        return jax_compat.bind(eqn, [x, w, sizes])[0]

    @jax.custom_batching.custom_vmap
    def apart(x: Array, w: Array, sizes: Array) -> Array:
        return jax.vmap(lambda *own: jax_compat.bind(eqn, own)[0])(x, w, sizes)

    @shared.def_vmap
    def _(n: int, batched: Sequence[bool], *operands: Array) -> tuple[Array, bool]:
        if batched[1]:
            return apart(*_each(n, batched, operands)), True
        x, w, sizes = _each(n, [batched[0], True, batched[2]], operands)
        rows = x.shape[1]
        group = jax.vmap(lambda s: _groups(s, rows))(sizes).reshape(n * rows)
        order = jnp.argsort(group, stable=True)
        own = jnp.bincount(group, length=w.shape[0]).astype(sizes.dtype)  # sizes may add up to more rows than there are
        out = shared(x.reshape(n * rows, -1)[order], w, own)
        return out[jnp.argsort(order)].reshape(n, rows, -1), True

    @apart.def_vmap
    def _(n: int, batched: Sequence[bool], *operands: Array) -> tuple[Array, bool]:
        merged = [a.reshape(n * a.shape[1], *a.shape[2:]) for a in _each(n, batched, operands)]
        out = apart(*merged)
        return out.reshape(n, -1, *out.shape[1:]), True

    return shared(x, w, sizes)


def _each(n: int, batched: Sequence[bool], operands: Sequence[Array]) -> list[Array]:
    """Operands that all members share, repeated for each."""
    return [a if own else jnp.broadcast_to(a, (n, *a.shape)) for a, own in zip(operands, batched, strict=True)]


RULES = {"ragged_dot_general": ragged_dot}
