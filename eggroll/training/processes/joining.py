"""How processes come to be one run, and how they part.

All of them meet before JAX joins them, for JAX ends a process that waits in vain by `abort()`.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Sequence

import jax

from eggroll.engine import jax_compat
from eggroll.training.errors import RunError
from eggroll.training.processes.deciding import agree
from eggroll.training.processes.talk import end_in_words, last_words, lost

GO = "go"
PAUSE = 0.02  # seconds between two attempts to connect
ANSWER = 5.0  # seconds that process 0 gives whoever connects to say who it is


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
    simulated = isinstance(local_devices, int)
    if simulated:
        jax.config.update("jax_num_cpu_devices", local_devices)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    where = coordinator, processes, process_id
    name = "a process" if process_id is None else f"process {process_id} of {processes}"
    end_in_words(
        f"eggroll: {name} ended before all processes of the run had met: one of them did not come or went away (JAX's "
        "own message is above). Start all of them again, with the same address and number."
    )
    try:
        left = meet(*where, timeout)
        jax.distributed.initialize(
            *where,
            None if simulated else local_devices,
            initialization_timeout=max(int(left), 10),
            heartbeat_timeout_seconds=lost_after,
            shutdown_timeout_seconds=lost_after,  # for ends without `stop`, which itself waits as long as it takes
        )
        here, everywhere = jax.local_device_count(), jax.device_count()
        if here * jax.process_count() != everywhere:
            raise RunError(
                f"got {here} devices in process {jax.process_index()} of {jax.process_count()}, and {everywhere} in "
                "all; the same number in every process is required."
            )
    except (RuntimeError, ValueError) as why:
        jax_compat.forget_distributed()
        last_words("")
        if isinstance(why, RunError):
            raise
        hint = " JAX found no cluster to tell them apart by: give coordinator=, processes=, process_id=."
        raise RunError(f"the processes of this run could not be joined: {why}{'' if coordinator else hint}") from why
    end_in_words()


def stop(*, failed: bool = False) -> None:
    """Ends what `start` began, after all processes have come here. Does nothing in a process that is alone.

    Args:
        failed: leave at once, without waiting for the others, who then stop as well. Default False.
    """
    if not jax.distributed.is_initialized():
        return
    if failed or lost():
        jax_compat.forget_distributed()
    else:
        agree(False)  # waits for the slowest; JAX's own farewell has a time limit
        jax.distributed.shutdown()
    last_words("")


def meet(coordinator: str | None, processes: int | None, process_id: int | None, timeout: float) -> float:
    """Waits until all processes are there, where JAX does not find them; the seconds that are left.

    Raises `RunError` where one did not come or has another's number, a port is taken, or arguments do not fit together.
    """
    if coordinator is None and processes is None and process_id is None:
        return timeout
    host, _, port = (coordinator or "").rpartition(":")
    if not host or not port.isdigit():
        raise RunError(f'got coordinator={coordinator!r}; "host:port" of process 0 is required.')
    if processes is None or process_id is None or not 0 <= process_id < processes:
        raise RunError(
            f"got processes={processes} and process_id={process_id}; with a coordinator both are required, numbered "
            "from 0."
        )
    end = time.monotonic() + timeout
    if process_id == 0:
        _receive(int(port), processes, end, timeout)
    else:
        _come((host.strip("[]"), int(port)), f"{process_id} {processes}", end, timeout)
    return end - time.monotonic()


def _receive(port: int, processes: int, end: float, timeout: float) -> None:
    """Process 0: lets everyone go once all have come."""
    try:
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        server = socket.create_server(("", port), family=family, dualstack_ipv6=both, backlog=processes)
    except OSError as why:
        raise RunError(f"process 0 cannot listen on port {port} ({why}); choose one that is free.") from why
    with contextlib.ExitStack() as stack:
        stack.enter_context(server)
        come: dict[int, socket.socket] = {}
        while len(come) < processes - 1:
            server.settimeout(max(end - time.monotonic(), 0))
            try:
                guest = stack.enter_context(server.accept()[0])
            except (TimeoutError, BlockingIOError):
                numbers = ", ".join(str(i) for i in range(1, processes) if i not in come)
                raise RunError(
                    f"of {processes} processes, these did not come within {timeout:g} s: {numbers}. Start them too, "
                    "with the same coordinator and number of processes."
                ) from None
            number = _welcome(guest, processes, come)
            if number is not None:
                come[number] = guest
        for guest in come.values():
            _say(guest, GO)
            guest.recv(1)  # the guest closes first: the port is free at once


def _welcome(guest: socket.socket, processes: int, come: dict[int, socket.socket]) -> int | None:
    """The guest's number; None for someone who does not belong here."""
    guest.settimeout(ANSWER)
    try:
        number, of = map(int, _line(guest).split())
    except (OSError, ValueError):
        return None
    if of != processes:
        _say(guest, f"it was told that there are {of} processes, process 0 that there are {processes}")
    elif not 0 < number < processes or number in come:
        _say(guest, f"another process has the number {number} too")
    else:
        return number
    return None


def _come(where: tuple[str, int], who: str, end: float, timeout: float) -> None:
    """Another process: says who it is, waits for the word, and for JAX's service on the same port."""
    host, port = where
    with _connect(where, end, timeout) as door:
        _say(door, who)
        door.settimeout(max(end - time.monotonic(), PAUSE))
        try:
            answer = _line(door)
        except OSError:
            answer = ""
    if answer != GO:
        why = answer or "process 0 went away, or others did not come, before all were there"
        raise RunError(f"process {who.replace(' ', ' of ')} could not join the run at {host}:{port}: {why}.")
    _connect(where, end, timeout).close()


def _connect(where: tuple[str, int], end: float, timeout: float) -> socket.socket:
    while True:
        try:
            return socket.create_connection(where, timeout=max(end - time.monotonic(), PAUSE))
        except OSError as why:
            if time.monotonic() >= end:
                raise RunError(
                    f"there is no process 0 at {where[0]}:{where[1]} after {timeout:g} s ({why}). Start it too, and "
                    "check the address and the firewall."
                ) from why
            time.sleep(PAUSE)


def _say(to: socket.socket, text: str) -> None:
    with contextlib.suppress(OSError):
        to.sendall(text.encode() + b"\n")


def _line(of: socket.socket) -> str:
    """One line of at most 200 characters."""
    with of.makefile(encoding="utf-8", errors="replace") as lines:
        return lines.readline(200).strip()
