"""The drop-in for Flax NNX: where `nnx.value_and_grad` and `nnx.grad` stood."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Unpack, overload

import jax
import jax.numpy as jnp
from flax import nnx

from eggroll.engine.annotations import Function, PyTree
from eggroll.engine.checks import is_traced
from eggroll.strategy import value_and_grad as gradient
from eggroll.strategy.evaluate.averages import check_carried
from eggroll.strategy.explain import Explanation
from eggroll.strategy.explain import explain as explain_function
from eggroll.strategy.noise.keys import as_threefry
from eggroll.strategy.value_and_grad import ExplainOptions, ModelOptions, OfModel

__all__ = ["explain", "grad", "value_and_grad"]


@overload
def value_and_grad(
    loss_fn: Function, *, has_aux: Literal[False] = False, **options: Unpack[ModelOptions]
) -> OfModel[tuple[jax.Array, nnx.State]]: ...
@overload
def value_and_grad(
    loss_fn: Function, *, has_aux: Literal[True], **options: Unpack[ModelOptions]
) -> OfModel[tuple[tuple[jax.Array, PyTree], nnx.State]]: ...
def value_and_grad(loss_fn: Function, *, wrt: Any = nnx.Param, share_rngs: bool = True, **options: Any) -> OfModel[Any]:
    """Estimates loss and gradient of an unmodified NNX model from forward passes alone.

    Only the variables that `wrt` selects are perturbed. Other state (batch statistics, RNG streams, caches) passes
    through: what the loss changes of it is written back, averaged over members; integers that differ are refused.

    Args:
        loss_fn: `loss_fn(model, *args, **kwargs)` → scalar loss, or `(loss, aux)` with `has_aux`. Arguments may be NNX
            objects (`nnx.Rngs`) or variables, by position or by name, or pytrees that hold some.
        wrt: NNX filter for the variables to train; the same as for `nnx.Optimizer(..., wrt=...)`. Default `nnx.Param`.
        share_rngs: True (default) gives all members the same dropout masks (common random numbers: less noise in the
            comparison); False gives every pair its own.
        **options: as in `eggroll.value_and_grad`; `population` and `sigma` are required. `in_axes` speaks of the
            arguments after `model`.

    Returns:
        `f(model, *args, key, **kwargs) -> (value, grads)`, or `((value, aux), grads)` with `has_aux`; `grads` feeds
        `nnx.Optimizer.update(model, grads)`.

    Raises:
        TypeError: no NNX object as the first argument, parameters that are not floating point, no key, `argnums`
            (use `wrt`), or integers of the model in which members differ.
        ValueError: `wrt` selects nothing, or as `eggroll.value_and_grad`.
        FloatingPointError: no member's loss is finite; the model is unchanged. Under `nnx.jit` nothing can be raised:
            the model is unchanged, the gradient zero and the value NaN.

    Example:
        >>> import jax, jax.numpy as jnp, optax, eggroll.nnx
        >>> from flax import nnx
        >>> model = nnx.Linear(4, 2, rngs=nnx.Rngs(0))
        >>> optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)
        >>> loss_fn = lambda model, x: jnp.mean((model(x) - 1.0) ** 2)
        >>> step = eggroll.nnx.value_and_grad(loss_fn, population=256, sigma=0.05)
        >>> before = loss_fn(model, jnp.eye(4))
        >>> for key in jax.random.split(jax.random.key(0), 20):
        ...     loss, grads = step(model, jnp.eye(4), key=key)
        ...     _ = optimizer.update(model, grads)
        >>> bool(loss_fn(model, jnp.eye(4)) < before / 2)
        True

    References:
        Sarkar et al., "Evolution Strategies at the Hyperscale", arXiv 2511.16652.
    """
    if "argnums" in options:
        raise TypeError(
            f"got argnums={options['argnums']!r}; the model is the first argument here, and `wrt` selects its "
            "variables: instead of argnums=nnx.DiffState(0, nnx.LoRAParam) pass wrt=nnx.LoRAParam, as to nnx.Optimizer."
        )
    has_aux, in_axes = options.pop("has_aux", False), options.pop("in_axes", None)

    def pure(params: PyTree, rest: PyTree, keys: Any, split: _Split, args: tuple, kwargs: dict[str, Any]) -> Any:
        before = _by_path(rest)  # the merged model may share its variables, which the loss function changes
        nodes = split.merge(params, _with_keys(rest, keys))
        args, kwargs = _filled((args, kwargs), nodes)
        out = loss_fn(nodes[0], *args, **kwargs)
        loss, aux = out if has_aux else (out, ())
        return loss, (aux, _changed(before, split.rest_of(nodes)))

    # One row per member only where the user says so, and for keys that are not shared.
    axes = (None, None if share_rngs else 0, None, in_axes if in_axes is None else _axes(in_axes), None)
    estimate = gradient.value_and_grad(pure, has_aux=True, in_axes=axes, **options)

    def value_and_grad_fun(model: Any, *args: Any, key: Any, **kwargs: Any) -> Any:
        nodes, (args, kwargs) = _taken_out(model, (args, kwargs))
        split, params, rest = _Split.of(nodes, wrt)
        keys = [] if share_rngs else _member_keys(rest, options["population"], options.get("antithetic", True), key)
        (value, (aux, new)), grads = estimate(params, rest, keys, split, args, kwargs, key=key)
        new = check_carried(rest, _with_unchanged(rest, new))
        nnx.update(nodes, _kept_if(jnp.isnan(value), rest, new) if is_traced(value) else new)
        return ((value, aux) if has_aux else value), grads

    return value_and_grad_fun


@overload
def grad(
    loss_fn: Function, *, has_aux: Literal[False] = False, **options: Unpack[ModelOptions]
) -> OfModel[nnx.State]: ...
@overload
def grad(
    loss_fn: Function, *, has_aux: Literal[True], **options: Unpack[ModelOptions]
) -> OfModel[tuple[nnx.State, PyTree]]: ...
def grad(loss_fn: Function, **options: Any) -> OfModel[Any]:
    """Estimates the gradient of an unmodified NNX model; `value_and_grad` without the value.

    Args:
        loss_fn: as in `value_and_grad`.
        **options: as in `value_and_grad`.

    Returns:
        `f(model, *args, key, **kwargs) -> grads`, or `(grads, aux)` with `has_aux`.

    Example:
        >>> import jax, jax.numpy as jnp, eggroll.nnx
        >>> from flax import nnx
        >>> model = nnx.Linear(4, 2, rngs=nnx.Rngs(0))
        >>> f = eggroll.nnx.grad(lambda model, x: model(x).sum(), population=64, sigma=0.1)
        >>> f(model, jnp.ones((1, 4)), key=jax.random.key(0))["kernel"].shape
        (4, 2)
    """
    has_aux = options.get("has_aux", False)
    both = value_and_grad(loss_fn, **options)

    def grad_fun(model: Any, *args: Any, key: Any, **kwargs: Any) -> Any:
        value, grads = both(model, *args, key=key, **kwargs)
        return (grads, value[1]) if has_aux else grads

    return grad_fun


def explain(
    fun: Function, model: nnx.Pytree, *args: Any, wrt: Any = nnx.Param, **options: Unpack[ExplainOptions]
) -> Explanation:
    """Says how `fun(model, *args)` uses each parameter of an NNX model, and what noise each gets.

    Args:
        fun: a function of the model; `lambda model, x: model(x)` will do.
        model: the NNX model; it is not changed.
        *args: further arguments.
        wrt: NNX filter for the variables to train.
        **options: `rank`, `rules`, `population` as in `eggroll.explain`.

    Returns:
        As `eggroll.explain`.

    Example:
        >>> import jax.numpy as jnp, eggroll.nnx
        >>> from flax import nnx
        >>> model = nnx.Linear(4, 2, rngs=nnx.Rngs(0))
        >>> [row.path for row in eggroll.nnx.explain(lambda m, x: m(x), model, jnp.ones((1, 4))).rows]
        ['bias', 'kernel']
    """
    nodes, args = _taken_out(model, args)
    split, params, rest = _Split.of(nodes, wrt)

    def pure(params: PyTree, rest: PyTree, split: _Split, args: tuple) -> Any:
        nodes = split.merge(params, rest)
        return fun(nodes[0], *_filled(args, nodes))

    return explain_function(pure, params, rest, split, args, **options)


@jax.tree_util.register_static
@dataclass(frozen=True)
class _Slot:
    """Where an NNX object was among the arguments."""

    index: int


def _taken_out(model: Any, args: Any) -> tuple[tuple, Any]:
    """`((model, *NNX objects among the arguments), the arguments with slots in their places)`."""
    nodes = [model]

    def slot(x: Any) -> Any:
        if not _is_node(x):
            return x
        index = next((i for i, node in enumerate(nodes) if node is x), len(nodes))
        nodes[index:] = nodes[index:] or [x]
        return _Slot(index)

    args = jax.tree.map(slot, args, is_leaf=_is_node)
    return tuple(nodes), args


def _is_node(x: Any) -> bool:
    return isinstance(x, nnx.Pytree | nnx.Variable)


def _filled(args: Any, nodes: tuple) -> Any:
    """The arguments with the objects back in their slots."""
    is_slot = lambda x: isinstance(x, _Slot)  # noqa: E731
    return jax.tree.map(lambda x: nodes[x.index] if is_slot(x) else x, args, is_leaf=is_slot)


@jax.tree_util.register_static
class _Split:
    """How a model and the NNX objects among the arguments come apart and together; hashable, without arrays."""

    def __init__(self, graphdef: Any, wrt: Any) -> None:
        self.graphdef, self.wrt = graphdef, wrt

    def __hash__(self) -> int:
        return hash(self.graphdef)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Split) and self.wrt == other.wrt and self.graphdef == other.graphdef

    @staticmethod
    def of(nodes: tuple, wrt: Any) -> tuple[_Split, Any, Any]:
        """`(split, trained state of the model, all other state)`."""
        if not isinstance(nodes[0], nnx.Pytree):
            raise TypeError(
                f"got {type(nodes[0]).__name__} as the model; an NNX module is required. For plain parameters use "
                "eggroll.value_and_grad."
            )
        graphdef, params, rest = nnx.split(nodes, _of_model(wrt), ...)
        if not jax.tree.leaves(params):
            raise ValueError(f"got wrt={wrt!r}, which selects no variable of the model.")
        return _Split(graphdef, wrt), params[0], rest

    def merge(self, params: PyTree, rest: PyTree) -> tuple:
        """The model and the other objects."""
        return nnx.merge(self.graphdef, nnx.State({0: params}), rest)

    def rest_of(self, nodes: tuple) -> Any:
        """All state that is not trained, as the function left it."""
        return nnx.split(nodes, _of_model(self.wrt), ...)[2]


def _of_model(wrt: Any) -> Any:
    """The filter for trained variables of the first node only."""
    return nnx.All(lambda path, _: path[0] == 0, wrt)


def _axes(in_axes: Any) -> Any:
    return in_axes if isinstance(in_axes, int) else tuple(in_axes)


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _keys_of(state: Any) -> list[jax.Array]:
    return [x for x in jax.tree.leaves(state) if _is_key(x)]


def _with_keys(state: Any, keys: list[jax.Array]) -> Any:
    """`state` with its random keys replaced, in order; unchanged without keys."""
    if not keys:
        return state
    new = iter(keys)
    return jax.tree.map(lambda x: next(new) if _is_key(x) else x, state)


def _by_path(state: Any) -> dict[Any, Any]:
    return dict(jax.tree_util.tree_leaves_with_path(state))


def _changed(before: dict[Any, Any], new: PyTree) -> Any:
    """The new state, None where it is the very same array (a mean would be that but for rounding) or a random key."""
    same = lambda path, x: path in before and (x is before[path] or _is_key(x))  # noqa: E731
    return jax.tree_util.tree_map_with_path(lambda path, x: None if same(path, x) else x, new)


def _with_unchanged(old: PyTree, changed: Any) -> Any:
    """What `_changed` was made of, with the old arrays where nothing changed."""
    before = _by_path(old)
    fill = lambda path, x: before[path] if x is None else x  # noqa: E731
    return jax.tree_util.tree_map_with_path(fill, changed, is_leaf=lambda x: x is None)


def _kept_if(lost: jax.Array, old: PyTree, new: PyTree) -> Any:
    """The new state, or the old one where there is one of the same shape and no member's loss was finite."""
    before = _by_path(old)

    def one(path: Any, x: Any) -> Any:
        kept = before.get(path, x)
        return jnp.where(lost, kept, x) if kept.shape == x.shape and kept.dtype == x.dtype else x

    return jax.tree_util.tree_map_with_path(one, new)


def _member_keys(rest: PyTree, population: int, antithetic: bool, key: jax.Array) -> list[jax.Array]:
    """One key per member for every RNG stream; a pair shares its own."""
    pair = jnp.arange(population) // (2 if antithetic else 1)
    seed = jax.random.bits(as_threefry(key), (), "uint32")
    return [jax.vmap(lambda i, k=k: jax.random.fold_in(jax.random.fold_in(k, seed), i))(pair) for k in _keys_of(rest)]
