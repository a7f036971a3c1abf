"""Does one implementation of a kernel compute the right numbers? A line of JSON for each case, as it is done.

`bench.gpu_check` runs this in processes of its own. A line `{"started": i}` comes before the work on case `i`, so that
whoever reads knows on which case a process died or hung; `--start i` goes on from there. The process ends with status
3 after an operation that failed while it ran, because on a GPU everything after it would fail, too.
"""

from __future__ import annotations

import argparse  # not tyro: this runs with JAX and numpy alone
import importlib
import json
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from bench.tools.kernel_cases import OPERATIONS, Case, cases

BROKEN = 3  # exit status: nothing that this process computes can be trusted any more


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--operation", choices=OPERATIONS, required=True)
    parser.add_argument("--implementation", required=True, help="a name from eggroll.kernels.implementations")
    parser.add_argument("--start", type=int, default=0, help="number of the first case")
    parser.add_argument("--part", type=int, default=0, help="which of the parts of all cases")
    parser.add_argument("--parts", type=int, default=1, help="how many parts there are, for as many processes")
    parser.add_argument("--quick", action="store_true", help="some small shapes")
    parser.add_argument("--plugin", action="append", default=[], help="a module that registers implementations")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Check all cases from `--start` on."""
    options = parsed(argv)
    for name in options.plugin:
        importlib.import_module(name)
    for number, case in enumerate(cases(options.operation, quick=options.quick)):
        if number < options.start or number % options.parts != options.part:
            continue
        print(json.dumps({"started": number, "case": case.name}), flush=True)
        found = checked(case, options.implementation)
        print(json.dumps({"number": number, "case": case.name, **found}), flush=True)
        if found.get("stage") == "run":
            sys.exit(BROKEN)


def checked(case: Case, implementation: str) -> dict[str, Any]:
    """`verdict`: ok, wrong, cannot (NotImplementedError) or failed; with the reason, or the largest error."""
    asked = case.comparison(implementation)
    start = time.perf_counter()
    try:
        compiled = jax.jit(asked.function).lower(*asked.operands).compile()
    except NotImplementedError as error:
        return {"verdict": "cannot", "reason": str(error)}
    except Exception as error:  # of any kind: the next case may work
        return {"verdict": "failed", "stage": "compile", "reason": described(error)}
    compiled_after = time.perf_counter() - start
    start = time.perf_counter()
    try:
        result = jax.block_until_ready(compiled(*asked.operands))
        seconds = time.perf_counter() - start
        got = np.asarray(asked.of(result), np.float64)
    except Exception as error:
        return {"verdict": "failed", "stage": "run", "reason": described(error)}
    times = {"compile_seconds": round(compiled_after, 3), "run_seconds": round(seconds, 6)}
    return judged(got, asked.wanted, asked.bound) | times


def judged(got: np.ndarray, wanted: np.ndarray, bound: np.ndarray) -> dict[str, Any]:
    """Whether every number is within the bound; how much of it the worst one uses."""
    if got.shape != wanted.shape:
        return {"verdict": "wrong", "reason": f"shape {list(got.shape)} instead of {list(wanted.shape)}"}
    error = np.where(np.isfinite(got), np.abs(got - wanted), np.inf)
    right = error <= bound
    used = np.divide(error, bound, out=np.where(error > 0, np.inf, 0.0), where=bound > 0)
    worst = float(np.max(used))
    found = {"verdict": "ok" if np.all(right) else "wrong", "error_over_bound": worst if np.isfinite(worst) else None}
    return found if np.all(right) else found | {"reason": f"{np.mean(~right):.2%} of the numbers beyond the bound"}


def described(error: Exception) -> str:
    """Kind and text of an exception, shortened."""
    text = str(error)
    return f"{type(error).__name__}: {text if len(text) <= 2000 else text[:1000] + ' … ' + text[-1000:]}"


if __name__ == "__main__":
    main()
