"""Environments of other libraries, by names such as `gymnax:CartPole-v1`: all that knows how these libraries are used.

Nothing here begins a new episode by itself, as some of the libraries do: what is learned from ends with its episode.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import sys
import warnings
from collections.abc import Callable
from difflib import get_close_matches
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from eggroll.engine.annotations import PyTree
from eggroll.extras import needed_for
from eggroll.importing import check_import, function_named
from eggroll.rl.environments import (
    Box,
    Discrete,
    Environment,
    HostEnvironment,
    MultiDiscrete,
    Space,
    check_environment,
)
from eggroll.training.options import SettingsError

BOUNDS = (("low", "minimum"), ("high", "maximum"))  # Gymnasium's names, and Jumanji's
BRAX_LIMIT = 1000  # steps of an episode, as Brax's own training takes
Stepped = tuple[PyTree, PyTree, Any, Any, Any]


class Gymnax:
    """An environment of gymnax, of versions before 1.0 too; options are fields of its parameters."""

    def __init__(self, name: str, options: dict[str, Any]) -> None:
        self._own, params = _library("gymnax").make(name)
        self._params: Any = params.replace(**options)
        self.actions = space_of(self._own.action_space(self._params), name)
        self.limit = getattr(self._params, "max_steps_in_episode", None)

    @staticmethod
    def names() -> list[str]:
        """All that there are."""
        return list(_library("gymnax").registered_envs)

    def reset(self, key: jax.Array) -> tuple[PyTree, PyTree]:
        """See `Environment.reset`."""
        obs, state = self._own.reset_env(key, self._params)
        return _strong(state), obs

    def step(self, state: PyTree, action: Any, key: jax.Array) -> Stepped:
        """See `Environment.step`."""
        obs, state, reward, done, _ = self._own.step_env(key, state, action, self._params)
        over = getattr(self._own, "is_truncated", None)  # before 1.0 `done` was either
        return _strong(state), obs, reward, done, over(state, self._params) if over else jnp.zeros((), bool)


class Brax:
    """A robot of Brax; options are those of its constructor, such as `backend="spring"`."""

    def __init__(self, name: str, options: dict[str, Any]) -> None:
        self.limit = int(options.pop("episode_length", BRAX_LIMIT))
        self._own = _library("brax.envs").get_environment(name, **options)
        self.actions = Box(np.full(self._own.action_size, -1.0, np.float32), np.ones(self._own.action_size, np.float32))

    @staticmethod
    def names() -> list[str]:
        """All that there are."""
        return list(_library("brax.envs")._envs)  # which it has no public name for

    def reset(self, key: jax.Array) -> tuple[PyTree, PyTree]:
        """See `Environment.reset`."""
        state = self._own.reset(key)
        return (_strong(state), jnp.int32(0)), state.obs

    def step(self, state: PyTree, action: Any, key: jax.Array) -> Stepped:
        """See `Environment.step`."""
        own, count = state
        own = _strong(self._own.step(own, action))
        return (own, count + 1), own.obs, own.reward, own.done > 0, count + 1 >= self.limit


class Navix:
    """A grid world of navix; options are those of its constructor, such as `max_steps`."""

    def __init__(self, name: str, options: dict[str, Any]) -> None:
        self._own = _library("navix").make(name, **options)
        self.actions = Discrete(len(self._own.action_set))
        self.limit = int(self._own.max_steps)

    @staticmethod
    def names() -> list[str]:
        """All that there are."""
        return list(_library("navix").registry())

    def reset(self, key: jax.Array) -> tuple[PyTree, PyTree]:
        """See `Environment.reset`."""
        own = _strong(self._own.reset(key))
        return own, own.observation

    def step(self, state: PyTree, action: Any, key: jax.Array) -> Stepped:
        """See `Environment.step`."""
        own = self._own._step(state, action)  # `step` begins the next episode
        like = jax.tree.map(lambda new, old: jnp.asarray(new, jnp.asarray(old).dtype), own, state)
        return like, like.observation, like.reward, like.is_termination(), like.is_truncation()

    def frame(self, state: PyTree) -> Any:
        """A picture of a state."""
        return _library("navix").observations.rgb(state.state)


class Jumanji:
    """A problem of Jumanji; options are those of its constructor."""

    def __init__(self, name: str, options: dict[str, Any]) -> None:
        self._own: Any = _library("jumanji").make(name, **options)
        self.limit = getattr(self._own, "time_limit", None)
        spec = self._own.action_spec
        self.actions = space_of(spec, name)
        _, begun = jax.eval_shape(self._own.reset, jax.random.key(0))
        mask = getattr(begun.observation, "action_mask", None)
        self._choices = None
        if isinstance(self.actions, MultiDiscrete) and mask is not None and mask.shape == self.actions.choices:
            self._choices, self.actions = self.actions.choices, Discrete(math.prod(self.actions.choices))  # one of all
        if mask is not None and mask.size == self.actions.outputs:
            self.mask = lambda state: state[1].observation.action_mask.reshape(-1)

    @staticmethod
    def names() -> list[str]:
        """All that there are."""
        return list(_library("jumanji").registered_environments())

    def reset(self, key: jax.Array) -> tuple[PyTree, PyTree]:
        """See `Environment.reset`."""
        state, made = self._own.reset(key)
        return (_strong(state), _kept(made)), _seen(made.observation)

    def step(self, state: PyTree, action: Any, key: jax.Array) -> Stepped:
        """See `Environment.step`."""
        own = jnp.stack(jnp.unravel_index(action, self._choices)) if self._choices else action
        new, made = self._own.step(state[0], own)
        return (_strong(new), _kept(made)), _seen(made.observation), made.reward, made.last(), jnp.zeros((), bool)


def _kept(made: Any) -> Any:
    """Of a time step of Jumanji what the next one has too."""
    return _strong(made.replace(extras={}))


def _seen(observation: Any) -> Any:
    """An observation of Jumanji without the mask, which is no news of the world, in the order of its fields."""
    fields = observation._asdict() if hasattr(observation, "_asdict") else dict(vars(observation))
    fields.pop("action_mask", None)
    return next(iter(fields.values())) if len(fields) == 1 else fields


def gymnasium(name: str, options: dict[str, Any]) -> HostEnvironment:
    """An environment of Gymnasium, on the host; options are those of `gymnasium.make`."""
    if name.startswith("ALE/"):
        _library("gymnasium").register_envs(_library("ale_py"))
    make: Any = partial(_library("gymnasium").make, name, **options)
    tried = make()
    space, limit = tried.observation_space, tried.spec and tried.spec.max_episode_steps
    if not getattr(space, "shape", None) and not hasattr(space, "n"):
        raise SettingsError(
            f"got 'gymnasium:{name}', whose observations are {space}; one array of numbers is required: wrap it, such "
            "as in its FlattenObservation, in an eggroll.rl.HostEnvironment."
        )
    actions, seen = space_of(tried.action_space, name), np.zeros(space.shape, space.dtype)
    tried.close()
    return HostEnvironment(
        lambda drawn=False: make(**{"render_mode": "rgb_array"} if drawn else {}), actions, seen, limit
    )


def own(name: str, options: dict[str, Any]) -> Environment | HostEnvironment:
    """An environment of one's own: what a class or function of a module makes."""
    check_import(name, "the environment")
    made = function_named(name, "the environment", "python:MODULE:NAME", "python:my_worlds:Maze")(**options)
    check_environment(made)
    return made


def _gymnasium_names() -> list[str]:
    return list(_library("gymnasium").registry)


class Family(NamedTuple):
    """How the environments of a library are made.

    Attributes:
        make: `make(name, options)`.
        names: all that there are.
    """

    make: Callable[[str, dict[str, Any]], Any]
    names: Callable[[], list[str]]


FAMILIES = {
    "gymnax": Family(Gymnax, Gymnax.names),
    "brax": Family(Brax, Brax.names),
    "navix": Family(Navix, Navix.names),
    "jumanji": Family(Jumanji, Jumanji.names),
    "gymnasium": Family(gymnasium, _gymnasium_names),
    "python": Family(own, list),
}


def make(name: str, **options: Any) -> Environment | HostEnvironment:
    """An environment by its name.

    Args:
        name: `"FAMILY:NAME"`, of the families gymnax, brax, navix, jumanji and gymnasium, whose environments run on
            the host; or `"python:MODULE:NAME"`, what a class or function of one's own makes.
        **options: of the environment's own: fields of gymnax's parameters, arguments of the others' constructors.

    Returns:
        The environment.

    Raises:
        SettingsError: no such family or name, near ones being told; or options that it does not take.
        MissingPackageError: the family's package is not installed.
    """
    family, colon, one = str(name).partition(":")
    if not colon or family not in FAMILIES:
        meant = f"gymnax:{name}" if not colon else f"{(get_close_matches(family, FAMILIES) or ['gymnax'])[0]}:{one}"
        raise SettingsError(
            f"got {name!r} as the environment; FAMILY:NAME is required, with a family of {', '.join(FAMILIES)}. "
            f"Perhaps {meant}? `eggroll rl list` tells of all."
        )
    known = names(family)
    if one not in known and family != "python" and not (family == "gymnasium" and one.startswith("ALE/")):
        near = [f"{family}:{each}" for each in get_close_matches(one, known, 3, 0.4) or known[:3]]
        raise SettingsError(
            f"got {name!r}, which {family} does not have; near it are {', '.join(near)}; all: `eggroll rl list`."
        )
    try:
        with needed_for(f"environments of {family}"):
            return FAMILIES[family].make(one, dict(options))
    except (TypeError, ValueError) as why:
        raise SettingsError(f"got {name!r} with the options {options}, which {family} refuses: {why}") from why


def names(family: str) -> list[str]:
    """The environments of a family.

    Raises:
        MissingPackageError: its package is not installed.
    """
    with needed_for(f"environments of {family}"):
        return FAMILIES[family].names()


def space_of(space: Any, name: str) -> Space:
    """A library's space of actions as one of ours.

    Raises:
        SettingsError: there is no head for it.
    """
    many = getattr(space, "num_values", getattr(space, "nvec", None))
    if many is not None and np.ndim(many):
        return MultiDiscrete(tuple(int(n) for n in np.ravel(many)))
    count = getattr(space, "n", many)
    if count is not None and np.ndim(count) == 0 and not getattr(space, "start", 0):
        return MultiDiscrete((2,) * int(count)) if type(space).__name__ == "MultiBinary" else Discrete(int(count))
    low, high = (getattr(space, one, getattr(space, other, None)) for one, other in BOUNDS)
    if low is None or high is None or not np.issubdtype(np.dtype(space.dtype), np.floating):
        raise SettingsError(
            f"got '{name}' with actions {space}, for which there is no head; choices or numbers within bounds are "
            "required: wrap it in an object of your own with actions of eggroll.rl."
        )
    low, high = (np.broadcast_to(np.asarray(x, np.float32), space.shape) for x in (low, high))
    return Box(low, high)


def _library(name: str) -> Any:
    """A module that not everybody has; what it says while it is imported is no part of a command's output."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
        warnings.simplefilter("ignore", DeprecationWarning)
        return importlib.import_module(name)


def _strong(tree: PyTree) -> Any:
    """The arrays with dtypes of their own: those of a Python number would change in a loop."""

    def one(x: Any) -> Any:
        typed = hasattr(x, "dtype") and not getattr(x, "weak_type", False)
        return x if typed else jnp.asarray(x, jnp.asarray(x).dtype)

    return jax.tree.map(one, tree)
