"""Does a random program of perturbed parameters give what it gives on each member's dense ones?

Programs are drawn by `bench.tools.programs`: products of perturbed values, reductions, masks, lookups, convolutions,
loops, branches, `vmap`, transforms. Each is evaluated on three members by `eggroll.factored`, and one by one on their
dense parameters by JAX alone, both in float64: a difference of more than 1e-9 is wrong, and cannot be rounding. How it
uses its parameters is looked at, too. `--seed` runs a single program, and prints it.
"""

from __future__ import annotations

import time
import traceback
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import jax
import numpy as np
import tyro
from jax import lax

from bench.tools.options import Common
from bench.tools.programs import Program, random_program
from bench.tools.report import Report
from eggroll.engine.factored import discover, factored, trace
from eggroll.engine.lowrank import LowRank, Source

MEMBERS, N_PARAMS = 3, 3
TOLERANCE = 1e-9  # of the largest number: a million times the rounding of float64

Outcome = Literal["equal", "refused", "crashed", "wrong"]


@dataclass(frozen=True)
class Options(Common):
    """Does a random program of perturbed parameters give what it gives on each member's dense ones?

    Attributes:
        programs: how many; 10,000 run for about an hour.
        seed: of a single program to run; None (default) runs many.
        first: seed of the first of many.
    """

    programs: int = 10_000
    seed: int | None = None
    first: int = 0


@dataclass(frozen=True)
class Found:
    """What became of one program: `said` has the difference, or what was raised."""

    seed: int
    outcome: Outcome
    program: str
    said: str = ""


def attempt(seed: int, n_steps: int = 8) -> Found:
    """Runs one program of so many steps both ways. JAX has to be in its 64-bit mode."""
    rng = np.random.default_rng(seed)
    program = random_program(rng, N_PARAMS, n_steps=n_steps)
    params = [_parameter(rng, i, shape) for i, shape in enumerate(program.shapes[:N_PARAMS])]
    inputs = [rng.normal(size=shape) for shape in program.shapes[N_PARAMS:]]
    dense = [_dense(p) for p in params]
    try:
        jax.eval_shape(program, [d[0] for d in dense], inputs)
    except Exception as why:
        return Found(seed, "refused", str(program), f"{type(why).__name__}: {why}")
    try:
        got, want = _both(program, params, dense, inputs)
    except Exception:
        return Found(seed, "crashed", str(program), traceback.format_exc())
    if not all(np.isfinite(w).all() for w in want):
        return Found(seed, "refused", str(program), "the result is not finite")
    off = [_difference(g, w) for g, w in zip(got, want, strict=True)]
    if max(off) > TOLERANCE:
        return Found(seed, "wrong", str(program), f"off by {max(off):.3g} of the largest number")
    return Found(seed, "equal", str(program))


def _parameter(rng: np.random.Generator, number: int, shape: tuple[int, ...]) -> LowRank:
    """Of any ownership: each axis is the left factor's, the right one's, both, or none's."""
    owners = rng.choice(["l", "r", "lr", ""], len(shape), p=[0.4, 0.4, 0.15, 0.05])
    axes = [tuple(a for a, o in enumerate(owners) if side in o) for side in "lr"]
    rank = int(rng.integers(1, 3))
    factors = [0.3 * rng.normal(size=(MEMBERS, *(shape[a] for a in own), rank)) for own in axes]
    base = 0.5 * rng.normal(size=shape)
    scale = rng.normal(size=MEMBERS) if rng.random() < 0.5 else None
    return LowRank(base, *factors, axes[0], axes[1], Source(str(number), MEMBERS), scale)  # type: ignore[arg-type]


def _dense(p: LowRank) -> np.ndarray:
    """`[members, *shape]`, by NumPy."""
    ndim = len(p.shape)
    left, right = np.asarray(p.left), np.asarray(p.right)
    sides = [[ndim + 1, *p.left_axes, ndim], [ndim + 1, *p.right_axes, ndim]]
    owned = sorted({*p.left_axes, *p.right_axes})
    change = np.einsum(left, sides[0], right, sides[1], [ndim + 1, *owned])
    if p.scale is not None:
        change = change * np.asarray(p.scale).reshape(-1, *[1] * (change.ndim - 1))
    change = change.reshape(MEMBERS, *(n if a in owned else 1 for a, n in enumerate(p.shape)))
    return np.asarray(p.base) + change


def _both(program: Program, params: list[LowRank], dense: list[np.ndarray], inputs: list[np.ndarray]) -> Any:
    """Outputs of the factored members, and of the dense ones."""
    shapes = [jax.ShapeDtypeStruct(p.shape, p.dtype) for p in params], inputs
    discover(trace(program, shapes), [str(i) for i in range(N_PARAMS)], shapes)

    def member(own: list[Any], inputs: list[Any]) -> Any:
        changes = [dict(zip(("left", "right", "scale"), numbers, strict=True)) for numbers in own]
        leaves = [replace(p, **change) for p, change in zip(params, changes, strict=True)]
        return factored(program, fallback="allow")(leaves, inputs)

    def both(own: list[Any], dense: list[Any], inputs: list[Any]) -> Any:
        return jax.vmap(member, in_axes=(0, None))(own, inputs), lax.map(lambda alone: program(alone, inputs), dense)

    return jax.jit(both)([(p.left, p.right, p.scale) for p in params], dense, inputs)


def _difference(got: Any, want: Any) -> float:
    got, want = np.asarray(got), np.asarray(want)
    if got.shape != want.shape or got.dtype != want.dtype:
        return float("inf")
    largest = max(1.0, float(np.abs(want).max(initial=0)))
    return float(np.nan_to_num(np.abs(got - want).max(initial=0), nan=np.inf)) / largest


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{counts[outcome]:,} {outcome}" for outcome in get_args(Outcome))


def main(args: list[str] | None = None) -> None:
    """Runs programs and says what became of them."""
    options = tyro.cli(Options, args=args)
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_disable_most_optimizations", True)
    if options.seed is not None:
        found = attempt(options.seed)
        print(found.program, found.outcome, found.said, sep="\n")
        return
    n = 20 if options.quick else options.programs
    start, counts, bad = time.perf_counter(), Counter[str](), []
    for seed in range(options.first, options.first + n):
        found = attempt(seed)
        counts[found.outcome] += 1
        if found.outcome in ("crashed", "wrong"):
            bad.append({"seed": seed, "outcome": found.outcome, "said": found.said.strip().splitlines()[-1]})
            print(*bad[-1].values(), flush=True)
        if (done := seed - options.first + 1) % 100 == 0:
            print(f"{done:,} of {n:,}: {_counted(counts)}", flush=True)
        if seed % 200 == 199:  # what was compiled is never used again
            jax.clear_caches()
    summary = {k: counts[k] for k in get_args(Outcome)}
    rows = bad or [{"seed": "-", "outcome": "no program crashed or was wrong", "said": ""}]
    notes = [f"{n:,} programs in {time.perf_counter() - start:,.0f} s; refused: by plain JAX, or not finite."]
    Report("fuzz", options, rows, notes, summary).finish(quick=options.quick, out=options.out)


if __name__ == "__main__":
    main()
