"""Environments: what one has to do, what actions it takes, and what is found out about it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from eggroll.engine.annotations import PyTree
from eggroll.training.options import SettingsError

DONE = ("reward", "terminated", "truncated")


@dataclass(frozen=True)
class Discrete:
    """One of so many choices: an action is an int32, 0 to `choices − 1`.

    Example:
        >>> Discrete(4).outputs
        4
    """

    choices: int

    @property
    def outputs(self) -> int:
        """Numbers that a policy gives for an action."""
        return self.choices


@dataclass(frozen=True)
class MultiDiscrete:
    """Several choices at once: an action is int32 of the shape of `choices`.

    Example:
        >>> MultiDiscrete((3, 2)).outputs
        5
    """

    choices: tuple[int, ...]

    @property
    def outputs(self) -> int:
        """Numbers that a policy gives for an action."""
        return sum(self.choices)


@dataclass(frozen=True)
class Box:
    """Numbers within bounds, which may be infinite: an action is float32 of the shape of `low`.

    Example:
        >>> Box(np.full(2, -1.0), np.ones(2)).outputs
        2
    """

    low: np.ndarray
    high: np.ndarray

    @property
    def outputs(self) -> int:
        """Numbers that a policy gives for an action."""
        return math.prod(np.shape(self.low))


Space: TypeAlias = Discrete | MultiDiscrete | Box


@runtime_checkable
class Environment(Protocol):
    """What an environment in JAX has to do; any object with these will do.

    Further attributes are used where there are some: `limit`, the steps of an episode at most; `mask(state)`, flags of
    the shape of the policy's outputs that say which choices are allowed; `frame(state)`, a picture `[height, width, 3]`
    in uint8.

    Attributes:
        actions: the space of actions.
    """

    actions: Any

    def reset(self, key: jax.Array, /) -> tuple[PyTree, PyTree]:
        """`(state, observation)` of a new episode."""
        ...

    def step(self, state: PyTree, action: Any, key: jax.Array, /) -> tuple[PyTree, PyTree, Any, Any, Any]:
        """`(state, observation, reward, terminated, truncated)` after an action; never a new episode."""
        ...


@dataclass(frozen=True)
class HostEnvironment:
    """An environment that no JAX function is: one of Gymnasium's, each episode in an object of its own.

    Attributes:
        make: makes such an object, with `reset(seed=…)` and `step(action)` as Gymnasium's; its argument is whether it
            is to be drawn.
        actions: the space of actions.
        observation: zeros like an observation.
        limit: steps of an episode at most; None: it is not known.
    """

    make: Any
    actions: Space
    observation: np.ndarray
    limit: int | None


def as_floats(observation: PyTree) -> Any:
    """What a policy sees: every number of an observation as float32."""
    return jax.tree.map(lambda x: jnp.asarray(x).astype(jnp.float32), observation)


def observed(environment: Environment | HostEnvironment) -> Any:
    """Shapes of an observation, as a policy sees it."""
    if isinstance(environment, HostEnvironment):
        return jax.eval_shape(as_floats, environment.observation)
    return jax.eval_shape(lambda key: as_floats(environment.reset(key)[1]), jax.random.key(0))


def limit_of(environment: Any) -> int | None:
    """Steps of an episode at most, as far as the environment says."""
    limit = getattr(environment, "limit", None)
    return None if limit is None else int(limit)


def check_environment(environment: Any) -> None:
    """Raises unless it is an environment, whose step can follow its reset again and again.

    Raises:
        TypeError: no `reset`, `step` or `actions`.
        SettingsError: a space of actions that no policy has a head for, or a step whose results do not fit.
    """
    if isinstance(environment, HostEnvironment):
        return
    lacks = [name for name in ("reset", "step", "actions") if not hasattr(environment, name)]
    if lacks:
        raise TypeError(
            f"got {type(environment).__name__} as the environment, without {', '.join(lacks)}; an object with "
            "reset(key) → (state, observation), step(state, action, key) → (state, observation, reward, terminated, "
            "truncated) and actions is required, or a name: eggroll.rl.make('gymnax:CartPole-v1')."
        )
    check_space(environment.actions)
    key = jax.random.key(0)
    begun = _of(jax.eval_shape(environment.reset, key), 2, "reset(key)", "(state, observation)")
    made = jax.eval_shape(environment.step, begun[0], _action(environment.actions), key)
    stepped = _of(made, 5, "step(state, action, key)", "(state, observation, reward, terminated, truncated)")
    for name, one, other in zip(("state", "observation"), begun, stepped, strict=False):
        was, now = ((jax.tree.structure(x), list(map(_layout, jax.tree.leaves(x)))) for x in (one, other))
        if was != now:
            raise SettingsError(
                f"got an environment whose step returns another {name} than its reset: {now[0]} of {now[1]} after "
                f"{was[0]} of {was[1]}. A loop needs the same structure, shapes and dtypes of both."
            )
    for name, x in zip(DONE, stepped[2:], strict=True):
        if getattr(x, "shape", None) != ():
            raise SettingsError(
                f"got the {name} {_layout(x)} from the environment's step; one number for one episode is required."
            )


def check_space(space: object) -> None:
    """Raises SettingsError for a space of actions that no policy has a head for."""
    sizes = (space.choices,) if isinstance(space, Discrete) else getattr(space, "choices", ())
    whole = all(type(n) is int and n >= 1 for n in sizes)
    if not isinstance(space, Discrete | MultiDiscrete | Box) or not whole or not space.outputs:
        raise SettingsError(
            f"got actions={space!r}, for which there is no head; eggroll.rl.Discrete(choices), MultiDiscrete((choices, "
            "…)) or Box(low, high) is required."
        )


def _of(made: Any, count: int, what: str, required: str) -> tuple:
    if not isinstance(made, tuple) or len(made) != count:
        size = f" of {len(made)}" if isinstance(made, tuple) else ""
        raise SettingsError(f"got {type(made).__name__}{size} from the environment's {what}; {required} is required.")
    return made


def _action(space: Space) -> jax.ShapeDtypeStruct:
    if isinstance(space, Box):
        return jax.ShapeDtypeStruct(np.shape(space.low), jnp.float32)
    return jax.ShapeDtypeStruct(() if isinstance(space, Discrete) else (len(space.choices),), jnp.int32)


def _layout(x: Any) -> str:
    return f"{x.dtype}{list(x.shape)}" if hasattr(x, "shape") else repr(x)
