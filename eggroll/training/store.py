"""The folder of a run, opened anew or where it was last saved: metrics, ledger and checkpoints while it goes on."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import jax

from eggroll.extras import versions
from eggroll.strategy.protocol import Metrics, Strategy
from eggroll.training import processes
from eggroll.training.checkpoints.manager import Checkpoints
from eggroll.training.errors import RunError
from eggroll.training.folder.arrays import by_path, save_arrays
from eggroll.training.folder.files import FolderLock, write_text
from eggroll.training.folder.layout import (
    CHECKPOINTS,
    CONFIG,
    INITIAL,
    LEDGER,
    claim,
    clear,
    holds_result,
    holds_run,
    read_config,
)
from eggroll.training.folder.settings import as_json, check_same, describe, differences
from eggroll.training.ledger.journal import Journal
from eggroll.training.ledger.reader import LedgerError
from eggroll.training.metrics import MetricsFile, Record, TensorBoard, count_lines
from eggroll.training.options import check_tensorboard
from eggroll.training.processes.deciding import first_decides
from eggroll.training.stopping import Place, Seen

LOGGER = logging.getLogger("eggroll")


@dataclass(frozen=True, kw_only=True)
class Saving:
    """What a run writes beside its metrics, and how often.

    Args:
        every: generations between two checkpoints, at least 1; there is one at the end, too. Default 100.
        keep: newest checkpoints that are kept, at least 1. Default 3.
        best: checkpoints of the highest `score` that are kept besides. Default 0.
        score: name of a number in the record, higher is better. Default `"fitness_mean"`. A checkpoint takes the newest
            value that there is.
        ledger: whether the ledger is written, from which `eggroll replay` rebuilds the parameters. Default True.
        base: the name of the model that the run starts from, for the ledger. Default None.
        initial: whether the initial parameters are written to `initial.npz`, so that folder and ledger suffice.
            Default False.
        tensorboard: whether TensorBoard's files are written. Default False.

    Raises:
        ValueError: counts out of their range.
        RunError: TensorBoard's files are asked for without the package that writes them.
    """

    every: int = 100
    keep: int = 3
    best: int = 0
    score: str = "fitness_mean"
    ledger: bool = True
    base: str | None = None
    initial: bool = False
    tensorboard: bool = False

    def __post_init__(self) -> None:
        if self.every < 1 or self.keep < 1 or self.best < 0:
            raise ValueError(
                f"got every={self.every}, keep={self.keep}, best={self.best}; at least 1, 1 and 0 are required."
            )
        if self.tensorboard:
            check_tensorboard()


@dataclass(frozen=True)
class Opening:
    """How to open a run's folder.

    Attributes:
        folder: where.
        es: the strategy.
        saving: what is written, and how often.
        settings: what decides the run beside the strategy.
        may_change: names of settings that do not.
        resume: whether a run in the folder goes on.
        overwrite: whether a run in the folder is replaced.
        force: whether it may go on with other settings.
    """

    folder: Path
    es: Strategy
    saving: Saving
    settings: Mapping[str, Any]
    may_change: frozenset[str]
    resume: bool
    overwrite: bool
    force: bool

    @contextmanager
    def opened(self, begun: Place) -> Iterator[Store]:
        """The open store, its place being where the run goes on from; `begun` where it does not.

        Raises:
            RunError: the folder is in use, holds a run of other settings, or cannot be read or written.
        """
        config = as_json({"options": dict(self.settings), "strategy": describe(self.es)})
        # Not the platform: hosts may run other kernels.
        same = {name: value for name, value in versions().items() if name != "platform"}
        processes.same(json.dumps([config, same], sort_keys=True), "settings or versions")
        with ExitStack() as stack:
            # What the first process finds holds for all: a shared disk may show files late.
            found = first_decides(lambda: self._prepare(stack, config))
            goes_on, changes = found["goes_on"], found["changes"]
            checkpoints = Checkpoints(self.folder / CHECKPOINTS, keep=self.saving.keep, best=self.saving.best)
            place = self._newest(checkpoints, begun) if goes_on else begun
            # A change that was forced before may have left its mark in the configuration alone.
            changed = bool(changes) or self.force
            store = stack.enter_context(Store(self, begun, place, changed, checkpoints))
            if processes.is_main():  # only now: what the store refuses must not leave new settings behind
                self._write(config, begun, place, changes if goes_on else None)
            yield store

    def _prepare(self, stack: ExitStack, config: Mapping[str, Any]) -> dict[str, Any]:
        """Claims, locks and clears the folder, in the first process; says whether a run goes on, and what changed."""
        claim(self.folder, overwrite=self.overwrite, resume=self.resume)
        stack.enter_context(FolderLock(self.folder))
        claim(self.folder, overwrite=self.overwrite, resume=self.resume)  # a run may have begun and ended in between
        goes_on = self.resume and holds_run(self.folder)
        changes = self._changes(config) if goes_on else []
        if not goes_on:
            clear(self.folder)
        return {"goes_on": goes_on, "changes": changes}

    def _changes(self, config: Mapping[str, Any]) -> list[str]:
        """How the settings differ from those in the folder."""
        before = read_config(self.folder)
        others = differences(before.get("versions", {}), versions())
        for line in others:
            LOGGER.warning("resuming with other versions, so not necessarily bit for bit: %s", line)
        same = all(line.startswith("platform: ") for line in others)
        return check_same(before, config, may_change=self.may_change, force=self.force, code=same)

    def _newest(self, checkpoints: Checkpoints, begun: Place) -> Place:
        """Where the newest whole checkpoint was taken; `begun` if the run was stopped before the first."""
        found = checkpoints.restore({"state": begun.state, "carry": begun.carry})
        if found is None:
            self._check_never_saved()
            return begun
        if not bool(found.state["state"].key == begun.state.key):
            raise RunError(
                f"the run in '{self.folder}' was begun with another key. Resume it with its own: a run cannot change "
                "its key (or seed) half way."
            )
        for damaged in found.skipped:
            LOGGER.warning("skipped %s: %s", damaged.path, damaged.reason)
        record = found.record
        seen = Seen(**record["seen"])
        rest = {"data": record["data"], "seconds": record["seconds"], "score": record["score"], "seen": seen}
        return Place(found.state["state"], found.state["carry"], **rest)

    def _check_never_saved(self) -> None:
        """Raises where the run got further than one can that was killed before its first checkpoint was whole."""
        folder = self.folder / CHECKPOINTS
        names = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.exists() else []
        saves = len({name.split("-")[0] for name in names if name.split("-")[0].isdigit()})
        # One is written while the generations after it run, and the next waits for it.
        most = 2 * read_config(self.folder).get("checkpoint_every", self.saving.every)
        made = count_lines(self.folder)
        if saves > 1 or made > most or holds_result(self.folder):
            found = f"no whole one among {', '.join(names)}" if names else "none"
            raise RunError(
                f"'{self.folder}' holds a run of {made} generations whose checkpoints are gone or damaged (there is "
                f"{found}). Bring one back from a copy, rebuild the parameters with `eggroll replay`, or start anew "
                "with --overwrite."
            )
        for name in names:
            LOGGER.warning("skipped %s: it was never finished", folder / name)
        if made:
            LOGGER.warning("'%s' has no checkpoint yet: the run starts again from its beginning", self.folder)

    def _write(self, config: dict[str, Any], begun: Place, place: Place, changes: list[str] | None) -> None:
        """The configuration, where it is new, and the initial parameters."""
        if changes is None or changes or not place.generation:
            past = [] if changes is None else read_config(self.folder).get("changes", [])
            size = sum(x.size for x in jax.tree.leaves(begun.state.params))
            more = {"parameters": size, "versions": versions(), "checkpoint_every": self.saving.every}
            now = [{"generation": place.generation, "differences": changes}] if changes else []
            if past or now:
                more["changes"] = [*past, *now]
            write_text(self.folder / CONFIG, json.dumps({**config, **more}, indent=2) + "\n")
        if self.saving.initial and not (self.folder / INITIAL).exists():
            save_arrays(self.folder / INITIAL, by_path(begun.state.params))


class Store:
    """The open files of a run. Of several processes the first one writes; all of them save checkpoints.

    Args:
        run: the run, its folder locked.
        begun: where it began, with the parameters that the ledger starts from.
        place: where it goes on.
        changed: whether it goes on with other settings.
        checkpoints: in the folder; the store closes them.

    Raises:
        RunError: something cannot be written, or what is there does not reach up to `place`.
    """

    def __init__(self, run: Opening, begun: Place, place: Place, changed: bool, checkpoints: Checkpoints) -> None:
        self.place, self._saving, self._saved, self._checkpoints = place, run.saving, place.generation, checkpoints
        self._logs: list[MetricsFile | TensorBoard] = []
        self._journal: Journal | None = None
        with ExitStack() as opened:
            opened.enter_context(checkpoints)
            if processes.is_main():
                self._open_logs(opened, run, begun, changed)
            self._open = opened.pop_all()

    def _open_logs(self, opened: ExitStack, run: Opening, begun: Place, changed: bool) -> None:
        after, enter = self.place.generation, opened.enter_context
        self._logs.append(enter(MetricsFile(run.folder, after=after)))
        if self._saving.tensorboard:
            self._logs.append(enter(TensorBoard(run.folder, after=after)))
        if self._saving.ledger:
            self._journal = self._opened_journal(run, begun, changed)
            if self._journal is not None:
                enter(self._journal)

    def _opened_journal(self, run: Opening, begun: Place, changed: bool) -> Journal | None:
        """The ledger, gone on with; None if it cannot be, and that is forced."""
        path, after = run.folder / LEDGER, self.place.generation
        options: dict[str, Any] = {"base_name": self._saving.base, "after": after, "changed": changed}
        # The run's own key; whether a ledger may be replaced was asked before.
        options |= {"key": self.place.state.key, "overwrite": not after}
        try:
            if after and not path.exists():
                raise LedgerError(f"'{path}' is not there.")
            return Journal(path, run.es, begun.state.params, **options)
        except LedgerError as why:
            if not after:
                raise
            if not run.force:
                raise LedgerError(f"{why} To go on without a ledger: --force (force=True).") from why
            return _set_aside(path, why)

    def log(self, record: Record, metrics: Metrics) -> None:
        """Writes down a generation."""
        if self._journal is not None:
            self._journal.append(metrics)
        for log in self._logs:
            log.log(record)

    def reached(self, place: Place, *, last: bool = False) -> None:
        """Saves a checkpoint of `place` if it is time, or the last chance."""
        if place.generation == self._saved or not (last or place.generation % self._saving.every == 0):
            return
        for log in [*self._logs, *([] if self._journal is None else [self._journal])]:
            log.sync()  # so that no checkpoint is ahead of them, even after a power cut
        record = {"data": place.data, "seconds": place.seconds, "seen": asdict(place.seen), "score": place.score}
        tree = {"state": place.state, "carry": place.carry}
        self._checkpoints.save(place.generation, tree, record, score=place.score)
        self._saved = place.generation
        if last:
            self._checkpoints.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        """Closes all files, once what is being saved is saved; an error on its way goes before their own."""
        self._open.__exit__(*error)


def _set_aside(path: Path, why: LedgerError) -> None:
    """Keeps a ledger that is damaged for whoever can mend it."""
    aside = path.with_name(f"{path.stem}-damaged{path.suffix}")
    if path.exists():
        path.replace(aside)
    LOGGER.warning("the run goes on without a ledger: %s", f"{why} It is kept as '{aside}'." if aside.exists() else why)
