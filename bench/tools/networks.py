"""The networks that several scripts measure, each with parameters, rows of input and a fitness."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from bench.tools import transformer as causal
from eggroll.recipes.data import digits as load_digits
from eggroll.recipes.models import MLP

TOKENS, PROMPT = 64, 8


@dataclass(frozen=True)
class Network:
    """A network and the rows it is evaluated on.

    Attributes:
        name: as options call it.
        params: pytree of arrays.
        fun: `fun(params, *inputs)` → outputs: logits or tokens.
        fitness: `fitness(params, *inputs, *targets)` → a float32 scalar, maximised.
        inputs: arrays.
        targets: further arrays of the fitness.
        own_rows: whether each member has a row of `inputs` of its own instead of all of them.
        nearest: path of the parameter without a product of its own that is nearest to the inputs: a bias or a scale.
    """

    name: str
    params: Any
    fun: Callable[..., Any]
    fitness: Callable[..., jax.Array]
    inputs: tuple[jax.Array, ...]
    targets: tuple[jax.Array, ...] = ()
    own_rows: bool = False
    nearest: str = ""

    @property
    def in_axes(self) -> int | None:
        """The axis of the members in `rows`, None where they share them."""
        return 0 if self.own_rows else None

    def rows(self, population: int, *, targets: bool = True) -> tuple[jax.Array, ...]:
        """The arguments that members are evaluated on: shared, or with a leading axis `population`."""
        arrays = self.inputs + self.targets if targets else self.inputs
        return self.copies(population, targets=targets) if self.own_rows else arrays

    def copies(self, population: int, *, targets: bool = True) -> tuple[jax.Array, ...]:
        """The same with a leading axis `population` in any case, every member's rows in memory of their own."""
        arrays = self.inputs + self.targets if targets else self.inputs
        if self.own_rows:
            return tuple(jnp.resize(x, (population, *x.shape[1:])) for x in arrays)
        return tuple(jnp.repeat(x[None], population, axis=0) for x in arrays)


class CNN(nnx.Module):
    """Two convolutions, each pooled, and a dense layer."""

    def __init__(self, *, channels: int = 16, rngs: nnx.Rngs) -> None:
        self.conv1 = nnx.Conv(1, channels, (3, 3), rngs=rngs)
        self.conv2 = nnx.Conv(channels, 2 * channels, (3, 3), rngs=rngs)
        self.head = nnx.Linear(8 * channels, 10, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Logits `[batch, 10]` of images `[batch, 8, 8]`."""
        x = images[..., None]
        for conv in (self.conv1, self.conv2):
            x = nnx.max_pool(nnx.relu(conv(x)), (2, 2), (2, 2))
        return self.head(x.reshape(x.shape[0], -1))


class DeepMLP(nnx.Module):
    """Hidden layers of equal width written one after another, as Python loops over `nnx.List` do."""

    def __init__(self, *, depth: int, width: int, rngs: nnx.Rngs) -> None:
        self.first = nnx.Linear(64, width, rngs=rngs)
        self.hidden = nnx.List([nnx.Linear(width, width, rngs=rngs) for _ in range(depth)])
        self.head = nnx.Linear(width, 10, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Logits `[batch, 10]` of images `[batch, 8, 8]`."""
        x = nnx.relu(self.first(images.reshape(images.shape[0], -1)))
        for layer in self.hidden:
            x = nnx.relu(layer(x))
        return self.head(x)


def digits(*, rows: int = 128, dtype: str = "float32") -> Network:
    """The MLP 64-256-256-10 of `eggroll train` on handwritten digits that all members share."""
    return classifier("digits", MLP(rngs=nnx.Rngs(0)), rows, dtype, nearest="hidden1/bias")


def cnn(*, rows: int = 128, dtype: str = "float32") -> Network:
    """A small CNN on the same digits."""
    return classifier("cnn", CNN(rngs=nnx.Rngs(0)), rows, dtype, nearest="conv1/bias")


def deep_mlp(*, depth: int, width: int = 256, rows: int = 128, dtype: str = "float32") -> Network:
    """An MLP whose layers no scan gathers: one more product of its own for each layer."""
    return classifier("deep_mlp", DeepMLP(depth=depth, width=width, rngs=nnx.Rngs(0)), rows, dtype)


def classifier(name: str, model: nnx.Module, rows: int, dtype: str, nearest: str = "") -> Network:
    """A Flax NNX classifier of the digits; its fitness is the mean log likelihood of the labels."""
    graphdef, params = nnx.split(model)
    data = load_digits()

    def fun(params: Any, images: jax.Array) -> jax.Array:
        return nnx.merge(graphdef, params)(images)

    def fitness(params: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
        return log_likelihood(fun(params, images), labels)

    params = jax.tree.map(lambda x: x.astype(dtype), params)
    images = jnp.asarray(data.train_images[:rows], dtype)
    targets = (jnp.asarray(data.train_labels[:rows]),)
    return Network(name, params, fun, fitness, (images,), targets, nearest=nearest)


def transformer(
    *,
    rows: int = 2,
    dtype: str = "float32",
    depth: int = 12,
    width: int = 256,
    tokens: int = TOKENS,
    written: bool = False,
) -> Network:
    """A causal transformer with a scan over its layers, or all written out, on texts that all members share."""
    params = causal.init(jax.random.key(0), depth=depth, width=width, dtype=dtype)
    if written:
        params["blocks"] = [jax.tree.map(lambda x, i=i: x[i], params["blocks"]) for i in range(depth)]
    text = jax.random.randint(jax.random.key(1), (rows, tokens + 1), 0, causal.VOCABULARY)

    def fitness(params: Any, text: jax.Array, following: jax.Array) -> jax.Array:
        return log_likelihood(causal.forward(params, text), following)

    arrays = (text[:, :-1],), (text[:, 1:],)
    return Network("transformer", params, causal.forward, fitness, *arrays, nearest="blocks/norm1")


def decode(
    *, rows: int = 256, dtype: str = "float32", depth: int = 12, width: int = 256, tokens: int = TOKENS
) -> Network:
    """The same transformer writing `tokens` tokens with a cache; each member has a prompt of its own.

    `rows` is the number of different prompts; the fitness rewards high tokens, so it has no gradient.
    """
    params = causal.init(jax.random.key(0), depth=depth, width=width, dtype=dtype)
    prompts = jax.random.randint(jax.random.key(1), (rows, PROMPT), 0, causal.VOCABULARY)
    fun = functools.partial(causal.decode, tokens=tokens)

    def fitness(params: Any, prompt: jax.Array) -> jax.Array:
        return jnp.mean(fun(params, prompt).astype(jnp.float32)) / causal.VOCABULARY

    return Network("decode", params, fun, fitness, (prompts,), own_rows=True)


def log_likelihood(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean log likelihood of integer labels, in float32."""
    return -optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), labels).mean()


NETWORKS: dict[str, Callable[..., Network]] = {
    "digits": digits,
    "cnn": cnn,
    "transformer": transformer,
    "decode": decode,
}
