"""A process that scores, from outside: how it starts, what may come back, and how it ends with all that it started."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from eggroll.extras import needed_for
from eggroll.importing import python
from eggroll.llm.rewards.worker import MOST_BYTES, QUESTION, REPLY
from eggroll.training.errors import RunError

with needed_for("processes that score"):
    import cloudpickle

STARTUP = 120.0  # seconds for a process to start and import the reward
TRIES = 3  # starts of a process that ends while it starts, as one may when memory is short


def pickled(reward: Callable[..., Any]) -> bytes:
    """A reward as it travels to the processes: by name if it lies in a module, else whole.

    Raises:
        RunError: it cannot.
    """
    if not callable(reward):
        raise RunError(f"got the reward {reward!r}, which cannot be called; a function of (text, problem) is required.")
    try:
        return cloudpickle.dumps(reward)
    except Exception as why:  # pickle raises many kinds
        raise RunError(
            f"got the reward {reward!r}, which cannot be sent to other processes ({why}); a function that refers to "
            "plain data, functions and modules is required. What is none, such as a lock, an open file or a client of "
            "a service, has to be made inside the function, or in a module of its own that it imports."
        ) from why


def _python(function: str) -> list[str]:
    """A command that calls a function of `worker`."""
    return python(f"from eggroll.llm.rewards import worker; worker.{function}()")


class Guard:
    """A process that ends those that score if this one is gone before it has; see `worker.guard`."""

    def __init__(self) -> None:
        self._process: subprocess.Popen | None = None
        self._telling = threading.Lock()

    def toggle(self, group: int) -> None:
        """Tells of a process group that it has started, or was ended."""
        with self._telling:
            if self._process is None:
                none = subprocess.DEVNULL
                self._process = subprocess.Popen(
                    _python("guard"), 0, stdin=subprocess.PIPE, stdout=none, stderr=none, start_new_session=True
                )
            assert self._process.stdin is not None
            try:
                self._process.stdin.write(b"%d\n" % group)
            except BrokenPipeError:
                raise RunError("the process that watches over those that score was ended from outside.") from None

    def close(self) -> None:
        """Ends it, and what was not ended yet."""
        if self._process is not None:
            self._process.communicate()


class Scorer:
    """One process that scores one answer at a time; another takes its place after it was ended.

    Args:
        name: of the reward, for errors.
        reward: pickled.
        variables: its environment.
        guard: is told of it.
    """

    def __init__(self, name: str, reward: bytes, variables: Mapping[str, str], guard: Guard) -> None:
        self._name, self._reward, self._variables, self._guard = name, reward, variables, guard
        self._process: subprocess.Popen | None = None
        self._channel: socket.socket | None = None
        self._asked = 0
        self._closed, self._changing = False, threading.Lock()

    def start(self) -> None:
        """Starts the process, unless it is there, and waits until it has loaded the reward.

        Raises:
            RunError: it cannot be started, or cannot load the reward.
        """
        if self._waits():
            return
        said = f"the processes for the reward {self._name} did not start: they"
        for _ in range(TRIES):
            self.end()
            self._spawn()
            try:
                why = self._exchange(self._reward, STARTUP, 0)
            except TimeoutError:
                raise RunError(
                    f"{said} took longer than {STARTUP:g} s; see what its module does when it is imported."
                ) from None
            except (OSError, EOFError, ValueError):
                continue
            if isinstance(why, str):
                raise RunError(
                    f"the reward {self._name} cannot be loaded in another process: {why}; its module, and those it "
                    "needs, must be importable there by their names."
                )
            return
        raise RunError(
            f"{said} ended {TRIES} times; see what its module does when it is imported. Was the machine out of memory? "
            "Fewer workers need less."
        )

    def ask(self, payload: bytes, seconds: float, count: int) -> list[float] | str:
        """The rewards of answers, `count` numbers, or in words why there are none: the process may have been ended."""
        code = None
        for _ in range(TRIES):
            self.start()
            try:
                return self._exchange(payload, seconds, count)
            except TimeoutError:
                self.end()
                return f"no reward within {seconds:g} s, and its process had to be ended"
            except ValueError:
                self.end()
                return "its process said something that is no reward, and had to be ended"
            except ConnectionError:  # it ended before it had read all of the question: no fault of the answer
                code = self.end()
            except (OSError, EOFError):
                code = self.end()
                break
        return f"its process ended with the code {code}"

    def end(self, *, closed: bool = False) -> int | None:
        """Ends the process and all of its group; none starts again if `closed`. The exit code, if there was one."""
        with self._changing:
            self._closed |= closed
            process, channel, self._process = self._process, self._channel, None
        if process is None or channel is None:
            return None
        with contextlib.suppress(OSError):
            channel.shutdown(socket.SHUT_RDWR)  # a thread that waits for a reply need not
        with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS: nobody is left whom it could end
            os.killpg(process.pid, signal.SIGKILL)  # first: the number is its own until `wait`
        code = process.wait()
        channel.close()
        with contextlib.suppress(RunError):  # without a guard none starts again
            self._guard.toggle(process.pid)
        return code

    def _spawn(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs, self._changing:
            if self._closed:
                ours.close()
                raise RunError("the scorers were stopped.")
            try:
                self._process = subprocess.Popen(
                    _python("main"), stdin=theirs.fileno(), env=self._variables, start_new_session=True
                )
            except OSError as why:
                ours.close()
                raise RunError(f"no process for the reward {self._name} can be started: {why}.") from why
            self._channel, self._asked = ours, 0
            self._guard.toggle(self._process.pid)

    def _waits(self) -> bool:
        """Whether the process is there, and has said nothing unasked."""
        if self._process is None or self._channel is None:
            return False
        try:
            self._channel.setblocking(False)
            self._channel.recv(1)
        except BlockingIOError:
            return True
        except OSError:
            pass
        return False

    def _exchange(self, payload: bytes, seconds: float, count: int) -> list[float] | str:
        """Asks, and reads the one thing that may come back, whatever the process wrote: so many numbers, or text."""
        assert self._channel is not None
        until = time.monotonic() + seconds
        self._channel.settimeout(seconds)
        self._channel.sendall(QUESTION.pack(len(payload)) + payload)
        asked, found, size = REPLY.unpack(self._received(REPLY.size, until))
        if asked != self._asked or size > MOST_BYTES or found != (0 if size else count):
            raise ValueError("no reply")
        values = list(struct.unpack(f"<{found}d", self._received(8 * found, until)))
        if any(map(math.isinf, values)) or (values and all(map(math.isnan, values))):
            raise ValueError("no reply")
        self._asked += 1
        text = self._received(size, until).decode(errors="replace")
        return "".join(c if c.isprintable() else " " for c in text) if size else values  # nothing for a terminal to do

    def _received(self, size: int, until: float) -> bytes:
        assert self._channel is not None
        data = b""
        while len(data) < size:
            self._channel.settimeout(max(until - time.monotonic(), 0.001))
            more = self._channel.recv(size - len(data))
            if not more:
                raise EOFError
            data += more
        return data
