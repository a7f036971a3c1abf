"""Networks that are ready as policies: ordinary Flax NNX modules."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from eggroll.engine.annotations import PyTree

SMALL = 1e-5  # beside a variance of virtual batch normalisation


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
    """Convolutions and a hidden layer: of images `[height, width, channels]`.

    Args:
        shape: of an image.
        outputs: numbers for an action.
        convolutions: channels, size and stride of each; they pad nothing. Default one of 16 channels, 3 × 3, as for
            MinAtar.
        width: of the hidden layer. Default 128.
        rngs: of the first parameters.

    Example:
        >>> CNN((10, 10, 4), 3, rngs=nnx.Rngs(0))(jnp.ones((10, 10, 4))).shape
        (3,)
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        outputs: int,
        *,
        convolutions: tuple[tuple[int, int, int], ...] = ((16, 3, 1),),
        width: int = 128,
        rngs: nnx.Rngs,
    ) -> None:
        *layers, hidden = _layers(shape, convolutions, width, rngs, use_bias=True)
        self.convolutions, self.hidden = nnx.List(layers), hidden
        self.head = nnx.Linear(width, outputs, rngs=rngs)

    def __call__(self, observation: PyTree) -> jax.Array:
        """`[outputs]` for one image."""
        (image,) = jax.tree.leaves(observation)
        x = image[None]
        for layer in self.convolutions:
            x = nnx.relu(layer(x))
        return self.head(nnx.relu(self.hidden(x.reshape(-1))))


class ReferenceCNN(nnx.Module):
    """The network of DQN with virtual batch normalisation, as OpenAI's evolution strategies have it for Atari.

    Before its activation, each layer is brought to the mean and variance that it has over a reference batch, then
    scaled and moved by parameters. What a member's own layers make of that batch is found once an episode, by
    `initial_carry`. A change of the weights that would move all numbers of a layer alike therefore moves none, so that
    noise of one size makes actions differ from the first generation on.

    Args:
        reference: `[batch, height, width, channels]`, observations of random play. It is kept as it is.
        outputs: numbers for an action.
        convolutions: channels, size and stride of each; they pad nothing. Default as in the paper: 32 of 8 × 8 by 4,
            64 of 4 × 4 by 2, 64 of 3 × 3.
        width: of the hidden layer. Default 512: 1.7 million parameters for images of 84 × 84 × 4.
        rngs: of the first parameters.

    Example:
        >>> policy = ReferenceCNN(np.ones((8, 36, 36, 4), np.uint8), 6, width=16, rngs=nnx.Rngs(0))
        >>> carry, output = policy(policy.initial_carry(), jnp.ones((36, 36, 4)))
        >>> output.shape
        (6,)

    References:
        T. Salimans et al., "Evolution Strategies as a Scalable Alternative to Reinforcement Learning", arXiv
        1703.03864; V. Mnih et al., "Human-level control through deep reinforcement learning", Nature 518, 2015.
    """

    def __init__(
        self,
        reference: np.ndarray | jax.Array,
        outputs: int,
        *,
        convolutions: tuple[tuple[int, int, int], ...] = ((32, 8, 4), (64, 4, 2), (64, 3, 1)),
        width: int = 512,
        rngs: nnx.Rngs,
    ) -> None:
        _, *shape = reference.shape
        self.reference = nnx.Variable(jnp.asarray(reference))
        self.layers = nnx.List(_layers(tuple(shape), convolutions, width, rngs, use_bias=False))
        sizes = [*(channels for channels, _, _ in convolutions), width]
        self.scales = nnx.List([nnx.Param(jnp.ones(size)) for size in sizes])
        self.moves = nnx.List([nnx.Param(jnp.zeros(size)) for size in sizes])
        self.head = nnx.Linear(width, outputs, rngs=rngs)

    def initial_carry(self) -> Any:
        """Mean and variance of every layer over the reference batch, for each channel or unit."""
        return self._through(self.reference[...].astype(jnp.float32), None)[1]

    def __call__(self, carry: Any, observation: PyTree) -> tuple[Any, jax.Array]:
        """`(carry, [outputs])` for one image; the carry is what it was."""
        (image,) = jax.tree.leaves(observation)
        return carry, self.head(self._through(image[None], carry)[0][0])

    def _through(self, x: jax.Array, known: Any) -> tuple[jax.Array, Any]:
        """The hidden layer of rows of images, and the mean and variance of each layer: those known, or the rows'."""
        found = []
        for i, (layer, scale, move) in enumerate(zip(self.layers, self.scales, self.moves, strict=True)):
            x = layer(x if isinstance(layer, nnx.Conv) else x.reshape(len(x), -1))
            rows = tuple(range(x.ndim - 1))
            mean, variance = (x.mean(rows), x.var(rows)) if known is None else known[i]
            found.append((mean, variance))
            x = nnx.relu((x - mean) * jax.lax.rsqrt(variance + SMALL) * scale[...] + move[...])
        return x, tuple(found)


def _layers(
    shape: tuple[int, ...],
    convolutions: tuple[tuple[int, int, int], ...],
    width: int,
    rngs: nnx.Rngs,
    use_bias: bool,
) -> list[Any]:
    """Convolutions on images of that shape, and a layer on what the last one makes."""
    height, across, inputs = shape
    layers: list[Any] = []
    for channels, size, stride in convolutions:
        options = {"strides": (stride, stride), "padding": "VALID", "use_bias": use_bias}
        layers.append(nnx.Conv(inputs, channels, (size, size), **options, rngs=rngs))
        height, across, inputs = (height - size) // stride + 1, (across - size) // stride + 1, channels
    return [*layers, nnx.Linear(height * across * inputs, width, use_bias=use_bias, rngs=rngs)]


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
