"""What `eggroll replay` does: from files to a file, and what there is to say about it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from eggroll.engine.paths import leaf_paths
from eggroll.training.errors import RunError
from eggroll.training.folder.arrays import by_path, save_arrays
from eggroll.training.folder.integrity import check_run
from eggroll.training.folder.layout import LEDGER
from eggroll.training.ledger.format import FORMAT, digests, joint_digest
from eggroll.training.ledger.reader import Summary, summarize
from eggroll.training.ledger.rebuilding import RUN, Replay

CARRY = "carry"  # the paths of what a model carries along begin with it, in a file beside parameters


@dataclass(frozen=True)
class Replayed:
    """What was rebuilt.

    Attributes:
        out: where they are.
        generation: updates made.
        parameters: numbers in all parameters.
        seconds: wall time, reading, compilation and writing included.
        digest: of the parameters, as a ledger has of its base.
        inexact: updates that differ from the run's in some bit.
        elsewhere: what is not as it was in the run: versions, platform, mesh.
    """

    out: Path
    generation: int
    parameters: int
    seconds: float
    digest: str
    inexact: int
    elsewhere: tuple[str, ...] = ()

    def __str__(self) -> str:
        exact = "every update has the run's norms, bit for bit"
        if self.inexact:
            why = "; ".join(self.elsewhere) or "other instructions of the processor, or XLA's flags"
            exact = f"{self.inexact} updates have the run's norms to rounding only: {why}"
        return (
            f"generation {self.generation}: {self.parameters} parameters in {self.seconds:.1f} s, into {self.out}\n"
            f"  {exact}\n  digest {self.digest}"
        )


def replay_files(
    base: Any,
    ledger: Path,
    out: Path,
    generation: int | None = None,
    overwrite: bool = False,
    write: Callable[[Path, Any], None] | None = None,
) -> Replayed:
    """Rebuilds the parameters of a generation and writes them.

    Args:
        base: an `.npz` file of arrays by path, a run folder that has `initial.npz`, or the parameters themselves.
        ledger: the ledger, or a run folder that has `ledger.bin`.
        out: where the parameters go.
        generation: number of updates; None (default): all.
        overwrite: whether `out` may be replaced.
        write: `write(out, params)`. None (default): an `.npz` file by path, whole or not at all, with what the model
            carries along where the ledger has that.

    Returns:
        What there is to print.

    Raises:
        RunError: files that cannot be read or written, or a replay that is refused; see `replay`.
    """
    start, out = time.perf_counter(), Path(out)
    if out.exists() and not overwrite:
        raise RunError(f"'{out}' exists; choose another place with --out, or replace it with --overwrite.")
    for folder in (base, ledger):
        if isinstance(folder, str | Path) and Path(folder).is_dir():
            check_run(Path(folder))
    made = Replay(base, _ledger(ledger), mesh=RUN)
    params = made.run(generation).params
    if write is None:
        save_arrays(out, by_path(params) | {f"{CARRY}/{path}": x for path, x in made.carried.items()})
    else:
        write(out, params)
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    digest = joint_digest(digests(params), leaf_paths(params))
    seconds = time.perf_counter() - start
    return Replayed(out, made.generations, size, seconds, digest, made.inexact, tuple(made.elsewhere))


def verify(ledger: Path) -> Summary:
    """Reads and checks a whole ledger.

    Args:
        ledger: the file, or a run folder that has `ledger.bin`.

    Raises:
        RunError: no ledger, or one that was altered.
    """
    return summarize(_ledger(ledger))


def describe(summary: Summary) -> str:
    """A ledger in a few lines."""
    lines = [f"{summary.path}: whole, {summary.generations} generations, {summary.records} records"]
    if not summary.records:
        lines = [f"{summary.path}: holds nothing: its run ended before the first record, or it was emptied"]
    if summary.cut:
        lines.append(f"  {summary.cut} bytes of a record cut short at the end are left out")
    if summary.content and summary.content.get("format") != FORMAT:
        lines.append(f"  settings of format {summary.content.get('format')!r}; this version of eggroll knows {FORMAT}")
    elif summary.content:
        base = summary.content["base"]
        lines.append(f"  base {base['name'] or 'without a name'}, digest {base['digest']}")
    return "\n".join([*lines, f"  {summary.bytes} bytes, digest {summary.digest}"])


def _ledger(path: Path) -> Path:
    path = Path(path)
    return path / LEDGER if path.is_dir() else path
