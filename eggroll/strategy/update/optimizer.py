"""The optax optimizer: what it may be, and what an evolution strategy can give it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from eggroll.engine.annotations import PyTree


def check_optimizer(optimizer: Any) -> optax.GradientTransformationExtraArgs:
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
    optimizer: optax.GradientTransformationExtraArgs, gradient: PyTree, state: Any, params: PyTree, loss: Any
) -> tuple[Any, Any]:
    """`(updates, new state)`."""
    with jax.numpy_dtype_promotion("standard"):  # optax mixes int32 counts with floats
        return optimizer.update(gradient, state, params, value=loss)
