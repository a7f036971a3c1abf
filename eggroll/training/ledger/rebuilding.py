"""Rebuilds the parameters of any generation from a base and a ledger, without evaluating anything."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from eggroll.engine.annotations import Function, PyTree
from eggroll.strategy.evaluate.tracing import InAxes
from eggroll.strategy.members import Evaluated
from eggroll.strategy.noise.keys import as_threefry
from eggroll.strategy.plan.leaves import Plan
from eggroll.strategy.population import Sharding
from eggroll.strategy.protocol import Norms, Strategy
from eggroll.strategy.state import State
from eggroll.strategy.update.optimizer import check_optimizer
from eggroll.training.errors import RunError
from eggroll.training.ledger.base import check_base, check_plan, in_order, load_arrays
from eggroll.training.ledger.format import Generation as Record
from eggroll.training.ledger.mesh import mesh_like
from eggroll.training.ledger.reader import Carried, Reader, Settings
from eggroll.training.ledger.settings import check_format, elsewhere, plan_from_json, strategy_of
from eggroll.training.optimizers import NamedOptimizer, from_spec

Update = Callable[[State, Record], tuple[State, Norms]]
LOGGER = logging.getLogger("eggroll")
RUN = "run"  # a mesh like that of the run
TOLERANCE = 1e-2  # between norms of the same update on two platforms, which are equal to rounding


def replay(
    base: PyTree,
    ledger: Path | str,
    *,
    optimizer: optax.GradientTransformation | None = None,
    generation: int | None = None,
    on_generation: Callable[[State], object] | None = None,
    mesh: Mesh | str | None = None,
    sharding: Sharding = None,
    fitness: Function | None = None,
    data: Iterable[object] | Callable[[int], object] | None = None,
    in_axes: InAxes = None,
) -> State:
    r"""Rebuilds the state of a generation from the base parameters: noise again, weights from the ledger.

    Generation after generation `g = −1/(N·σ·√r)·Σ wᵢ·AᵢBᵢᵀ` goes to the optimizer, as in `ES.step`, in one compiled
    function. On the platform, the versions and the mesh of the run, parameters and optimizer state are bit-equal to the
    run's; elsewhere they are equal to rounding, and a warning is logged that names the differences.

    Args:
        base: the parameters that the run started from; a pytree, a flat dictionary of arrays by path, or the path of an
            `.npz` file of such, or of a run folder that has `initial.npz`.
        ledger: the file that a `Journal` wrote.
        optimizer: the run's, used where the ledger does not name it (see `eggroll.training.optimizers.named`). Default
            None.
        generation: number of updates to make, 0 for the base. Default None: all that the ledger has.
        on_generation: called with the state after every update.
        mesh: as in `ES`, for equal bits as the run's; devices sum up as they did in the run, by members or by weights.
            `"run"` makes one like it, of this process's devices, if they suffice. Default None: one device.
        sharding: as in `ES`. Default None: the run's, as far as the mesh has its axes.
        fitness: of a run with `noise="activations"`, whose gradients are made of it at its data: the run's
            `fitness_fn(params, *batch)`, or the `fun` of a `Scored`. Others need none.
        data: for `fitness`, as the run had it, from its start.
        in_axes: for the batch, likewise.

    Returns:
        The state; its parameters in the structure of `base`, those of a flat dictionary in the run's order.

    Raises:
        RunError: another base (its parameters are named), no optimizer or another, a generation that the ledger does
            not have, records that were altered, or settings of another version.

    Example:
        See `eggroll.training.ledger.journal.Journal`.
    """
    evaluated = None if fitness is None else _from_data(fitness, data, in_axes)
    made = Replay(base, ledger, optimizer=optimizer, mesh=mesh, sharding=sharding, evaluated=evaluated)
    state = made.run(generation, on_generation)
    if made.elsewhere:
        LOGGER.warning("replayed to rounding, not bit for bit: %s", "; ".join(made.elsewhere))
    return state


class Replay:
    """What `replay` does, and how well it went; for the arguments see there.

    Attributes:
        generations: updates made.
        inexact: updates of which a norm differs from the run's in some bit: none on the same platform.
        elsewhere: what is not as it was in the run, so that bits may differ: versions, platform, mesh.
        carried: what the run's model carried along after these updates, by path, where the ledger has it.
        state: after these updates; None before the ledger's settings were read.
        update: `(state, record)` → `(state, norms)`, compiled, for the settings that were read last.
    """

    def __init__(
        self,
        base: PyTree | Path | str,
        ledger: Path | str,
        *,
        optimizer: optax.GradientTransformation | None = None,
        mesh: Mesh | str | None = None,
        sharding: Sharding = None,
        evaluated: Evaluated | None = None,
    ) -> None:
        if isinstance(mesh, str) and mesh != RUN:
            raise RunError(f"got mesh={mesh!r}; a jax.sharding.Mesh, {RUN!r} or None is required.")
        self.generations = self.inexact = 0
        self.elsewhere: list[str] = []
        self._base, self._reader, self._given = base, Reader(ledger), optimizer
        self._mesh, self._sharding, self._evaluated = mesh, sharding, evaluated
        self.carried: Mapping[str, np.ndarray] = {}
        self.state: State | None = None
        self._plan: Plan | None = None
        self.update: Update

    def run(self, generation: int | None = None, on_generation: Callable[[State], object] | None = None) -> State:
        """The state after `generation` updates, or after all of them; see `replay`."""
        if generation is not None and generation < 0:
            raise RunError(f"got generation={generation}; a number of updates, at least 0, is required.")
        coming: Mapping[str, np.ndarray] = {}
        for entry in self._reader:
            if isinstance(entry, Settings):
                self._take(entry)
                continue
            if entry.generation == generation:
                break
            if isinstance(entry, Carried):
                coming = entry.arrays  # of the generation behind it, which may have been cut off
                continue
            self._move(entry)
            self.carried, coming = coming, {}
            if on_generation is not None:
                on_generation(self.state)  # type: ignore[arg-type]
        if self.state is None:
            raise RunError(f"'{self._reader.path}' has no whole record: nothing can be rebuilt from it.")
        if generation is not None and self.generations < generation:
            cut = f", {self._reader.cut} bytes of a record cut short left out" if self._reader.cut else ""
            raise RunError(
                f"got generation={generation}; '{self._reader.path}' ends with generation {self.generations}{cut}. "
                "Choose one up to that."
            )
        return self.state

    def _take(self, settings: Settings) -> None:
        """Makes the update of the generations from here on."""
        content = settings.content
        check_format(content)
        with self._understood("has settings that this version of eggroll does not understand"):
            plan = plan_from_json(content["plan"])
            check_plan(plan)
            es = self._strategy(content)
            update, sigma = es.replayed(plan, content["sigma"], self._evaluated), content["sigma"]
            self.update = _from_record(update, es.population, sigma)
            key = np.array(content["key"], np.uint32)
            if self.state is None:
                base = load_arrays(self._base, plan) if isinstance(self._base, str | Path) else self._base
                params = in_order(base, plan)
                check_base(params, plan, content["base"])
                self.state = es.first(params, plan, _key(key))
            if self._plan is not None:
                _check_fits(self.state, self._plan, plan, es, self.generations)
        self._base, self._plan = None, plan

    @contextmanager
    def _understood(self, what: str) -> Iterator[None]:
        """Whatever settings from a file lead to, be it deep in JAX, is told as their fault."""
        try:
            yield
        except (RunError, MemoryError):
            raise
        except Exception as why:
            raise RunError(f"'{self._reader.path}' {what} ({type(why).__name__}: {why}).") from why

    def _strategy(self, content: Mapping[str, Any]) -> Strategy:
        """The run's, on the replay's mesh."""
        if isinstance(self._mesh, str):  # at the first settings: later ones go on with the state of these
            self._mesh = mesh_like(content.get("mesh"))
        es = strategy_of(content, self._optimizer, self._mesh, self._sharding)
        if self._given is not None and not es.takes("optimizer"):
            raise RunError(f"got optimizer={self._given!r}; {es.method} ES has none. Leave optimizer out.")
        self._note(elsewhere(content, es.settings))
        return es

    def _note(self, differences: list[str]) -> None:
        self.elsewhere += [line for line in differences if line not in self.elsewhere]

    def _optimizer(self, spec: Any) -> optax.GradientTransformationExtraArgs:
        if spec is None and self._given is None:
            raise RunError(
                f"'{self._reader.path}' does not name its optimizer, which was none of "
                "eggroll.training.optimizers.named(...): give the one that the run had, replay(..., optimizer=...)."
            )
        if spec is None:
            return check_optimizer(self._given)
        if isinstance(self._given, NamedOptimizer) and self._given.spec != spec:
            raise RunError(
                f"got optimizer={self._given!r}; '{self._reader.path}' names {from_spec(spec)!r}. Leave optimizer out."
            )
        return check_optimizer(from_spec(spec))

    def _move(self, record: Record) -> None:
        assert self.state is not None  # the reader refuses generations without settings
        with self._understood(f"has settings of which generation {record.generation} cannot be made"):
            self.state, norms = self.update(self.state, record)
        self.generations += 1
        exact = True
        for name in ("gradient_norm", "update_norm"):
            got, was = np.asarray(norms[name]), getattr(record, name)
            exact &= got.tobytes() == was.tobytes()
            if not np.isclose(got, was, rtol=TOLERANCE, atol=0, equal_nan=True):
                raise RunError(
                    f"generation {record.generation} has {name.replace('_', ' ')} {got:.6g} in the replay, {was:.6g} "
                    f"in '{self._reader.path}': the optimizer is not the run's, or versions of eggroll or optax "
                    "differ in what they compute."
                )
        self.inexact += not exact


def _from_data(fitness: Function, data: Any, in_axes: InAxes) -> Evaluated:
    """The run's function with its batches, which are asked for generation by generation."""
    batches = iter(data) if isinstance(data, Iterable) else None

    def evaluated(generation: int) -> tuple[Function, tuple, InAxes]:
        if batches is None:
            batch = data(generation) if callable(data) else ()
        elif (batch := next(batches, batches)) is batches:
            raise RunError(f"got data that end before generation {generation}; give the run's, from their start.")
        return fitness, batch if type(batch) is tuple else (batch,), in_axes

    return evaluated


def _from_record(update: Callable[..., tuple[State, Norms]], population: int, sigma: float | None) -> Update:
    """`update`, for records that fit the settings, with their key."""

    def from_record(state: State, record: Record) -> tuple[State, Norms]:
        if len(record.weights) != population:
            raise RunError(
                f"generation {record.generation} has {len(record.weights)} members, but its settings a population of "
                f"{population}: they do not belong together."
            )
        if not record.sigma > 0 or (sigma is not None and record.sigma != record.sigma.dtype.type(sigma)):
            raise RunError(
                f"generation {record.generation} has sigma={record.sigma:.6g}, but its settings "
                f"{'a schedule' if sigma is None else sigma}: they do not belong together."
            )
        if record.key.tolist() != np.asarray(jax.random.key_data(state.key)).tolist():
            state = replace(state, key=_key(record.key))
        return update(state, record.weights, record.loss, record.sigma)

    return from_record


def _check_fits(state: Any, before: Plan, plan: Plan, es: Strategy, at: int) -> None:
    """Raises RunError where changed settings cannot go on with the state of those before."""
    same = [(leaf.path, leaf.shape, leaf.dtype) for leaf in before.leaves]
    fits = same == [(leaf.path, leaf.shape, leaf.dtype) for leaf in plan.leaves] and _frozen(before) == _frozen(plan)
    if fits:
        new = jax.eval_shape(lambda p: _beside(es.first(p, plan, state.key)), state.params)
        fits = jax.tree.map(_layout, new) == jax.tree.map(_layout, _beside(state))
    if not fits:
        raise RunError(
            f"the settings that the ledger changes to at generation {at} have other parameters, frozen ones or another "
            "optimizer state than those before: the state cannot be carried over. Replay up to that generation."
        )


def _beside(state: State) -> tuple[Any, Any]:
    return state.master, state.opt_state


def _layout(leaf: Any) -> str:
    return f"{leaf.dtype}{leaf.shape}"


def _frozen(plan: Plan) -> list[bool]:
    return [leaf.kind == "frozen" for leaf in plan.leaves]


def _key(words: np.ndarray) -> jax.Array:
    return as_threefry(jnp.asarray(words))
