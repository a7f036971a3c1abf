"""What does a population of 2^20 on a 7B model cost on a pod of 256 chips? On paper: nothing is run.

The tables of docs/scaling.md, whose formulas are the functions here: a Llama-like decoder (32 layers, width 4096, 11008
inside, 32000 words; bfloat16 with float32 master copies and Adam), one sequence of 512 tokens for every member, rank 1,
on TPU v5p: 95 GB, 459 bfloat16 TFLOP/s, 2765 GB/s of memory, 4800 Gbit/s over the six links of a 3D torus.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import tyro
from jax.sharding import AbstractMesh, PartitionSpec

from bench.tools.options import Common
from bench.tools.report import Report
from bench.tools.update_costs import MOMENTS, RATES, UpdateCost, update_cost
from eggroll.strategy.plan.leaves import Plan, make_plan
from eggroll.strategy.population import Population, as_sharding
from eggroll.strategy.state import Placement, make_placement

LAYERS, WIDTH, INNER, WORDS = 32, 4096, 11008, 32000
POPULATION, TOKENS, CHIPS = 1 << 20, 512, 256
MEMORY, BFLOAT16_FLOPS, UTILISATION = 95e9, 459e12, 0.4
RATE = RATES["tpu"]
MESHES = (256, 1), (64, 4), (32, 8), (16, 16), (8, 32)
UPDATES = "members", "weights"
ACTIVATIONS = 0.25  # of the memory: what `chunk="auto"` fills
# Matrices as Megatron splits them: two all-reduces of activations a layer.
RULES = [
    (".*/(q|k|v|gate|up)", PartitionSpec(None, "model")),
    (".*/(out|down)", PartitionSpec("model")),
    ("head", PartitionSpec(None, "model")),
    ("embedding", PartitionSpec(None, "model")),
]


@dataclass(frozen=True)
class Options(Common):
    """Options of bench.pod.

    Attributes:
        markdown: print the tables of docs/scaling.md instead.
    """

    markdown: bool = False


def parameters() -> dict[str, Any]:
    """The model's shapes."""

    def matrix(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.bfloat16)

    square = {name: matrix(WIDTH, WIDTH) for name in ("q", "k", "v", "out")}
    inner = {"gate": matrix(WIDTH, INNER), "up": matrix(WIDTH, INNER), "down": matrix(INNER, WIDTH)}
    layer = {**square, **inner, "norm1": matrix(WIDTH), "norm2": matrix(WIDTH)}
    ends = {"embedding": matrix(WORDS, WIDTH), "head": matrix(WIDTH, WORDS), "norm": matrix(WIDTH)}
    return {**ends, "layers": [layer] * LAYERS}


def placed(mesh: tuple[int, int], update: str) -> tuple[Placement, Plan]:
    """Where the model lies on a mesh population × model."""
    shape = AbstractMesh(mesh, ("population", "model"))
    plan = make_plan(parameters(), None, rank=1)
    return make_placement(shape, as_sharding(RULES, shape), update, plan.leaves), plan


def cost(mesh: tuple[int, int], update: str, population: int = POPULATION) -> UpdateCost:
    """Of the update, for one chip."""
    return update_cost(*placed(mesh, update), Population(population), RATE)


def even_population(mesh: tuple[int, int]) -> float:
    """Where both layouts take the same time, which is linear in the population: by weights is quicker below."""
    small, large = ([cost(mesh, update, n).seconds for update in UPDATES] for n in (POPULATION, 2 * POPULATION))
    slopes = [(b - a) / POPULATION for a, b in zip(small, large, strict=True)]
    return POPULATION + (small[0] - small[1]) / (slopes[1] - slopes[0])


def numbers(mesh: tuple[int, int]) -> tuple[float, float]:
    """Parameters that a chip holds, and those of them whose update it holds by weights."""
    placement, plan = placed(mesh, "weights")
    held = apart = 0.0
    for leaf, spec, part in zip(plan.leaves, placement.specs, placement.parts, strict=True):
        size = math.prod(leaf.shape) / (mesh[1] if any(spec) else 1)
        held += size
        apart += size / mesh[0] if part is not None else size
    return held, apart


def memory(mesh: tuple[int, int], update: str) -> dict[str, float]:
    """Gigabytes on one chip.

    Weights take 2 bytes a parameter; the master copy and Adam's moments 4 each; the update's sums 4; activations of the
    members that are evaluated at once a quarter of the chip, by choice of the chunk.
    """
    held, apart = numbers(mesh)
    owned = held if update == "members" else apart
    parts = {"weights": 2 * held, "master and moments": 4 * (1 + MOMENTS) * owned, "sums": 4 * owned}
    parts["activations"] = ACTIVATIONS * MEMORY
    return {name: size / 1e9 for name, size in parts.items()} | {"all": sum(parts.values()) / 1e9}


def forward_seconds() -> float:
    """`N·T·(2·P + 2·L·T·d)/(chips·rate·utilisation)`: products and causal attention; `P` without the embedding."""
    multiplied = LAYERS * (4 * WIDTH**2 + 3 * WIDTH * INNER) + WORDS * WIDTH
    flops = POPULATION * TOKENS * (2 * multiplied + 2 * LAYERS * TOKENS * WIDTH)
    return flops / (CHIPS * BFLOAT16_FLOPS * UTILISATION)


def activation_seconds(mesh: tuple[int, int]) -> float:
    """Two all-reduces of `[N/population·T, d]` bfloat16 in each layer along `"model"`, each twice around the ring."""
    sizes = POPULATION / mesh[0] * TOKENS * WIDTH * 2
    return 2 * LAYERS * 2 * (mesh[1] - 1) / mesh[1] * sizes / RATE.link


def table_row(mesh: tuple[int, int]) -> dict[str, Any]:
    """Both layouts on one mesh."""
    found: dict[str, Any] = {"mesh": f"{mesh[0]} x {mesh[1]}"}
    totals = {}
    for update in UPDATES:
        held, spent = memory(mesh, update)["all"], cost(mesh, update)
        found[f"{update}_gb"] = held
        found[f"{update}_crossing_gb"] = spent.crossing / 1e9
        found[f"{update}_update_s"] = spent.seconds
        totals[update] = spent.seconds if held * 1e9 <= MEMORY else math.inf
    found["forward_s"] = forward_seconds()
    found["activations_s"] = activation_seconds(mesh)
    best = min(totals, key=totals.__getitem__)
    fits = totals[best] < math.inf
    found["generation_s"] = found["forward_s"] + found["activations_s"] + totals[best] if fits else None
    found["better"] = best if fits else "neither fits"
    found["even at"] = f"{even_population(mesh):,.0f}"
    return found


def memory_row(mesh: tuple[int, int], update: str) -> dict[str, Any]:
    """The parts of one chip's memory, in GB."""
    return {"mesh": f"{mesh[0]} x {mesh[1]}", "update": update, **memory(mesh, update)}


def update_row(mesh: tuple[int, int], update: str) -> dict[str, Any]:
    """The parts of one update's time on one chip, in milliseconds."""
    spent = cost(mesh, update)
    times = {
        "products": spent.flops / RATE.matrix,
        "optimizer": spent.moved / RATE.memory,
        "noise": noise_seconds(spent),
    }
    crossing = spent.seconds - sum(times.values())
    named = {f"{name} ms": 1e3 * value for name, value in {**times, "crossing": crossing}.items()}
    return {"mesh": f"{mesh[0]} x {mesh[1]}", "update": update, **named, "all ms": 1e3 * spent.seconds}


def noise_seconds(spent: UpdateCost) -> float:
    """60 operations a word of 32 numbers and 4 a number."""
    return spent.numbers * (60 / 32 + 4) / RATE.vector


def tables() -> list[list[dict[str, Any]]]:
    """Generations, memory, updates."""
    both = [(mesh, update) for mesh in MESHES for update in UPDATES]
    return [[table_row(m) for m in MESHES], [memory_row(*b) for b in both], [update_row(*b) for b in both]]


def markdown(rows: list[dict[str, Any]]) -> str:
    """A table for the page."""
    lines = [[name.replace("_", " ") for name in rows[0]], ["---"] * len(rows[0])]
    lines += [[_cell(value) for value in row.values()] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def main(argv: list[str] | None = None) -> None:
    options = tyro.cli(Options, args=argv, description=__doc__)
    if options.markdown:
        print("\n\n".join(markdown(rows) for rows in tables()))
        return
    held, _ = numbers((256, 1))
    report = Report("pod", options, tables()[0], notes=NOTES, summary={"parameters": held})
    report.finish(quick=True, out=options.out)


NOTES = [
    "Arithmetic, not a measurement: figures of one TPU v5p chip, a forward pass at 40 % of its peak, collectives in "
    "rings along one axis of the torus. docs/scaling.md has the formulas."
]

if __name__ == "__main__":
    main()
