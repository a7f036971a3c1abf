"""Small image classifiers in plain Flax NNX: nothing in them knows how they will be trained."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from eggroll.recipes.data import CLASSES

SIDE = 8  # images are SIDE x SIDE


class MLP(nnx.Module):
    """Three dense layers, 64-256-256-10.

    Example:
        >>> MLP(rngs=nnx.Rngs(0))(jnp.ones((5, 8, 8))).shape
        (5, 10)
    """

    def __init__(
        self, *, width: int = 256, activation: Callable[[jax.Array], jax.Array] = nnx.relu, rngs: nnx.Rngs
    ) -> None:
        self.activation = activation
        self.hidden1 = nnx.Linear(SIDE * SIDE, width, rngs=rngs)
        self.hidden2 = nnx.Linear(width, width, rngs=rngs)
        self.head = nnx.Linear(width, CLASSES, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Logits `[batch, 10]` of images `[batch, 8, 8]`."""
        x = images.reshape(images.shape[0], -1)
        x = self.activation(self.hidden1(x))
        x = self.activation(self.hidden2(x))
        return self.head(x)


def sign(x: jax.Array) -> jax.Array:
    """1 or −1: of zero derivative wherever there is one.

    Example:
        >>> sign(jnp.array([-0.1, 0.0, 3.0])).tolist()
        [-1.0, 1.0, 1.0]
    """
    return jnp.where(x >= 0, 1, -1).astype(x.dtype)


class CNN(nnx.Module):
    """Two convolutions with batch normalisation and pooling, then a dense layer.

    Example:
        >>> CNN(rngs=nnx.Rngs(0))(jnp.ones((5, 8, 8))).shape
        (5, 10)
    """

    def __init__(self, *, channels: int = 16, rngs: nnx.Rngs) -> None:
        # A momentum of 0.9: 0.99 would still remember the initial statistics after some hundred generations.
        self.conv1 = nnx.Conv(1, channels, (3, 3), use_bias=False, rngs=rngs)
        self.norm1 = nnx.BatchNorm(channels, momentum=0.9, rngs=rngs)
        self.conv2 = nnx.Conv(channels, 2 * channels, (3, 3), use_bias=False, rngs=rngs)
        self.norm2 = nnx.BatchNorm(2 * channels, momentum=0.9, rngs=rngs)
        self.head = nnx.Linear(2 * channels * (SIDE // 4) ** 2, CLASSES, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Logits `[batch, 10]` of images `[batch, 8, 8]`."""
        x = images[..., None]
        x = nnx.max_pool(nnx.relu(self.norm1(self.conv1(x))), (2, 2), (2, 2))
        x = nnx.max_pool(nnx.relu(self.norm2(self.conv2(x))), (2, 2), (2, 2))
        return self.head(x.reshape(x.shape[0], -1))


class Block(nnx.Module):
    """A pre-norm transformer block: attention, then a network of two dense layers, each added to its input."""

    def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs) -> None:
        self.norm1 = nnx.LayerNorm(width, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(heads, width, decode=False, rngs=rngs)
        self.norm2 = nnx.LayerNorm(width, rngs=rngs)
        self.up = nnx.Linear(width, 2 * width, rngs=rngs)
        self.down = nnx.Linear(2 * width, width, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Tokens `[batch, tokens, width]`, transformed."""
        x = x + self.attention(self.norm1(x))
        return x + self.down(nnx.gelu(self.up(self.norm2(x))))


class Transformer(nnx.Module):
    """A transformer whose tokens are the eight rows of an image; the head sees all of them side by side.

    Example:
        >>> Transformer(rngs=nnx.Rngs(0))(jnp.ones((5, 8, 8))).shape
        (5, 10)
    """

    def __init__(self, *, width: int = 32, heads: int = 4, depth: int = 2, rngs: nnx.Rngs) -> None:
        self.embed = nnx.Linear(SIDE, width, rngs=rngs)
        self.position = nnx.Param(0.5 * jax.random.normal(rngs.params(), (SIDE, width)))
        self.blocks = nnx.List([Block(width, heads, rngs=rngs) for _ in range(depth)])
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.head = nnx.Linear(SIDE * width, CLASSES, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Logits `[batch, 10]` of images `[batch, 8, 8]`."""
        x = self.embed(images) + self.position
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).reshape(x.shape[0], -1))


MODELS: dict[str, Callable[..., nnx.Module]] = {"mlp": MLP, "cnn": CNN, "transformer": Transformer}
MODELS["sign"] = partial(MLP, activation=sign)


def build(name: str, seed: int) -> nnx.Module:
    """A fresh model.

    Args:
        name: `"mlp"`, `"cnn"`, `"transformer"` or `"sign"`.
        seed: decides the initial parameters.

    Returns:
        The model, in training mode.

    Raises:
        ValueError: there is no model of that name.

    Example:
        >>> type(build("cnn", seed=0)).__name__
        'CNN'
    """
    if name not in MODELS:
        raise ValueError(f"got model={name!r}; one of {', '.join(map(repr, MODELS))} is required.")
    return MODELS[name](rngs=nnx.Rngs(seed))
