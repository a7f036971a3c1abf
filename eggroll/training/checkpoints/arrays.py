"""What is asked of Orbax: write a dictionary of arrays in the background, and read it back onto any mesh.

Small states are one `.npz` file (`small`), large ones and those of several processes TensorStore's.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import traceback
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from eggroll.training.checkpoints.leaves import SMALL_FILE, Place
from eggroll.training.errors import RunError

SMALL = 1 << 28  # bytes: a copy on the host is nothing, and one file is written faster than a database
# Orbax's time limit goes by a clock that can be set anew; a century, in seconds, outlasts any jump.
FOREVER = 100 * 365 * 24 * 3600
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


class Arrays:
    """Writes dictionaries of arrays, one at a time, and reads them. Orbax is imported at the first use."""

    def __init__(self) -> None:
        self._orbax: dict[bool, Any] = {}  # small → its checkpointer
        self._loud: Callable[[], Any] | None = None

    def start(self, path: Path, arrays: Mapping[str, Any]) -> None:
        """Begins to write; returns when the arrays are copied, and may be donated."""
        import orbax.checkpoint as ocp

        if jax.process_count() == 1 and sum(array.nbytes for array in arrays.values()) <= SMALL:
            from eggroll.training.checkpoints.small import NpzSave

            self._checkpointer(small=True).save(path, args=NpzSave(arrays))
        else:
            self._checkpointer().save(path, args=ocp.args.PyTreeSave(dict(arrays)))

    def finish(self) -> None:
        """Waits until what `start` began has its final name."""
        for orbax in self._orbax.values():
            orbax.wait_until_finished()

    def read(self, path: Path, places: Mapping[str, Place]) -> dict[str, Any]:
        """The arrays, each with the sharding of its place, as NumPy's where that is None."""
        import orbax.checkpoint as ocp

        if not places:
            return {}
        if (path / SMALL_FILE).exists():
            from eggroll.training.checkpoints.small import read

            found = read(path, {name: place.dtype for name, place in places.items()})
            return {name: _placed(array, places[name].sharding) for name, array in found.items()}
        args = {
            name: ocp.RestoreArgs(restore_type=np.ndarray)
            if place.sharding is None
            else ocp.ArrayRestoreArgs(sharding=place.sharding)
            for name, place in places.items()
        }
        wanted = ocp.args.PyTreeRestore(item=dict.fromkeys(places, 0), restore_args=args)
        return self._checkpointer().restore(path, args=wanted)

    def reset(self) -> None:
        """Gives up Orbax's threads; after a failure, whose rest would surface in the next save."""
        every, self._orbax = self._orbax, {}
        for orbax in every.values():
            with contextlib.suppress(Exception):
                orbax.close()

    def close(self) -> None:
        """As `reset`, and lets Orbax log again what it likes."""
        self.reset()
        if self._loud is not None:
            self._loud()
            self._loud = None

    def _checkpointer(self, *, small: bool = False) -> Any:
        if self._loud is None:
            self._loud = weakref.finalize(self, _quiet())
        if small not in self._orbax:
            import orbax.checkpoint as ocp

            from eggroll.training.checkpoints.small import NpzHandler

            # Were folders made in the background, a failure to make one would leave threads that wait for it.
            options = ocp.options.AsyncOptions(create_directories_asynchronously=False, timeout_secs=FOREVER)
            handler = NpzHandler() if small else ocp.PyTreeCheckpointHandler()
            self._orbax[small] = ocp.AsyncCheckpointer(handler, async_options=options)
        return self._orbax[small]


def _placed(array: np.ndarray, sharding: Any) -> Any:
    """On devices, of which other processes may have some; each process has read the whole."""
    return array if sharding is None else jax.make_array_from_callback(array.shape, sharding, lambda at: array[at])


def _quiet() -> Callable[[], None]:
    """Keeps Orbax from logging the errors that it raises, a traceback for each of its threads; the way back."""
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]

    def is_not_orbax(record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:
            return True
        trace = traceback.format_exception(record.exc_info[1]) if record.exc_info else []
        return not any("orbax" in text for text in (record.pathname, *trace))

    for logger in loggers:
        logger.addFilter(is_not_orbax)

    def back() -> None:
        for logger in loggers:
            logger.removeFilter(is_not_orbax)

    return back


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
