"""The folder of a run, opened: as a new run, or where an earlier one was last saved."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from eggroll.engine.annotations import Json
from eggroll.engine.checks import check_callback, check_function
from eggroll.extras import versions
from eggroll.strategy.protocol import Strategy
from eggroll.strategy.state import State, check_state
from eggroll.training import processes
from eggroll.training.checkpoints.manager import Checkpoints
from eggroll.training.errors import RunError, check_known
from eggroll.training.folder.arrays import by_path, read_arrays, save_arrays
from eggroll.training.folder.described import describe, held
from eggroll.training.folder.disk import check_own, not_writable
from eggroll.training.folder.files import FolderLock, write_text
from eggroll.training.folder.integrity import begin_manifest, check_run
from eggroll.training.folder.layout import (
    CHECKPOINTS,
    CONFIG,
    INITIAL,
    claim,
    clear,
    holds_result,
    holds_run,
    read_config,
    sweep,
)
from eggroll.training.folder.settings import as_json, check_same, differences
from eggroll.training.metrics import count_lines
from eggroll.training.processes.deciding import first_decides
from eggroll.training.processes.talk import outline
from eggroll.training.stopping import Place
from eggroll.training.store import RECORD, Saving, Store

LOGGER = logging.getLogger("eggroll")
ROUNDING = 1e-5  # between parameters drawn on two processors: a few units in the last place of float32


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
    settings: Mapping[str, object]
    may_change: frozenset[str]
    resume: bool
    overwrite: bool
    force: bool

    @contextmanager
    def opened(self, begun: Place) -> Iterator[Store]:
        """The open store, its place being where the run goes on from; `begun` where it does not.

        Raises:
            RunError: the folder is in use, holds a run of other settings, or cannot be read or written; a ledger is to
                begin half way.
        """
        if self.saving.ledger and begun.generation:
            raise RunError(
                f"got a state of generation {begun.generation} to begin with; a ledger starts from parameters alone. "
                "Begin with es.init(params, key), or without a ledger: saving=Saving(ledger=False)."
            )
        if before := first_decides(lambda: read_config(self.folder) if self.resume and holds_run(self.folder) else {}):
            self.es.go_on(before.get("strategy", {}))
        config = as_json({"options": dict(self.settings), "strategy": describe(self.es, begun.state.params)})
        with ExitStack() as stack:
            # What the first process finds holds for all: a shared disk may show files late.
            found = first_decides(lambda: self._prepare(stack, config))
            begun = self._begun_as_before(begun) if found["goes_on"] else begun
            checkpoints = Checkpoints(self.folder / CHECKPOINTS, keep=self.saving.keep, best=self.saving.best)
            place = self._newest(checkpoints, begun) if found["goes_on"] else begun
            # A change that was forced here or later is in the configuration, and not in the ledger up to here.
            forced = any(each["generation"] >= place.generation for each in found["past"])
            store = Store(
                self.folder,
                self.es,
                self.saving,
                settings=self.settings,
                begun=begun,
                place=place,
                changed=bool(found["changes"]) or self.force or forced,
                force=self.force,
                checkpoints=checkpoints,
            )
            stack.enter_context(store)
            if processes.is_main():  # only now: what the store refuses must not leave new settings behind
                self._write(config, begun, place, found)
            yield store

    def _prepare(self, stack: ExitStack, config: Mapping[str, object]) -> Json:
        """Claims, locks and clears the folder, in the first process; whether a run goes on, what changes, and did."""
        claim(self.folder, overwrite=self.overwrite, resume=self.resume)
        stack.enter_context(FolderLock(self.folder))
        claim(self.folder, overwrite=self.overwrite, resume=self.resume)  # a run may have begun and ended in between
        goes_on = self.resume and holds_run(self.folder)
        if goes_on:
            check_run(self.folder)
        changes = self._changes(config) if goes_on else []
        past = read_config(self.folder).get("changes", []) if goes_on else []
        sweep(self.folder)
        if not goes_on:
            clear(self.folder)
        check_own(self.folder / CHECKPOINTS)
        try:
            begin_manifest(self.folder)
        except OSError as why:
            raise not_writable(self.folder, why) from why
        return {"goes_on": goes_on, "changes": changes, "past": past}

    def _changes(self, config: Mapping[str, object]) -> list[str]:
        """How the settings differ from those in the folder."""
        before = read_config(self.folder)
        for line in differences(before.get("versions", {}), versions()):
            LOGGER.warning("resuming with other versions, so not necessarily bit for bit: %s", line)
        return check_same(before, config, may_change=self.may_change, force=self.force)

    def _begun_as_before(self, begun: Place) -> Place:
        """`begun` with the initial parameters of the run's start, where drawing them again rounded otherwise."""
        path, state = self.folder / INITIAL, begun.state
        if not self.saving.initial or processes.count() > 1 or not path.exists():
            return begun
        drawn = by_path(state.params)
        kept = read_arrays(path, {name: x.shape for name, x in drawn.items()}, "Restore it from a copy, or remove it.")
        kept = {name: _like(array, drawn[name]) for name, array in kept.items()}
        apart = [name for name, array in drawn.items() if array.tobytes() != kept[name].tobytes()]
        # What is further away are other parameters, which the ledger refuses by name.
        if not apart or not all(_to_rounding(drawn[name], kept[name]) for name in apart):
            return begun
        LOGGER.warning("initial parameters are rounded otherwise here: those of '%s' are taken", path)
        tree = jax.tree.structure(state.params)
        return replace(begun, state=self.es.init(tree.unflatten([kept[name] for name in drawn]), state.key))

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
        check_known("the record of a checkpoint", record, RECORD)
        try:
            return Place.recorded(found.state["state"], found.state["carry"], record, begun)
        except (KeyError, TypeError, ValueError) as why:
            raise RunError(
                f"the checkpoint of generation {found.generation} in '{self.folder}' has a record that no run writes "
                f"({type(why).__name__}: {why}). Bring it back from a copy, or remove it to go on from the one before."
            ) from why

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

    def _write(self, config: Json, begun: Place, place: Place, found: Json) -> None:
        """The configuration, where it is new, and the initial parameters."""
        past = [{**each, "generation": min(each["generation"], place.generation)} for each in found["past"]]
        if past != found["past"]:
            LOGGER.warning("settings that were forced later in the run hold from generation %d on", place.generation)
        now = [{"generation": place.generation, "differences": found["changes"]}] if found["changes"] else []
        if not found["goes_on"] or now or past != found["past"] or not place.generation:
            size = sum(x.size for x in jax.tree.leaves(begun.state.params))
            more = {"parameters": size, "versions": versions(), "checkpoint_every": self.saving.every}
            if past or now:
                more["changes"] = [*past, *now]
            write_text(self.folder / CONFIG, json.dumps({**config, **more}, indent=2) + "\n")
        if self.saving.initial and not (self.folder / INITIAL).exists():
            save_arrays(self.folder / INITIAL, by_path(begun.state.params))


def _like(kept: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """With the dtype, which NumPy's files do not know of bfloat16 and the like."""
    same = kept.dtype.kind == "V" and kept.dtype.itemsize == drawn.dtype.itemsize
    return kept.view(drawn.dtype) if same else kept


def _to_rounding(drawn: np.ndarray, kept: np.ndarray) -> bool:
    """Whether arrays are those of one drawing, on two processors or by two versions of a compiler."""
    if drawn.dtype != kept.dtype:
        return False
    wide = np.result_type(drawn.dtype, np.float32) if drawn.dtype.kind != "V" else np.float32
    one, other = drawn.astype(wide), kept.astype(wide)
    return bool(np.allclose(one, other, rtol=ROUNDING, atol=ROUNDING * float(np.abs(one).max(initial=0))))


def check_processes(es: Strategy, begun: Place, settings: Mapping[str, object]) -> None:
    """Compares between all processes of a run what decides its numbers, and what they wait for one another for.

    Args:
        es: the strategy.
        begun: where each process begins: its arrays and its key.
        settings: what else is to be the same, as JSON by name.

    Raises:
        RunError: something differs, in all of them.
    """
    if processes.count() == 1:
        return
    state, mesh = begun.state, es.settings.mesh
    leaves = jax.tree_util.tree_leaves_with_path(
        {"params": state.params, "opt_state": state.opt_state, "carry": begun.carry}
    )
    decides = {
        **settings,
        "strategy": {
            **describe(es, state.params),
            "mesh": None if mesh is None else dict(mesh.shape),
            "update": es.settings.update,
        },
        "generation": begun.generation,
        "key": np.asarray(jax.random.key_data(state.key)).tolist(),
        "arrays": {jax.tree_util.keystr(path): outline(leaf) for path, leaf in leaves},
        "begun": held(leaves),
        "versions": {k: value for k, value in versions().items() if k != "platform"},  # hosts may run other kernels
    }
    processes.same(as_json(decides), "settings or versions")


TWO, ONE = dict.fromkeys(("evaluate", "until"), "state, carry"), {"started": "generation", "show": "record"}


def check_given(
    es: object, state: object, fitness: object, callbacks: Mapping[str, object], *options: tuple[object, type]
) -> None:
    """Raises TypeError unless `fit` has a strategy, a state and a fitness, and all else it was given is of its kind."""
    usage = "fit(es, state, fitness, data, generations=...)"
    if not isinstance(es, Strategy):
        raise TypeError(f"got {type(es).__name__} as the strategy; an eggroll.ES or FullRankES is required: {usage}.")
    if not isinstance(state, State):  # of a model, too, which `check_state` leaves to its own strategy
        check_state(state)
    check_function("fitness", fitness, usage)  # a step can be called, too
    for name, fun in callbacks.items():
        check_callback(name, fun, (TWO | ONE).get(name, ""))
    for value, kind in options:
        if not isinstance(value, kind | None):
            raise TypeError(f"got {type(value).__name__} where `fit` takes a {kind.__name__} or None.")


def check_made(made: Any, names: Iterable[str]) -> Any:
    """`made`; raises TypeError unless a step returned a state, what is carried along, and metrics of these names."""
    if not (isinstance(made, tuple) and len(made) == 3 and isinstance(made[0], State) and isinstance(made[2], Mapping)):
        got = f"({', '.join(type(x).__name__ for x in made)})" if isinstance(made, tuple) else type(made).__name__
        raise TypeError(
            f"got {got} from the step; (state, carry, metrics) is required: State and metrics that es.step or es.tell "
            "returned, and between them what the model carries along, () for nothing."
        )
    if missing := sorted(set(names) - made[2].keys()):
        own = "required, with the step's own (Step.recorded) added."
        got = f"got metrics without {', '.join(missing)} from the step"
        raise TypeError(f"{got}; those that es.step or es.tell returned are {own}")
    return made
