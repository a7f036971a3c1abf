"""Ctrl-C that lets a run end between two generations and write what there is."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
STDERR = 2


class StopRequest:
    """A context in which the first SIGINT or SIGTERM asks for an end, and a second SIGINT raises `KeyboardInterrupt`.

    Outside the main thread, where Python allows no signal handlers, nothing is caught.

    Attributes:
        asked: whether a signal came.

    Example:
        >>> with StopRequest() as stop:
        ...     signal.raise_signal(signal.SIGTERM)
        >>> stop.asked
        True
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._ask) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True
        if number == signal.SIGINT and os.isatty(STDERR):
            # Not print: a handler may run in the middle of another print.
            os.write(STDERR, b"\nstopping after this generation (Ctrl-C again: at once)\n")
