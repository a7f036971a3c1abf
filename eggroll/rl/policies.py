"""Policies: ordinary Flax NNX modules, and what makes actions of what they return."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from eggroll.engine.annotations import PyTree
from eggroll.rl.environments import Box, Discrete, Space, check_space
from eggroll.training.options import SettingsError


class MLP(nnx.Module):
    """Layers one after the other on all numbers of an observation, whatever its structure.

    Args:
        inputs: numbers of an observation.
        outputs: numbers for an action: `environment.actions.outputs`.
        width: of the hidden layers. Default 256, as in the paper.
        layers: how many of them, at least 1. Default 3, as in the paper.
        activation: between layers. Default tanh.
        rngs: of the first parameters.

    Example:
        >>> MLP(4, 2, width=8, rngs=nnx.Rngs(0))(jnp.ones(4)).shape
        (2,)
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        width: int = 256,
        layers: int = 3,
        activation: Callable[[jax.Array], jax.Array] = nnx.tanh,
        rngs: nnx.Rngs,
    ) -> None:
        sizes = [inputs, *[width] * layers]
        self.hidden = nnx.List([nnx.Linear(a, b, rngs=rngs) for a, b in pairwise(sizes)])
        self.head = nnx.Linear(width, outputs, rngs=rngs)
        self.activation = activation

    def __call__(self, observation: PyTree) -> jax.Array:
        """`[outputs]` for one observation."""
        x = flat(observation)
        for layer in self.hidden:
            x = self.activation(layer(x))
        return self.head(x)


class CNN(nnx.Module):
    """A convolution of 3 × 3 and a hidden layer, as for MinAtar: of images `[height, width, channels]`.

    Args:
        shape: of an image.
        outputs: numbers for an action.
        channels: of the convolution. Default 16.
        width: of the hidden layer. Default 128.
        rngs: of the first parameters.

    Example:
        >>> CNN((10, 10, 4), 3, rngs=nnx.Rngs(0))(jnp.ones((10, 10, 4))).shape
        (3,)
    """

    def __init__(
        self, shape: tuple[int, int, int], outputs: int, *, channels: int = 16, width: int = 128, rngs: nnx.Rngs
    ) -> None:
        height, across, inputs = shape
        self.convolution = nnx.Conv(inputs, channels, (3, 3), padding="VALID", rngs=rngs)
        self.hidden = nnx.Linear((height - 2) * (across - 2) * channels, width, rngs=rngs)
        self.head = nnx.Linear(width, outputs, rngs=rngs)

    def __call__(self, observation: PyTree) -> jax.Array:
        """`[outputs]` for one image."""
        (image,) = jax.tree.leaves(observation)
        x = nnx.relu(self.convolution(image[None])).reshape(-1)
        return self.head(nnx.relu(self.hidden(x)))


class GRU(nnx.Module):
    """A layer and a gated recurrent unit, whose state goes from step to step of an episode.

    Args:
        inputs: numbers of an observation.
        outputs: numbers for an action.
        width: of the layer and of the state. Default 64.
        rngs: of the first parameters.

    Example:
        >>> policy = GRU(4, 2, width=8, rngs=nnx.Rngs(0))
        >>> carry, output = policy(policy.initial_carry(), jnp.ones(4))
        >>> carry.shape, output.shape
        ((8,), (2,))
    """

    def __init__(self, inputs: int, outputs: int, *, width: int = 64, rngs: nnx.Rngs) -> None:
        self.layer = nnx.Linear(inputs, width, rngs=rngs)
        self.cell = nnx.GRUCell(width, width, rngs=rngs)
        self.head = nnx.Linear(width, outputs, rngs=rngs)
        self.width = width

    def initial_carry(self) -> jax.Array:
        """The state at an episode's start."""
        return jnp.zeros(self.width)

    def __call__(self, carry: jax.Array, observation: PyTree) -> tuple[jax.Array, jax.Array]:
        """`(carry, [outputs])` for one observation."""
        carry, x = self.cell(carry, nnx.tanh(self.layer(flat(observation))))
        return carry, self.head(x)


def flat(observation: PyTree) -> jax.Array:
    """All numbers of an observation, in a row."""
    return jnp.concatenate([jnp.ravel(x) for x in jax.tree.leaves(observation)])


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
        >>> policy = Policy(MLP(4, 2, rngs=nnx.Rngs(0)), Discrete(2), jax.ShapeDtypeStruct((4,), jnp.float32))
        >>> action, carry = policy.act(policy.params, policy.start(), jnp.ones(4))
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
            made = jax.eval_shape(lambda x: self._outputs(self.params, self.start(), x), observation)
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
        if same != jax.tree.map(lambda x: (x.shape, x.dtype), jax.eval_shape(self.start)):
            raise SettingsError(
                f"got a policy, {type(module).__name__}, whose carry is not as its initial_carry(): {same}."
            )

    def module(self, params: PyTree) -> Any:
        """The module with these parameters."""
        return nnx.merge(self._graphdef, params, self._rest, copy=True)

    def start(self) -> Any:
        """What the module carries from step to step, at an episode's start; nothing where it carries nothing."""
        return self.module(self.params).initial_carry() if self.recurrent else ()

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
            carry: from the step before, or `start()`.
            observation: one, normalised.
            mask: `[outputs]` flags: which choices are allowed. Default None: all.
            key: to draw from, where it samples. Default None: the best choice.
        """
        carry, outputs = self._outputs(params, carry, observation)
        if isinstance(self.actions, Box):
            return _bounded(self.actions, outputs), carry
        outputs = outputs if mask is None else jnp.where(mask.reshape(-1), outputs, -jnp.inf)
        if isinstance(self.actions, Discrete):
            return _chosen(outputs, key), carry
        starts = np.cumsum(self.actions.choices)[:-1].tolist()
        keys = [None] * len(self.actions.choices) if key is None else jax.random.split(key, len(self.actions.choices))
        return jnp.stack([_chosen(x, k) for x, k in zip(jnp.split(outputs, starts), keys, strict=True)]), carry


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
