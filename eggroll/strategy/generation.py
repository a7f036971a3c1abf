"""One generation: evaluate every member, and sum their noise again for the update."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec

from eggroll.engine.annotations import Chunk, Flag, Function, Index, PyTree, Scalar
from eggroll.engine.factored import Program, partition
from eggroll.engine.lowrank import LowRank, accumulator_dtype, is_low_rank
from eggroll.strategy.activations.credit import Relation, relations
from eggroll.strategy.evaluate.chunking import Arrangement, Need, arrange, keep_words, may_copy, member_need, remembered
from eggroll.strategy.evaluate.compiled import Plans
from eggroll.strategy.evaluate.loops import Evaluation, undifferentiated
from eggroll.strategy.evaluate.tracing import Rows, check_covered
from eggroll.strategy.members import Draw
from eggroll.strategy.noise.sampler import Sampler, check_noise_is_seen, member_sign
from eggroll.strategy.plan.leaves import Plan
from eggroll.strategy.plan.parameters import full, put_back, rounded, without
from eggroll.strategy.population import AXIS, Population
from eggroll.strategy.state import Placement, State, make_placement, place
from eggroll.strategy.update.activations import sum_activations
from eggroll.strategy.update.low_rank import descent, sum_noise, sum_on_mesh
from eggroll.strategy.update.optimizer import updates

JOINED = 1 << 12  # numbers in a leaf: sums of more are in a library on CPUs, and nothing to compile


@dataclass(frozen=True)
class Ran:
    """What members were evaluated with.

    Attributes:
        program: the function of one member, traced.
        rows: its other arguments.
        told: whether fitness was made of its output elsewhere, row by row where there are several for a member.
    """

    program: Program
    rows: Rows
    told: bool = False

    def relations(self, plan: Plan, params: PyTree, losses: tuple[int, ...]) -> Sequence[Relation | None]:
        """Which of a member's losses depend on which rows of each site.

        Raises:
            ValueError: losses that are no rows of the output.
        """
        if self.told and not losses:
            return [()] * len(plan.sites)
        first = jax.tree.leaves(self.program.out_shape)[0]
        if first.shape[: len(losses)] != losses:
            raise ValueError(
                f"got fitness of shape {losses} for each member, from an output of shape {first.shape}: one number, or "
                "one for each row (and token), the output's first axes, is required."
            )
        found = relations(self.program, plan, params, self.rows.abstract())
        return [None if relation is None else relation[: len(losses)] for relation in found]


@dataclass(frozen=True)
class Generation:
    """One generation's members: everything needed to evaluate them and to sum their noise again.

    Attributes:
        population: who they are.
        plan: how each parameter is perturbed.
        key: typed threefry key of the generation.
        sigma: noise scale, a Python float or a traced scalar.
        ran: the function that the members were evaluated with and its other arguments, which the gradient from noise on
            outputs is made of.

    Raises:
        ValueError: a sigma that is zero in a parameter's dtype.
    """

    population: Population
    plan: Plan
    key: jax.Array
    sigma: Scalar
    ran: Ran | None = None

    def __post_init__(self) -> None:
        check_noise_is_seen(self.plan, self.sigma)

    @property
    def sampler(self) -> Sampler:
        """Draws this generation's noise."""
        return Sampler(self.plan, self.population.distribution, self.population.size)

    @cached_property
    def placement(self) -> Placement | None:
        """Where the parameters lie on the mesh; None without one."""
        pop = self.population
        return pop.mesh and make_placement(pop.mesh, pop.sharding, pop.update, self.plan.leaves)

    def on_every_device(self, tree: PyTree) -> PyTree:
        """Under `jit`, `tree` whole on every device of the mesh, so that every process can read it."""
        return tree if self.placement is None else self.placement.whole(tree)

    def member(self, params: PyTree, member: Index) -> PyTree:
        """`params` as member `member` sees them, with `LowRank` leaves."""
        signs = self.population.signs
        words = self.sampler.streams.draw(self.key, jnp.reshape(member // signs, 1))
        noise = self.sampler.draw_one(words)
        return self.sampler.perturb(params, noise, member_sign(member % signs), self.sigma)

    def words(self) -> jax.Array | None:
        """The random words of all units, to be made once for evaluation and update; None where they are too many."""
        pop = self.population
        streams = self.sampler.streams
        if not keep_words(4 * streams.words * pop.units // self._devices):
            return None
        units = np.arange(pop.units, dtype=np.uint32)  # a constant: nothing to compile
        if pop.mesh is None:
            return streams.draw(self.key, units)
        each, whole = PartitionSpec(AXIS), PartitionSpec()
        mapped = jax.shard_map(streams.draw, mesh=pop.mesh, in_specs=(whole, each), out_specs=each, check_vma=False)
        return mapped(self.key, units)

    @property
    def _devices(self) -> int:
        mesh = self.population.mesh
        return 1 if mesh is None else mesh.shape[AXIS]

    def arrangement(self, program: Program, params: PyTree, rows: Rows) -> Arrangement:
        """How many units are evaluated at once on a device, and whether their members share noise."""
        pop, sampler = self.population, self.sampler
        if pop.chunk != "auto" and not may_copy(pop, sampler):
            need = Need()
        else:
            # The jaxpr's text names everything that the need depends on: shapes, dtypes and operations.
            where = jax.default_backend(), jax.local_devices()[0].device_kind
            key = (str(program.jaxpr), self.plan, rows.axes, pop.distribution, where)
            need = remembered(key, lambda: member_need(sampler, program, params, rows))
        return arrange(pop, sampler, need, pop.units // self._devices)

    def evaluate(
        self,
        program: Program,
        params: PyTree,
        rows: Rows,
        split: Callable[[Any], tuple[Any, Any]],
        arrangement: Arrangement | None = None,
        words: jax.Array | None = None,
    ) -> tuple[Any, Any]:
        """Evaluates `program` on every member.

        Args:
            program: the function of one member, traced.
            params: the parameters that the members share.
            rows: the other arguments.
            split: parts an output into (kept for every member, averaged over members).
            arrangement: how many at once; by default `arrangement(...)`.
            words: from `words()`; by default drawn anew, chunk by chunk.

        Returns:
            (outputs with a leading axis `population`, outputs averaged over the members whose kept outputs are
            finite, see `Averages`).
        """
        arrangement = arrangement or self.arrangement(program, params, rows)
        arrays, merge, _ = partition((params, rows.args))
        params, args = merge(undifferentiated(arrays))
        rows = replace(rows, args=args)
        run = Evaluation(self.population, self.sampler, program, split, arrangement)
        if self.placement is not None:
            return run.on_mesh(self.placement, params, rows, self.key, self.sigma, words)
        return run.everywhere(params, rows, self.key, self.sigma, words)

    def gradient(self, weights: jax.Array, params: PyTree, words: jax.Array | None = None) -> PyTree:
        """The descent direction `−1/(N·σ·√r)·Σ wᵢ·AᵢBᵢᵀ`, float32 or wider; zeros where nothing is perturbed.

        Args:
            weights: `[N]`, shaped fitness; `[N, *losses]` where noise on outputs is credited loss by loss.
            params: the parameters that the members share.
            words: from `words()`; by default drawn anew.

        Returns:
            A pytree as `params`.
        """
        pop, placement = self.population, self.placement
        rows, weights = weights, weights.reshape(len(weights), -1).mean(1) if weights.ndim > 1 else weights
        per_unit = weights[0::2] - weights[1::2] if pop.antithetic else weights
        if placement is None:
            sums = sum_noise(self.plan, self.sampler, per_unit, words, self.key, 0)
        else:
            sums = sum_on_mesh(placement, self.sampler, self.on_every_device(per_unit), words, self.key)
        flat = descent(self.plan, sums, pop.size, self.sigma)
        leaves, tree = jax.tree.flatten(params)
        if self.plan.sites:
            for i, total in self._at_sites(rows, params).items():
                losses = max(rows[0].size, 1)  # whose mean is what the gradient is of
                flat[i] = total / jnp.asarray(-pop.size * losses * self.sigma, total.dtype)
        gradient = [_or_zeros(g, p) for g, p in zip(flat, leaves, strict=True)]
        return tree.unflatten(gradient if placement is None else placement.pinned(gradient, placement.update_specs))

    def _at_sites(self, weights: jax.Array, params: PyTree) -> dict[int, jax.Array]:
        if self.ran is None:
            raise ValueError(
                'noise="activations" makes its gradient of the function and its arguments, and got none: use es.step, '
                "or es.tell with members that the function was applied to."
            )
        arrays, merge, _ = partition((params, self.ran.rows.args))
        params, args = merge(undifferentiated(arrays))
        found = self.ran.relations(self.plan, params, weights.shape[1:])
        given = self.population, self.plan, self.ran.program, self.key, weights, found, params
        return sum_activations(*given, replace(self.ran.rows, args=args), self.placement)


def _or_zeros(gradient: PyTree, param: Any) -> jax.Array:
    if gradient is not None:
        return gradient
    floating = jnp.issubdtype(param.dtype, jnp.floating)
    return jnp.zeros(param.shape, accumulator_dtype(param.dtype) if floating else param.dtype)


def moved_if(
    some: Flag,
    optimizer: optax.GradientTransformationExtraArgs,
    generation: Generation,
    state: State,
    weights: jax.Array,
    words: jax.Array | None,
    loss: Scalar,
) -> tuple[State, dict[str, jax.Array]]:
    """The state after one update, if there is one to make.

    Args:
        some: bool scalar; if it is false, the state stays as it is.
        optimizer: turns the gradient into a change of the parameters.
        generation: whose members the weights belong to.
        state: before the update.
        weights: `[N]`, shaped fitness.
        words: from `Generation.words`, or None to draw the noise anew.
        loss: scalar, for optimizers that watch it.

    Returns:
        (the new state, the norms of gradient and update as float32: 0 if there was none).
    """
    still = [leaf.kind == "frozen" for leaf in generation.plan.leaves]
    placement = generation.placement

    def moved() -> tuple[State, dict[str, jax.Array]]:
        params = without(state.params, still)
        wide = full(params, state.master)
        gradient = without(generation.gradient(weights, state.params, words), still)
        if placement is not None:
            wide = placement.pinned_tree(wide, state.params, placement.update_specs)
        change, opt_state = updates(optimizer, gradient, state.opt_state, wide, loss)
        params, master = rounded(optax.apply_updates(wide, change), params)
        if placement is not None:  # rounded before they are made whole: half the bytes
            params = placement.pinned_tree(params, state.params, placement.update_specs)
        params = put_back(params, state.params, still)
        new = State(params, master, opt_state, state.key, state.generation + jnp.int32(1))
        norm = _norm if placement is None else _norm_of_split
        return _held(generation, new), {"gradient_norm": norm(gradient), "update_norm": norm(change)}

    none = {"gradient_norm": jnp.float32(0), "update_norm": jnp.float32(0)}
    # A branch, not a select for every array: those were a tenth of what has to be compiled.
    new, norms = jax.lax.cond(some, moved, lambda: (state, none))
    return _held(generation, new), norms


def _held(generation: Generation, state: State) -> State:
    """On a mesh, the state as `ES.init` placed it."""
    placement = generation.placement
    return state if placement is None else place(state, placement.of_state(state))


def _norm_of_split(tree: PyTree) -> jax.Array:
    """The norm of leaves that may be split over devices, each squared where it lies."""
    leaves = [x.astype(accumulator_dtype(x.dtype)) for x in jax.tree.leaves(tree)]
    return jnp.asarray(optax.tree.norm(leaves), jnp.float32)


def _norm(tree: PyTree) -> jax.Array:
    """The norm of all leaves together; small ones are joined first: each of their sums would be a kernel to compile."""
    leaves = [x.astype(accumulator_dtype(x.dtype)).ravel() for x in jax.tree.leaves(tree)]
    small = [x for x in leaves if x.size < JOINED]
    large = [x for x in leaves if x.size >= JOINED]
    joined = [jnp.concatenate([x.astype(jnp.result_type(*small)) for x in small])] if small else []
    return jnp.asarray(optax.tree.norm(large + joined), jnp.float32)


@dataclass(frozen=True)
class LowRankDraw(Draw):
    """What `ES` makes members of: all of them in one batched pass, in chunks.

    Attributes:
        plans: of the strategy.
    """

    plans: Plans

    def plan_for(self, params: PyTree, fun: Function | None = None, rows: Rows | None = None) -> Plan:
        """See `Draw.plan_for`."""
        return self.plans.plan_for(params, fun, rows)

    def apply(self, plan: Plan, params: PyTree, fun: Function, rows: Rows, chunk: Chunk | None) -> PyTree:
        """See `Draw.apply`."""
        settings = self.settings if chunk is None else replace(self.settings, chunk=chunk)
        program = self.cache.program(fun, params, rows)
        rows = rows.arrays_alone()
        axes = rows.axes

        def run(params: PyTree, args: tuple, key: jax.Array, sigma: Scalar) -> Any:
            rows = Rows(args, axes, settings.size)
            check_covered(plan, program, params, rows)
            generation = Generation(settings, plan, key, sigma)
            return generation.evaluate(program, params, rows, lambda out: (out, ()))[0]

        return self.cache(run, ("apply", program, plan, axes, settings.chunk), params, rows.args, self.key, self.sigma)

    def member(self, plan: Plan, params: PyTree, i: Index) -> PyTree:
        """See `Draw.member`."""
        settings = self.settings  # not self: what is compiled is kept, its arrays must not be

        def run(params: PyTree, i: Index, key: jax.Array, sigma: Scalar) -> Any:
            seen = Generation(settings, plan, key, sigma).member(params, i)
            return jax.tree.map(lambda x: x.dense() if isinstance(x, LowRank) else x, seen, is_leaf=is_low_rank)

        return self.cache(run, ("materialize", plan), params, jnp.asarray(i), self.key, self.sigma)

    def gradient(self, plan: Plan, params: PyTree, weights: jax.Array) -> PyTree:
        """See `Draw.gradient`."""
        return Generation(self.settings, plan, self.key, self.sigma).gradient(weights, params)
