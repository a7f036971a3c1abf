"""What do the kernels become on an H200? Registers, spills and shared memory, by its compilers, without a GPU.

Needs JAX's plugin for CUDA (see `bench.tools.gpu_target`). `lowrank_dot` has two kernels, the thin product and the
product. Seconds are of a call's whole compilation, once, on whatever machine this is.
"""

from __future__ import annotations

import dataclasses
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import tyro
from jax.experimental.mosaic.gpu import constraints

from bench.tools.gpu_target import compiled, has_compiler
from bench.tools.kernel_shapes import PAPER, Shape
from bench.tools.options import Common
from bench.tools.report import Report
from eggroll.kernels import Seeded
from eggroll.kernels.gpu_lowrank_dot import lowrank_dot_gpu
from eggroll.kernels.gpu_rank_update import rank_update_gpu


@dataclass(frozen=True)
class KernelReport:
    """What ptxas says of a kernel.

    Attributes:
        registers: a thread, when the kernel starts.
        spilled: bytes a thread that went to memory for want of registers.
        shared_memory: bytes a block; None where JAX does not tell (before 0.12).
        serialized: whether products wait for each other, which ptxas does where it cannot follow the registers.
    """

    registers: int
    spilled: int
    shared_memory: int | None
    serialized: bool


@dataclass(frozen=True)
class Options(Common):
    """What do the kernels become on an H200?

    Attributes:
        width: inputs and outputs of the layer.
        population: members, in pairs, each with one row of input.
        ranks: of the factors.
    """

    width: int = PAPER.depth
    population: int = PAPER.members
    ranks: tuple[int, ...] = (1, 4)


def compiled_with_reports(function: Callable[..., Any], *operands: Any) -> tuple[Any, list[KernelReport]]:
    """The compiled function, and a report of each Mosaic kernel in it."""
    jax.clear_caches()  # else a kernel that was compiled before has no report
    # Who dumps one thing into a folder gets all: the text of the constraints on layouts is a third of lowering, unread.
    unread = mock.patch.object(constraints.ConstraintSystem, "__str__", object.__repr__)
    with unread, tempfile.TemporaryDirectory() as folder, _dumping_to(folder):
        program = compiled(function, *operands)
        found = sorted(Path(folder).glob("*.ptxas"), key=lambda file: int(re.findall(r"\d+", file.stem)[-1]))
        return program, [_report(file) for file in found]


@contextmanager
def _dumping_to(folder: str) -> Iterator[None]:
    names = {"MOSAIC_GPU_DUMP_PTXAS": "1", "MOSAIC_GPU_DUMP_RESOURCES": "1", "MOSAIC_GPU_DUMP_TO": folder}
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(names)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


def _report(file: Path) -> KernelReport:
    text = file.read_text()
    resources = file.with_suffix(".resources.txt")
    memory = re.search(r"smem_scratch_bytes=(\d+)", resources.read_text()) if resources.exists() else None
    registers, spilled = re.search(r"Used (\d+) registers", text), re.search(r"(\d+) bytes spill stores", text)
    assert registers and spilled, text
    serialized = "serialized" in text
    return KernelReport(int(registers[1]), int(spilled[1]), int(memory[1]) if memory else None, serialized)


def rows_of(shape: Shape, distribution: str, dtype: str) -> Iterator[dict[str, Any]]:
    """A line for each kernel."""

    def factors(left_keys: Any, right_keys: Any) -> tuple[Seeded, Seeded]:
        static = shape.rank, distribution, dtype
        return Seeded(left_keys, shape.depth, *static), Seeded(right_keys, shape.columns, *static)

    def dot(x: Any, w: Any, scale: Any, *keys: Any) -> jax.Array:
        return lowrank_dot_gpu(x, w, *factors(*keys), scale=scale)

    def update(weights: Any, *keys: Any) -> jax.Array:
        return rank_update_gpu(weights, *factors(*keys))

    spec = jax.ShapeDtypeStruct
    keys = [spec((shape.units, 2), jnp.uint32)] * 2
    x, w = spec((shape.members, shape.rows, shape.depth), dtype), spec((shape.depth, shape.columns), dtype)
    calls = {dot: (x, w, spec((shape.members,), jnp.float32)), update: (spec((shape.units,), jnp.float32),)}
    for function, operands in calls.items():
        start = time.perf_counter()
        _, reports = compiled_with_reports(function, *operands, *keys)
        seconds = round(time.perf_counter() - start, 1)
        names = ["thin product", "product"] if function is dot else ["update"]
        for name, report in zip(names, reports, strict=True):
            kind = {"kernel": name, "rank": shape.rank, "distribution": distribution, "dtype": dtype}
            yield kind | dataclasses.asdict(report) | {"seconds_of_call": seconds}


def main(argv: list[str] | None = None) -> None:
    """Compile, and report."""
    options = tyro.cli(Options, args=argv, description=__doc__)
    if not has_compiler():
        sys.exit(
            "got no jax_plugins.xla_cuda13: pip install --no-deps jax-cuda13-plugin jax-cuda13-pjrt of JAX's version"
        )
    if options.quick:
        options = dataclasses.replace(options, width=256, population=128, ranks=(1,))
    shapes = [Shape(options.population // 2, 2, 1, options.width, options.width, rank) for rank in options.ranks]
    kinds = [(d, t) for d in ("rademacher", "normal") for t in ("bfloat16", "float32")]
    lines = [line for shape in shapes for kind in kinds for line in rows_of(shape, *kind)]
    summary = {"most_spilled": max(line["spilled"] for line in lines)}
    summary["serialized"] = any(line["serialized"] for line in lines)
    Report("gpu_compile", options, lines, summary=summary).finish(quick=options.quick, out=options.out)


if __name__ == "__main__":
    main()
