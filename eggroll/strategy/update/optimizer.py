"""The optax optimizer, the state that it starts from, and the numbers that change from generation to generation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from eggroll.engine.annotations import Index, PyTree, Scalar, Schedule
from eggroll.engine.checks import is_huge, is_traced
from eggroll.engine.paths import leaf_paths
from eggroll.strategy.plan.leaves import LeafPlan
from eggroll.strategy.plan.parameters import full, master_copies, without
from eggroll.strategy.population import Population
from eggroll.strategy.state import Placement, State, make_placement, place
from eggroll.strategy.update.automatic import AUTO, Auto
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


Sigma = float | Schedule | Auto  # a number > 0, or one for every generation; or it chooses itself
Factory = Callable[[Any], optax.GradientTransformation]  # learning rate → optimizer


def check_sigma(sigma: object) -> None:
    """Raises unless sigma is a positive number (its value at generation 0, for a schedule), or `"auto"`."""
    if isinstance(sigma, str) and sigma == AUTO:
        return
    value: Any = sigma(0) if callable(sigma) else sigma
    if isinstance(value, Tracer):
        return
    if not _is_positive(value):
        raise ValueError(
            f"got sigma={value!r:.80}; a finite number > 0, an optax schedule of such numbers, or 'auto' is required. "
            "0.01 to 0.1 times the size of a weight is sensible."
        )


def _is_positive(value: Any) -> bool:
    """Whether it is a finite number > 0."""
    array = isinstance(value, np.number | np.ndarray | jax.Array)
    real = array and any(jnp.issubdtype(value.dtype, kind) for kind in (jnp.floating, jnp.integer))
    number = real or type(value) in (int, float)
    return number and not is_huge(value) and jnp.ndim(value) == 0 and 0 < float(value) < float("inf")


def sigma_at(sigma: Sigma, generation: Index) -> Any:
    """Sigma of a generation: a Python float where the schedule gives a number, else a floating-point scalar.

    The barrier keeps the schedule's arithmetic apart from the update's: whoever knows only the value, as a ledger does,
    gets the same bits.
    """
    if isinstance(sigma, str):
        raise ValueError(
            'got sigma="auto", which nothing has chosen yet: es.step outside jit does, and fit, by the fitness; with '
            "ask and tell, call es.choose(state, lambda members: ...their fitness...) before the first generation."
        )
    with jax.numpy_dtype_promotion("standard"):  # optax mixes int32 counts with floats
        value: Any = sigma(generation) if callable(sigma) else float(sigma)
    return jax.lax.optimization_barrier(as_float(value)) if isinstance(value, jax.Array) else float(value)


Rate = float | Schedule | Auto | None


def check_rate(rate: Any, without: str = "None for half of sigma") -> Rate:
    """Raises unless the learning rate is None, `"auto"`, a positive number, or a schedule."""
    if rate is None or (isinstance(rate, str) and rate == AUTO):
        return rate
    if callable(rate):
        return cast(Schedule, rate)
    if not _is_positive(rate):
        raise ValueError(
            f"got learning_rate={rate!r}; a finite number > 0, an optax schedule, 'auto', or {without} is required."
        )
    return float(rate)


def optimizer_of(optimizer: Any, rate: Rate) -> tuple[optax.GradientTransformationExtraArgs, Any]:
    """The optimizer, and what makes it of a learning rate that is not chosen yet, else None."""
    if rate is None:
        return check_optimizer(optax.adam(1e-2) if optimizer is None else optimizer), None
    factory: Any = optax.adam if optimizer is None else optimizer
    if isinstance(optimizer, optax.GradientTransformation | optax.MultiSteps) or not callable(factory):
        raise TypeError(
            f"got learning_rate={rate!r} with {type(optimizer).__name__} as the optimizer, which has a rate already; "
            "give optimizer=optax.adam, or another function from a learning rate to an optimizer, or no learning_rate."
        )
    auto = isinstance(rate, str)  # a state is of the same kind, whatever the rate
    return check_optimizer(factory(1.0 if auto else rate)), factory if auto else None


def rate_at(rate: Rate, sigma: Scalar, generation: Index) -> Any:
    """The learning rate α of a generation: a Python float unless something is traced."""
    if rate is None:
        return sigma / 2
    assert not isinstance(rate, str), "learning_rate is not chosen yet"  # nor is sigma then, which says so
    if not callable(rate):
        return float(rate)
    with jax.numpy_dtype_promotion("standard"):  # optax mixes int32 counts with floats
        if is_traced(generation):
            return as_float(jnp.asarray(rate(generation)))
        value: Any = rate(int(generation))
    return float(value)
