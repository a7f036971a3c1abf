"""What is asked of Orbax: write a dictionary of arrays in the background, and read it back onto any mesh.

Small states are one `.npz` file, large ones and those of several processes TensorStore's. Only this file imports Orbax,
and it is imported when something is first saved or read.
"""

from __future__ import annotations

import contextlib
import logging
import traceback
import weakref
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from eggroll.training.folder.arrays import Place, read_arrays, write_npz

SMALL = 1 << 28  # bytes: a copy on the host is nothing, and one file is written faster than a database
SMALL_FILE = "arrays.npz"  # of a checkpoint that is one file
# Orbax's time limit goes by a clock that can be set anew; a century, in seconds, outlasts any jump.
FOREVER = 100 * 365 * 24 * 3600


class Arrays:
    """Writes dictionaries of arrays, one at a time, and reads them."""

    def __init__(self) -> None:
        self._orbax: dict[bool, Any] = {}  # small → its checkpointer
        self._loud = weakref.finalize(self, _quiet())

    def start(self, path: Path, arrays: Mapping[str, Any]) -> None:
        """Begins to write; returns when the arrays are copied, and may be donated."""
        if jax.process_count() == 1 and sum(array.nbytes for array in arrays.values()) <= SMALL:
            self._checkpointer(small=True).save(path, args=NpzSave(arrays))
        else:
            self._checkpointer().save(path, args=ocp.args.PyTreeSave(dict(arrays)))

    def finish(self) -> None:
        """Waits until what `start` began has its final name."""
        for orbax in self._orbax.values():
            orbax.wait_until_finished()

    def read(self, path: Path, places: Mapping[str, Place]) -> dict[str, Any]:
        """The arrays, each with the sharding of its place, as NumPy's where that is None."""
        if not places:
            return {}
        if (path / SMALL_FILE).exists():
            found = read_arrays(path / SMALL_FILE)  # which knows bfloat16 and the like as bytes only
            return {name: _placed(found[name].view(place.dtype), place.sharding) for name, place in places.items()}
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
        self._loud()

    def _checkpointer(self, *, small: bool = False) -> Any:
        if small not in self._orbax:
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


class NpzHandler(ocp.AsyncCheckpointHandler):
    """Writes what `NpzSave` holds, in the background.

    TensorStore has no part in it. It keeps a few blocks of memory of every array that it saves (0.1.86), which over
    many checkpoints of a small state is more than the state; and for a few kilobytes its databases take several times
    as long.
    """

    def __init__(self) -> None:
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="eggroll-npz")

    async def async_save(self, directory: Any, args: NpzSave) -> list[Future[None]]:  # type: ignore[override]
        """Copies the arrays; the future writes them."""
        host = {name: np.array(array) for name, array in args.arrays.items()}
        return [self._writer.submit(_write, Path(directory) / SMALL_FILE, host)]

    def save(self, directory: Any, args: NpzSave) -> None:  # type: ignore[override]
        """The same at once."""
        _write(Path(directory) / SMALL_FILE, args.arrays)

    def restore(self, directory: Any, args: Any = None) -> Any:  # type: ignore[override]
        """Not used: a checkpoint is read by the table in its manifest."""
        raise NotImplementedError

    def close(self) -> None:
        """Waits for the writing, and ends its thread."""
        self._writer.shutdown()


@ocp.args.register_with_handler(NpzHandler, for_save=True, for_restore=True)
@dataclass
class NpzSave(ocp.args.CheckpointArgs):
    """Arrays by name, each of which this process can read as a whole."""

    arrays: Mapping[str, Any]


def _write(path: Path, arrays: Mapping[str, Any]) -> None:
    with path.open("xb") as file:
        write_npz(file, arrays)
