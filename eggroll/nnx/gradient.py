"""Where `nnx.value_and_grad` and `nnx.grad` stood."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol, TypeVar, Unpack, overload

import jax
import jax.numpy as jnp
from flax import nnx

from eggroll.engine.annotations import Function, PyTree
from eggroll.nnx.model import AtPlaces, Call, Pure, axes_of
from eggroll.strategy import value_and_grad as gradient
from eggroll.strategy.evaluate.argnums import check_argnums, taken_out
from eggroll.strategy.explain import ExplainOptions, Explanation
from eggroll.strategy.explain import explain as explain_function
from eggroll.strategy.value_and_grad import CommonOptions

__all__ = ["explain", "grad", "value_and_grad"]


Out = TypeVar("Out", covariant=True)


class ModelOptions(CommonOptions, total=False):
    """Options of `eggroll.nnx.value_and_grad` and `eggroll.nnx.grad` but `has_aux`."""

    argnums: int | Sequence[int]
    wrt: Any  # a filter of NNX
    share_rngs: bool


class OfModel(Protocol[Out]):
    """What their namesakes for NNX models return."""

    def __call__(self, model: Any, *args: Any, key: jax.Array, **kwargs: Any) -> Out:
        """Of the model's state."""
        ...


Value = tuple[jax.Array, nnx.State]
ValueAux = tuple[tuple[jax.Array, PyTree], nnx.State]
GradAux = tuple[nnx.State, PyTree]


@overload
def value_and_grad(
    loss_fn: Function, *, has_aux: Literal[False] = False, **options: Unpack[ModelOptions]
) -> OfModel[Value]: ...
@overload
def value_and_grad(
    loss_fn: Function, *, has_aux: Literal[True], **options: Unpack[ModelOptions]
) -> OfModel[ValueAux]: ...
def value_and_grad(
    loss_fn: Function,
    *,
    argnums: int | Sequence[int] = 0,
    wrt: Any = nnx.Param,
    share_rngs: bool = True,
    **options: Any,
) -> OfModel[Any]:
    """Estimates loss and gradient of an unmodified NNX model from forward passes alone.

    Only the variables that `wrt` selects are perturbed. Other state (batch statistics, RNG streams, caches) passes
    through: what the loss changes of it is written back to the model, averaged over members where it is floating point.

    Args:
        loss_fn: `loss_fn(model, *args, **kwargs)` → scalar loss, or `(loss, aux)` with `has_aux`. Arguments may be NNX
            objects (`nnx.Rngs`) or variables, by position or by name, or pytrees that hold some. `model` may be a
            tuple, list or dictionary of models.
        argnums: which positional argument is the model, or which several are, as in `nnx.value_and_grad`; `wrt` is for
            all of them. Default 0.
        wrt: NNX filter for the variables to train; the same as for `nnx.Optimizer(..., wrt=...)`. Default `nnx.Param`.
        share_rngs: True (default) gives all members the same dropout masks (common random numbers: less noise in the
            comparison); False gives every pair its own.
        **options: as in `eggroll.value_and_grad`; `population` and `sigma` are required. `in_axes` speaks of the
            arguments but the model.

    Returns:
        `f(model, *args, key, **kwargs) -> (value, grads)`, or `((value, aux), grads)` with `has_aux`; `grads` feeds
        `nnx.Optimizer.update(model, grads)`; of several models a state of each, in what holds them.

    Raises:
        TypeError: no NNX object as the model, parameters of integers or the like, no key, or an `nnx.DiffState` as
            `argnums` (use `wrt`).
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
    if any(isinstance(n, nnx.DiffState) for n in (argnums if isinstance(argnums, Sequence) else (argnums,))):
        raise TypeError(
            f"got argnums={argnums!r}; `argnums` says which arguments are models here, and `wrt` selects their "
            "variables: instead of argnums=nnx.DiffState(0, nnx.LoRAParam) pass wrt=nnx.LoRAParam, as to nnx.Optimizer."
        )
    numbers = check_argnums(argnums)
    fun = loss_fn if numbers == 0 else AtPlaces(loss_fn, numbers)
    has_aux, in_axes = options.pop("has_aux", False), options.pop("in_axes", None)

    estimate = gradient.value_and_grad(
        Pure(fun, has_aux), has_aux=True, in_axes=axes_of(in_axes, share_rngs), **options
    )

    def value_and_grad_fun(model: Any, *args: Any, key: Any, **kwargs: Any) -> Any:
        model, others, _ = taken_out(numbers, (model, *args))
        call = Call(model, others, kwargs, wrt)
        who = options["population"], options.get("antithetic", True)
        keys = [] if share_rngs else call.keys(*who, key)
        (value, (aux, changed)), grads = estimate(call.params, *call.arguments(keys), key=key)
        call.write(changed, jnp.isnan(value))
        return ((value, aux) if has_aux else value), grads

    return value_and_grad_fun


@overload
def grad(
    loss_fn: Function, *, has_aux: Literal[False] = False, **options: Unpack[ModelOptions]
) -> OfModel[nnx.State]: ...
@overload
def grad(loss_fn: Function, *, has_aux: Literal[True], **options: Unpack[ModelOptions]) -> OfModel[GradAux]: ...
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
    call = Call(model, args, {}, wrt)
    return explain_function(Pure(fun, False), call.params, *call.arguments([]), **options)
