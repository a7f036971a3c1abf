"""How much of pure inference's throughput is left when one linear layer is trained, and what would full-rank ES cost?

The speed test of the paper (arXiv 2511.16652, Fig. 7): a square layer, one row of input per member. Compared, in turns:

- inference: `x @ W`, compiled, for all rows at once: the unit. All outputs are returned. "inference to fitness" reduces
  each row to the mean of its squares, as the steps do.
- forward: the outputs of all members, `members.apply(...)` of what `es.ask` returned, which draws the noise on the fly;
  or, with given noise, `eggroll.factored` on `eggroll.LowRank` of factors that are arguments. "forward to fitness"
  returns one number per member.
- two comparators for the forward pass: the same with given noise written by hand in `jnp`, and inference with one more
  pass over inputs and outputs without any noise, which is what memory alone asks of a correction.
- full step: `es.step` with z-scored fitness and SGD, state in, state out; with given noise the same by hand.
- full rank: OpenAI-ES, see `bench.tools.full_rank`, for a population that fits; its times count per member.

On an accelerator the forward pass and the step that draw their noise are under `jax.jit`, as a training loop would be.

`ratio` is the time per member in units of inference, `like for like` in units of the inference with the same outputs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
import tyro

from bench.tools import full_rank
from bench.tools.linear import LEARNING_RATE, SIGMA, Layer, fitness, launched, one_more_pass, product, reduced
from bench.tools.options import Common
from bench.tools.report import Report
from bench.tools.timing import Timing, interleave
from eggroll.kernels import rank_update

INFERENCE, TO_FITNESS = "inference", "inference to fitness"
FORWARD, FORWARD_GIVEN = "forward, noise on the fly", "forward, given noise"
FORWARD_TO_FITNESS = "forward to fitness, noise on the fly"
BY_HAND, ONE_MORE_PASS = "forward by hand, given noise", "inference and one more pass"
STEP, STEP_GIVEN = "full step, noise on the fly", "full step, given noise"
FULL_FORWARD, FULL_FORWARD_GIVEN = "full-rank forward, noise on the fly", "full-rank forward, given noise"
FULL_STEP, FULL_STEP_GIVEN = "full-rank step, noise on the fly", "full-rank step, given noise"

# Per cent of inference, one figure per kind of noise: width 8192, batch 1024, bfloat16, one GPU.
PAPER = {
    INFERENCE: 100.0,
    FORWARD: 69.0,
    STEP: 69.0,
    FORWARD_GIVEN: 91.0,
    STEP_GIVEN: 91.0,
    FULL_FORWARD: 0.054,
    FULL_STEP: 0.054,
    FULL_FORWARD_GIVEN: 0.41,
    FULL_STEP_GIVEN: 0.41,
}


@dataclass(frozen=True)
class Options(Common):
    """How much of pure inference's throughput is left when one linear layer is trained.

    Attributes:
        width: inputs and outputs of the layer; several for several layers.
        population: members, each with one row of input.
        dtype: of weight, inputs and noise.
        rank: columns of each factor.
        distribution: of the factors.
        chunk: members that `es.step` and `members.apply` evaluate at once.
        full_rank_population: members of full-rank ES, each pair with noise as large as the layer.
        rounds: turns of each candidate.
    """

    width: tuple[int, ...] = (512, 2048)
    population: int = 4096
    dtype: Literal["float32", "bfloat16"] = "float32"
    rank: int = 1
    distribution: Literal["rademacher", "normal"] = "rademacher"
    chunk: int | Literal["auto"] = "auto"
    full_rank_population: int = 16
    rounds: int = 9


class Training:
    """A call that hands its result to the next call, as training does."""

    def __init__(self, step: Callable[[Any], Any], state: Any) -> None:
        self.step, self.state = step, state

    def __call__(self) -> Any:
        """One step."""
        self.state = self.step(self.state)
        return self.state


def step_given(layer: Layer, weight: jax.Array, left: jax.Array, right: jax.Array, inputs: jax.Array) -> jax.Array:
    """One update of the float32 `weight` by SGD on z-scored fitness, with the given factors."""
    values = reduced(layer.forward(weight.astype(layer.dtype), left, right, inputs))
    scores = (values - jnp.mean(values)) / jnp.std(values)
    total = rank_update(scores[0::2] - scores[1::2], left, right)
    sgd = optax.sgd(LEARNING_RATE)
    change, _ = sgd.update(-total / (layer.population * SIGMA * layer.rank**0.5), sgd.init(weight))
    return optax.apply_updates(weight, change)


def low_rank_candidates(layer: Layer) -> dict[str, Callable[[], Any]]:
    """Inference and EGGROLL; everything that a call reads is an argument of what is compiled."""
    inputs, weight, factors, es = layer.inputs, layer.weight, layer.factors, layer.es
    step = launched(lambda state, rows: es.step(state, fitness, rows, in_axes=0)[0])
    infer, to_fitness = jax.jit(jnp.matmul), jax.jit(lambda x, w: reduced(x @ w))
    forward, by_hand, more = (jax.jit(f) for f in (layer.forward, layer.forward_by_hand, one_more_pass))
    given = jax.jit(partial(step_given, layer), donate_argnums=0)
    return {
        INFERENCE: lambda: infer(inputs, weight),
        TO_FITNESS: lambda: to_fitness(inputs, weight),
        FORWARD: forward_on_the_fly(layer, product),
        FORWARD_TO_FITNESS: forward_on_the_fly(layer, fitness),
        FORWARD_GIVEN: lambda: forward(weight, *factors, inputs),
        BY_HAND: lambda: by_hand(weight, *factors, inputs),
        ONE_MORE_PASS: lambda: more(inputs, weight),
        STEP: Training(lambda state: step(state, inputs), layer.state()),
        STEP_GIVEN: Training(lambda master: given(master, *factors, inputs), _master(layer)),
    }


def forward_on_the_fly(layer: Layer, fun: Callable[..., jax.Array]) -> Callable[[], jax.Array]:
    """`members.apply` of what `es.ask` returned; on an accelerator both of them in the call."""
    es, inputs, state = layer.es, layer.inputs, layer.state()
    if jax.default_backend() == "cpu":
        members = es.ask(state)
        return lambda: members.apply(fun, inputs, in_axes=0)
    run = launched(lambda state, rows: es.ask(state).apply(fun, rows, in_axes=0))
    return lambda: run(state, inputs)


def full_rank_candidates(layer: Layer) -> dict[str, Callable[[], Any]]:
    """OpenAI-ES, with noise on the fly from a key, and with the noise of all pairs as an argument."""
    inputs, weight, key = layer.inputs, layer.weight, jax.random.key(4)
    noise = full_rank.given_noise(layer, key)
    forward, forward_given = (jax.jit(partial(f, layer)) for f in (full_rank.forward, full_rank.forward_given))
    step, step_given = (jax.jit(partial(f, layer), donate_argnums=0) for f in (full_rank.step, full_rank.step_given))
    return {
        FULL_FORWARD: lambda: forward(weight, inputs, key),
        FULL_FORWARD_GIVEN: lambda: forward_given(weight, inputs, noise),
        FULL_STEP: Training(lambda master: step(master, inputs, key), _master(layer)),
        FULL_STEP_GIVEN: Training(lambda master: step_given(master, inputs, noise), _master(layer)),
    }


def _master(layer: Layer) -> jax.Array:
    """A float32 copy of the weight, which a step may overwrite."""
    return jnp.array(layer.weight, jnp.float32, copy=True)


def measure(layer: Layer, full_rank_layer: Layer, rounds: int) -> dict[str, Timing]:
    """Seconds per member of every operation."""
    low, full = low_rank_candidates(layer), full_rank_candidates(full_rank_layer)
    timings = interleave({**low, **full}, rounds=rounds)
    members = dict.fromkeys(low, layer.population) | dict.fromkeys(full, full_rank_layer.population)
    return {name: Timing(name, tuple(s / members[name] for s in t.seconds)) for name, t in timings.items()}


def rows(layer: Layer, full_rank_layer: Layer, timings: dict[str, Timing]) -> list[dict[str, Any]]:
    """The table of one width."""
    table = []
    for name, timing in timings.items():
        population = (full_rank_layer if name.startswith("full-rank") else layer).population
        ratio = timing.ratio(timings[INFERENCE])
        like = timing.ratio(timings[TO_FITNESS if "step" in name or "fitness" in name else INFERENCE])
        table.append(
            {
                "width": layer.width,
                "operation": name,
                "population": population,
                "milliseconds": 1e3 * timing.median * population,
                "ratio": ratio.median,
                "low": ratio.low,
                "high": ratio.high,
                "per_cent_of_inference": 100 / ratio.median,
                "like_for_like": like.median,
                "paper_per_cent": PAPER.get(name),
            }
        )
    return table


def summary(width: int, timings: dict[str, Timing]) -> dict[str, float]:
    """The figures that decide, of one width."""
    inference = timings[INFERENCE]

    def share(name: str) -> float:
        return 100 / timings[name].ratio(inference).median

    return {
        f"full_step_over_inference_{width}": timings[STEP].ratio(inference).median,
        f"full_step_over_inference_to_fitness_{width}": timings[STEP].ratio(timings[TO_FITNESS]).median,
        f"forward_on_the_fly_per_cent_{width}": share(FORWARD),
        f"forward_given_per_cent_{width}": share(FORWARD_GIVEN),
        f"forward_by_hand_per_cent_{width}": share(BY_HAND),
        f"one_more_pass_per_cent_{width}": share(ONE_MORE_PASS),
        f"full_rank_step_over_ours_{width}": timings[FULL_STEP].ratio(timings[STEP]).median,
    }


def main(argv: list[str] | None = None) -> None:
    """Measure every width and report."""
    options = tyro.cli(Options, args=argv, description=__doc__)
    if options.quick:
        options = dataclasses.replace(options, width=(128,), population=256, full_rank_population=4, rounds=3)
    report = Report("layer", options)
    for width in options.width:
        layer = Layer(width, options.population, options.dtype, options.rank, options.distribution, options.chunk)
        full_rank_layer = dataclasses.replace(layer, population=options.full_rank_population)
        timings = measure(layer, full_rank_layer, options.rounds)
        report.rows += rows(layer, full_rank_layer, timings)
        report.summary |= summary(width, timings)
    report.notes = [
        "ratio: time per member in units of inference, median of the rounds (low, high: quartiles); like for like: in "
        "units of the inference with the same outputs. Inference and full-rank ES run at their own populations.",
        "paper per cent: one GPU, width 8192, batch 1024, bfloat16; the paper has one figure per kind of noise, which "
        "stands beside the forward pass and the full step.",
    ]
    report.finish(quick=options.quick, out=options.out)


if __name__ == "__main__":
    main()
