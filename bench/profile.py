"""Where does the time of a forward pass and of a step go, kernel by kernel?

`jax.profiler` records when each compiled kernel ran. Kernels overlap on a CPU, so their times add up to more than the
call's; a kernel's own time includes waiting for a core. Also counted, since they explain what no kernel's name does:
the processor time of a call, over all cores, and its page faults, each the first touch of memory that the allocator
had given back.

`share` is a kernel's time in units of the call's median time without the profiler, `calls` how often it runs in one.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
import resource
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import jax
import tyro

from bench.layer import FORWARD, INFERENCE, STEP, low_rank_candidates
from bench.tools.linear import Layer
from bench.tools.options import Common
from bench.tools.report import Report
from bench.tools.timing import interleave

KERNEL = re.compile(r"[a-z][a-z0-9_.-]*")  # on a host's threads, where the runtime's own events have other names
AROUND = re.compile(r"(xla_metadata_call|jit_|cond|while|call)[\w.]*")  # events around kernels


@dataclass(frozen=True)
class Options(Common):
    """Where does the time of a forward pass and of a step go, kernel by kernel.

    Attributes:
        width: inputs and outputs of the layer.
        population: members, each with one row of input.
        dtype: of weight, inputs and noise.
        rank: columns of each factor.
        distribution: of the factors.
        calls: how many are profiled.
        longest: kernels of each call that are listed.
    """

    width: int = 512
    population: int = 4096
    dtype: Literal["float32", "bfloat16"] = "float32"
    rank: int = 1
    distribution: Literal["rademacher", "normal"] = "rademacher"
    calls: int = 20
    longest: int = 8


@dataclass(frozen=True)
class Profile:
    """Of one call, on average.

    Attributes:
        seconds: by kernel.
        calls: of each kernel.
        faults: pages touched for the first time.
        processor_seconds: over all cores.
    """

    seconds: dict[str, float]
    calls: dict[str, float]
    faults: float
    processor_seconds: float


def profiled(call: Callable[[], Any], calls: int) -> Profile:
    """Runs `call` under the profiler, after a call without it."""
    jax.block_until_ready(call())
    with tempfile.TemporaryDirectory() as folder:
        before = resource.getrusage(resource.RUSAGE_SELF)
        for _ in range(calls):
            jax.block_until_ready(call())
        after = resource.getrusage(resource.RUSAGE_SELF)
        with jax.profiler.trace(folder):
            for _ in range(calls):
                jax.block_until_ready(call())
        (recorded,) = pathlib.Path(folder).rglob("*.xplane.pb")
        nanoseconds: Counter[str] = Counter()
        times: Counter[str] = Counter()
        for name, duration in kernels(jax.profiler.ProfileData.from_file(str(recorded))):
            nanoseconds[name] += duration
            times[name] += 1
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Profile(
        {name: total / calls / 1e9 for name, total in nanoseconds.items()},
        {name: n / calls for name, n in times.items()},
        (after.ru_minflt - before.ru_minflt) / calls,
        used / calls,
    )


def kernels(data: Any) -> Iterator[tuple[str, float]]:
    """(name, nanoseconds) of every kernel that ran: on the device where there is one, else on the host's threads."""
    planes = list(data.planes)  # of which a device's may be there, and empty
    device = [p for p in planes if p.name.startswith("/device:") and any(list(line.events) for line in p.lines)]
    for plane in device or planes:
        for line in plane.lines:
            for event in line.events:
                if device or (KERNEL.fullmatch(event.name) and not AROUND.fullmatch(event.name)):
                    yield event.name, event.duration_ns


def rows(profiles: dict[str, Profile], seconds: dict[str, float], longest: int) -> list[dict[str, Any]]:
    """The longest kernels of every call."""
    table = []
    for operation, profile in profiles.items():
        for name, total in Counter(profile.seconds).most_common(longest):
            share = total / seconds[operation]
            table.append(
                {
                    "operation": operation,
                    "kernel": name,
                    "milliseconds": 1e3 * total,
                    "share": share,
                    "calls": profile.calls[name],
                }
            )
    return table


def main(argv: list[str] | None = None) -> None:
    """Profile inference, forward pass and step of one layer."""
    options = tyro.cli(Options, args=argv, description=__doc__)
    if options.quick:
        options = dataclasses.replace(options, width=64, population=64, calls=3)
    layer = Layer(options.width, options.population, options.dtype, options.rank, options.distribution)
    candidates = low_rank_candidates(layer)
    chosen = {name: candidates[name] for name in (INFERENCE, FORWARD, STEP)}
    seconds = {name: t.median for name, t in interleave(chosen, rounds=options.calls).items()}
    profiles = {name: profiled(call, options.calls) for name, call in chosen.items()}
    report = Report("profile", options, rows(profiles, seconds, options.longest))
    for name, profile in profiles.items():
        short = name.split(",")[0].replace(" ", "_")
        report.summary[f"{short}_milliseconds"] = 1e3 * seconds[name]
        report.summary[f"{short}_processor_milliseconds"] = 1e3 * profile.processor_seconds
        report.summary[f"{short}_page_faults"] = profile.faults
    report.notes = ["milliseconds of a kernel include waiting for a core; kernels of one call overlap."]
    report.finish(quick=options.quick, out=options.out)


if __name__ == "__main__":
    main()
