"""How a module acts: what makes actions of the numbers that it returns."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from eggroll.engine.annotations import PyTree
from eggroll.rl.environments import Box, Discrete, Space, check_space
from eggroll.training.options import SettingsError


class Policy:
    """A module with a head for an environment's actions: what is evolved, and how it acts.

    Its parameters, `nnx.Param`, are evolved; all its other state stays as it is, so it should be in the mode in which
    it will be used: `module.eval()` where it has such modes.

    Args:
        module: maps one observation (float32, normalised) to as many numbers as the actions need; or, where it has a
            method `initial_carry()`, `(carry, observation)` to `(carry, numbers)`.
        actions: the environment's: choices take the largest number, bounded numbers `tanh`, scaled to the bounds;
            where there are none, the numbers themselves.
        observation: shapes of an observation.
        sample: draws choices instead, with the numbers as logits. Default False.

    Attributes:
        params: the parameters of the module.

    Raises:
        TypeError: no NNX module.
        SettingsError: what it returns does not fit the actions, or there is no head for these.

    Example:
        >>> from eggroll.rl import MLP
        >>> policy = Policy(MLP(4, 2, rngs=nnx.Rngs(0)), Discrete(2), jax.ShapeDtypeStruct((4,), jnp.float32))
        >>> action, carry = policy.act(policy.params, policy.start(policy.params), jnp.ones(4))
        >>> action.dtype
        dtype('int32')
    """

    def __init__(self, module: nnx.Module, actions: Space, observation: PyTree, *, sample: bool = False) -> None:
        if not isinstance(module, nnx.Module):
            raise TypeError(f"got {type(module).__name__} as the policy; a flax.nnx.Module is required.")
        check_space(actions)
        if sample and isinstance(actions, Box):
            raise SettingsError(
                "got sample=True for actions within bounds, which are not drawn; leave it out: the noise of members is "
                "what explores."
            )
        self._graphdef, self.params, self._rest = nnx.split(module, nnx.Param, ...)
        self.recurrent = hasattr(module, "initial_carry")
        self.actions, self.sample = actions, sample
        self._check(module, observation)

    def _check(self, module: nnx.Module, observation: PyTree) -> None:
        want = (self.actions.outputs,)
        try:
            made = jax.eval_shape(lambda x: self._outputs(self.params, self.start(self.params), x), observation)
        except (TypeError, ValueError) as why:
            shapes = jax.tree.map(lambda x: list(x.shape), observation)
            raise SettingsError(
                f"got a policy, {type(module).__name__}, that fails on an observation of shape {shapes}: {why}"
            ) from why
        carry, outputs = made
        if getattr(outputs, "shape", None) != want:
            got = getattr(outputs, "shape", type(outputs).__name__)
            raise SettingsError(
                f"got a policy, {type(module).__name__}, that returns {got} for one observation; {list(want)} is "
                f"required for actions {self.actions}: a last layer of {want[0]} outputs."
            )
        same = jax.tree.map(lambda x: (x.shape, x.dtype), carry)
        if same != jax.tree.map(lambda x: (x.shape, x.dtype), jax.eval_shape(self.start, self.params)):
            raise SettingsError(
                f"got a policy, {type(module).__name__}, whose carry is not as its initial_carry(): {same}."
            )

    def module(self, params: PyTree) -> Any:
        """The module with these parameters."""
        return nnx.merge(self._graphdef, params, self._rest, copy=True)

    def start(self, params: PyTree) -> Any:
        """What the module with these parameters carries from an episode's start; nothing where it carries nothing."""
        return self.module(params).initial_carry() if self.recurrent else ()

    def _outputs(self, params: PyTree, carry: PyTree, observation: PyTree) -> tuple[Any, Any]:
        module = self.module(params)
        return module(carry, observation) if self.recurrent else (carry, module(observation))

    def act(
        self,
        params: PyTree,
        carry: PyTree,
        observation: PyTree,
        mask: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, Any]:
        """An action, and what is carried on.

        Args:
            params: as `self.params`.
            carry: from the step before, or `start(params)`.
            observation: one, normalised.
            mask: `[outputs]` flags: which choices are allowed. Default None: all.
            key: to draw from, where it samples. Default None: the best choice.
        """
        carry, outputs = self._outputs(params, carry, observation)
        return action(self.actions, outputs, mask, key), carry


def action(space: Space, outputs: jax.Array, mask: jax.Array | None = None, key: jax.Array | None = None) -> jax.Array:
    """The action that numbers of a policy say; `mask` and `key` as in `Policy.act`."""
    if isinstance(space, Box):
        return _bounded(space, outputs)
    outputs = outputs if mask is None else jnp.where(mask.reshape(-1), outputs, -jnp.inf)
    if isinstance(space, Discrete):
        return _chosen(outputs, key)
    starts = np.cumsum(space.choices)[:-1].tolist()
    keys = [None] * len(space.choices) if key is None else jax.random.split(key, len(space.choices))
    return jnp.stack([_chosen(x, k) for x, k in zip(jnp.split(outputs, starts), keys, strict=True)])


def _chosen(logits: jax.Array, key: jax.Array | None) -> jax.Array:
    """The best of a row, or one drawn."""
    return (
        jnp.argmax(logits).astype(jnp.int32) if key is None else jax.random.categorical(key, logits).astype(jnp.int32)
    )


def _bounded(space: Box, outputs: jax.Array) -> jax.Array:
    """Numbers within bounds; those that have none are left as they are."""
    low, high = (np.asarray(x, np.float32).reshape(-1) for x in (space.low, space.high))
    bounded = np.isfinite(low) & np.isfinite(high)
    low, high = np.where(bounded, low, -1), np.where(bounded, high, 1)
    scaled = (low + high) / 2 + (high - low) / 2 * jnp.tanh(outputs)
    return jnp.where(bounded, scaled, outputs).reshape(np.shape(space.low))
