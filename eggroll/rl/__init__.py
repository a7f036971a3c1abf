"""Reinforcement learning: environments by name, policies that are Flax modules, rollouts as steps of `fit`.

Example:
    A walk along a line, in an environment of one's own: `actions`, `reset` and `step` are all that it takes.

    >>> import jax, jax.numpy as jnp, optax, eggroll, eggroll.rl
    >>> from flax import nnx
    >>> class Walk:
    ...     actions, limit = eggroll.rl.Discrete(2), 8
    ...
    ...     def reset(self, key):
    ...         return jnp.float32(0), jnp.zeros(1)
    ...
    ...     def step(self, place, action, key):
    ...         place = place + jnp.where(action == 1, 1.0, -1.0)
    ...         return place, place[None], place, jnp.array(False), jnp.array(False)
    >>> walk = Walk()
    >>> policy = eggroll.rl.Policy(eggroll.rl.MLP(1, 2, width=8, rngs=nnx.Rngs(0)), walk.actions, jnp.zeros(1))
    >>> rollouts = eggroll.rl.Rollouts(walk, policy)
    >>> es = eggroll.ES(population=16, sigma=0.3, optimizer=optax.adam(0.1))
    >>> state = es.init(policy.params, jax.random.key(0))
    >>> result = eggroll.training.fit(es, state, rollouts, generations=8, carry=rollouts.begin())
    >>> rollouts.greedy(result.state.params, result.carry, jax.random.key(1), 2).tolist()
    [36.0, 36.0]
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from eggroll.lazy import lazy

if TYPE_CHECKING:
    from eggroll.rl.adapters import make
    from eggroll.rl.environments import Box, Discrete, Environment, HostEnvironment, MultiDiscrete, observed
    from eggroll.rl.host import HostRollouts
    from eggroll.rl.job import evaluate, load, train
    from eggroll.rl.networks import CNN, GRU, MLP, ReferenceCNN
    from eggroll.rl.policies import Policy
    from eggroll.rl.settings import Settings, settings_for
    from eggroll.rl.step import Rollouts

__all__ = [
    "CNN",
    "GRU",
    "MLP",
    "Box",
    "Discrete",
    "Environment",
    "HostEnvironment",
    "HostRollouts",
    "MultiDiscrete",
    "Policy",
    "ReferenceCNN",
    "Rollouts",
    "Settings",
    "evaluate",
    "load",
    "make",
    "observed",
    "settings_for",
    "train",
]

# Names and the files that they come from, which are loaded when they are asked for.
_FILES = {
    "CNN": "eggroll.rl.networks",
    "GRU": "eggroll.rl.networks",
    "MLP": "eggroll.rl.networks",
    "Box": "eggroll.rl.environments",
    "Discrete": "eggroll.rl.environments",
    "Environment": "eggroll.rl.environments",
    "HostEnvironment": "eggroll.rl.environments",
    "HostRollouts": "eggroll.rl.host",
    "MultiDiscrete": "eggroll.rl.environments",
    "Policy": "eggroll.rl.policies",
    "ReferenceCNN": "eggroll.rl.networks",
    "Rollouts": "eggroll.rl.step",
    "Settings": "eggroll.rl.settings",
    "evaluate": "eggroll.rl.job",
    "load": "eggroll.rl.job",
    "make": "eggroll.rl.adapters",
    "observed": "eggroll.rl.environments",
    "settings_for": "eggroll.rl.settings",
    "train": "eggroll.rl.job",
}

if not TYPE_CHECKING:  # a checker would take any name for one of the package
    __getattr__, __dir__ = lazy(__name__, _FILES)
