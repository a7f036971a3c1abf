"""How scoring processes start: fresh interpreters that do not run the user's script again."""

from __future__ import annotations

import contextlib
import io
import multiprocessing.spawn
import pickle
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any

from eggroll.training.errors import RunError

_STARTING = threading.Lock()
ADVICE = (
    "a function at the top level of a module, or a method of an object whose class is defined there, is required. Move "
    "it from the script or notebook into a file of its own, for example my_rewards.py, and import it from there"
)


class _Process(SpawnProcess):
    """A process that starts without the module `__main__`, and out of reach of Ctrl-C until it ignores that."""

    @staticmethod
    def _Popen(process_obj: Any) -> Any:
        with _STARTING, _main_left_out(), _interrupts_held_back():
            return SpawnProcess._Popen(process_obj)  # pyright: ignore[reportAttributeAccessIssue]


class Spawning(SpawnContext):
    """`multiprocessing`'s "spawn", except that the script that runs need not be written to be imported again."""

    Process = _Process  # pyright: ignore[reportAssignmentType]


@contextlib.contextmanager
def _main_left_out() -> Iterator[None]:
    original = multiprocessing.spawn.get_preparation_data

    def without_main(name: str) -> dict[str, Any]:
        return {key: value for key, value in original(name).items() if not key.startswith("init_main")}

    multiprocessing.spawn.get_preparation_data = without_main
    try:
        yield
    finally:
        multiprocessing.spawn.get_preparation_data = original


@contextlib.contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """A new process inherits the signals that its parent's thread blocks."""
    if sys.platform == "win32":
        yield
        return
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()  # or it is started in here, and unblocks them
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def interrupts_later() -> Iterator[None]:
    """Ctrl-C counts at the end of this context, so that it divides nothing that belongs together."""
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or handler is None:  # not ours to change
        yield
        return
    caught = []
    signal.signal(signal.SIGINT, lambda *_: caught.append(True))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if caught:
            signal.raise_signal(signal.SIGINT)


class _InMain(Exception):
    pass


class _Finder(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> Any:
        if module_name == "__main__":
            raise _InMain(global_name)
        return super().find_class(module_name, global_name)


def pickled(reward: Callable[..., Any]) -> bytes:
    """A reward as it travels to the processes.

    Raises:
        RunError: it cannot: a lambda, a function within a function, or something of the script that runs.

    Example:
        >>> import math
        >>> pickled(math.fsum) == pickle.dumps(math.fsum)
        True
    """
    if not callable(reward):
        raise RunError(f"got the reward {reward!r}, which cannot be called; a function of (text, problem) is required.")
    try:
        data = pickle.dumps(reward)
        _Finder(io.BytesIO(data)).load()
    except _InMain as why:
        raise RunError(
            f"got the reward {reward!r}, for which {why} of the script that runs is needed, and rewards run in "
            f"processes of their own; {ADVICE}."
        ) from None
    except Exception as why:  # pickle raises many kinds
        raise RunError(
            f"got the reward {reward!r}, which cannot be sent to other processes ({why}); {ADVICE}."
        ) from why
    return data
