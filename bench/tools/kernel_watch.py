"""Runs `bench.kernel_check` in processes that may crash or hang, and goes on with the next case.

Needs nothing but Python: whoever watches must not hold the device.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from bench.tools.fresh import ROOT, child_environment

WORKER = "bench.kernel_check"
MOST_DEATHS = 4  # of an implementation's processes: each new one costs seconds, and more of the same says nothing new

Line = dict[str, Any]


def watched(arguments: Sequence[str], *, seconds: float, stall: float) -> list[Line]:
    """The verdicts of `python -m bench.kernel_check <arguments>`.

    Args:
        arguments: without `--start`.
        seconds: for all cases; then the current one is given up, and the rest is left.
        stall: seconds without a word, after which a process counts as hung.

    Returns:
        One line per case that was started; the last may say instead why there are no more.
    """
    deadline, found, first, deaths = time.monotonic() + seconds, [], 0, 0
    while True:
        lines, end = one_process([*arguments, "--start", str(first)], deadline, stall)
        found += [line for line in lines if "verdict" in line]
        if not end:
            return found
        if not lines:
            return [*found, {"case": "all", "verdict": "failed", "reason": end}]
        number = max(line.get("started", 0) for line in lines)
        late = time.monotonic() >= deadline
        if "started" in lines[-1]:
            verdict = "not run" if late else "failed"
            found.append({"number": number, "case": lines[-1]["case"], "verdict": verdict, "reason": end})
        deaths += 1
        if late or deaths >= MOST_DEATHS:
            why = f"{seconds:.0f} s were up" if late else f"{deaths} processes died"
            return [*found, {"case": "the rest", "verdict": "not run", "reason": why}]
        first = number + 1


def one_process(arguments: Sequence[str], deadline: float, stall: float) -> tuple[list[Line], str]:
    """Its lines, and how it came to a bad end; an empty string for a good one."""
    command = [sys.executable, "-m", WORKER, *arguments]
    with tempfile.TemporaryFile("w+") as errors:
        options: dict[str, Any] = {"cwd": ROOT, "env": child_environment(), "stderr": errors, "text": True}
        lines, silent = [], ""
        with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True, **options) as process:
            try:
                for line in _lines(process, deadline, stall):
                    lines.append(line)
            except TimeoutError as error:
                silent = str(error)
            finally:
                _end(process)
        if silent or not process.returncode:
            return lines, silent
        errors.seek(0)
        said = " | ".join(errors.read().strip().splitlines()[-6:])
        return lines, f"{_how(process.returncode)}: {said[-1500:]}"


def _lines(process: subprocess.Popen[str], deadline: float, stall: float) -> Iterator[Line]:
    """Lines of JSON as they come; TimeoutError when none comes."""
    received: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        for line in process.stdout or ():
            received.put(line)
        received.put(None)

    threading.Thread(target=read, daemon=True).start()
    while True:
        left = deadline - time.monotonic()
        try:
            line = received.get(timeout=max(0.0, min(stall, left)))
        except queue.Empty:
            raise TimeoutError(f"hung: no answer for {stall:.0f} s" if stall < left else "time was up") from None
        if line is None:
            process.wait()
            return
        if line.startswith("{"):
            yield json.loads(line)


def _end(process: subprocess.Popen[str]) -> None:
    """No process of its session is left, whatever it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _how(status: int) -> str:
    return f"ended by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
