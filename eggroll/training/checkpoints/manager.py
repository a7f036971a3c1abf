"""The checkpoints of a run: written in the background, whole or not there, the last few and the best kept."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eggroll.engine.annotations import PyTree
from eggroll.extras import check_installed
from eggroll.training.checkpoints.folder import CheckpointFolder
from eggroll.training.errors import RunError
from eggroll.training.folder.arrays import check_fits, flatten, places, unflatten
from eggroll.training.folder.integrity import Damaged, write_manifest
from eggroll.training.processes.deciding import first_decides, raise_together
from eggroll.training.processes.talk import is_main

if TYPE_CHECKING:
    from eggroll.training.checkpoints.arrays import Arrays

# Orbax and TensorStore hand the system's error on as text, sometimes as `ValueError`.
_CAUSES = (
    ((errno.ENOSPC, errno.EDQUOT), "the disk is full", "Free some space (or keep fewer checkpoints) and go on"),
    ((errno.EFBIG,), "a file would be larger than allowed", "Raise the limit (`ulimit -f`) and go on"),
    (
        (errno.EROFS, errno.EACCES, errno.EPERM),
        "the folder cannot be written",
        "Make it writable, or choose another folder, and go on",
    ),
)


@dataclass(frozen=True)
class Checkpoint:
    """What `Checkpoints.restore` found.

    Attributes:
        generation: the generation that it was saved at.
        state: the pytree, in the structure and on the devices asked for; every bit as saved.
        record: the JSON saved with it.
        skipped: newer checkpoints that cannot be used, and why.
    """

    generation: int
    state: PyTree
    record: dict[str, Any]
    skipped: tuple[Damaged, ...] = ()


class Checkpoints:
    """A folder of checkpoints, one to a generation.

    A checkpoint is visible once a manifest with the SHA-256 of each of its files is written, which comes last: a
    process killed at any moment leaves the earlier ones, and a part that is skipped. In a run of many processes, all of
    them make the same calls on a folder that all of them see; the first one decides and removes.

    Args:
        folder: made at the first save. One run writes to it at a time: hold a `FolderLock` of the run's folder.
        keep: how many of the latest checkpoints to keep, at least 1.
        best: how many of those with the highest score to keep beside them.

    Example:
        >>> import tempfile, jax.numpy as jnp
        >>> with Checkpoints(Path(tempfile.mkdtemp()), keep=2) as checkpoints:
        ...     for generation in (10, 20, 30):
        ...         checkpoints.save(generation, {"mean": jnp.full(3, float(generation))}, {"rows": 5 * generation})
        ...     checkpoints.wait()
        ...     checkpoints.generations()
        ...     found = checkpoints.restore({"mean": jnp.zeros(3)})
        [20, 30]
        >>> found.generation, found.state["mean"].tolist(), found.record
        (30, [30.0, 30.0, 30.0], {'rows': 150})
    """

    def __init__(self, folder: Path, *, keep: int = 3, best: int = 0) -> None:
        if keep < 1 or best < 0:
            raise RunError(
                f"got keep={keep} and best={best}; keep at least 1 of the latest, and 0 or more of the best."
            )
        check_installed("orbax", "checkpoints")  # now, not where the first one is due
        self.folder = Path(folder).absolute()
        self._disk = CheckpointFolder(self.folder, keep, best)
        self._worker: ThreadPoolExecutor | None = None
        self._pending: Future[None] | None = None
        self._head: int | None = None  # the generation saved or restored last: what is later belongs to another history

    def save(self, generation: int, state: PyTree, record: Mapping[str, Any], *, score: float | None = None) -> None:
        """Saves a state; returns once its arrays are copied, so that the next generation may donate them.

        Later generations than this one, left by the history before a `restore`, are removed once it is whole.

        Args:
            generation: 0 or more.
            state: a pytree of arrays; keys of `jax.random` too.
            record: JSON: position in the data, metrics.
            score: what best-n goes by, the higher the better; None or not finite: never among the best.

        Raises:
            RunError: the save before this one failed (this one is not begun then), or this one cannot be begun.
        """
        if generation < 0:
            raise RunError(f"got generation {generation}; it has to be 0 or more.")
        self.wait()
        arrays, table = flatten(state)
        score = None if score is None or not math.isfinite(score) else float(score)
        content = {"generation": int(generation), "score": score, "record": _plain(record), "leaves": table}
        with explained(f"Generation {generation} could not be saved", self.folder), self._tidy_on_error():
            path = self.folder / first_decides(lambda: self._prepare(int(generation)))
            self._arrays.start(path, arrays)
        self._head = int(generation)
        self._worker = self._worker or ThreadPoolExecutor(1, thread_name_prefix="eggroll-checkpoints")
        self._pending = self._worker.submit(self._finish, path, content)

    def wait(self) -> None:
        """Waits until the last save is whole.

        Raises:
            RunError: it failed, in this process or another.
        """
        raise_together(self._result())

    def close(self) -> None:
        """Waits, and gives up the background thread. In a run of many processes it speaks for its own only.

        Raises:
            RunError: the last save failed.
        """
        try:
            error = self._result()
        finally:
            worker, self._worker = self._worker, None
            if worker is not None:
                worker.shutdown()
            if "_arrays" in vars(self):
                self._arrays.close()
                del self._arrays
        if error is not None:
            raise error

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        with contextlib.nullcontext() if error is None else contextlib.suppress(RunError):  # that one says more
            self.close()

    def generations(self) -> list[int]:
        """The generations with a finished checkpoint, in order, as this process sees them; damage is not looked for."""
        return self._disk.generations()

    def best(self) -> int | None:
        """The generation of the finished checkpoint with the highest score, the later of two alike; None: none has one.

        Example:
            >>> import tempfile, jax.numpy as jnp
            >>> with Checkpoints(Path(tempfile.mkdtemp()), best=1) as checkpoints:
            ...     for generation, score in ((1, 0.5), (2, 0.9), (3, 0.7)):
            ...         checkpoints.save(generation, {"x": jnp.ones(2)}, {}, score=score)
            ...     checkpoints.wait()
            ...     checkpoints.best()
            2
        """
        return self._disk.best()

    def restore(self, like: PyTree, *, generation: int | None = None) -> Checkpoint | None:
        """Reads the newest whole checkpoint, or that of one generation.

        Args:
            like: the pytree to fill: arrays or `jax.ShapeDtypeStruct`s with the shapes, dtypes and shardings to give
                the state; any mesh. Without a sharding, an array lies where JAX puts things by itself.
            generation: None takes the newest that is whole; `best()` is one to ask for.

        Returns:
            The checkpoint; None if the folder has none at all, or only one that was never finished.

        Raises:
            RunError: every checkpoint is damaged, the one asked for is damaged or not there, or it does not fit `like`.
        """
        self.wait()
        found = first_decides(lambda: self._choose(generation))
        skipped = tuple(Damaged(self.folder / name, reason) for name, reason in found["skipped"])
        if found["name"] is None:
            return None
        path, content = self.folder / found["name"], found["content"]
        check_fits(content["leaves"], like, f"'{path}'")
        with explained(f"Generation {content['generation']} could not be read", self.folder):
            arrays = self._arrays.read(path, places(content["leaves"], like))
        self._head = content["generation"]
        state = unflatten(arrays, content["leaves"], like)
        return Checkpoint(content["generation"], state, content["record"], skipped)

    @cached_property
    def _arrays(self) -> Arrays:
        from eggroll.training.checkpoints.arrays import Arrays  # Orbax, whose import takes long

        return Arrays()

    def _result(self) -> RunError | None:
        """Waits for the last save; what went wrong with it in this process."""
        if self._pending is None:
            return None
        error = self._pending.exception()
        self._pending = None
        if error is not None and not isinstance(error, RunError):
            raise error
        return error

    def _prepare(self, generation: int) -> str:
        with explained(f"Generation {generation} could not be saved", self.folder):
            return self._disk.prepare(generation, rewind=self._head is not None)

    def _choose(self, generation: int | None) -> dict[str, Any]:
        with explained("No checkpoint could be read", self.folder):
            path, content, skipped = self._disk.choose(generation)
        damaged = [(one.path.name, one.reason) for one in skipped]
        return {"name": path and path.name, "content": content, "skipped": damaged}

    def _finish(self, path: Path, content: Mapping[str, Any]) -> None:
        """Makes the checkpoint visible and removes those that need not be kept; runs in the background."""
        with explained(f"Generation {content['generation']} could not be saved", self.folder):
            with self._tidy_on_error(path):
                self._arrays.finish()
                if is_main():
                    write_manifest(path, content)
            if is_main():
                self._disk.prune(content["generation"])

    @contextlib.contextmanager
    def _tidy_on_error(self, path: Path | None = None) -> Iterator[None]:
        """Gives back the space that a save which failed has taken."""
        try:
            yield
        except BaseException:
            if "_arrays" in vars(self):
                self._arrays.reset()
            if is_main():
                self._disk.sweep(path)
            raise


def _plain(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record as it is now: the run goes on to change it while the save is written."""
    try:
        return json.loads(json.dumps(dict(record)))
    except (TypeError, ValueError) as why:
        raise RunError(
            f"The record of a checkpoint has to be JSON (text, numbers, lists, dictionaries): {why}. "
            "Turn it into such, or put arrays into the state."
        ) from why


@contextlib.contextmanager
def explained(what: str, folder: Path) -> Iterator[None]:
    """Turns what the disk, Orbax or TensorStore say into a `RunError` that says what to do."""
    try:
        yield
    except RunError:
        raise
    except (OSError, ValueError, RuntimeError) as why:
        cause, remedy = _cause(why)
        raise RunError(f"{what} in '{folder}': {cause}. {remedy}; whole checkpoints in it stay as they are.") from why


def _cause(error: BaseException) -> tuple[str, str]:
    chain = list(_chain(error))
    text = " ".join(str(one) for one in chain).lower()
    for numbers, cause, remedy in _CAUSES:
        names = [os.strerror(number).lower() for number in numbers]
        if any(getattr(one, "errno", None) in numbers for one in chain) or any(name in text for name in names):
            return cause, remedy
    said = str(error).strip().split("\n")[0] or type(error).__name__
    return said, "Mend that and go on"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        if isinstance(error, BaseExceptionGroup):
            for one in error.exceptions:
                yield from _chain(one)
        error = error.__cause__ or error.__context__
