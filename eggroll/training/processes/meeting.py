"""All processes meet before JAX joins them, for JAX ends a process that waits in vain by `abort()`."""

from __future__ import annotations

import contextlib
import socket
import time

from eggroll.training.errors import RunError

GO = "go"
PAUSE = 0.02  # seconds between two attempts to connect
ANSWER = 5.0  # seconds that process 0 gives whoever connects to say who it is


def meet(coordinator: str | None, processes: int | None, process_id: int | None, timeout: float) -> float:
    """Waits until all processes are there.

    Args:
        coordinator: `"host:port"` of process 0; None: JAX finds it, and nothing is done here.
        processes: how many.
        process_id: of this one.
        timeout: seconds.

    Returns:
        The seconds that are left.

    Raises:
        RunError: a process did not come, or came with another's number; a port that is taken; arguments that do not
            fit together.
    """
    if coordinator is None and processes is None and process_id is None:
        return timeout
    host, port = _address(coordinator)
    if processes is None or process_id is None or not 0 <= process_id < processes:
        raise RunError(
            f"got processes={processes} and process_id={process_id}; with a coordinator both are required, numbered "
            "from 0."
        )
    end = time.monotonic() + timeout
    if process_id == 0:
        _receive(port, processes, end, timeout)
    else:
        _come(host, port, f"{process_id} {processes}", end, timeout)
    return end - time.monotonic()


def _address(coordinator: str | None) -> tuple[str, int]:
    host, _, port = (coordinator or "").rpartition(":")
    if not host or not port.isdigit():
        raise RunError(f'got coordinator={coordinator!r}; "host:port" of process 0 is required.')
    return host.strip("[]"), int(port)


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
            left = end - time.monotonic()
            if left <= 0:
                raise _missing(sorted(set(range(1, processes)) - set(come)), processes, timeout)
            server.settimeout(left)
            with contextlib.suppress(TimeoutError):
                guest = stack.enter_context(server.accept()[0])
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
        said = _line(guest).split()
        number, of = int(said[0]), int(said[1])
    except (OSError, ValueError, IndexError):
        return None
    if of != processes:
        _say(guest, f"it was told that there are {of} processes, process 0 that there are {processes}")
    elif not 0 < number < processes or number in come:
        _say(guest, f"another process has the number {number} too")
    else:
        return number
    return None


def _come(host: str, port: int, who: str, end: float, timeout: float) -> None:
    """Another process: says who it is, waits for the word, and for JAX's service on the same port."""
    with _connect(host, port, end, timeout) as door:
        _say(door, who)
        door.settimeout(max(end - time.monotonic(), PAUSE))
        try:
            answer = _line(door)
        except OSError:
            answer = ""
    if answer != GO:
        why = answer or "process 0 went away, or others did not come, before all were there"
        raise RunError(f"process {who.replace(' ', ' of ')} could not join the run at {host}:{port}: {why}.")
    _connect(host, port, end, timeout).close()


def _connect(host: str, port: int, end: float, timeout: float) -> socket.socket:
    while True:
        try:
            return socket.create_connection((host, port), timeout=max(end - time.monotonic(), PAUSE))
        except OSError as why:
            if time.monotonic() >= end:
                raise RunError(
                    f"there is no process 0 at {host}:{port} after {timeout:g} s ({why}). Start it too, and check the "
                    "address and the firewall."
                ) from why
            time.sleep(PAUSE)


def _missing(numbers: list[int], processes: int, timeout: float) -> RunError:
    named = ", ".join(map(str, numbers))
    return RunError(
        f"of {processes} processes, these did not come within {timeout:g} s: {named}. Start them too, with the same "
        "coordinator and number of processes."
    )


def _say(to: socket.socket, text: str) -> None:
    with contextlib.suppress(OSError):
        to.sendall(text.encode() + b"\n")


def _line(of: socket.socket) -> str:
    """One line of at most 200 characters."""
    got = b""
    while not got.endswith(b"\n") and len(got) < 200:
        more = of.recv(200)
        if not more:
            break
        got += more
    return got.decode(errors="replace").strip()
