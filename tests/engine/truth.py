"""What the engine's tests compare with: dense weights made by NumPy, member by member.

Arrays hold small integers, so that every sum in a linear function is exact in float32 and results must be equal to
the last bit, whatever the order of summation.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

from eggroll.engine.factored import factored
from eggroll.engine.lowrank import LowRank, Source, is_low_rank
from tests.engine.sizes import FACTOR, PLAIN, X, large_values

MEMBERS = 3
DISTINCT = 11  # members in the search for dense weights: no axis of a test's array has this size
SIZES = st.integers(1, 4)

# Compile time is what these tests cost; optimised code does not make them truer.
FAST = {"xla_backend_optimization_level": "0", "xla_llvm_disable_expensive_passes": True}


def jit(fun: Callable) -> Callable:
    """`jax.jit` without the expensive passes."""
    return jax.jit(fun, compiler_options=FAST if jax.default_backend() == "cpu" else None)


def integers(seed: int, shape: Sequence[int], dtype: Any = jnp.float32, bound: int = 4) -> jax.Array:
    """Integers in [-bound, bound] as floating-point numbers."""
    # Cast by NumPy and put: each new shape would cost `astype`, and `jnp.asarray` too, a compilation.
    return jax.device_put(np.random.default_rng(seed).integers(-bound, bound + 1, tuple(shape)).astype(dtype))


def low_rank(
    seed: int,
    shape: Sequence[int],
    left_axes: Sequence[int],
    right_axes: Sequence[int],
    rank: int = 1,
    *,
    dtype: Any = jnp.float32,
    members: int | None = MEMBERS,
    path: str = "w",
    scaled: bool = False,
) -> LowRank:
    """A parameter of integers; its factors, and its scale if it has one, have a leading axis of `members`, if given."""
    lead = () if members is None else (members,)
    factors = [(*lead, *(shape[a] for a in axes), rank) for axes in (left_axes, right_axes)]
    arrays = [integers(seed * 3 + i, s, dtype) for i, s in enumerate([shape, *factors])]
    scale = integers(seed + 7, lead, dtype) if scaled else None
    return LowRank(*arrays, tuple(left_axes), tuple(right_axes), Source(path, members), scale)


def dense(leaf: LowRank) -> np.ndarray:
    """`base + Σ left ⊗ right` in float64, a leading axis of members included where the factors have one."""
    letters = string.ascii_lowercase[: len(leaf.shape)]
    left, right = ("".join(letters[a] for a in axes) for axes in (leaf.left_axes, leaf.right_axes))
    owned = "".join(c for c in letters if c in left + right)
    spec = f"...{left}Z,...{right}Z->...{owned}"
    change = np.einsum(spec, np.asarray(leaf.left, np.float64), np.asarray(leaf.right, np.float64))
    if leaf.scale is not None:
        scale = np.asarray(leaf.scale, np.float64)
        change = np.asarray(change) * scale.reshape((*scale.shape, *[1] * (np.ndim(change) - scale.ndim)))
    missing = [a - len(leaf.shape) for a, c in enumerate(letters) if c not in owned]
    for a in sorted(missing, reverse=True):  # from the last axis: its place does not depend on the others
        change = np.expand_dims(change, change.ndim + 1 + a)
    return np.asarray(leaf.base, np.float64) + change


def member(tree: Any, i: int) -> Any:
    """The tree with the dense parameters of member `i`."""

    def pick(leaf: Any) -> Any:
        return jax.device_put(dense(leaf)[i].astype(leaf.dtype)) if is_low_rank(leaf) else leaf

    return _map(pick, tree)


def member_axes(tree: Any) -> Any:
    """`in_axes` for `jax.vmap`: factors are batched, bases and other arrays are shared."""

    def axes(leaf: Any) -> Any:
        if not is_low_rank(leaf):
            return None
        return replace(leaf, base=None, left=0, right=0, scale=None if leaf.scale is None else 0)

    return _map(axes, tree)


def assert_equal(got: Any, want: Any, tolerance: float = 0.0) -> None:
    """Same structure, shapes and dtypes; values equal within `tolerance` times the largest magnitude."""
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert g.shape == w.shape and g.dtype == w.dtype, (g.shape, g.dtype, w.shape, w.dtype)
        if not jnp.issubdtype(g.dtype, jnp.floating):
            np.testing.assert_array_equal(g, w)
            continue
        g, w = np.asarray(g, np.float64), np.asarray(w, np.float64)
        magnitude = max(1.0, np.max(np.abs(w), initial=0, where=np.isfinite(w)))
        np.testing.assert_allclose(g, w, rtol=0, atol=tolerance * magnitude)


def check(
    fun: Callable,
    params: Any,
    *args: Any,
    fallback: str = "error",
    tolerance: float = 0.0,
    members: int = MEMBERS,
    per_member: Sequence[int] = (),
) -> None:
    """Asserts that `factored(fun)` under vmap over members equals `fun` on each member's dense parameters.

    The positions in `per_member` name arguments of which every member has its own, along a leading axis.
    """
    axes = tuple(0 if i in per_member else None for i in range(len(args)))
    population = jax.vmap(factored(fun, fallback=fallback), in_axes=(member_axes(params), *axes))
    own = [[_row(a, i) if axes[k] == 0 else a for k, a in enumerate(args)] for i in range(members)]
    alone = jax.jit(fun)  # in the same program, which is one less to compile
    program = jit(lambda params, args, each: (population(params, *args), [alone(*one) for one in each]))
    outs, wanted = program(params, args, [(member(params, i), *own[i]) for i in range(members)])
    for i, want in enumerate(wanted):
        assert_equal(_row(outs, i), want, tolerance)


def _row(tree: Any, i: int) -> Any:
    return jax.tree.map(lambda a: np.asarray(a)[i], tree)


def check_never_dense(fun: Callable, params: Any, *args: Any, limit: int | None = None, strict: bool = False) -> None:
    """Asserts that no array as large as the members' dense weights is ever made.

    Looked at is every value, in nested jaxprs too, that depends on the factors but not on the last argument, the
    network's input: such values are weights. `strict` looks at those that depend on the input as well, for tests
    whose activations are smaller than the weights. `limit` is the size to stay below, per member; by default that
    of the smallest perturbed parameter. Factors are cut to rank one, so that they are smaller than their product.
    """
    leaves = [leaf for leaf in jax.tree.leaves(params, is_leaf=is_low_rank) if is_low_rank(leaf)]
    limit = limit or min(leaf.base.size for leaf in leaves)
    assert all(n < limit for leaf in leaves for n in _rank_one_sizes(leaf)), "a factor is as large as a weight"
    *others, x = args
    kinds = (_map(_kinds, params), jax.tree.map(lambda _: PLAIN, others), jax.tree.map(lambda _: X, x))
    axes = (member_axes(params), *[None] * len(args))
    population = jax.vmap(factored(fun, fallback="error"), in_axes=axes)
    jaxpr = jax.make_jaxpr(population)(_map(_thin, params), *args)
    made = large_values(jaxpr, jax.tree.leaves(kinds), DISTINCT * limit)
    made = [v for v in made if strict or X not in v.kinds]
    assert not made, f"made as large as the dense weights: {made}"


def _map(change: Callable[[Any], Any], tree: Any) -> Any:
    return jax.tree.map(change, tree, is_leaf=is_low_rank)


def _thin(leaf: Any) -> Any:
    """Rank one, `DISTINCT` members."""
    if not is_low_rank(leaf):
        return leaf

    def cut(f: jax.Array) -> np.ndarray:
        return np.broadcast_to(np.asarray(f)[:1, ..., :1], (DISTINCT, *f.shape[1:-1], 1))

    scale = None if leaf.scale is None else np.broadcast_to(np.asarray(leaf.scale)[:1], (DISTINCT,))
    return replace(leaf, left=cut(leaf.left), right=cut(leaf.right), scale=scale)


def _kinds(leaf: Any) -> Any:
    if not is_low_rank(leaf):
        return PLAIN
    return replace(leaf, base=PLAIN, left=FACTOR, right=FACTOR, scale=None if leaf.scale is None else FACTOR)


def _rank_one_sizes(leaf: LowRank) -> list[int]:
    return [int(np.prod([leaf.shape[a] for a in axes])) for axes in (leaf.left_axes, leaf.right_axes)]


def compressible(leaf: LowRank) -> bool:
    """True if, at rank one, each factor is smaller than the parameter."""
    return max(_rank_one_sizes(leaf)) < leaf.base.size


@st.composite
def ownerships(draw: Any, ndim: int, kinds: str = "lrbn") -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Left and right axes; each axis is owned by left, right, both or neither."""
    owners = draw(st.lists(st.sampled_from(kinds), min_size=ndim, max_size=ndim))
    return tuple(tuple(a for a in range(ndim) if owners[a] in side) for side in ("lb", "rb"))


@st.composite
def weights(
    draw: Any, min_ndim: int = 1, max_ndim: int = 4, sizes: Any = SIZES, kinds: str = "lrbn", **options: Any
) -> LowRank:
    """Parameters of any ownership and of ranks 1 to 6, with a scale or without."""
    options.setdefault("scaled", draw(st.booleans()))
    shape = tuple(draw(st.lists(sizes, min_size=min_ndim, max_size=max_ndim)))
    left, right = draw(ownerships(len(shape), kinds))
    return low_rank(draw(st.integers(0, 999)), shape, left, right, draw(st.integers(1, 6)), **options)
