"""One generation: evaluate every member, and sum their noise again for the update."""

from __future__ import annotations

import math
from collections.abc import Callable
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
from eggroll.strategy.evaluate.chunking import Arrangement, Need, arrange, keep_words, may_copy, member_need, remembered
from eggroll.strategy.evaluate.draw import Draw
from eggroll.strategy.evaluate.loops import Evaluation
from eggroll.strategy.evaluate.planning import Plans, at_sites, check_covered
from eggroll.strategy.evaluate.tracing import Rows, make_rows
from eggroll.strategy.members import Evaluated
from eggroll.strategy.noise.sampler import Sampler, check_noise_is_seen, member_sign
from eggroll.strategy.plan.leaves import Plan
from eggroll.strategy.population import AXIS, Population
from eggroll.strategy.state import Placement, State, make_placement
from eggroll.strategy.update.activations import Ran, sum_activations
from eggroll.strategy.update.fitness import undifferentiated
from eggroll.strategy.update.low_rank import descent, sum_noise, sum_on_mesh
from eggroll.strategy.update.move import moved_if
from eggroll.strategy.update.written import Writes, reading, sum_written


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
        return self.sampler.perturb(params, self.sampler.draw_one(words), member_sign(member % signs), self.sigma)

    def words(self) -> jax.Array | None:
        """The random words of all units, to be made once for evaluation and update; None where they are too many."""
        pop, streams = self.population, self.sampler.streams
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
        words: Any = None,
    ) -> tuple[Any, Any]:
        """Evaluates `program` on every member.

        Args:
            program: the function of one member, traced.
            params: the parameters that the members share.
            rows: the other arguments.
            split: parts an output into (kept for every member, averaged over members).
            arrangement: how many at once; by default `arrangement(...)`.
            words: from `words()`, or noise that is kept, of all units; by default drawn anew, chunk by chunk.

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

    def moved_if(
        self,
        some: Flag,
        optimizer: optax.GradientTransformationExtraArgs,
        state: State,
        weights: jax.Array,
        words: jax.Array | None,
        loss: Scalar,
    ) -> tuple[State, dict[str, jax.Array]]:
        """The state after this generation's update, and the norms of gradient and update; see `moved_if`."""

        def gradient(params: PyTree) -> PyTree:
            return self.gradient(weights, params, words)

        return moved_if(some, optimizer, self.plan, self.placement, gradient, state, loss)

    def _at_sites(self, weights: jax.Array, params: PyTree) -> dict[int, jax.Array]:
        if self.ran is None:
            raise ValueError(
                'noise="activations" makes its gradient of the function and its arguments, and got none: use es.step, '
                "or es.tell with members that the function was applied to."
            )
        arrays, merge, _ = partition((params, self.ran.rows.args))
        params, args = merge(undifferentiated(arrays))
        if self.ran.wrote is not None:
            who = self.population, self.plan, self.ran.program, self.ran.wrote, self.key, self.sigma, weights, params
            return sum_written(*who, replace(self.ran.rows, args=args), self.placement)
        found = self.ran.relations(self.plan, params, weights.shape[1:])
        given = self.population, self.plan, self.ran.program, self.key, weights, found, params
        return sum_activations(*given, replace(self.ran.rows, args=args), self.placement)


def _or_zeros(gradient: PyTree, param: Any) -> jax.Array:
    if gradient is not None:
        return gradient
    floating = jnp.issubdtype(param.dtype, jnp.floating)
    return jnp.zeros(param.shape, accumulator_dtype(param.dtype) if floating else param.dtype)


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

    def ready(self, plan: Plan, params: PyTree, fun: Function, rows: Rows, chunk: Chunk | None, held: Any) -> Function:
        """See `Draw.ready`; noise is kept by plan."""
        who, program, axes = self.settings, self.cache.program(fun, params, rows), rows.axes  # not self: see `member`
        settings = who if chunk is None else replace(who, chunk=chunk)
        kept: dict[Plan, Any] | None = None if plan.sites or who.mesh is not None else held
        if kept is not None and plan not in kept:
            draw = Sampler(plan, who.distribution, who.size).all_noise
            kept[plan] = self.cache(draw, ("hold", plan), self.key, who.units)

        def run(params: PyTree, args: tuple, key: jax.Array, sigma: Scalar, noise: Any) -> Any:
            rows = Rows(args, axes, settings.size)
            check_covered(plan, program, params, rows)
            generation = Generation(settings, plan, key, sigma)
            return generation.evaluate(program, params, rows, lambda out: (out, ()), words=noise)[0]

        static = "apply", program, plan, axes, settings.chunk
        noise = None if kept is None else kept[plan]
        return lambda args: self.cache(run, static, params, args, self.key, self.sigma, noise)

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


def replayed_at_sites(
    settings: Population,
    optimizer: optax.GradientTransformationExtraArgs,
    key_of: Callable[[State], jax.Array],
    draw: Callable[[State], Draw],
    plan: Plan,
    sigma: float | None,
    evaluated: Evaluated | None,
) -> Callable[..., tuple[State, dict[str, jax.Array]]]:
    """`Strategy.replayed` of a run with noise on outputs, at the inputs that it had."""
    if evaluated is None:
        raise ValueError(
            'got a run with noise="activations", whose gradients are made of its data, which a ledger does not '
            "hold: give replay its fitness and data, or take the run's checkpoints or model"
        )

    def update(state: State, weights: jax.Array, loss: Scalar, recorded: Scalar) -> Any:
        fun, args, in_axes = evaluated(int(state.generation))
        rows, cache = make_rows(args, in_axes, settings.size, settings.groups), draw(state).cache
        program = cache.program(fun, state.params, rows)
        own, wrote = at_sites(program, plan, state.params, rows), None
        shape = jax.tree.leaves(program.out_shape)[0].shape
        losses = shape if weights.size == len(weights) * math.prod(shape) else ()
        if isinstance(fun, Writes):  # what was written is written again
            made = replace(draw(state), sigma=recorded if sigma is None else sigma)
            outputs = made.ready(own, state.params, fun, rows, None, None)(rows.arrays_alone().args)
            program, rows = reading(cache, fun, own, state.params, rows, outputs, settings.signs)
            losses, wrote = (), fun.wrote
        rows = rows.arrays_alone()
        axes, told = rows.axes, losses != shape

        def run(state: State, args: tuple, weights: jax.Array, loss: Scalar, recorded: Scalar, some: Flag) -> Any:
            scale = recorded if sigma is None else sigma
            ran = Ran(program, Rows(args, axes, settings.size), told, wrote)
            generation = Generation(settings, own, key_of(state), scale, ran)
            return generation.moved_if(some, optimizer, state, weights, generation.words(), loss)

        weights = jnp.asarray(weights).reshape(len(weights), *losses)
        given = state, rows.args, weights, jnp.asarray(loss), jnp.asarray(recorded), np.True_
        return cache(run, ("replay", program, own, axes, told, wrote, sigma), *given)

    return update
