"""The scripts that `bench.gpu_check` runs, each in a process of its own with a share of the time."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bench.tools.fresh import run_fresh

LEAST_SHARE = 0.4  # of a step's seconds that has to be left for it to start


@dataclass(frozen=True)
class Step:
    """A script, and how long it may take.

    Attributes:
        name: in the result.
        module: to run.
        arguments: its own.
        seconds: after which it is ended.
        kept: whether the script keeps results, of which the one JSON holds a copy.
    """

    name: str
    module: str
    arguments: tuple[str, ...]
    seconds: float
    kept: bool = True


class Budget:
    """Wall-clock time that all steps share."""

    def __init__(self, seconds: float) -> None:
        self.start, self.seconds = time.monotonic(), seconds

    @property
    def used(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.start

    @property
    def left(self) -> float:
        """Seconds until the end."""
        return self.seconds - self.used


def run(step: Step, budget: Budget, more: Sequence[str] = ()) -> dict[str, Any]:
    """Status and seconds of a script, with its last line as `result`, or the `reason` why there is none."""
    seconds = min(step.seconds, budget.left)
    if seconds < LEAST_SHARE * step.seconds:
        return {"status": "skipped", "reason": f"{budget.left:.0f} s are left of {budget.seconds:.0f}", "seconds": 0.0}
    start = time.monotonic()
    nowhere = ("--out", os.devnull) if step.kept else ()
    try:
        outcome = {"status": "ok", "result": run_fresh(step.module, *step.arguments, *more, *nowhere, seconds=seconds)}
    except TimeoutError as error:
        outcome = {"status": "timed out", "reason": str(error)}
    except Exception as error:  # of any kind: the others go on
        outcome = {"status": "failed", "reason": f"{type(error).__name__}: {str(error)[-3000:]}"}
    return outcome | {"seconds": round(time.monotonic() - start, 1)}


LAYER = ("--width", "8192", "--population", "1024")  # arXiv 2511.16652, Fig. 7
MODEL = ("--seconds", "8", "--memory", "40")
# What matters most first: each may take what it needs up to its limit, the last ones have the time that is left.
FULL = (
    Step("kernels bfloat16", "bench.kernels", (*LAYER, "--dtype", "bfloat16"), 90),
    Step("layer bfloat16", "bench.layer", (*LAYER, "--dtype", "bfloat16", "--rounds", "7"), 100),
    Step("tiles bfloat16", "bench.gpu_tiles", (*LAYER, "--dtype", "bfloat16"), 120),
    Step("kernels float32", "bench.kernels", (*LAYER, "--dtype", "float32"), 90),
    Step("layer float32", "bench.layer", (*LAYER, "--dtype", "float32", "--rounds", "7"), 100),
    Step(
        "roofline bfloat16",
        "bench.roofline",
        (*LAYER, "--dtype", "bfloat16", "--copy-megabytes", "16", "256", "1024", "--rounds", "5"),
        100,
    ),
    Step("model digits", "bench.model", ("--networks", "digits", "--populations", "4096", "16384", *MODEL), 70),
    Step("model transformer", "bench.model", ("--networks", "transformer", "--populations", "1024", *MODEL), 80),
)
QUICK = (
    Step("layer bfloat16", "bench.layer", ("--quick", "--dtype", "bfloat16"), 120),
    Step("tiles bfloat16", "bench.gpu_tiles", ("--quick",), 120),
    Step("kernels float32", "bench.kernels", ("--quick", "--dtype", "float32"), 120),
    Step("roofline bfloat16", "bench.roofline", ("--quick", "--dtype", "bfloat16"), 120),
    Step("model digits", "bench.model", ("--quick", "--networks", "digits"), 120),
    Step("model transformer", "bench.model", ("--quick", "--networks", "transformer"), 120),
)
