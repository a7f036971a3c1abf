"""One generation: evaluate every member, and sum their noise again for the update."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from eggroll.engine.factored import Program
from eggroll.engine.lowrank import accumulator_dtype
from eggroll.strategy import estimator
from eggroll.strategy.evaluate.arrangement import Arrangement, arrange, may_copy
from eggroll.strategy.evaluate.chunking import keep_words, remembered
from eggroll.strategy.evaluate.inputs import Rows
from eggroll.strategy.evaluate.loops import Evaluation
from eggroll.strategy.evaluate.working_set import Need, member_need
from eggroll.strategy.mesh.placement import Placement, make_placement
from eggroll.strategy.noise.sampler import Sampler, check_noise_is_seen, member_sign
from eggroll.strategy.plan.leaves import Plan
from eggroll.strategy.population import AXIS, Population
from eggroll.strategy.summing import sum_noise, sum_on_mesh


@dataclass(frozen=True)
class Generation:
    """One generation's members: everything needed to evaluate them and to sum their noise again.

    Attributes:
        population: who they are.
        plan: how each parameter is perturbed.
        key: typed threefry key of the generation.
        sigma: noise scale, a Python float or a traced scalar.

    Raises:
        ValueError: a sigma that is zero in a parameter's dtype.
    """

    population: Population
    plan: Plan
    key: jax.Array
    sigma: Any

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

    def on_every_device(self, tree: Any) -> Any:
        """Under `jit`, `tree` whole on every device of the mesh, so that every process can read it."""
        return tree if self.placement is None else self.placement.whole(tree)

    def member(self, params: Any, member: Any) -> Any:
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
        units = jnp.arange(pop.units)
        if pop.mesh is None:
            return streams.draw(self.key, units)
        each, whole = PartitionSpec(AXIS), PartitionSpec()
        mapped = jax.shard_map(streams.draw, mesh=pop.mesh, in_specs=(whole, each), out_specs=each, check_vma=False)
        return mapped(self.key, units)

    @property
    def _devices(self) -> int:
        mesh = self.population.mesh
        return 1 if mesh is None else mesh.shape[AXIS]

    def arrangement(self, program: Program, params: Any, rows: Rows) -> Arrangement:
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
        params: Any,
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
            finite). Averaged leaves that are not floating point are the first member's.
        """
        arrangement = arrangement or self.arrangement(program, params, rows)
        run = Evaluation(self.population, self.sampler, program, split, arrangement)
        if self.placement is not None:
            return run.on_mesh(self.placement, params, rows, self.key, self.sigma, words)
        return run.everywhere(params, rows, self.key, self.sigma, words)

    def gradient(self, weights: jax.Array, params: Any, words: jax.Array | None = None) -> Any:
        """The descent direction `−1/(N·σ·√r)·Σ wᵢ·AᵢBᵢᵀ`, float32 or wider; zeros where nothing is perturbed.

        Args:
            weights: `[N]`, shaped fitness.
            params: the parameters that the members share.
            words: from `words()`; by default drawn anew.

        Returns:
            A pytree as `params`.
        """
        pop, placement = self.population, self.placement
        per_unit = weights[0::2] - weights[1::2] if pop.antithetic else weights
        if placement is None:
            sums = sum_noise(self.plan, self.sampler, per_unit, words, self.key, 0)
        else:
            sums = sum_on_mesh(placement, self.sampler, self.on_every_device(per_unit), words, self.key)
        flat = estimator.descent(self.plan, sums, pop.size, self.sigma)
        leaves, tree = jax.tree.flatten(params)
        gradient = [_or_zeros(g, p) for g, p in zip(flat, leaves, strict=True)]
        return tree.unflatten(gradient if placement is None else placement.pinned(gradient, placement.update_specs))


def _or_zeros(gradient: Any, param: Any) -> jax.Array:
    if gradient is not None:
        return gradient
    floating = jnp.issubdtype(param.dtype, jnp.floating)
    return jnp.zeros(param.shape, accumulator_dtype(param.dtype) if floating else param.dtype)
