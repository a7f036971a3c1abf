"""What processes say to one another, and what it means when one no longer answers."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import faulthandler
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from types import TracebackType

import jax
import numpy as np
from jax.experimental import multihost_utils

from eggroll.engine import jax_compat
from eggroll.engine.annotations import PyTree
from eggroll.training.errors import RunError

# What gloo, gRPC, the coordination service and NCCL say when the other end is gone.
LOSS = re.compile(
    "gloo|nccl|connection (closed|reset|refused)|socket closed|read timeout|heartbeat|coordination ?service|"
    "distributed service|deadline[ _]exceeded|unavailable:|barrier (failed|timed out)",
    re.IGNORECASE,
)
AGAIN = "What was saved is whole: start again with --resume, on the processes that are left or on more."

# Prints the last line that came, once its input ends: when the process that writes it closes it, or is gone.
WITNESS = """trap '' INT TERM HUP
while IFS= read -r line; do last=$line; done
[ -z "$last" ] || printf '%s\\n' "$last" >&2"""

_LOST: list[str] = []
_HOOKS: list[Callable[[type[BaseException], BaseException, TracebackType | None], object]] = []  # before ours
_WITNESS: list[subprocess.Popen[bytes]] = []


def count() -> int:
    """The number of processes in this run. Starts JAX's devices: call `start` first."""
    return jax.process_count()


def is_main() -> bool:
    """Whether this is process 0, the one that writes files. Starts JAX's devices: call `start` first."""
    return jax.process_index() == 0


def lost() -> bool:
    """Whether contact with another process was lost: what waits for all of them, such as a save, can only fail now."""
    return bool(_LOST)


def part() -> None:
    """This process goes its own way: it waits for no other any more, and `stop` leaves at once."""
    if count() > 1:
        _LOST.append("this process was interrupted at once")


def gather(value: np.ndarray) -> np.ndarray:
    """The array of every process, `[processes, *shape]`: of one shape everywhere, its bytes cross as they are.

    Raises `RunError` where another process is gone.
    """
    if count() == 1:
        return value[None]
    raw = np.frombuffer(np.ascontiguousarray(value).tobytes(), np.uint8)  # JAX would round 64-bit numbers
    with watching():
        rows = np.asarray(multihost_utils.process_allgather(raw))
    return np.frombuffer(rows.tobytes(), value.dtype).reshape(count(), *value.shape)


def gather_json(value: object) -> list:
    """What every process has, JSON of any length; raises as `gather`."""
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = gather(np.array(text.size, np.int64))
    rows = gather(np.resize(text, -(-int(lengths.max()) // 1024) * 1024))  # few shapes, for each is compiled
    return [json.loads(row[:length].tobytes()) for row, length in zip(rows, lengths, strict=True)]


@contextlib.contextmanager
def watching(generation: int | None = None) -> Iterator[None]:
    """A context in which JAX's errors about a process that is gone become a `RunError` that says what to do.

    What is computed has to be waited for inside it: JAX reports errors where a result is read.

    Args:
        generation: its number, for the message.

    Raises:
        RunError: contact with another process was lost.

    Example:
        >>> from eggroll.training import processes
        >>> with processes.watching(generation=12):
        ...     pass  # state, metrics = es.step(...); float(metrics["fitness_mean"])
    """
    if jax.distributed.is_initialized() and not _WITNESS:  # by the user, without `start`
        end_in_words()
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as why:
        text = " ".join(str(why).split())
        # JAX's gathers raise its runtime's errors as a ValueError, which begins with a status.
        of_runtime = not isinstance(why, ValueError) or re.match("[A-Z_]+: ", text) is not None
        if count() == 1 or not of_runtime or LOSS.search(text) is None:
            raise
        _LOST.append(text)
        where = "" if generation is None else f" in generation {generation}"
        raise RunError(
            f"process {jax.process_index()} of {count()} lost contact with another process{where} ({text[:300]}). "
            f"{AGAIN}"
        ) from why


def end_in_words(text: str | None = None) -> None:
    """However this process of several ends from now on, there are words on stderr and a status, and no wait in vain.

    JAX ends a process whose coordinator is gone by `abort()` from a thread of its own, out of Python's reach, be it
    while Python says the same. That becomes the status 6; not where Python's `faulthandler` is to trace it.

    Args:
        text: one line. None: what is true once all processes have met.
    """
    last_words(
        text
        or f"eggroll: process {jax.process_index()} of {count()} ended without a word of its own: it was killed, or "
        f"JAX ended it because another process was gone (JAX's message is above). {AGAIN}"
    )
    if not _HOOKS:
        _HOOKS.append(sys.excepthook)
        atexit.register(_at_exit)
        sys.excepthook = _tell_and_leave
    if os.name == "posix" and not faulthandler.is_enabled():
        system = ctypes.CDLL(None)
        system.signal(int(signal.SIGABRT), system._exit)


def last_words(text: str) -> None:
    """A line that is printed to stderr when this process ends, however that comes about; none if it is empty.

    SIGKILL asks nobody. So a shell of a megabyte waits at the other end of a pipe; where there is none, nothing is
    printed.
    """
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):  # no shell; it is gone; a machine that is very slow
        if text and not _WITNESS:
            command = ["/bin/sh", "-c", WITNESS]
            _WITNESS.append(subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True))
        for shell in _WITNESS[:]:
            if not text:
                _WITNESS.clear()
            assert shell.stdin is not None
            shell.stdin.write(text.replace("\n", " ").encode() + b"\n")
            shell.stdin.flush()
            if not text:
                shell.stdin.close()
                shell.wait(timeout=5)


def _tell_and_leave(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Tells of an uncaught error, and leaves if another process is lost: threads wait for it, and Python for them."""
    _HOOKS[0](kind, error, trace)
    if lost() and issubclass(kind, Exception):
        last_words("")
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(AttributeError, OSError, ValueError):
                stream.flush()
        os._exit(1)


def _at_exit() -> None:
    """Before JAX's own: a process that failed alone must not wait for the others, who may wait for it."""
    error = getattr(sys, "last_exc", None) or getattr(sys, "last_value", None)
    if lost() or (error is not None and not getattr(error, "everywhere", False)):
        jax_compat.forget_distributed()
    last_words("")


def outline(tree: PyTree) -> str:
    """The dtypes and shapes of a tree's arrays, and the types of its other leaves, in a line.

    Example:
        >>> outline((jax.numpy.zeros((5, 4)), "text"))
        'float32[5, 4], str'
    """
    leaves = jax.tree.leaves(tree)
    return ", ".join(f"{x.dtype}{list(x.shape)}" if hasattr(x, "shape") else type(x).__name__ for x in leaves)
