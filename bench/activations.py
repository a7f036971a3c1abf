"""What does a forward pass teach: noise on layers' outputs, noise on weights, backpropagation?

`cosine`: between one estimate and `jax.grad`, of the digits MLP 64-w-w-10 (128 images that all members share, a loss
for each) and of a causal transformer (2 layers, 64 wide, 32 tokens, a loss for each token), at the start; and the
information of an evaluation, `cos²/(1 − cos²)/pairs`, in units of that of noise on weights.

`learning`: member evaluations until 95 % of the held-out digits are right (shuffled split, Adam, minibatches of 128).
Settings of each method are the best of a grid for a seed that is not reported; then three seeds, mean and standard
error. An evaluation is one forward pass of the minibatch; backpropagation makes one a step, and a backward pass.
Networks that have no derivative: `bench.nondifferentiable`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jax.flatten_util import ravel_pytree

import eggroll
from bench.tools.digits_race import BATCH, LEVEL, TUNING_SEED, Setting, digits, race, reached
from bench.tools.finetune_curves import mean_and_error
from bench.tools.options import Common
from bench.tools.report import Report


@dataclass(frozen=True)
class Options(Common):
    """Options of bench.activations.

    Attributes:
        parts: which questions.
        widths: of the MLP, for `cosine`.
        pairs: of members, for `cosine`.
        seeds: estimates, and runs of every method.
        most: evaluations after which a run is given up.
    """

    parts: tuple[Literal["cosine", "learning"], ...] = ("cosine", "learning")
    widths: tuple[int, ...] = (64, 256, 1024)
    pairs: tuple[int, ...] = (8, 64, 512)
    seeds: int = 3
    most: int = 30_000

    def reduced(self) -> Options:
        """Small enough to see in seconds that the script works."""
        return replace(self, widths=(64,), pairs=(8,), seeds=2, most=600)


def mlp(width: int, seed: int) -> dict[str, jax.Array]:
    """Parameters of a network 64-w-w-10."""
    sizes, keys = (64, width, width, 10), jax.random.split(jax.random.key(seed), 3)
    weights = {
        f"w{i}": jax.random.normal(k, (m, n)) * math.sqrt((2 if n > 10 else 1) / m)
        for i, (k, m, n) in enumerate(zip(keys, sizes[:-1], sizes[1:], strict=True))
    }
    return weights | {f"b{i}": jnp.zeros(n) for i, n in enumerate(sizes[1:])}


def logits(p: dict[str, jax.Array], x: jax.Array, surrogate: bool = False) -> jax.Array:
    """`[rows, 10]`; ReLU needs no surrogate."""
    for i in range(2):
        x = jax.nn.relu(x @ p[f"w{i}"] + p[f"b{i}"])
    return x @ p["w2"] + p["b2"]


def mlp_losses(p: dict[str, jax.Array], x: jax.Array, y: jax.Array) -> jax.Array:
    """`[rows]`."""
    return optax.softmax_cross_entropy_with_integer_labels(logits(p, x), y)


def transformer(seed: int) -> tuple[Callable[..., jax.Array], Any, tuple]:
    """Losses `[8, 32]` of a causal transformer, its parameters, and tokens."""
    wide, vocabulary, tokens = 64, 32, 33
    keys = iter(jax.random.split(jax.random.key(seed), 32))
    shapes = {"q": (wide, wide), "k": (wide, wide), "v": (wide, wide), "o": (wide, wide)}
    shapes |= {"up": (wide, 4 * wide), "down": (4 * wide, wide)}
    layers = [{n: jax.random.normal(next(keys), s) / math.sqrt(s[0]) for n, s in shapes.items()} for _ in range(2)]
    p = {"layers": layers, "embed": jax.random.normal(next(keys), (vocabulary, wide))}
    p |= {"places": jax.random.normal(next(keys), (tokens - 1, wide)), "head": jnp.zeros((wide, vocabulary))}
    p["head"] = jax.random.normal(next(keys), (wide, vocabulary)) / math.sqrt(wide)
    text = jax.random.randint(next(keys), (8, tokens), 0, vocabulary)

    def losses(p: Any, text: jax.Array) -> jax.Array:
        mask = jnp.tril(jnp.ones((tokens - 1, tokens - 1), bool))
        x = p["embed"][text[:, :-1]] + p["places"]
        for layer in p["layers"]:
            h = jax.nn.standardize(x)
            q, k, v = (jnp.reshape(h @ layer[n], (*h.shape[:2], 4, wide // 4)) for n in "qkv")
            x = x + jax.nn.dot_product_attention(q, k, v, mask=mask).reshape(x.shape) @ layer["o"]
            x = x + jax.nn.gelu(jax.nn.standardize(x) @ layer["up"]) @ layer["down"]
        return optax.softmax_cross_entropy_with_integer_labels(jax.nn.standardize(x) @ p["head"], text[:, 1:])

    return losses, p, (text,)


def cosines(options: Options) -> Iterator[dict[str, Any]]:
    """A row for each network, population and kind of noise."""
    x, y = digits()
    batch = jnp.asarray(x[:BATCH]), jnp.asarray(y[:BATCH])
    networks = [(f"MLP {w}", mlp_losses, mlp(w, 0), batch) for w in options.widths]
    networks += [] if options.quick else [("transformer", *transformer(0))]
    for (name, losses, params, args), pairs in product(networks, options.pairs):
        exact = ravel_pytree(jax.grad(lambda p, f=losses, a=args: f(p, *a).mean())(params))[0]
        kinds: dict[str, dict[str, Any]] = {"weights": {}, "activations": {"noise": "activations"}}
        if name == "transformer":
            kinds["activations, own"] = {"noise": "activations", "credit": "own"}
        worth: dict[str, float] = {}
        for kind, chosen in kinds.items():
            function = losses if chosen else lambda p, *a, f=losses: f(p, *a).mean()
            estimate = eggroll.grad(function, population=2 * pairs, sigma=0.01, **chosen)
            found = [ravel_pytree(estimate(params, *args, key=jax.random.key(s)))[0] for s in range(options.seeds)]
            each = [float(g @ exact / jnp.linalg.norm(g) / jnp.linalg.norm(exact)) for g in found]
            cosine = float(np.mean(each))
            worth[kind] = cosine**2 / (1 - cosine**2) / pairs
            error = float(np.std(each, ddof=1)) / math.sqrt(len(each))
            row = {"part": "cosine", "network": name, "method": kind, "pairs": pairs, "value": cosine, "error": error}
            yield {**row, "information": worth[kind] / worth["weights"], "setting": "sigma 0.01"}


GRID: dict[str, dict[str, tuple]] = {
    "activations": {"population": (8, 16), "sigma": (0.05, 0.3), "rate": (3e-3, 1e-2)},
    "weights": {"population": (64, 128), "sigma": (0.02, 0.05), "rate": (3e-3, 1e-2)},
    "backpropagation": {"population": (1,), "sigma": (0.0,), "rate": (3e-3, 1e-2)},
}


def learning(options: Options, say: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """A row for each method."""
    for method, grid in GRID.items():
        settings = [Setting(method, *values) for values in product(*grid.values())]

        def evaluations(setting: Setting, seed: int) -> int | None:
            return reached(race(logits, mlp(256, seed), setting, seed, options.most, stop=True))

        tried = {s: evaluations(s, TUNING_SEED) for s in settings}
        for setting, count in tried.items():
            say(f"{method}, {setting}: {count}")
        best = min(settings, key=lambda s: tried[s] or math.inf)
        found = [evaluations(best, seed) for seed in range(options.seeds)]
        value, error = mean_and_error([c for c in found if c]) if all(found) else (None, None)
        row = {"part": "learning", "network": "relu", "method": method, "pairs": best.population // 2}
        yield row | {"value": value, "error": error, "setting": str(best), "information": None}


def main(argv: list[str] | None = None) -> None:
    options = tyro.cli(Options, args=argv, description=__doc__)
    options = options.reduced() if options.quick else options
    said: list[str] = []
    rows = list(cosines(options)) if "cosine" in options.parts else []
    rows += list(learning(options, said.append)) if "learning" in options.parts else []
    summary = {f"{r['part']} {r['network']} {r['method']} {r['pairs']}": r["value"] for r in rows}
    Report("activations", options, rows, notes=[*NOTES, *said], summary=summary).finish(
        quick=options.quick, out=options.out
    )


NOTES = [
    f"cosine: value is the cosine with jax.grad. learning: value is evaluations to {LEVEL:.0%} test accuracy, "
    "empty where a seed did not reach it.",
    "Below: what was tried for each method with a seed that is not reported.",
]

if __name__ == "__main__":
    main()
