"""Everything about an NVIDIA GPU in one command and one JSON: are the kernels right, and how fast is everything?

`bench/gpu_check.sh` makes the packages importable and runs this. Steps run one after another in processes of their own:

- environment: device, driver, versions;
- check: every implementation of `lowrank_dot` and `rank_update` for this platform against float64, with a computed
  bound, and its noise bit for bit (`eggroll.ops.cases`), all implementations side by side;
- the speed of what does not crash: `bench.kernels` and `bench.layer` at the paper's width 8192 and population 1024 in
  bfloat16 and float32, `bench.roofline` at that width, `bench.model` for digits and transformer.

A step that crashes, hangs or has no time left says so, and the others go on. The last line is one JSON object. The
exit status is 1 if a kernel computed wrong numbers, 2 without a device, 3 if a check failed or none passed, else 0.
"""

from __future__ import annotations

import argparse  # not tyro: what is missing on a machine must not keep this from saying so
import json
import os
import pathlib
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any

from bench.tools.gpu_steps import FULL, QUICK, Budget, Step, run
from bench.tools.kernel_shapes import PAPER
from bench.tools.kernel_watch import watched

# Exit statuses; 2 also where JAX or eggroll cannot be imported.
WRONG, NO_DEVICE, FAILED = 1, 2, 3
STALL = 75.0  # seconds that a case may take, its compilation included
CHECK_SECONDS = 120.0

Names = Mapping[str, Sequence[str]]  # operation → implementations
Cases = Mapping[str, Sequence[Mapping[str, Any]]]  # operation and implementation → a line per case


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that everything runs")
    parser.add_argument("--cpu", action="store_true", help="use the CPU, to try this without a GPU; with --quick")
    parser.add_argument("--out", type=pathlib.Path, help="file for the JSON; default: in the folder $OUT, if set")
    parser.add_argument("--seconds", type=float, default=460.0, help="for all steps together")
    parser.add_argument("--steps", nargs="*", default=[], help="only those whose names start so: check kernels ...")
    parser.add_argument("--plugin", action="append", default=[], help="a module that registers implementations")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None, *, steps: Sequence[Step] | None = None) -> int:
    """Run the steps, keep and print the result; returns the exit status."""
    options = parsed(argv)
    if options.cpu:
        os.environ["JAX_PLATFORMS"] = "cpu"
    result = checked(options, steps or (QUICK if options.quick else FULL))
    text = json.dumps(result)
    folder = os.environ.get("OUT")
    out = options.out or (pathlib.Path(folder, "gpu_check.json") if folder else None)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text + "\n")
        say(f"kept in {out}")
    print(text, flush=True)
    return result["exit_status"]


def checked(options: argparse.Namespace, steps: Sequence[Step]) -> dict[str, Any]:
    """The whole result: what is wrong, and every step with its status, seconds, and result or reason."""
    budget, done = Budget(options.seconds), {}
    result: dict[str, Any] = {"question": "gpu_check", "quick": options.quick, "driver": driver(), "steps": done}
    plugins = [f"--plugin={name}" for name in options.plugin]
    done["environment"] = run(Step("environment", "bench.kernel_list", tuple(plugins), 90, kept=False), budget)
    if done["environment"]["status"] != "ok":
        say(f"got no answer from JAX and eggroll; both have to work:\n{done['environment']['reason']}")
        return result | {"exit_status": NO_DEVICE, "seconds": budget.used}
    found = done["environment"]["result"]
    if found["platform"] != ("cpu" if options.cpu else "gpu"):
        say(
            f"got a {found['platform']}; a GPU that JAX can use is required: pass --cpu --quick to try this without one"
        )
        return result | {"exit_status": NO_DEVICE, "seconds": budget.used}
    names, cases = found["implementations"], {}
    if wanted("check", options.steps):
        done["check"] = check(names, [*plugins, *["--quick"] * options.quick], budget)
        cases = done["check"]["result"]["cases"]
    for step in steps:
        if wanted(step.name, options.steps):
            more = ("--implementations", *usable(names, cases), "--plugins", *options.plugin)
            done[step.name] = run(step, budget, more if step.module == "bench.kernels" else ())
            say(f"{step.name}: {done[step.name]['status']}, {done[step.name]['seconds']} s")
    named = [(line["verdict"], f"{key}: {line['case']}") for key, lines in cases.items() for line in lines]
    counts = Counter(verdict for verdict, _ in named)
    say(", ".join(f"{n} {verdict}" for verdict, n in counts.items()) + f"; {budget.used:.0f} s in all")
    wrong, failed = ([name for verdict, name in named if verdict == v] for v in ("wrong", "failed"))
    status = WRONG if wrong else FAILED if failed or (named and not counts["ok"]) else 0
    return result | {"wrong": wrong, "failed": failed, "exit_status": status, "seconds": budget.used}


def wanted(name: str, prefixes: Sequence[str]) -> bool:
    """Whether `--steps` asks for it."""
    return not prefixes or name.startswith(tuple(prefixes))


def check(names: Names, arguments: Sequence[str], budget: Budget) -> dict[str, Any]:
    """All cases of all implementations, side by side: numbers do not depend on who else is on the device."""
    start, seconds = time.monotonic(), min(CHECK_SECONDS, budget.left)
    kernels = [(operation, name) for operation in names for name in names[operation]]
    parts = max(1, (os.cpu_count() or 1) // len(kernels))  # most of the time is compilation, on one core each
    jobs = [
        ["--operation", operation, "--implementation", name, "--part", str(part), "--parts", str(parts), *arguments]
        for operation, name in kernels
        for part in range(parts)
    ]
    with ThreadPoolExecutor(len(jobs)) as pool:
        found = list(pool.map(lambda job: watched(job, seconds=seconds, stall=STALL), jobs))
    lines = [list(chain.from_iterable(found[i : i + parts])) for i in range(0, len(jobs), parts)]
    cases = {" ".join(kernel): of for kernel, of in zip(kernels, lines, strict=True)}
    summary = {key: dict(Counter(line["verdict"] for line in lines)) for key, lines in cases.items()}
    for key, counts in summary.items():
        say(f"check {key}: " + ", ".join(f"{number} {verdict}" for verdict, number in counts.items()))
    bad = any(counts.keys() & {"wrong", "failed"} for counts in summary.values())
    took = round(time.monotonic() - start, 1)
    return {"status": "failed" if bad else "ok", "result": {"summary": summary, "cases": cases}, "seconds": took}


def usable(names: Names, cases: Cases) -> list[str]:
    """Implementations that neither crash nor hang at the shape that is timed: others would lose their timings."""
    broken = set()
    for key, lines in cases.items():
        relevant = [line for line in lines if PAPER.name in line["case"]] or lines
        if any(line["verdict"] == "failed" and line.get("stage") != "compile" for line in relevant):
            broken.add(key.split(" ", 1)[1])
    sound = [name for name in dict.fromkeys(n for of in names.values() for n in of) if name not in broken]
    return sound or ["reference"]


def driver() -> str | None:
    """What `nvidia-smi` says of the device, where there is one."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,power.limit,clocks.max.sm", "--format=csv"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def say(text: str) -> None:
    """Progress, as it comes."""
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
