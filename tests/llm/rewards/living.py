"""Which processes there are, as the system sees it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path


def running(pid: int) -> bool:
    """Whether a process runs; one that has ended and that nobody waited for does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def children(parent: int) -> set[int]:
    """The processes that a process started, those included that have ended and that it did not wait for."""
    found = set()
    for name in os.listdir("/proc") if os.path.exists("/proc/self/stat") else ():
        try:
            stat = Path(f"/proc/{int(name)}/stat").read_text().rpartition(")")[2].split()
        except (ValueError, FileNotFoundError, ProcessLookupError):
            continue
        if int(stat[1]) == parent:
            found.add(int(name))
    return found


def wait_until_gone(pids: Iterable[int], seconds: float = 60) -> None:
    """Fails if one of them still runs after so long."""
    end = time.monotonic() + seconds
    while any(map(running, pids)):
        assert time.monotonic() < end, "processes stayed behind"
        time.sleep(0.05)
