"""What a run writes while it runs: metrics, ledger, checkpoints."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from eggroll.engine.annotations import PyTree
from eggroll.strategy.protocol import Metrics, Strategy
from eggroll.training import processes
from eggroll.training.checkpoints.manager import Checkpoints
from eggroll.training.folder.layout import LEDGER
from eggroll.training.ledger.journal import Journal
from eggroll.training.ledger.reader import LedgerError
from eggroll.training.metrics import MetricsFile, Record
from eggroll.training.options import check_told
from eggroll.training.progress import Reported, TensorBoard
from eggroll.training.stopping import Place

RECORD: tuple[str, ...] = ("data", "seconds", "seen", "score")  # of a checkpoint, beside its arrays
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
        carry: whether the ledger has what the model carries along, too, so that a replay gives it: its numbers, for
            every generation. Default False.
        base: the name of the model that the run starts from, for the ledger. Default None.
        initial: whether the initial parameters are written to `initial.npz`, so that folder and ledger suffice.
            Default False.
        tensorboard: whether TensorBoard's files are written. Default False.
        report_to: `"wandb"` (Weights & Biases) or `"trackio"`, or both, which are told every record. Default none.

    Raises:
        ValueError: counts out of their range.
        RunError: TensorBoard's files or reports are asked for without the package that makes them.
    """

    every: int = 100
    keep: int = 3
    best: int = 0
    score: str = "fitness_mean"
    ledger: bool = True
    carry: bool = False
    base: str | None = None
    initial: bool = False
    tensorboard: bool = False
    report_to: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.every < 1 or self.keep < 1 or self.best < 0:
            raise ValueError(
                f"got every={self.every}, keep={self.keep}, best={self.best}; at least 1, 1 and 0 are required."
            )
        check_told(self.tensorboard, self.report_to)


class Store:
    """The open files of a run. Of several processes the first one writes; all of them save checkpoints.

    Args:
        folder: the run folder, locked.
        es: the strategy.
        saving: what is written, and how often.
        settings: what else decides the run, for trackers.
        begun: where the run began, with the parameters that the ledger starts from.
        place: where it goes on.
        changed: whether it goes on with other settings.
        force: whether it goes on without its ledger where that is damaged.
        checkpoints: in the folder; the store closes them.

    Raises:
        RunError: something cannot be written, or what is there does not reach up to `place`.
    """

    def __init__(
        self,
        folder: Path,
        es: Strategy,
        saving: Saving,
        *,
        settings: Mapping[str, object],
        begun: Place,
        place: Place,
        changed: bool,
        force: bool,
        checkpoints: Checkpoints,
    ) -> None:
        self.place, self._saving, self._saved = place, saving, place.generation
        self._settings = settings
        self._checkpoints, self._force = checkpoints, force
        self._logs: list[MetricsFile | TensorBoard | Reported] = []
        self._journal: Journal | None = None
        with ExitStack() as opened:
            opened.push(self._close_checkpoints)
            if processes.is_main():
                self._open_logs(opened, folder, es, begun, changed)
            self._open = opened.pop_all()

    def _open_logs(self, opened: ExitStack, folder: Path, es: Strategy, begun: Place, changed: bool) -> None:
        after, enter = self.place.generation, opened.enter_context
        self._logs.append(enter(MetricsFile(folder, after=after)))
        if self._saving.tensorboard:
            self._logs.append(enter(TensorBoard(folder, after=after)))
        for package in self._saving.report_to:
            self._logs.append(enter(Reported(package, folder, self._settings, after=after)))
        if self._saving.ledger:
            self._journal = self._opened_journal(folder / LEDGER, es, begun, changed)
            if self._journal is not None:
                enter(self._journal)

    def _opened_journal(self, path: Path, es: Strategy, begun: Place, changed: bool) -> Journal | None:
        """The ledger, gone on with; None if it cannot be, and that is forced."""
        after = self.place.generation
        try:
            if after and not path.exists():
                raise LedgerError(f"'{path}' is not there.")
            return Journal(
                path,
                es,
                begun.state.params,
                base_name=self._saving.base,
                key=self.place.state.key,  # the run's own
                after=after,
                changed=changed,
                overwrite=not after,  # whether it may be replaced was asked before
            )
        except LedgerError as why:
            if not after:
                raise
            if not self._force:
                raise LedgerError(f"{why} To go on without a ledger: --force (force=True).") from why
            return _set_aside(path, why)

    def log(self, record: Record, metrics: Metrics, carry: PyTree) -> None:
        """Writes down a generation."""
        if self._journal is not None:
            self._journal.append(metrics, carry if self._saving.carry else ())
        for log in self._logs:
            log.log(record)

    def reached(self, place: Place, *, last: bool = False) -> None:
        """Saves a checkpoint of `place` if it is time, or the last chance."""
        if place.generation == self._saved or not (last or place.generation % self._saving.every == 0):
            return
        for log in [*self._logs, *([] if self._journal is None else [self._journal])]:
            log.sync()  # so that no checkpoint is ahead of them, even after a power cut
        values = place.data, place.seconds, asdict(place.seen), place.score
        record = dict(zip(RECORD, values, strict=True))
        tree = {"state": place.state, "carry": place.carry}
        self._checkpoints.save(place.generation, tree, record, score=place.score)
        self._saved = place.generation
        if last:
            self._checkpoints.wait()

    def _close_checkpoints(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not processes.lost():  # else what is being saved waits for a process that is gone
            self._checkpoints.__exit__(kind, error, trace)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes all files, once what is being saved is saved; an error on its way goes before their own."""
        self._open.__exit__(kind, error, trace)


def _set_aside(path: Path, why: LedgerError) -> None:
    """Keeps a ledger that is damaged for whoever can mend it."""
    aside = path.with_name(f"{path.stem}-damaged{path.suffix}")
    if path.exists():
        path.replace(aside)  # a rename: no file is written to, and a link is moved as it is
    LOGGER.warning("the run goes on without a ledger: %s", f"{why} It is kept as '{aside}'." if aside.exists() else why)
