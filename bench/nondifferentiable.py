"""What learns a network that has no derivative: noise on layers' outputs, noise on weights, or a stand-in derivative?

Six networks on the digits, about 64-w-w-10. `sign`: activations of ±1. `spiking`: neurons that leak and fire, for four
steps. `int8`: activations cast to int8 and back. `callback`: a layer simulated in NumPy behind `jax.pure_callback`.
`routing`: each row goes to one of four experts, the argmax of a gate. `table`: the signs of a layer's outputs are
codes, which look up vectors in learned tables.

Each method takes the setting of a small grid that is best for a seed that is not reported, then three seeds:
evaluations until 95 % of the held-out images are right, and accuracy after equal numbers of forward passes of a
minibatch of 128.
Backpropagation makes one a step, and a backward pass, for 512 steps at most. Where there is a surrogate (`sign`,
`spiking`, `int8`) it has a straight-through estimator; where there is none it trains what has a derivative: what lies
behind the callback or the codes, and the experts but not the gate.

A network's result is kept as soon as it is measured, and what is kept is not measured again: a run that was ended goes
on. The picture is drawn of all that are kept.
"""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax import lax

from bench.tools.digits_race import LEVEL, TUNING_SEED, Curve, Setting, first, race, reached
from bench.tools.environment import device_slug
from bench.tools.finetune_curves import mean_and_error
from bench.tools.options import Common
from bench.tools.plots import draw
from bench.tools.report import RESULTS, Report

Name = Literal["sign", "spiking", "int8", "callback", "routing", "table"]
GRID: dict[str, dict[str, tuple]] = {
    "activations": {"population": (16,), "sigma": (0.1, 0.3), "rate": (3e-3,)},
    "weights": {"population": (64,), "sigma": (0.02, 0.1), "rate": (1e-2,)},
    "backpropagation": {"population": (1,), "sigma": (0.0,), "rate": (3e-3, 1e-2)},
}
EXPERTS, STEPS, TABLES, BITS = 4, 4, 32, 4
AT, LONGEST = (500, 1000, 2000, 4000), 512  # where accuracies are compared; steps of backpropagation


@dataclass(frozen=True)
class Options(Common):
    """Options of bench.nondifferentiable.

    Attributes:
        networks: which.
        seeds: runs of every method.
        width: of the layers.
        most: evaluations after which a run is given up.
        again: measure what is kept, too.
    """

    networks: tuple[Name, ...] = get_args(Name)
    seeds: int = 3
    width: int = 128
    most: int = 4000
    again: bool = False

    def reduced(self) -> Options:
        """Small enough to see in seconds that the script works."""
        return replace(self, networks=("callback", "table"), seeds=2, width=16, most=64)


def straight(hard: jax.Array, soft: jax.Array, surrogate: bool) -> jax.Array:
    """`hard`, with the derivative of `soft` if one is asked for."""
    return soft + lax.stop_gradient(hard - soft) if surrogate else lax.stop_gradient(hard)


def sign(p: Any, x: jax.Array, surrogate: bool) -> jax.Array:
    for i in range(2):
        x = x @ p[f"w{i}"] + p[f"b{i}"]
        x = straight(jnp.where(x >= 0, 1.0, -1.0), jnp.clip(x, -1, 1), surrogate)
    return x


def spiking(p: Any, x: jax.Array, surrogate: bool) -> jax.Array:
    """Leaky neurons that fire at 1 and lose what they fired; the share of steps at which the last ones fire."""

    def step(potentials: tuple[jax.Array, ...], _: None) -> tuple[tuple[jax.Array, ...], jax.Array]:
        spikes, left = x, []
        for i, potential in enumerate(potentials):
            potential = 0.8 * potential + (spikes @ p[f"w{i}"] + p[f"b{i}"])
            spikes = straight(jnp.where(potential >= 1, 1.0, 0.0), jnp.clip(potential / 2, 0, 1), surrogate)
            left.append(potential - spikes)
        return tuple(left), spikes

    rest = jnp.zeros((len(x), p["b0"].size))
    return lax.scan(step, (rest, rest), length=STEPS)[1].mean(0)


def int8(p: Any, x: jax.Array, surrogate: bool) -> jax.Array:
    for i in range(2):
        x = jax.nn.relu(x @ p[f"w{i}"] + p[f"b{i}"])
        codes = jnp.clip(jnp.round(x * 32), 0, 127).astype(jnp.int8)
        x = straight(codes.astype(jnp.float32) / 32, jnp.clip(x, 0, 127 / 32), surrogate)
    return x


def simulated(h: np.ndarray) -> np.ndarray:
    """A relay with play for each number, `[..., w]`: its neighbour's push has to exceed a half before it moves."""
    h = np.asarray(h)
    state = np.zeros_like(h)
    for _ in range(3):
        push = h + 0.5 * np.roll(state, 1, -1)
        state = np.where(np.abs(push - state) > 0.5, np.floor(4 * np.clip(push, 0, 4)) / 4, state)
    return state


def callback(p: Any, x: jax.Array, surrogate: bool) -> jax.Array:
    def row(h: jax.Array) -> jax.Array:
        return jax.pure_callback(simulated, jax.ShapeDtypeStruct(h.shape, h.dtype), h, vmap_method="expand_dims")

    h = x @ p["w0"] + p["b0"]
    h = lax.map(row, lax.stop_gradient(h) if surrogate else h)  # one row after the other: none reaches another's loss
    return jax.nn.relu(h @ p["w1"] + p["b1"])


def routing(p: Any, x: jax.Array, surrogate: bool) -> jax.Array:
    chosen = jnp.argmax(x @ p["gate"], 1)
    h = jax.nn.relu(jnp.einsum("bm,bmn->bn", x, p["w0"][chosen]) + p["b0"][chosen])
    return jax.nn.relu(jnp.einsum("bm,bmn->bn", h, p["w1"][chosen]) + p["b1"][chosen])


def table(p: Any, x: jax.Array, surrogate: bool) -> jax.Array:
    bits = (x @ p["w0"] + p["b0"] > 0).reshape(len(x), TABLES, BITS)
    codes = jnp.sum(bits << jnp.arange(BITS), -1)
    return jax.nn.relu(p["tables"][jnp.arange(TABLES), codes].sum(1))


NETWORKS: dict[str, Callable[[Any, jax.Array, bool], jax.Array]] = {
    "sign": sign,
    "spiking": spiking,
    "int8": int8,
    "callback": callback,
    "routing": routing,
    "table": table,
}


def parameters(network: str, width: int, seed: int) -> dict[str, jax.Array]:
    """Of one network: normal, the variance of products kept, biases of zero."""
    wide = width // EXPERTS if network == "routing" else width
    shapes = {"w0": (64, wide), "w1": (wide, wide), "w2": (wide, 10)}
    if network == "routing":
        shapes |= {name: (EXPERTS, *shapes[name]) for name in ("w0", "w1")} | {"gate": (64, EXPERTS)}
    if network == "table":
        shapes = {"w0": (64, TABLES * BITS), "tables": (TABLES, 2**BITS, width), "w2": (width, 10)}
    keys = dict(zip(shapes, jax.random.split(jax.random.key(seed), len(shapes)), strict=True))
    fan = {name: TABLES if name == "tables" else shape[-2] for name, shape in shapes.items()}
    gain = {name: 1.0 if name in ("w2", "gate") else 2.0 for name in shapes}
    p = {n: jax.random.normal(keys[n], shape) * math.sqrt(gain[n] / fan[n]) for n, shape in shapes.items()}
    for name in [n for n in shapes if n[0] == "w"]:
        p["b" + name[1]] = jnp.zeros((*shapes[name][:-2], shapes[name][-1]))
    return p


def measured(name: str, options: Options) -> dict[str, Any]:
    """Rows of one network, what was tried, and the curves of its seeds."""
    rows, said, series = [], [], []

    def logits(p: Any, x: jax.Array, surrogate: bool = False) -> jax.Array:
        return NETWORKS[name](p, x, surrogate) @ p["w2"] + p["b2"]

    def run(setting: Setting, seed: int, stop: bool) -> Curve:
        most = min(options.most, LONGEST) if setting.method == "backpropagation" else options.most
        return race(logits, parameters(name, options.width, seed), setting, seed, most, stop=stop)

    for method, grid in GRID.items():
        settings = [Setting(method, *values) for values in product(*grid.values())]
        tried = {setting: run(setting, TUNING_SEED, True) for setting in settings}
        said += [f"{name}, {method}, {s}: {reached(c) or f'{c[-1][1]:.3f} at the end'}" for s, c in tried.items()]
        best = min(settings, key=lambda s: (reached(tried[s]) or math.inf, -tried[s][-1][1]))
        curves = [run(best, seed, False) for seed in range(options.seeds)]
        counts = [reached(curve) for curve in curves]
        value, error = mean_and_error([c for c in counts if c]) if all(counts) else (None, None)
        row = {"network": name, "method": method, "evaluations": value, "error": error}
        row |= {"reached": sum(c is not None for c in counts), "setting": str(best)}
        for at in AT:
            row[f"at_{at}"], row[f"at_{at}_error"] = mean_and_error([first(curve, at) for curve in curves])
        rows.append(row)
        series.append({"network": name, "label": method} | _mean_curve(curves))
    return {"rows": rows, "said": said, "series": series}


def _mean_curve(curves: Sequence[Curve]) -> dict[str, list]:
    """At evaluations that lie evenly on a logarithmic axis."""
    last = min(curve[-1][0] for curve in curves)
    at = [n for n in sorted({last, *(round(2 ** (k / 2)) for k in range(27))}) if curves[0][0][0] <= n <= last]
    means = [mean_and_error([first(curve, n) for curve in curves]) for n in at]
    return {"evaluations": at, "accuracy": [m for m, _ in means], "accuracy_error": [e for _, e in means]}


def picture(kept: Sequence[dict[str, Any]], path: pathlib.Path) -> None:
    """Accuracy against evaluations, a panel for each network."""
    panels = [
        {"title": one["series"][0]["network"], "x": "evaluations", "y": "accuracy", "series": one["series"]}
        for one in kept
    ]
    draw(
        panels,
        path,
        title="No derivative: the digits, mean of seeds",
        columns=min(3, len(panels)),
    )


def main(argv: list[str] | None = None) -> None:
    options = tyro.cli(Options, args=argv, description=__doc__)
    options = options.reduced() if options.quick else options
    folder = options.out or RESULTS / "nondifferentiable"
    for name in options.networks:
        path = folder / f"{name}-{device_slug()}.json"
        if path.exists() and not options.again:
            continue
        found = measured(name, options)
        summary = {f"{r['network']} {r['method']}": r["evaluations"] for r in found["rows"]}
        settings = replace(options, out=None)
        report = Report(
            "nondifferentiable", settings, found["rows"], [*NOTES, *found["said"]], summary, found["series"]
        )
        report.finish(quick=options.quick, out=None if options.quick and options.out is None else path)
    paths = [folder / f"{name}-{device_slug()}.json" for name in NETWORKS]
    if kept := [json.loads(path.read_text()) for path in paths if path.exists()]:
        picture(kept, folder / f"{device_slug()}.png")


NOTES = [
    f"evaluations: forward passes of a minibatch until {LEVEL:.0%} of the held-out images are right, measured after "
    "each step, mean and standard error; empty where a seed did not get there. at_N: accuracy after N of them.",
    "Below: what was tried for each method with a seed that is not reported.",
]

if __name__ == "__main__":
    main()
