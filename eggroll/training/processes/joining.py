"""Several processes that make one run, through `jax.distributed`: start, agree, score, and stop when one is lost."""

from __future__ import annotations

import atexit
import hashlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import jax
import numpy as np

from eggroll.engine import jax_compat
from eggroll.training.errors import RunError
from eggroll.training.processes.meeting import meet
from eggroll.training.processes.talk import count, gather, lost, translated
from eggroll.training.processes.words import LastWords

_WORDS: list[LastWords] = []  # of this process, while it is one of several


def start(
    coordinator: str | None = None,
    processes: int | None = None,
    process_id: int | None = None,
    *,
    local_devices: int | Sequence[int] | None = None,
    timeout: float = 300,
    lost_after: int = 30,
) -> None:
    """Makes this process one of several; to be called before anything that starts JAX's devices.

    End with `stop()`. A process that ends without it, for whatever reason, stops the others: at once if it is killed or
    Python ends by an error, else within `lost_after` seconds.

    Args:
        coordinator: `"host:port"` of process 0, a free port there. None, with `processes` and `process_id`, where JAX
            finds all three by itself: Slurm, Open MPI, Cloud TPU.
        processes: how many there are. With 1 nothing is started.
        process_id: 0 to `processes − 1`, each once.
        local_devices: of this process: a number of simulated devices on CPU, or a list of the accelerators' numbers.
            None (default): all. Every process needs as many as the others.
        timeout: seconds within which all processes have to come. Default 300.
        lost_after: seconds without a sign of life after which a process counts as dead and the others stop. Default 30.

    Raises:
        RunError: the processes did not all come, two have the same number, the port is taken, or JAX was in use before.

    Example:
        >>> from eggroll.training import processes
        >>> processes.start("localhost:29400", processes=1, process_id=0)  # alone: nothing to do
        >>> processes.count(), processes.is_main()
        (1, True)
    """
    if processes == 1:
        return
    if jax_compat.devices_started():
        raise RunError(
            "JAX has started its devices in this process already, alone; call processes.start(...) once, before any "
            "computation and before jax.devices()."
        )
    if isinstance(local_devices, int):
        jax.config.update("jax_num_cpu_devices", local_devices)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    words = LastWords(
        f"eggroll: {_name(process_id, processes)} ended before all processes of the run had met: one of them did not "
        "come or went away (JAX's own message is above). Start all of them again, with the same address and number."
    )
    _WORDS.append(words)
    try:
        left = meet(coordinator, processes, process_id, timeout)
        jax.distributed.initialize(
            coordinator,
            processes,
            process_id,
            None if isinstance(local_devices, int) else local_devices,
            initialization_timeout=max(int(left), 10),
            heartbeat_timeout_seconds=lost_after,
            shutdown_timeout_seconds=lost_after,  # for ends without `stop`, which itself waits as long as it takes
        )
        _check_devices()
    except (RuntimeError, ValueError) as why:
        jax_compat.forget_distributed()
        _silent()
        if isinstance(why, RunError):
            raise
        raise _not_joined(why, coordinator) from why
    words.change(
        f"eggroll: {_name(jax.process_index(), jax.process_count())} ended without a word of its own: it was "
        "killed, or JAX ended it because another process was gone (JAX's message is above). What was saved is whole: "
        "start again with --resume, on the processes that are left or on more."
    )
    atexit.register(_at_exit)


def stop(*, failed: bool = False) -> None:
    """Ends what `start` began, after all processes have come here. Does nothing in a process that is alone.

    Args:
        failed: leave at once, without waiting for the others, who then stop as well. Default False.
    """
    if not _WORDS:
        return
    if failed or lost():
        jax_compat.forget_distributed()
    else:
        agree(False)  # waits for the slowest; JAX's own farewell has a time limit
        jax.distributed.shutdown()
    _silent()


def agree(stop: bool) -> bool:
    """Whether any process asks to stop: the same answer in all of them, so that they end after the same generation.

    A gather of one byte per process; all of them have to call it. Free in a process that is alone.

    Args:
        stop: what this process asks.

    Returns:
        True if any does.

    Raises:
        RunError: another process is gone.
    """
    return bool(stop) if count() == 1 else bool(gather(np.array([bool(stop)], np.uint8)).any())


def same(value: bytes | str, what: str) -> None:
    """Raises unless all processes have the same value: settings, versions, the data's position.

    Args:
        value: the value or a digest of it; its SHA-256 is what crosses between processes.
        what: its name, for the message.

    Raises:
        RunError: it differs, or another process is gone.
    """
    if count() == 1:
        return
    digest = hashlib.sha256(value.encode() if isinstance(value, str) else value).digest()
    found = [row.tobytes() for row in gather(np.frombuffer(digest, np.uint8))]
    others = [i for i, row in enumerate(found) if row != found[0]]
    if others:
        numbers = ", ".join(map(str, others))
        raise RunError(
            f"got {what} in which {'process' if len(others) == 1 else 'processes'} {numbers} of {count()} differ from "
            "process 0; all have to be the same. Start every process with the same command, code and files."
        )


@contextmanager
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
    with translated(generation):
        yield


def _at_exit() -> None:
    """Before JAX's own: a process that failed must not wait for the others, who may wait for it."""
    error = getattr(sys, "last_exc", None) or getattr(sys, "last_value", None)
    if lost() or error is not None:
        jax_compat.forget_distributed()
    _silent()


def _silent() -> None:
    while _WORDS:
        _WORDS.pop().change("")


def _not_joined(why: Exception, coordinator: str | None) -> RunError:
    hint = (
        ""
        if coordinator
        else " JAX found no cluster to tell them apart by: give coordinator=, processes=, process_id=."
    )
    return RunError(f"the processes of this run could not be joined: {why}{hint}")


def _check_devices() -> None:
    here, everywhere = jax.local_device_count(), jax.device_count()
    if here * jax.process_count() != everywhere:
        raise RunError(
            f"got {here} devices in process {jax.process_index()} of {jax.process_count()}, and {everywhere} in all; "
            "the same number in every process is required."
        )


def _name(process_id: int | None, processes: int | None) -> str:
    return "a process" if process_id is None else f"process {process_id} of {processes}"
