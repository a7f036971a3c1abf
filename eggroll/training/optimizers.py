"""Optimizers by name: optax's own, with arguments that JSON can hold, so that a ledger can say which one a run had."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax

from eggroll.engine.annotations import Json, Schedule
from eggroll.training.errors import RunError, check_known


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# By hand: nothing else is looked up in optax, whatever a file says. Line searches need the function itself.
OPTIMIZERS = _names(
    "adabelief adadelta adafactor adagrad adam adamax adamaxw adamw adan amsgrad fromage lamb lars lion nadam nadamw "
    "lbfgs novograd optimistic_adam_v2 optimistic_gradient_descent radam rmsprop rprop sgd sign_sgd signum sm3 "
    "yogi"
)
PARTS = _names(
    "adaptive_grad_clip add_decayed_weights apply_every centralize clip clip_by_block_rms clip_by_global_norm ema "
    "normalize_by_update_norm scale scale_by_adam scale_by_learning_rate scale_by_lion scale_by_rms scale_by_schedule "
    "trace zero_nans"
)
SCHEDULES = _names(
    "constant_schedule cosine_decay_schedule cosine_onecycle_schedule exponential_decay join_schedules "
    "linear_onecycle_schedule linear_schedule piecewise_constant_schedule polynomial_schedule sgdr_schedule "
    "warmup_constant_schedule warmup_cosine_decay_schedule warmup_exponential_decay_schedule"
)


def inverse_sqrt_schedule(init_value: float) -> Schedule:
    """`init_value/√(1 + count)`: for runs whose end is not known. Its sum has no end; that of its squares hardly grows.

    Example:
        >>> float(inverse_sqrt_schedule(1.5)(8))
        0.5
    """
    return lambda count: init_value / jnp.sqrt(1 + jnp.asarray(count, jnp.float32))


def scaled_schedule(schedule: Schedule, factor: float) -> Schedule:
    """Another schedule times a number.

    Example:
        >>> float(scaled_schedule(inverse_sqrt_schedule(1.5), 2.0)(8))
        1.0
    """
    return lambda count: factor * schedule(count)


OWN: Mapping[str, Any] = {each.__name__: each for each in (inverse_sqrt_schedule, scaled_schedule)}  # optax lacks them
CHAIN = "chain"
Spec = Json
Number: TypeAlias = bool | int | float | np.generic | np.ndarray | jax.Array  # arrays without axes
Argument: TypeAlias = "Number | str | NamedSchedule | Sequence[Argument] | Mapping[int, Argument] | None"


class NamedSchedule:
    """A schedule of optax that knows its name and arguments; see `schedule`.

    Attributes:
        spec: `{"schedule": name, "arguments": {...}}`.
    """

    def __init__(self, spec: Spec, function: Schedule) -> None:
        self.spec = spec
        self._function = function

    def __call__(self, count: Any) -> Any:
        """The value after `count` updates."""
        return self._function(count)

    def __mul__(self, factor: float) -> NamedSchedule:
        """The schedule of values so many times as large.

        Example:
            >>> float((schedule("inverse_sqrt_schedule", init_value=1.5) * 2)(8))
            1.0
        """
        return schedule("scaled_schedule", schedule=self, factor=factor)

    def __repr__(self) -> str:
        return f"schedule({_written(self.spec['schedule'], self.spec['arguments'])})"


class NamedOptimizer(optax.GradientTransformationExtraArgs):
    """An optax transformation that knows its name and arguments; see `named`.

    Attributes:
        spec: what `from_spec` makes it again from.
    """

    spec: Spec

    def __new__(cls, transformation: optax.GradientTransformation, spec: Spec) -> NamedOptimizer:
        """The transformation, with its description."""
        full = optax.with_extra_args_support(transformation)
        self = super().__new__(cls, full.init, full.update)
        self.spec = spec
        return self

    def __repr__(self) -> str:
        if self.spec["name"] == CHAIN:
            return f"chain({', '.join(repr(from_spec(part)) for part in self.spec['of'])})"
        return f"named({_written(self.spec['name'], self.spec['arguments'])})"


def named(name: str, **arguments: Argument) -> NamedOptimizer:
    """An optimizer of optax by name: `getattr(optax, name)(**arguments)`, which a ledger can hold.

    Args:
        name: an optimizer such as `"adam"`, or a part to `chain`, such as `"clip_by_global_norm"`.
        **arguments: numbers, booleans, strings, None, lists of those, and schedules from `schedule`.

    Returns:
        The optax transformation, with its description as `.spec`.

    Raises:
        ValueError: a name that is not on the list, a number that is not finite, or arguments that optax refuses.
        TypeError: an argument that JSON cannot hold, such as a function.

    Example:
        >>> rate = schedule("cosine_decay_schedule", init_value=0.01, decay_steps=100)
        >>> named("adam", learning_rate=rate, b2=0.99).spec["arguments"]["b2"]
        0.99
    """
    _check_name(name, OPTIMIZERS | PARTS, "an optimizer")
    encoded = {key: to_json(key, value) for key, value in arguments.items()}
    return NamedOptimizer(_called(name, encoded), {"name": name, "arguments": encoded})


def schedule(name: str, **arguments: Argument) -> NamedSchedule:
    """A schedule of optax by name: `getattr(optax, name)(**arguments)`, for the arguments of `named`.

    Two are our own: `inverse_sqrt_schedule(init_value)`, which is `init_value/√(1 + count)`, and
    `scaled_schedule(schedule, factor)`, which `schedule(...) * factor` makes.

    Args:
        name: such as `"cosine_decay_schedule"`.
        **arguments: as in `named`; dictionaries with integers as keys too.

    Returns:
        A function of the number of updates, with its description as `.spec`.

    Raises:
        ValueError: as `named`.
        TypeError: as `named`.

    Example:
        >>> float(schedule("linear_schedule", init_value=1.0, end_value=0.0, transition_steps=4)(1))
        0.75
    """
    _check_name(name, SCHEDULES | OWN.keys(), "a schedule")
    encoded = {key: to_json(key, value) for key, value in arguments.items()}
    return NamedSchedule({"schedule": name, "arguments": encoded}, _called(name, encoded))


def chain(*parts: NamedOptimizer) -> NamedOptimizer:
    """One after the other, as `optax.chain`.

    Raises:
        TypeError: a part that is not from `named` or `chain`.

    Example:
        >>> chain(named("clip_by_global_norm", max_norm=1.0), named("sgd", learning_rate=0.1)).spec["name"]
        'chain'
    """
    for part in parts:
        if not isinstance(part, NamedOptimizer):
            raise TypeError(
                f"got {type(part).__name__} in a chain; eggroll.training.optimizers.named(...) is required, or use "
                "optax.chain and give the optimizer again to replay a ledger."
            )
    return NamedOptimizer(optax.chain(*parts), {"name": CHAIN, "of": [part.spec for part in parts]})


def from_spec(spec: Spec) -> NamedOptimizer:
    """The optimizer that a `.spec` describes.

    Args:
        spec: `{"name": ..., "arguments": {...}}` or `{"name": "chain", "of": [...]}`.

    Raises:
        RunError: no such description, or one that this version of optax refuses.

    Example:
        >>> from_spec({"name": "sgd", "arguments": {"learning_rate": 0.1}})
        named('sgd', learning_rate=0.1)
    """
    try:
        check_known("an optimizer", spec, ("name", "of" if spec["name"] == CHAIN else "arguments"), ValueError)
        if spec["name"] == CHAIN:
            return chain(*map(from_spec, spec["of"]))
        return named(spec["name"], **{key: from_json(value) for key, value in spec["arguments"].items()})
    except (KeyError, TypeError, ValueError, AttributeError) as why:
        raise RunError(
            f"got {spec!r} as the description of an optimizer, of which this version of optax ({optax.__version__}) "
            f"makes none ({type(why).__name__}: {why}). Give the optimizer itself: replay(..., optimizer=...)."
        ) from why


def _check_name(name: object, allowed: frozenset[str], what: str) -> None:
    if not isinstance(name, str) or name not in allowed or not (name in OWN or hasattr(optax, name)):
        known = ", ".join(sorted(each for each in allowed if each in OWN or hasattr(optax, each)))
        raise ValueError(f"got {name!r} as {what}; one of {known} is required.")


def _called(name: str, encoded: Spec) -> Any:
    """From the encoded arguments, so that a run and its replay are built from the very same numbers."""
    return (OWN.get(name) or getattr(optax, name))(**{key: from_json(value) for key, value in encoded.items()})


def to_json(key: str, value: object) -> object:
    """`value` as JSON can hold it."""
    if isinstance(value, np.generic | np.ndarray | jax.Array) and np.ndim(value) == 0:
        value = value.item()
    if isinstance(value, NamedSchedule):
        return value.spec
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"got {key}={value!r}; a finite number is required.")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [to_json(key, each) for each in value]
    if isinstance(value, Mapping) and all(isinstance(each, int) for each in value):
        return {"pairs": [[each, to_json(key, at)] for each, at in value.items()]}
    raise TypeError(
        f"got {key} of type {type(value).__name__}; numbers, strings, None, lists of those or "
        "eggroll.training.optimizers.schedule(...) are required, which JSON can hold. Any other optax optimizer works "
        "in a run too; it has to be given again to replay the ledger."
    )


def from_json(value: object) -> Any:
    """The inverse of `to_json`."""
    if isinstance(value, list):
        return [from_json(each) for each in value]
    if isinstance(value, dict):
        check_known("an argument", value, ("pairs",) if "pairs" in value else ("schedule", "arguments"), ValueError)
        if "pairs" in value:
            return {int(key): from_json(each) for key, each in value["pairs"]}
        return schedule(value["schedule"], **{key: from_json(each) for key, each in value["arguments"].items()})
    return value


def _written(name: str, arguments: Spec) -> str:
    decoded = {key: from_json(value) for key, value in arguments.items()}
    return ", ".join([repr(name), *(f"{key}={value!r}" for key, value in decoded.items())])


def spec_of(optimizer: object) -> Spec | None:
    """The description of an optimizer from `named` or `chain`; None for any other.

    Example:
        >>> import optax
        >>> spec_of(optax.adam(0.1)) is None
        True
    """
    return optimizer.spec if isinstance(optimizer, NamedOptimizer) else None
