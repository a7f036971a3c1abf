"""`fit`: the training loop behind the commands, and for code of one's own."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import jax
import numpy as np

from eggroll.engine.annotations import Function, PyTree
from eggroll.engine.checks import as_count, as_flag, as_number
from eggroll.ops.registry import SWITCH, chosen
from eggroll.strategy.protocol import Metrics, Strategy
from eggroll.strategy.state import State
from eggroll.training import processes
from eggroll.training.data import Data, Source, as_source, length
from eggroll.training.errors import RunError
from eggroll.training.metrics import Record
from eggroll.training.opening import Opening, check_given, check_made, check_processes
from eggroll.training.options import check_path
from eggroll.training.processes.talk import gather, outline
from eggroll.training.progress import Meter
from eggroll.training.steps import Compiled, Step, decided
from eggroll.training.stopping import EarlyStopping, Place, Result, StopRequest, check_measured, measured, plain
from eggroll.training.store import Saving, Store

LOGGER = logging.getLogger("eggroll")
Evaluate = Callable[[State, PyTree], Mapping[str, float | None]]
RECORDED = ("fitness_mean", "fitness_best", "fitness_worst", "fitness_std", "gradient_norm", "update_norm", "sigma")
FINISHED, INTERRUPTED, OUT_OF_TIME, OUT_OF_DATA = "finished", "interrupted", "out of time", "out of data"
STOPPED_EARLY, AT_ONCE = "stopped early", "interrupted at once"


def fit(
    es: Strategy,
    state: State,
    fitness: Function | Step,
    data: Data = None,
    *,
    generations: int,
    epochs: int | None = 1,
    carry: PyTree = (),
    folder: Path | str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    force: bool = False,
    settings: Mapping[str, object] | None = None,
    may_change: Collection[str] = (),
    saving: Saving | None = None,
    evaluate: Evaluate | None = None,
    evaluate_every: int = 10,
    early_stopping: EarlyStopping | None = None,
    until: Callable[[State, PyTree], bool] | None = None,
    seconds: float | None = None,
    started: Callable[[int], None] | None = None,
    show: Callable[[Record], None] | None = None,
    progress: bool = False,
    asked_to_stop: Callable[[], bool] | None = None,
) -> Result:
    """Trains parameters, generation by generation, and loses nothing when it is stopped.

    With a `folder`, a run that was killed goes on with `resume=True` as if it had never stopped: parameters, optimizer,
    noise, data, metrics and ledger are bit for bit those of an uninterrupted run on the same platform. SIGINT and
    SIGTERM let the current generation finish and save.

    Args:
        es: the strategy; its optimizer's learning rate and its sigma may be optax schedules.
        state: `es.init(params, key)`, also for a run that is resumed.
        fitness: `fitness(params, *batch)` → a scalar in JAX, maximised; or a `Step`: `Compiled` for models with state
            of their own, `Scored` for a fitness in Python.
        data: None, an iterable of batches (Grain's data sets and loaders among them), or a function of the generation's
            number; see `eggroll.training.data.as_source`.
        generations: updates in all, at least 1.
        epochs: passes over an iterable, at least 1; None: as many as the generations need. Default 1: the run ends with
            its data, and a warning says so. A generator has one pass, and more are refused.
        carry: the model's own state at the start, for a step that has such. Default: none.
        folder: where metrics, ledger and checkpoints go. Default None: nothing is written.
        resume: go on from the newest whole checkpoint in `folder`, from the start if there is no run yet. Default:
            False.
        overwrite: replace a run in `folder`. Default False.
        force: resume although settings changed. Default False: they are named, and refused.
        settings: what else decides the run (model, data, seed), as JSON; compared on resumption. Default: none.
        may_change: names of `settings` that are recorded and not compared. Default: none.
        saving: what is written, and how often. Default `Saving()`.
        evaluate: `evaluate(state, carry)` → numbers by name, added to the record of some generations.
        evaluate_every: generations between two evaluations; the first and the last one have one, too. Default 10.
        early_stopping: ends the run when a metric stands still. Default None.
        until: `until(state, carry)`, asked after every generation: True finishes the run. It has to give the same
            answer for the same arguments. Default None: all generations are made.
        seconds: ends the run after the first generation that ends later than this many seconds after the call.
            Default None. A clock that is set anew does not matter.
        started: called before the first generation with the number of those that the run goes on from, 0 for a new one.
        show: called with the record of every generation, which is a line of `metrics.jsonl`.
        progress: whether a bar (lines, where stderr is no terminal) shows how it goes. Default False. See `Meter`.
        asked_to_stop: asked after every generation; True ends the run. Default: SIGINT and SIGTERM.

    Returns:
        The result. A run whose data end, or in which no member has a finite fitness, ends with what it had; a warning
        of the logger `eggroll` says so.

    Raises:
        TypeError: no strategy, state or function where it is required, or what a callback may not return.
        RunError: the folder has no name, holds another run, is in use, or cannot be written; other settings; every
            checkpoint is damaged; another process is lost, or differs in what decides the run.
        ValueError: counts out of their range.

    Example:
        >>> import jax, jax.numpy as jnp, optax, eggroll
        >>> es = eggroll.ES(population=64, sigma=0.1, optimizer=optax.adam(0.1))
        >>> state = es.init({"w": jnp.zeros(3)}, jax.random.key(0))
        >>> fitness = lambda params, x: -jnp.sum((params["w"] - x) ** 2)
        >>> result = fit(es, state, fitness, lambda generation: jnp.ones(3), generations=40)
        >>> result.ended, bool(jnp.all(jnp.abs(result.state.params["w"] - 1) < 0.2))
        ('finished', True)
    """
    hooks = {"evaluate": evaluate, "until": until, "started": started, "show": show, "asked_to_stop": asked_to_stop}
    check_given(es, state, fitness, hooks, (settings, Mapping), (saving, Saving), (early_stopping, EarlyStopping))
    deadline = math.inf if seconds is None else time.perf_counter() + as_number("seconds=", seconds)
    generations, evaluate_every = as_count("generations", generations), as_count("evaluate_every", evaluate_every)
    epochs = None if epochs is None else as_count("epochs", epochs, hint=" Or None: as many as the generations need.")
    step = fitness if isinstance(fitness, Step) else Compiled(fitness)
    source = as_source(decided(es, step, state, carry, data), epochs)
    begun, saving = Place(state, jax.tree.map(_canonical, carry)), saving or Saving()
    with ExitStack() as stack:
        stack.enter_context(processes.watching())  # while the folder is opened, and the last save is made, too
        decides = {"generations": generations, "epochs": epochs, "evaluate_every": evaluate_every, "data": length(data)}
        decides |= {"evaluate": evaluate is not None, "until": until is not None, "folder": folder is not None}
        decides |= {"early_stopping": early_stopping and asdict(early_stopping), "fitness": type(step).__name__}
        decides |= {f"saving.{name}": getattr(saving, name) for name in ("every", "keep", "best", "score")}
        check_processes(es, begun, {**decides, "settings": dict(settings or {})})
        stop = asked_to_stop or stack.enter_context(StopRequest()).was_asked
        store, shows = None, [] if show is None else [show]
        if folder is not None:
            check_path("folder", folder)
            options = {"resume": resume, "overwrite": overwrite, "force": force}
            opening = Opening(Path(folder), es, saving, settings or {}, frozenset(may_change), **options)
            store = stack.enter_context(opening.opened(begun))
        place = begun if store is None else store.place
        if started is not None:
            started(place.generation)
        if progress and processes.is_main():
            shows.append(stack.enter_context(Meter.plain(generations, place.generation)).update)
        loop = _Loop(
            es, step, source, store, generations, until, evaluate, evaluate_every, early_stopping, deadline, shows, stop
        )
        return loop.run(place, saving.score, begun.generation)


def _canonical(leaf: object) -> object:
    """Numbers and NumPy's arrays in the dtypes that JAX keeps, so that what is saved fits what is begun with."""
    if not isinstance(leaf, bool | int | float | complex | np.ndarray | np.generic):
        return leaf
    return np.asarray(leaf, jax.dtypes.canonicalize_dtype(np.asarray(leaf).dtype))


@dataclass
class _Loop:
    es: Strategy
    step: Step
    source: Source
    store: Store | None
    generations: int
    until: Callable[[State, PyTree], bool] | None
    evaluate: Evaluate | None
    evaluate_every: int
    early_stopping: EarlyStopping | None
    deadline: float
    shows: list[Callable[[Record], None]]
    asked_to_stop: Callable[[], bool]

    def run(self, place: Place, score: str, begun: int) -> Result:
        """Makes generations until something ends them."""
        self.begun = begun
        self.resumed, self.score, self.place, self.measured = place.generation, score, place, False
        self.last = time.perf_counter()
        if place.data is not None:
            self.source.seek(place.data)
        try:
            ended = self._generations()
        except KeyboardInterrupt:
            ended = AT_ONCE
            processes.part()  # the others may be waiting for this one, who must not wait for them
        except FloatingPointError as why:
            ended = str(why)
            self._warn(ended)
            self._save_last()
        except Exception as why:
            if processes.count() == 1:  # others could not take part
                with suppress(RunError):  # the error on its way says more
                    self._save_last()
            if isinstance(why, RunError):
                why.result = self._result(str(why))
            raise
        return self._result(ended)

    def _result(self, ended: str) -> Result:
        return Result(self.place.state, self.place.carry, ended, self.place.seconds, self.resumed)

    def _generations(self) -> str:
        ended = self._ended_before()
        while ended is None:
            batch = self._next()
            ended = OUT_OF_DATA if batch is None else self._one(batch)
        self._save_last()
        return ended

    def _next(self) -> tuple | None:
        """The next batch; None at the end of the data, to which all processes have to come together."""
        try:
            batch = self.source.next()
        except StopIteration:
            batch = None
        told = "none: the data have ended" if batch is None else outline(batch)
        processes.same(told, f"data of generation {self.place.generation + 1}")
        if batch is None:
            taken = self.place.generation - self.begun
            self._warn(
                f"its data ended with {taken} batch{'' if taken == 1 else 'es'}. Give more, or of data that can be "
                "started again, such as a list, more epochs (epochs=None: as many as it takes); a run in a folder then "
                "goes on with resume=True."
            )
        return batch

    def _warn(self, why: str) -> None:
        """Says that the run ends before its last generation for a reason that nobody asked for."""
        if processes.is_main():
            LOGGER.warning("the run ends after %d of %d generations: %s", self.place.generation, self.generations, why)

    def _ended_before(self) -> str | None:
        """Why a resumed run has nothing to do, or None."""
        if self.place.generation >= self.generations or self._enough(self.place.state, self.place.carry):
            return FINISHED
        stopping = self.early_stopping
        return STOPPED_EARLY if stopping is not None and self.place.seen.since >= stopping.patience else None

    def _enough(self, state: State, carry: PyTree) -> bool:
        return self.until is not None and as_flag("until(state, carry)", self.until(state, carry))

    def _save_last(self) -> None:
        if self.store is not None:
            self.store.reached(self.place, last=True)

    def _one(self, batch: tuple) -> str | None:
        """Makes one generation; returns why it is the last, or None."""
        with processes.watching(self.place.generation + 1):
            return self._generation(batch)

    def _generation(self, batch: tuple) -> str | None:
        place = self.place
        made = self.step(self.es, place.state, place.carry, batch)
        state, carry, metrics = check_made(made, (*RECORDED, "nonfinite", *self.step.recorded))
        self.es.standstill.watch(dict(metrics))  # a step may be compiled, with no one to say it
        if place.generation == self.resumed:  # now it is compiled, and each process has tried its kernels
            processes.same(chosen, "kernels", f"Set {SWITCH}=off in all of them: then XLA does the work everywhere.")
        record = self._record(state, carry, metrics)
        now = time.perf_counter()
        spent, self.last = now - self.last, now
        record["members_per_second"] = round(self.es.population / spent, 1)
        record["seconds"] = round(place.seconds + spent, 3)
        seen = replace(place.seen)
        hopeless = self.early_stopping is not None and seen.hopeless(self.early_stopping, record)
        score = record.get(self.score)
        score = score if score is not None and math.isfinite(score) else place.score
        reached = Place(state, carry, self.source.position(), place.seconds + spent, seen, score)
        if self.store is not None:
            self.store.log(record, metrics, carry)
        self.place = reached  # only now: what a failing disk has no record of must not be saved as made
        for show in self.shows:
            show(record)
        ended = self._why_end(hopeless)
        if ended is None and self.store is not None:
            self.store.reached(self.place)
        return ended

    def _record(self, state: State, carry: PyTree, metrics: Metrics) -> Record:
        generation = int(state.generation)
        numbers = {name: plain(metrics[name]) for name in RECORDED}
        record = {"generation": generation, **numbers, "nonfinite": int(metrics["nonfinite"])}
        record |= {name: plain(metrics[name]) for name in self.step.recorded}
        due = generation in (1, self.generations) or generation % self.evaluate_every == 0 or self._enough(state, carry)
        if self.evaluate is not None and due:
            record |= measured(self.evaluate(state, carry), record)
        if due and not self.measured:
            check_measured(record, self.score, self.early_stopping)
            self.measured = True
        return record

    def _why_end(self, hopeless: bool) -> str | None:
        done = self.place.generation >= self.generations or self._enough(self.place.state, self.place.carry)
        late = time.perf_counter() > self.deadline
        mine = 4 * done or 3 * hopeless or 2 * as_flag("asked_to_stop()", self.asked_to_stop()) or 1 * late
        # One process's reason is that of all.
        reasons = (None, OUT_OF_TIME, INTERRUPTED, STOPPED_EARLY, FINISHED)
        return reasons[int(gather(np.array(mine, np.uint8)).max())]
