"""Means over members of what is no fitness: auxiliary output, and state that a model carries along."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jax.typing import DTypeLike

from eggroll.engine.annotations import Function, PyTree
from eggroll.engine.checks import is_traced
from eggroll.engine.factored import partition
from eggroll.engine.lowrank import accumulator_dtype
from eggroll.engine.paths import path_name
from eggroll.strategy.evaluate.compiled import CompiledCache
from eggroll.strategy.evaluate.tracing import Rows
from eggroll.strategy.plan.leaves import Plan


class Totals(NamedTuple):
    """What is summed up over members, chunk by chunk.

    Attributes:
        sums: of every leaf that is averaged, over members with finite kept outputs.
        firsts: of every other leaf the first member's value, which is that of all.
        count: int32, how many members the sums are of.
    """

    sums: Any
    firsts: Any
    count: Any


@dataclass(frozen=True)
class Averages:
    """How a pytree of outputs is averaged over members, decided by where each leaf comes from, never by its values.

    Floating-point and complex leaves are averaged in their own dtype. Integers and flags that come from nothing that
    differs among members (a count of steps, a random key that all share) stay exactly what they are; others are
    averaged as floating-point numbers: a flag becomes the share of members for which it is set.

    Attributes:
        tree: structure of the outputs.
        dtypes: of each leaf's average; None: one value, which all members have.
    """

    tree: Any
    dtypes: tuple[Any, ...]

    @staticmethod
    def of(fun: Function, like: PyTree, params: PyTree, plan: Plan, rows: Rows) -> Averages:
        """Of the outputs `fun(params, *args)`, which look `like` this for one member.

        Raises:
            TypeError: random keys that differ among members.
        """
        keyed, tree = jax.tree_util.tree_flatten_with_path(like)
        exact = [not jnp.issubdtype(x.dtype, jnp.inexact) for _, x in keyed]
        differs = _differing(fun, params, plan, rows) if any(exact) else exact
        dtypes = []
        for (path, x), counts, own in zip(keyed, exact, differs, strict=True):
            if own and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
                raise TypeError(
                    f"got the output '{path_name(path)}' of random keys that differ among members, which have no mean; "
                    "numbers, or a key that all members share, are required. Return jax.random.key_data(key), or none."
                )
            dtypes.append((jnp.result_type(float) if own else None) if counts else x.dtype)
        return Averages(tree, tuple(dtypes))

    def totals(self, outputs: PyTree, finite: jax.Array) -> Totals:
        """Sums over finite members, in float32 or wider, of outputs with a leading axis of members."""
        sums, firsts = [], []
        for leaf, dtype in zip(jax.tree.leaves(outputs), self.dtypes, strict=True):
            if dtype is None:
                firsts.append(leaf[0])
            else:
                mask = finite.reshape(-1, *[1] * (leaf.ndim - 1))
                sums.append(jnp.where(mask, leaf.astype(accumulator_dtype(dtype)), 0).sum(0))
        return Totals(sums, firsts, finite.sum(dtype=jnp.int32))

    def mean(self, totals: Totals) -> PyTree:
        """Sums to means."""
        sums, firsts = iter(totals.sums), iter(totals.firsts)

        def mean(total: jax.Array, dtype: DTypeLike) -> jax.Array:
            return (total / totals.count.astype(total.dtype)).astype(dtype)

        return self.tree.unflatten([next(firsts) if x is None else mean(next(sums), x) for x in self.dtypes])


def _differing(fun: Function, params: PyTree, plan: Plan, rows: Rows) -> list[bool]:
    """For each leaf of the output, whether `jax.vmap` over perturbed parameters and rows gives it an axis."""
    leaves, structure = jax.tree.flatten(params)
    args, merge, _ = partition(rows.abstract())
    moves = [leaf.kind != "frozen" for leaf in plan.leaves]
    axes = [0 if own else None for own in moves], [None if axis is None else 0 for axis in rows.axes]
    found: dict[int, bool] = {}

    def member(leaves: list[Any], args: list[Any]) -> list[Any]:
        outputs = jax.tree.leaves(fun(structure.unflatten(leaves), *merge(args)))
        return [_noted(jnp.asarray(x), found, n) for n, x in enumerate(outputs)]

    def stacked(x: Any, axis: int | None) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape if axis is None else (2, *x.shape), x.dtype)

    given = [list(map(stacked, each, along)) for each, along in zip((leaves, args), axes, strict=True)]
    try:
        count = len(jax.eval_shape(jax.vmap(member, in_axes=tuple(axes)), *given))
    except NotImplementedError:  # an operation that one member after the other can do, and `jax.vmap` cannot
        return [True] * len(jax.tree.leaves(jax.eval_shape(fun, params, *rows.abstract())))
    return [found.get(n, False) for n in range(count)]


def _noted(x: jax.Array, found: dict[int, bool], n: int) -> jax.Array:
    """`x`; under `jax.vmap` it is noted that it has an axis."""
    same = custom_vmap(lambda x: x)

    def with_axis(size: int, batched: list[bool], x: jax.Array) -> tuple[jax.Array, bool]:
        found[n] = True
        return x, batched[0]

    same.def_vmap(with_axis)
    return same(x)


def check_carried(before: PyTree, after: PyTree) -> Any:
    """`after`; raises TypeError where integers that go from generation to generation were averaged over members."""
    old = dict(jax.tree_util.tree_leaves_with_path(before))
    for path, x in jax.tree_util.tree_leaves_with_path(after):
        was = getattr(old.get(path, x), "dtype", None)
        if was is not None and not jnp.issubdtype(was, jnp.inexact) and jnp.issubdtype(x.dtype, jnp.inexact):
            raise TypeError(
                f"got '{path_name(path)}' of dtype {was} in the state that the model carries along, in which members "
                f"differ: their mean is {x.dtype}, and no integer or flag stands for all of them. Keep it as a "
                "floating-point number, which is averaged, or return it as auxiliary output."
            )
    return after


def check_shared(rows: Sequence[tuple[Any, jax.Array]]) -> None:
    """Raises TypeError where members differ in integers of `(path, [N, ...])` that they carry along; not in a trace."""
    for path, x in rows:
        exact = not jnp.issubdtype(x.dtype, jnp.inexact) and not jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        if exact and not is_traced(x) and bool((x != x[:1]).any()):
            raise TypeError(
                f"got '{path_name(path)}' of dtype {x.dtype} in the state that the model carries along, in which "
                "members differ, and no integer or flag stands for all of them. Keep it as a floating-point number."
            )


@jax.jit
def averaged(x: jax.Array, finite: jax.Array) -> jax.Array:
    """A floating-point leaf `[N, ...]` averaged over members with finite fitness; of others what members share."""
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        return x[0]
    wide = x.astype(accumulator_dtype(x.dtype))
    mask = finite.reshape(-1, *[1] * (x.ndim - 1))
    return (jnp.where(mask, wide, 0).sum(0) / finite.sum().astype(wide.dtype)).astype(x.dtype)


def averaged_output(
    cache: CompiledCache, fun: Function, params: PyTree, plan: Plan, rows: Rows, aux: PyTree, fitness: jax.Array
) -> PyTree:
    """Auxiliary output of all members, the second of what `fun` returns, averaged over those with finite fitness."""
    axes, size = rows.axes, rows.population

    def mean(params: PyTree, args: tuple, aux: PyTree, finite: jax.Array) -> PyTree:
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), aux)
        averages = Averages.of(lambda *given: fun(*given)[1], like, params, plan, Rows(args, axes, size))
        return averages.mean(averages.totals(aux, finite))

    static = "aux", cache.program(fun, params, rows), plan, axes
    return cache(mean, static, params, rows.args, aux, jnp.isfinite(fitness))
