"""What does noise on layers' outputs teach a language model that starts from nothing?

A byte-level causal transformer (`bench.tools.transformer`; 4 layers, 256 wide, 3.3 million parameters) on the reference
that comes with Python (the topics of `help()`, about 0.7 MB of prose in reStructuredText); the last tenth is held out.

`learning`: held-out loss a byte against forward passes of a minibatch, and against bytes seen, by noise on activations
(all dependent losses, and a token's own), noise on weights and AdamW with backpropagation, each at the setting of a
small grid that is best for a seed that is not reported. Backpropagation makes one forward pass a step, and a backward
pass, and ends when it has seen as many bytes as others or more.

`law`: of one estimate, the squared cosine with `jax.grad` against pairs, parameter by parameter and layer by layer. Of
`M` pairs about `M/(M + d)` is expected; `d`, as many numbers as compete for a loss, is fitted to `1/cos² − 1`.

A run is kept as soon as it ends, and what is kept is not measured again: what was interrupted goes on.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import product
from pydoc_data.topics import topics
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

import eggroll
from bench.tools import transformer
from bench.tools.digits_race import TUNING_SEED, Setting
from bench.tools.environment import device_slug
from bench.tools.finetune_curves import mean_and_error
from bench.tools.options import Common
from bench.tools.plots import draw
from bench.tools.report import RESULTS, Report

Curve = list[tuple[int, float]]  # forward passes so far, held-out loss a byte
GRID: dict[str, dict[str, tuple]] = {
    "activations": {"population": (16, 64), "sigma": (0.1,), "rate": (3e-4, 1e-3)},
    "activations, own": {"population": (16, 64), "sigma": (0.1,), "rate": (3e-4, 1e-3)},
    "weights": {"population": (64,), "sigma": (0.01,), "rate": (1e-3, 3e-3)},
    "AdamW": {"population": (1,), "sigma": (0.0,), "rate": (1e-3, 3e-3)},
}
POINTS, HELD_OUT = 16, 32  # evaluations of a run, and windows that they are on


@dataclass(frozen=True)
class Options(Common):
    """Options of bench.pretrain.

    Attributes:
        parts: which questions.
        methods: which of them learn.
        depth: layers.
        width: of the layers.
        batch: windows of a minibatch.
        tokens: bytes of a window.
        passes: forward passes of a minibatch in a run.
        seeds: runs of every method.
        pairs: of the law.
        trained: steps of AdamW before the law is measured a second time.
        again: measure what is kept, too.
    """

    parts: tuple[Literal["learning", "law"], ...] = ("learning", "law")
    methods: tuple[str, ...] = tuple(GRID)
    depth: int = 4
    width: int = 256
    batch: int = 8
    tokens: int = 64
    passes: int = 6400
    seeds: int = 3
    pairs: tuple[int, ...] = (8, 32, 128, 512)
    trained: int = 300
    again: bool = False

    def reduced(self) -> Options:
        """Small enough to see in seconds that the script works."""
        sizes = {"depth": 2, "width": 16, "batch": 2, "tokens": 16}
        methods = ("activations, own", "AdamW")
        return replace(self, **sizes, methods=methods, passes=64, seeds=2, pairs=(4, 16), trained=4)


def text() -> np.ndarray:
    """Bytes of the reference, in the order of its topics' names."""
    return np.frombuffer("\n\n".join(topics[name] for name in sorted(topics)).encode(), np.uint8)


def windows(data: np.ndarray, starts: np.ndarray, tokens: int) -> jax.Array:
    """`[len(starts), tokens + 1]`."""
    return jnp.asarray(data[starts[:, None] + np.arange(tokens + 1)], jnp.int32)


def losses(params: Any, seen: jax.Array) -> jax.Array:
    """`[batch, tokens]`, in nats a byte."""
    logits = transformer.forward(params, seen[:, :-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits, seen[:, 1:])


def mean_loss(params: Any, seen: jax.Array) -> jax.Array:
    """Of all bytes."""
    return losses(params, seen).mean()


def model(options: Options, seed: int) -> Any:
    """Parameters of a model that knows nothing: its head is small."""
    params = transformer.init(jax.random.key(seed), depth=options.depth, width=options.width)
    return params | {"head": params["head"] * 0.1}


def estimator(method: str, population: int, sigma: float) -> Callable[..., Any]:
    """The gradient of the mean loss as the method makes it: of parameters, windows and a key."""
    if method == "AdamW":
        exact = jax.grad(mean_loss)
        return lambda params, seen, key: exact(params, seen)
    noise: dict[str, Any] = {"population": population, "sigma": sigma}
    if method == "weights":
        return lambda params, seen, key: eggroll.grad(mean_loss, **noise)(params, seen, key=key)
    noise |= {"noise": "activations", "credit": "own" if method.endswith("own") else "dependent"}
    return lambda params, seen, key: eggroll.grad(losses, **noise)(params, seen, key=key)


@cache
def stepper(setting: Setting) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """One step, and a fresh optimizer's state: compiled once for all seeds."""
    estimate, optimizer = estimator(setting.method, setting.population, setting.sigma), optax.adamw(setting.rate)

    def step(params: Any, moments: Any, seen: jax.Array, key: jax.Array) -> Any:
        updates, moments = optimizer.update(estimate(params, seen, key), moments, params)
        return optax.apply_updates(params, updates), moments

    return jax.jit(step, donate_argnums=(0, 1)), optimizer.init


def run(setting: Setting, seed: int, options: Options) -> Curve:
    """One run: the held-out loss at points that lie evenly."""
    data = text()
    end, order = len(data) * 9 // 10, np.random.default_rng(seed)
    held_out = windows(data, np.linspace(end, len(data) - options.tokens - 1, HELD_OUT).astype(int), options.tokens)
    (step, fresh), score, params = stepper(setting), jax.jit(mean_loss), model(options, seed)
    moments, curve = fresh(params), [(0, float(score(params, held_out)))]
    steps = options.passes // max(setting.population, min(GRID["activations"]["population"]))
    for number in range(1, steps + 1):
        seen = windows(data, order.integers(0, end - options.tokens - 1, options.batch), options.tokens)
        params, moments = step(params, moments, seen, jax.random.fold_in(jax.random.key(seed), number))
        if number * POINTS // steps > (number - 1) * POINTS // steps:
            curve.append((number * setting.population, float(score(params, held_out))))
    return curve


def kept(setting: Setting, seed: int, options: Options, folder: pathlib.Path) -> Curve:
    """The run, from its file if there is one."""
    sizes = "-".join(str(getattr(options, n)) for n in ("depth", "width", "batch", "tokens", "passes"))
    name = f"{setting.method.replace(', ', '-')}-{setting.population}-{setting.sigma:g}-{setting.rate:g}-{seed}"
    path = folder / f"runs-{sizes}" / f"{name}.json"
    if not path.exists() or options.again:
        path.parent.mkdir(parents=True, exist_ok=True)
        found = {"setting": asdict(setting), "seed": seed, "curve": run(setting, seed, options)}
        path.write_text(json.dumps(found) + "\n")
        print(f"{setting.method}, {setting}, seed {seed}: {found['curve'][-1][1]:.3f}", flush=True)
    return [(n, loss) for n, loss in json.loads(path.read_text())["curve"]]


def learning(options: Options, folder: pathlib.Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[str]]:
    """A row and a curve of each method, and what was tried."""
    rows, series, said = [], [], []
    for method in options.methods:
        settings = [Setting(method, *values) for values in product(*GRID[method].values())]
        settings = settings[:1] if options.quick else settings
        tried = {setting: kept(setting, TUNING_SEED, options, folder)[-1][1] for setting in settings}
        said += [f"{method}, {setting}: {loss:.3f}" for setting, loss in tried.items()]
        best = min(settings, key=lambda s: tried[s])
        curves = [kept(best, seed, options, folder) for seed in range(options.seeds)]
        points = [(at[0][0], *mean_and_error([loss for _, loss in at])) for at in zip(*curves, strict=True)]
        each = options.batch * options.tokens
        row = {"method": method, "setting": str(best), "passes": points[-1][0]}
        row["tokens"] = points[-1][0] // best.population * each
        rows.append(row | {"start": points[0][1], "loss": points[-1][1], "error": points[-1][2]})
        found = {"evaluations": [max(n, 1) for n, *_ in points], "held_out_loss": [mean for _, mean, _ in points]}
        found |= {"held_out_loss_error": [error for *_, error in points]}
        series.append({"label": method, "bytes": [n // best.population * each for n, *_ in points], **found})
    return rows, series, said


def law(options: Options) -> Iterator[dict[str, Any]]:
    """A row for each kind of parameter and layer, at the start and after training."""
    data, order = text(), np.random.default_rng(0)
    optimizer, params = optax.adamw(1e-3), model(options, 0)
    moments, slope = optimizer.init(params), jax.jit(jax.grad(mean_loss))

    def draw_windows() -> jax.Array:
        return windows(data, order.integers(0, len(data) - options.tokens - 1, options.batch), options.tokens)

    for steps in (0, options.trained):
        for _ in range(steps):
            updates, moments = optimizer.update(slope(params, draw_windows()), moments, params)
            params = optax.apply_updates(params, updates)
        seen = draw_windows()
        exact = by_layer(slope(params, seen))
        for method in (name for name in options.methods if name != "AdamW"):
            found: dict[str, list[float]] = {name: [] for name in exact}
            for pairs in options.pairs:
                estimate = jax.jit(estimator(method, 2 * pairs, GRID[method]["sigma"][0]))
                for name, each in by_layer(estimate(params, seen, jax.random.key(pairs))).items():
                    sizes = jnp.linalg.norm(each) * jnp.linalg.norm(exact[name])
                    found[name].append(float(jnp.vdot(each, exact[name]) / sizes))
            for name, cosines in found.items():
                at = {f"cosine_{pairs}": cosine for pairs, cosine in zip(options.pairs, cosines, strict=True)}
                row = {"method": method, "steps": steps, "parameter": name, "size": exact[name].size}
                yield row | {"compete": competing(options.pairs, cosines)} | at


def by_layer(tree: Any) -> dict[str, jax.Array]:
    """Every parameter by its name, those of the blocks by their layer too."""
    apart = {f"{name} {i}": one for name, each in tree["blocks"].items() for i, one in enumerate(each)}
    return {name: x for name, x in tree.items() if name != "blocks"} | apart


def competing(pairs: Sequence[int], cosines: Sequence[float]) -> float | None:
    """`d` of `cos² = M/(M + d)`, the median over the populations; None where a cosine is not positive."""
    if min(cosines) <= 0:
        return None
    return float(np.median([m * (1 / c**2 - 1) for m, c in zip(pairs, cosines, strict=True)]))


def main(argv: list[str] | None = None) -> None:
    options = tyro.cli(Options, args=argv, description=__doc__)
    options = options.reduced() if options.quick else options
    if unknown := set(options.methods) - set(GRID):
        raise SystemExit(f"got --methods {', '.join(sorted(unknown))}; known are {', '.join(map(repr, GRID))}")
    folder = options.out or RESULTS / "pretrain" / ("quick" if options.quick else device_slug())
    settings = replace(options, out=None)
    if "learning" in options.parts:
        rows, series, said = learning(options, folder)
        summary = {f"{row['method']} loss": row["loss"] for row in rows}
        Report("pretrain", settings, rows, [*NOTES, *said], summary, series).finish(
            quick=options.quick, out=folder / "learning.json"
        )
        panels = [
            {"title": title, "x": x, "y": "held_out_loss", "series": series}
            for title, x in (("by forward passes", "evaluations"), ("by bytes seen", "bytes"))
        ]
        draw(panels, folder / "learning.png", title="Pretraining on bytes: mean of seeds", columns=2)
    if "law" in options.parts:
        found = list(law(options))
        outer = [row for row in found if row["parameter"] in ("embed", "head")]
        summary = {f"{r['method']}, {r['steps']} steps, {r['parameter']}": r["compete"] for r in outer}
        Report("pretrain", settings, found, LAW, summary).finish(quick=options.quick, out=folder / "law.json")


NOTES = [
    "passes: forward passes of a minibatch; tokens: bytes seen, the same for all members of a step. loss: held-out, in "
    "nats a byte, mean and standard error of the seeds; start: before training.",
    "Below: held-out losses of what was tried for each method with a seed that is not reported.",
]
LAW = [
    "compete: d of cos² = pairs/(pairs + d), median over the populations of one estimate each; empty where a cosine is "
    "not positive. steps: of AdamW before."
]

if __name__ == "__main__":
    main()
