"""What processes say to one another, and what it means when one no longer answers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import jax
import numpy as np
from jax.experimental import multihost_utils

from eggroll.training.errors import RunError

# In what gloo, gRPC, the coordination service and NCCL say when the other end is gone, in lower case.
SIGNS = (
    "gloo",
    "nccl",
    "connection closed",
    "connection reset",
    "connection refused",
    "socket closed",
    "read timeout",
    "heartbeat",
    "coordination service",
    "coordinationservice",
    "distributed service",
    "deadline exceeded",
    "deadline_exceeded",
    "unavailable:",
    "barrier failed",
    "barrier timed out",
)

_LOST: list[str] = []


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
    """The same array of every process.

    Args:
        value: of the same shape everywhere; its bytes cross as they are.

    Returns:
        `[processes, *shape]`.

    Raises:
        RunError: another process is gone.
    """
    if count() == 1:
        return value[None]
    raw = np.frombuffer(np.ascontiguousarray(value).tobytes(), np.uint8)  # JAX would round 64-bit numbers
    with translated(None):
        rows = np.asarray(multihost_utils.process_allgather(raw))
    return np.frombuffer(rows.tobytes(), value.dtype).reshape(count(), *value.shape)


@contextmanager
def translated(generation: int | None) -> Iterator[None]:
    """Turns JAX's errors about a process that is gone into `RunError`."""
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as why:
        text = str(why)
        if count() == 1 or not _tells_of_loss(why):
            raise
        _LOST.append(text)
        where = "" if generation is None else f" in generation {generation}"
        raise RunError(
            f"process {jax.process_index()} of {count()} lost contact with another process{where} "
            f"({' '.join(text.split())[:300]}). What was saved is whole: start again with --resume, on the processes "
            "that are left or on more."
        ) from why


def _tells_of_loss(error: Exception) -> bool:
    text = str(error)
    # JAX's gathers raise its runtime's errors as a ValueError, which begins with a status.
    of_runtime = not isinstance(error, ValueError) or re.match("[A-Z_]+: ", text) is not None
    return of_runtime and any(sign in text.lower() for sign in SIGNS)
