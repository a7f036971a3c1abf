"""The checkpoints on disk: which there are, which are kept, and which is read."""

from __future__ import annotations

import contextlib
import heapq
import math
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from eggroll.training.errors import RunError
from eggroll.training.folder.disk import MANIFEST, own_folder
from eggroll.training.folder.integrity import Damaged, DamagedError, read_manifest, verify

_NAME = re.compile(r"(\d+)(?:-(\d+))?")  # the generation, and which attempt to save it after the first
_REMOVED = ".removed"
_TEMPORARY = "*.orbax-checkpoint-tmp*"  # what Orbax writes to before it renames


class _Entry(NamedTuple):
    step: int
    attempt: int
    path: Path


class CheckpointFolder:
    """The checkpoints on disk, as the first process of a run sees them.

    Args:
        path: the folder; it need not be there.
        keep: how many of the latest to keep.
        best: how many of those with the highest score to keep beside them.
    """

    def __init__(self, path: Path, keep: int, best: int) -> None:
        self.path = path
        self._keep, self._best = keep, best
        self._damaged: set[Path] = set()
        # Threads of Orbax may outlive their failed save a little: they must not write into the next attempt's files.
        self._last: tuple[int, int] | None = None

    def generations(self) -> list[int]:
        """The generations that have a checkpoint with a manifest, in order."""
        return sorted({entry.step for entry in self._entries() if _content(entry.path) is not None})

    def best(self) -> int | None:
        """The generation of the highest score."""
        found = [(_content(entry.path), entry.step) for entry in self._entries()]
        scored = [(content["score"], step) for content, step in found if content and content["score"] is not None]
        return max(scored)[1] if scored else None

    def prepare(self, generation: int, *, rewind: bool) -> str:
        """Makes room for a save; the name that the new checkpoint's folder is to have.

        Raises:
            RunError: there are later generations, and `rewind` does not allow to give them up.
            OSError: the folder cannot be written.
        """
        own_folder(self.path)
        self.sweep()
        entries = self._entries()
        later = [entry.step for entry in entries if entry.step > generation and _content(entry.path)]
        if later and not rewind:
            raise RunError(
                f"'{self.path}' has a checkpoint of generation {later[-1]}, later than {generation}: another run's. "
                "Go on from it with a restore, or choose another folder."
            )
        attempts = [entry.attempt for entry in entries if entry.step == generation]
        if self._last and self._last[0] == generation:
            attempts.append(self._last[1])
        self._last = (generation, max(attempts, default=-1) + 1)
        return f"{generation}-{self._last[1]}" if attempts else str(generation)

    def sweep(self, path: Path | None = None) -> None:
        """Removes what saves and removals cut short have left, and the folder `path` if it is half-written."""
        if path is not None and _content(path) is None:
            _remove_all(path)
        for pattern in (_TEMPORARY, f"*{_REMOVED}"):
            for left in self.path.glob(pattern):
                _remove_all(left)

    def prune(self, newest: int) -> None:
        """Removes what is not among the latest nor the best, half-written, damaged, or of a history given up."""
        entries, whole, scored = self._entries(), {}, {}
        for entry in entries:  # a later attempt takes an earlier one's place
            content = _content(entry.path)
            if content is not None and entry.step <= newest and entry.path not in self._damaged:
                whole[entry.step], scored[entry.step] = entry.path, content["score"]
        latest = heapq.nlargest(self._keep, whole)
        best = heapq.nlargest(self._best, ((score, step) for step, score in scored.items() if score is not None))
        kept = {whole[step] for step in (*latest, *(step for _, step in best))}
        for entry in entries:
            if entry.path not in kept:
                _remove(entry.path)
                self._damaged.discard(entry.path)

    def choose(self, generation: int | None) -> tuple[Path | None, dict[str, Any], list[Damaged]]:
        """The newest whole checkpoint, or that of a generation: its folder, its manifest's content, what was skipped.

        Raises:
            RunError: there are finished ones, but all are damaged; or that of `generation` is damaged or not there.
        """
        entries = [entry for entry in reversed(self._entries()) if generation is None or entry.step == generation]
        skipped: list[Damaged] = []
        for entry in entries:
            try:
                return entry.path, _checked(verify(entry.path), entry.path), skipped
            except DamagedError as why:
                skipped.append(Damaged(entry.path, str(why)))
                self._damaged.add(entry.path)
        if generation is not None:
            self._not_there(generation, skipped)
        if any((entry.path / MANIFEST).exists() for entry in entries):
            raise RunError(
                f"Every checkpoint in '{self.path}' is damaged: {'; '.join(map(str, skipped))}. "
                "Bring one back from a copy, or begin anew in another folder."
            )
        return None, {}, skipped

    def _not_there(self, generation: int, skipped: list[Damaged]) -> None:
        there = ", ".join(map(str, self.generations())) or "none"
        why = f"is damaged: {'; '.join(map(str, skipped))}" if skipped else f"is not in '{self.path}'"
        raise RunError(f"The checkpoint of generation {generation} {why}. Generations there: {there}.")

    def _entries(self) -> list[_Entry]:
        """All folders named like checkpoints, oldest first."""
        paths = self.path.iterdir() if self.path.is_dir() else ()
        found = [(path, _NAME.fullmatch(path.name)) for path in paths if path.is_dir()]
        return sorted(_Entry(int(name[1]), int(name[2] or 0), path) for path, name in found if name)


def _content(path: Path) -> dict[str, Any] | None:
    try:
        return _checked(read_manifest(path), path)
    except DamagedError:
        return None


def _checked(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """A manifest's content, once it is known to be that of a checkpoint of this name."""
    name, score, leaves = _NAME.fullmatch(path.name), content.get("score", ...), content.get("leaves")
    generation = content.get("generation")
    sound = {
        "generation": type(generation) is int and name is not None and generation == int(name[1]),
        "score": score is None or (type(score) is float and math.isfinite(score)),
        "record": isinstance(content.get("record"), dict),
        "leaves": isinstance(leaves, list) and all(map(_is_row, leaves)),
    }
    for what, right in sound.items():
        if not right:
            raise DamagedError(f"{MANIFEST} has '{what}' as no run writes it: {content.get(what, 'missing')!r:.60}")
    return content


def _is_row(row: Any) -> bool:
    """Whether it describes an array, as `eggroll.training.folder.arrays.flatten` does."""
    if not isinstance(row, Mapping) or row.keys() - {"impl"} != {"path", "shape", "dtype"}:
        return False
    sizes = row["shape"]
    texts = all(isinstance(text, str) for name, text in row.items() if name != "shape")
    return texts and isinstance(sizes, list) and all(type(size) is int and size >= 0 for size in sizes)


def _remove(path: Path) -> None:
    """Removes a checkpoint: its name at once, then file by file. What resists is tried again at the next save."""
    with contextlib.suppress(OSError):
        gone = path.rename(path.with_name(path.name + _REMOVED))
        _remove_all(gone)


def _remove_all(path: Path) -> None:
    """A folder as far as that goes; a link, and not what it leads to."""
    if path.is_symlink():
        path.unlink(missing_ok=True)
    shutil.rmtree(path, ignore_errors=True)
