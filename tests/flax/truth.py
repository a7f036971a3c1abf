"""What the Flax tests compare with: the plain, unmodified model on every member's dense parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import eggroll
from eggroll.strategy.members import Members

POPULATION = 6
SIGMA = 0.1
EPS32 = float(np.finfo(np.float32).eps)
# Of the largest magnitude in an output: sums of some dozen products, a few layers deep, in another order.
ROUNDING = 64 * EPS32


def ask(params: Any, *, seed: int = 7, sigma: float = SIGMA, population: int = POPULATION, **options: Any) -> Members:
    """The members of generation 0; a dense fallback in their evaluation raises unless options say otherwise."""
    options = {"fallback": "error", "optimizer": optax.sgd(0.1), **options}
    es = eggroll.ES(population=population, sigma=sigma, **options)
    return es.ask(es.init(params, jax.random.key(seed)))


def check_members(
    fun: Callable[..., Any],
    params: Any,
    *args: Any,
    tolerance: float = ROUNDING,
    margin: float = 100.0,
    **options: Any,
) -> Members:
    """Asserts that `members.apply` equals `fun` on the dense parameters of every member.

    And that this says something: every parameter of every member differs from the one they share, and every member's
    output from the unperturbed one by more than `margin` times the tolerance.
    """
    members = ask(params, **options)
    outs = members.apply(fun, *args)
    alone = jax.jit(fun, static_argnums=tuple(i for i, a in enumerate(args, 1) if not _traced(a)))
    still = alone(params, *args)
    for i in range(len(members)):
        dense = members.materialize(i)
        _check_perturbed(members, params, dense)
        want = alone(dense, *args)
        assert_close(jax.tree.map(lambda x, i=i: _row(x, i), outs), want, tolerance)
        assert distance(still, want) > margin * tolerance, "the perturbation does not show in the output"
    return members


def _row(array: jax.Array, i: int) -> Any:
    """By NumPy, for each shape would be a program; but not of keys."""
    return array[i] if jnp.issubdtype(array.dtype, jax.dtypes.extended) else np.asarray(array)[i]


def _traced(arg: Any) -> bool:
    return all(isinstance(leaf, jax.Array | np.ndarray) for leaf in jax.tree.leaves(arg))


def _check_perturbed(members: Members, params: Any, dense: Any) -> None:
    for leaf, old, new in zip(members.plan.leaves, jax.tree.leaves(params), jax.tree.leaves(dense), strict=True):
        assert old.shape == new.shape and old.dtype == new.dtype
        moves = leaf.kind in ("low_rank", "dense")
        assert bool((np.asarray(old) != np.asarray(new)).any()) == moves, f"{leaf.path} is {leaf.kind}"


def assert_close(got: Any, want: Any, tolerance: float = ROUNDING) -> None:
    """Same structure, shapes and dtypes; floating values within `tolerance` times each array's largest magnitude."""
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for (path, g), w in zip(jax.tree.leaves_with_path(got), jax.tree.leaves(want), strict=True):
        assert g.shape == w.shape and g.dtype == w.dtype, (g.shape, g.dtype, w.shape, w.dtype)
        if not jnp.issubdtype(g.dtype, jnp.floating):
            assert bool((g == w).all())
            continue
        g, w = np.asarray(g, np.float64), np.asarray(w, np.float64)
        limit = tolerance * max(np.max(np.abs(w), initial=0), 1e-3)
        np.testing.assert_allclose(g, w, rtol=0, atol=limit, err_msg=jax.tree_util.keystr(path))


def distance(a: Any, b: Any) -> float:
    """Largest difference over all floating leaves, relative to each array's largest magnitude."""
    worst = 0.0
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if jnp.issubdtype(x.dtype, jnp.floating):
            x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
            worst = max(worst, np.max(np.abs(x - y), initial=0) / max(np.max(np.abs(y), initial=0), 1e-3))
    return worst


def functional(
    model: nnx.Module, call: Callable[..., Any] | None = None, *, wrt: Any = nnx.Param
) -> tuple[Callable[..., Any], Any, Any]:
    """`(fun, params, rest)` with `fun(params, rest, *args)` = `call(model, *args)`, by default the model's own call."""
    graphdef, params, rest = nnx.split(model, wrt, ...)

    def fun(params: Any, rest: Any, *args: Any) -> Any:
        merged = nnx.merge(graphdef, params, rest)
        return merged(*args) if call is None else call(merged, *args)

    return fun, params, rest


def check_model(model: nnx.Module, *args: Any, call: Any = None, wrt: Any = nnx.Param, **options: Any) -> Members:
    """`check_members` for an NNX model."""
    fun, params, rest = functional(model, call, wrt=wrt)
    return check_members(fun, params, rest, *args, **options)


def by_path(members: Members) -> dict[str, Any]:
    """Leaf plans by parameter path."""
    return {leaf.path: leaf for leaf in members.plan.leaves}


def sides(leaf: Any) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """(left axes, right axes, stack axes), the stack apart from the sides."""
    own = [tuple(a for a in side if a not in leaf.stack_axes) for side in (leaf.left_axes, leaf.right_axes)]
    return own[0], own[1], leaf.stack_axes


def normal(seed: int, *shape: int, dtype: Any = jnp.float32) -> jax.Array:
    """Standard normal numbers made by NumPy: nothing to compile."""
    return jax.device_put(np.random.default_rng(seed).normal(size=shape).astype(np.float32).astype(dtype))
