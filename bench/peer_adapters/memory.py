"""Peak memory of one peer in a fresh process, which is ended where it takes more than it may.

`python -m bench.peer_adapters.memory ADAPTER` reads a request from standard input and answers on standard output, in
JSON.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import re
import resource
import subprocess
import sys
import time
from typing import Any

from bench.peer_adapters import Work, adapter

STEPS = 2  # the second has the parameters and states of the first beside its own


class Stopped(Exception):
    """The process was ended, or ended itself, before it had an answer."""


def peak_bytes() -> int:
    """Peak memory of this process: the accelerator's, where there is one, else resident memory."""
    if (jax := sys.modules.get("jax")) is not None and jax.default_backend() != "cpu":
        return jax.local_devices()[0].memory_stats()["peak_bytes_in_use"]
    if (torch := sys.modules.get("torch")) is not None and torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    # The peak of getrusage is inherited from the process that started this one.
    return _status("self", "VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def available_bytes() -> int | None:
    """Memory that programs may still take; None where the system does not say."""
    found = re.search(r"MemAvailable:\s+(\d+) kB", _read(pathlib.Path("/proc/meminfo")))
    return int(found.group(1)) * 1024 if found else None


def ask(command: list[str], request: dict[str, Any], *, limit: float, seconds: float = 400) -> dict[str, Any]:
    """Runs a process that answers a request.

    Args:
        command: the process.
        request: written to its standard input as JSON.
        limit: bytes of resident memory at which it is ended.
        seconds: after which it is ended.

    Returns:
        The JSON object that it printed last.

    Raises:
        Stopped: it took too much memory or time, or failed; the message says which.
    """
    root = pathlib.Path(__file__).parents[2]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    # Without this JAX takes most of a GPU's memory at once, and a peak says nothing.
    environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    with subprocess.Popen(command, text=True, cwd=root, env=environment, **pipes) as process:
        assert process.stdin is not None
        process.stdin.write(json.dumps(request))
        process.stdin.close()
        process.stdin = None
        if why := _watch(process, limit, seconds):
            process.kill()
        out, error = process.communicate()
    if why or process.returncode:
        raise Stopped(why or (error.strip().splitlines() or [f"exit status {process.returncode}"])[-1])
    return json.loads(out.strip().splitlines()[-1])


def _watch(process: subprocess.Popen, limit: float, seconds: float) -> str | None:
    """Waits until the process ends; returns why it has to be ended before."""
    end = time.monotonic() + seconds
    while process.poll() is None:
        if (_status(str(process.pid), "VmRSS") or 0) > limit:
            return f"took above {limit / 1e9:.1f} GB and was ended"
        if time.monotonic() > end:
            return f"not done after {seconds:.0f} s"
        time.sleep(0.02)
    return None


def request_for(work: Work, rounds: int = 0) -> dict[str, Any]:
    """What a process is asked: the work, and how many rounds to time."""
    return {"work": dataclasses.asdict(work), "rounds": rounds}


def _status(process: str, name: str) -> int | None:
    found = re.search(rf"{name}:\s+(\d+) kB", _read(pathlib.Path(f"/proc/{process}/status")))
    return int(found.group(1)) * 1024 if found else None


def _read(path: pathlib.Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def main() -> None:
    work = Work(**json.loads(sys.stdin.read())["work"])
    candidate = adapter(sys.argv[1]).prepare(work)
    before = peak_bytes()
    for _ in range(STEPS):
        result = candidate.step()
        if "jax" in sys.modules:
            sys.modules["jax"].block_until_ready(result)
        del result
    print(json.dumps({"bytes_before": before, "bytes_peak": peak_bytes()}))


if __name__ == "__main__":
    main()
