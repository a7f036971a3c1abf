"""Small states as one `.npz` file in a checkpoint: Orbax makes the folder, writes in the background and renames.

TensorStore has no part in it. It keeps a few blocks of memory of every array that it saves (0.1.86), which over many
checkpoints of a small state is more than the state; and for a few kilobytes its databases take several times as long.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp

from eggroll.training.checkpoints.leaves import SMALL_FILE
from eggroll.training.folder.arrays import read_arrays, write_npz


class NpzHandler(ocp.AsyncCheckpointHandler):
    """Writes what `NpzSave` holds. It is read by `read`, without Orbax."""

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


def read(path: Path, dtypes: Mapping[str, np.dtype]) -> dict[str, np.ndarray]:
    """The arrays of these names.

    Args:
        path: a checkpoint's folder.
        dtypes: by name; an `.npz` file knows bfloat16 and the like as bytes only.
    """
    found = read_arrays(path / SMALL_FILE)
    return {name: found[name].view(dtype) for name, dtype in dtypes.items()}
