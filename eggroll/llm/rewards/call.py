"""One call's answers on their way through the processes that score."""

from __future__ import annotations

import math
import pickle
from collections.abc import Sequence
from concurrent.futures import Future

from eggroll.extras import needed_for
from eggroll.llm.rewards.pool import Processes
from eggroll.llm.tasks.base import Problem
from eggroll.training.errors import RunError

with needed_for("processes that score"):
    from pebble import ProcessExpired

LARGEST_BATCH = 128  # answers in a message
TURN = 1.0  # seconds after which a batch begins no other answer
GRACE = 1.0  # seconds over the limit after which a process is ended: its own timer may be late
RESTARTS = 3  # of all processes, without an answer in between


class Call:
    """Sends answers in batches, and finds those that cost a process its life.

    Args:
        processes: that score.
        texts: the answers.
        problems: for each, the problem that was asked.
    """

    def __init__(self, processes: Processes, texts: Sequence[str], problems: Sequence[Problem]) -> None:
        self._processes, self._texts, self._problems = processes, texts, problems
        self._said: list[float | str] = [""] * len(texts)
        self._waiting: dict[Future, list[int]] = {}
        self._restarts = 0  # since the last answer

    def run(self) -> list[float | str]:
        """For each answer, its reward, or in words why there is none."""
        try:
            self._submit(list(range(len(self._texts))), 4 * self._processes.workers)
            while self._waiting:
                done = self._processes.wait(list(self._waiting), TURN + self._processes.seconds + GRACE)
                for future in done:
                    self._restarts = 0
                    self._take(self._waiting.pop(future), future)
                if not done:
                    self._restart()
        except BaseException:  # Ctrl-C above all
            for future in self._waiting:
                future.cancel()
            raise
        return self._said

    def _submit(self, indices: list[int], parts: int) -> None:
        """Sends answers in about so many batches."""
        size = min(max(1, math.ceil(len(indices) / parts)), LARGEST_BATCH)
        for start in range(0, len(indices), size):
            batch = indices[start : start + size]
            try:
                payload = pickle.dumps(([self._texts[i] for i in batch], [self._problems[i] for i in batch]))
            except Exception as why:  # pickle raises many kinds
                raise RunError(
                    f"the problems cannot be sent to other processes ({why}); plain data, such as dicts, lists, "
                    "strings and numbers, is required in Problem.data."
                ) from why
            turn = TURN if len(batch) > 1 else 0.0
            self._waiting[self._processes.send(payload, turn, turn + self._processes.seconds + GRACE)] = batch

    def _take(self, batch: list[int], future: Future) -> None:
        """Notes what a batch said. One that was ended goes again, answer by answer, to find the one that did it."""
        try:
            said = future.result()
        except TimeoutError:
            why = f"no reward within {self._processes.seconds:g} s, and its process had to be ended"
        except ProcessExpired as expired:
            why = f"its process ended with the code {expired.exitcode}"
        else:
            if isinstance(said, str):
                said = [f"the problem cannot be loaded in another process: {said}"] * len(batch)
            self._note(batch, said)
            if rest := batch[len(said) :]:
                self._submit(rest, 2 * self._processes.workers)
            return
        if len(batch) == 1:
            self._note(batch, [why])
        else:
            self._submit(batch, len(batch))

    def _note(self, batch: list[int], said: Sequence[float | str]) -> None:
        for index, one in zip(batch, said, strict=False):  # a batch may not have got to its end
            self._said[index] = one

    def _restart(self) -> None:
        """Sends all that was under way to new processes, in smaller batches every time."""
        self._restarts += 1
        if self._restarts > RESTARTS:
            raise RunError(
                f"the processes that score ended {self._restarts} times without a reason that could be found; was the "
                "machine out of memory? Fewer workers need less."
            )
        lost = sorted(index for batch in self._waiting.values() for index in batch)
        self._waiting = {}
        self._processes.restart()
        self._submit(lost, 4 * self._processes.workers * 8 ** (self._restarts - 1))
