"""What does it cost to do something to a weight before it meets its input?

`es.step` with one layer of `width` inputs and outputs and rank-1 noise: plain, and multiplied by another matrix, merged
with LoRA factors, multiplied by itself, normalised, centred, standardised, or divided by its spectral norm; and with a
convolution that is standardised. `ratio` is the step's time in units of the plain layer's, in turns in one process.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
import tyro
from jax import lax

import eggroll
from bench.tools.options import Common
from bench.tools.report import Report
from bench.tools.timing import interleave

Layer = Callable[[Any], jax.Array]


@dataclass(frozen=True)
class Options(Common):
    """Options of bench.products.

    Attributes:
        width: inputs and outputs of the layer.
        population: members.
        rows: of input, which all members share.
        rounds: turns of each candidate.
    """

    width: int = 512
    population: int = 64
    rows: int = 32
    rounds: int = 25


def normalised(w: jax.Array, axis: int | None = None) -> jax.Array:
    """Divided by its norm."""
    return w / jnp.linalg.norm(w, axis=axis, keepdims=axis is not None)


def standardised(w: jax.Array, axis: tuple[int, ...]) -> jax.Array:
    """Mean 0 and variance 1 along the axes."""
    return (w - w.mean(axis, keepdims=True)) / (w.std(axis, keepdims=True) + 1e-5)


def spectral(w: jax.Array, start: jax.Array) -> jax.Array:
    """Divided by its largest singular value, by one turn of power iteration."""
    v = normalised(start @ w)
    u = normalised(w @ v)
    return w / (u @ w @ v)


def layers(options: Options) -> dict[str, tuple[str, Any, Layer]]:
    """Name → the plain layer that it is compared with, parameters, outputs."""
    keys = iter(jax.random.split(jax.random.key(0), 8))
    n = options.width

    def normal(*shape: int) -> jax.Array:
        return jax.random.normal(next(keys), shape) / shape[0] ** 0.5

    w, c, start, x = normal(n, n), normal(n, n), normal(n), normal(options.rows, n) * options.rows**0.5
    lora = {"w": w, "a": normal(n, 8), "b": normal(8, n)}
    gain = {"w": w, "g": jnp.ones(n)}
    image, kernel = normal(4, 8, 8, 64), normal(3, 3, 64, 128) / 24

    def conv(k: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(image, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    def of_w(change: Layer) -> tuple[str, Any, Layer]:
        return "x W", {"w": w}, lambda p: x @ change(p["w"])

    return {
        "x W": of_w(lambda w: w),
        "x (C W)": of_w(lambda w: c @ w),
        "x (C W C)": of_w(lambda w: c @ w @ c),
        "x (W'W)": of_w(lambda w: w.T @ w),
        "x W + (x A) B": ("x W", lora, lambda p: x @ p["w"] + (x @ p["a"]) @ p["b"]),
        "x (W + A B)": ("x W", lora, lambda p: x @ (p["w"] + p["a"] @ p["b"])),
        "x W/|W|": of_w(normalised),
        "columns of length g": ("x W", gain, lambda p: x @ (p["g"] * normalised(p["w"], 0))),
        "rows of length 1": of_w(lambda w: normalised(w, 1)),
        "x (W - mean)": of_w(lambda w: w - w.mean(0)),
        "standardised": of_w(lambda w: standardised(w, (0,))),
        "spectral norm": of_w(lambda w: spectral(w, start)),
        "convolution": ("convolution", {"k": kernel}, lambda p: conv(p["k"])),
        "standardised convolution": ("convolution", {"k": kernel}, lambda p: conv(standardised(p["k"], (0, 1, 2)))),
    }


class Training:
    """A call that makes the next generation."""

    def __init__(self, options: Options, params: Any, layer: Layer) -> None:
        optimizer = optax.sgd(1e-3)
        self.es = eggroll.ES(population=options.population, sigma=0.01, optimizer=optimizer, fallback="allow")
        self.state = self.es.init(params, jax.random.key(1))
        self.fitness = lambda p: -jnp.mean(layer(p) ** 2)

    def __call__(self) -> Any:
        """One step."""
        self.state, _ = self.es.step(self.state, self.fitness)
        return self.state


def main(argv: list[str] | None = None) -> None:
    options = tyro.cli(Options, args=argv, description=__doc__)
    if options.quick:
        options = Options(quick=True, out=options.out, width=32, population=4, rows=2, rounds=3)
    found = layers(options)
    times = interleave({name: Training(options, params, layer) for name, (_, params, layer) in found.items()},
                       rounds=options.rounds)  # fmt: skip
    rows = []
    for name, (plain, _, _) in found.items():
        ratio = times[name].ratio(times[plain])
        rows.append({"layer": name, "ms": times[name].median * 1e3, "ratio": ratio.median, "quartiles": str(ratio)})
    Report("products", options, rows).finish(quick=options.quick, out=options.out)


if __name__ == "__main__":
    main()
