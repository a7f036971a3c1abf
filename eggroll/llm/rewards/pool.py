"""The processes that score, and what to do when they are lost."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool

from eggroll.extras import needed_for
from eggroll.llm.rewards import worker as scoring_worker
from eggroll.llm.rewards.processes import Spawning, interrupts_later
from eggroll.training.errors import RunError

with needed_for("processes that score"):
    from pebble import ProcessPool

STARTUP = 120.0  # seconds for a process to start and import the reward


class Processes:
    """Runs batches in processes; starts them at once, and waits until the first has loaded the reward.

    Args:
        name: of the reward, for errors.
        pickled: the reward.
        workers: how many processes.
        seconds: for an answer.

    Raises:
        RunError: they end while they start, or cannot import the reward.
    """

    def __init__(self, name: str, pickled: bytes, *, workers: int, seconds: float) -> None:
        self.workers, self.seconds = workers, seconds
        self._name, self._pickled = name, pickled
        self._pool: ProcessPool | None = None
        self.restart()

    def send(self, payload: bytes, turn: float, limit: float) -> Future:
        """A batch on its way (see `scoring_worker.score`); its process is ended after `limit` seconds."""
        assert self._pool is not None
        try:
            return self._pool.schedule(scoring_worker.score, args=[payload, self.seconds, turn], timeout=limit)
        except RuntimeError:  # the pool broke, if only because a process was killed that had nothing to do
            return Future()  # never done, so that it is found to be lost

    def wait(self, futures: Sequence[Future], seconds: float = 0.0) -> set[Future]:
        """Those that are done, as soon as there are any; none if the pool is broken or does nothing for too long."""
        seconds += STARTUP
        while True:
            pause = min(seconds, 0.5)
            done, _ = wait(futures, timeout=pause, return_when=FIRST_COMPLETED)
            seconds -= pause
            if done or seconds <= 0 or self._pool is None or not self._pool.active:
                return {future for future in done if not _lost(future)}

    def restart(self) -> None:
        """Ends all processes, if there are any, and starts others."""
        self.stop()
        initializer, initargs = scoring_worker.prepare, [self._pickled]
        try:
            with interrupts_later():  # or there are processes of which the pool does not know
                pool = ProcessPool(self.workers, initializer=initializer, initargs=initargs, context=Spawning())
                self._pool = pool
                ready = pool.schedule(scoring_worker.trouble)
            if not self.wait([ready]):
                raise RunError(
                    f"the processes for the reward {self._name} did not start: they ended, or took longer than "
                    f"{STARTUP:g} s; see what its module does when it is imported."
                )
            if ready.result():
                raise RunError(
                    f"the reward {self._name} cannot be loaded in another process: {ready.result()}; it must be "
                    "importable there by the name of its module."
                )
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Ends all processes, whatever they do."""
        with interrupts_later():
            pool, self._pool = self._pool, None
            if pool is not None:
                pool.stop()
                pool.join()


def _lost(future: Future) -> bool:
    """Whether a future's pool broke; older versions of pebble leave such futures as they are."""
    return not future.cancelled() and isinstance(future.exception(), BrokenProcessPool)
