"""The optax optimizer, the state that it starts from, and the numbers that change from generation to generation."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from eggroll.engine.annotations import Index, PyTree, Scalar, Schedule
from eggroll.engine.checks import is_traced
from eggroll.engine.paths import leaf_paths
from eggroll.strategy.plan.leaves import LeafPlan
from eggroll.strategy.plan.parameters import full, master_copies, without
from eggroll.strategy.population import Population
from eggroll.strategy.state import Placement, State, make_placement, place
from eggroll.strategy.update.fitness import as_float


def check_optimizer(optimizer: object) -> optax.GradientTransformationExtraArgs:
    """The optimizer, able to take the loss (the negative mean fitness) as schedules on plateaus do."""
    if isinstance(optimizer, optax.MultiSteps):
        optimizer = optimizer.gradient_transformation()
    if not isinstance(optimizer, optax.GradientTransformation):
        raise TypeError(
            f"got optimizer={optimizer!r}; an optax optimizer is required, such as optax.adam(1e-2) or optax.sgd(0.1)."
        )
    return optax.with_extra_args_support(optimizer)


def init_optimizer(optimizer: optax.GradientTransformationExtraArgs, params: PyTree) -> Any:
    """The optimizer's state for `params`, once a dry run has shown that it can do with what it will be given.

    Raises:
        TypeError: it wants more, as line searches do: better now than after the first generation.
    """
    state = optimizer.init(params)
    try:
        jax.eval_shape(lambda p, s: updates(optimizer, p, s, p, jnp.float32(0)), params, state)
    except (TypeError, ValueError, AttributeError) as why:
        raise TypeError(
            "got an optimizer that cannot work with an evolution strategy, which gives it the gradient, the parameters "
            f"and the loss as `value` ({type(why).__name__}: {why}). Line searches and Hessian estimates need the "
            "function itself. Take an optimizer without them, such as optax.adam(1e-2), or "
            "optax.lbfgs(learning_rate, linesearch=None) with a large noise_reuse."
        ) from why
    return state


def updates(
    optimizer: optax.GradientTransformationExtraArgs, gradient: PyTree, state: PyTree, params: PyTree, loss: Scalar
) -> tuple[Any, Any]:
    """`(updates, new state)`."""
    with jax.numpy_dtype_promotion("standard"):  # optax mixes int32 counts with floats
        return optimizer.update(gradient, state, params, value=loss)


def initial_state(
    params: PyTree,
    frozen: Sequence[bool],
    optimizer: optax.GradientTransformationExtraArgs,
    key: jax.Array,
    settings: Population,
) -> State:
    """The state of generation 0, on the mesh of the settings if there is one, where `params` are already.

    Args:
        params: pytree of arrays.
        frozen: one flag per leaf, in order; the optimizer makes no state for these.
        optimizer: from `check_optimizer`.
        key: typed threefry key.
        settings: with the mesh.

    Raises:
        TypeError: an optimizer that needs more than gradient, parameters and loss.
    """
    if settings.mesh is None:
        return _made(params, frozen, optimizer, key)
    shapes = jax.eval_shape(lambda params: _made(params, frozen, optimizer, key), params)
    where = _placement(params, frozen, settings).of_state(shapes)
    made = jax.jit(
        lambda params: dataclasses.replace(_made(params, frozen, optimizer, key), params=(), key=()),
        out_shardings=dataclasses.replace(where, params=(), key=()),
    )(params)
    return dataclasses.replace(made, params=params, key=place(key, where.key))


def _made(
    params: PyTree, frozen: Sequence[bool], optimizer: optax.GradientTransformationExtraArgs, key: jax.Array
) -> State:
    moving = without(params, frozen)
    master = master_copies(moving)
    opt_state = init_optimizer(optimizer, full(moving, master))
    return State(params, master, opt_state, key, jnp.zeros((), jnp.int32))


def _placement(params: PyTree, still: Sequence[bool], settings: Population) -> Placement:
    leaves = [
        LeafPlan(path, tuple(x.shape), str(x.dtype), "frozen" if fixed else "dense")
        for path, x, fixed in zip(leaf_paths(params), jax.tree.leaves(params), still, strict=True)
    ]
    assert settings.mesh is not None
    return make_placement(settings.mesh, settings.sharding, settings.update, leaves)


Sigma = float | Schedule  # a number > 0, or one for every generation


def check_sigma(sigma: object) -> None:
    """Raises unless sigma is a positive number (its value at generation 0, for a schedule)."""
    value: Any = sigma(0) if callable(sigma) else sigma
    if isinstance(value, Tracer):
        return
    if not _is_positive(value):
        raise ValueError(
            f"got sigma={value!r}; a finite number > 0, or an optax schedule of such numbers, is required. 0.01 to 0.1 "
            "times the size of a weight is sensible."
        )


def _is_positive(value: Any) -> bool:
    """Whether it is a finite number > 0."""
    number = isinstance(value, int | float | np.number | np.ndarray | jax.Array) and not isinstance(value, bool)
    return number and jnp.ndim(value) == 0 and 0 < float(value) < float("inf")


def sigma_at(sigma: Sigma, generation: Index) -> Any:
    """Sigma of a generation: a Python float where the schedule gives a number, else a floating-point scalar.

    The barrier keeps the schedule's arithmetic apart from the update's: whoever knows only the value, as a ledger does,
    gets the same bits.
    """
    with jax.numpy_dtype_promotion("standard"):  # optax mixes int32 counts with floats
        value: Any = sigma(generation) if callable(sigma) else float(sigma)
    return jax.lax.optimization_barrier(as_float(value)) if isinstance(value, jax.Array) else float(value)


Rate = float | Schedule | None


def check_rate(rate: Any) -> Rate:
    """Raises unless the learning rate is None, a positive number, or a schedule that is not negative at first."""
    if rate is None:
        return None
    if callable(rate):
        return cast(Schedule, rate)
    if not _is_positive(rate):
        raise ValueError(
            f"got learning_rate={rate!r}; a finite number > 0, an optax schedule, or None for half of sigma is "
            "required."
        )
    return float(rate)


def rate_at(rate: Rate, sigma: Scalar, generation: Index) -> Any:
    """The learning rate α of a generation: a Python float unless something is traced."""
    if rate is None:
        return sigma / 2
    if not callable(rate):
        return float(rate)
    with jax.numpy_dtype_promotion("standard"):  # optax mixes int32 counts with floats
        if is_traced(generation):
            return as_float(jnp.asarray(rate(generation)))
        value: Any = rate(int(generation))
    return float(value)
