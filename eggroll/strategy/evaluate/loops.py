"""The loops of one evaluation: pairs under vmap, chunks under scan, devices under shard_map."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from eggroll.engine.annotations import Index, PyTree, Scalar
from eggroll.engine.factored import Program, partition
from eggroll.engine.interpreter import Interpreter, Policy
from eggroll.strategy.evaluate.averages import Averages, Totals
from eggroll.strategy.evaluate.chunking import Arrangement
from eggroll.strategy.evaluate.planning import Member
from eggroll.strategy.evaluate.tracing import Rows
from eggroll.strategy.noise.sampler import Noise, Sampler, repeated
from eggroll.strategy.population import AXIS, Population
from eggroll.strategy.state import Placement


@dataclass(frozen=True)
class Evaluation:
    """Evaluates one program on all members; see `Generation.evaluate`."""

    population: Population
    sampler: Sampler
    program: Program
    split: Callable[[Any], tuple[PyTree, PyTree]]
    arrangement: Arrangement

    def everywhere(
        self, params: PyTree, rows: Rows, key: jax.Array, sigma: Scalar, words: Any
    ) -> tuple[PyTree, PyTree]:
        """All members on the current device."""
        averages = self._averages(params, rows)
        kept, totals = self._units(averages, params, rows, key, sigma, words, 0, self.population.units)
        return kept, averages.mean(totals)

    def on_mesh(
        self, placement: Placement, params: PyTree, rows: Rows, key: jax.Array, sigma: Scalar, words: Any
    ) -> tuple[PyTree, PyTree]:
        """Each device evaluates its share of the units; of the outputs only averages cross `"population"`."""
        mesh = placement.mesh
        share = self.population.units // mesh.shape[AXIS]
        params = placement.pinned_tree(params, params, placement.specs)
        arrays, merge, _ = partition((params, rows.args, key, sigma))
        averages = self._averages(params, rows)

        def local(arrays: list[Any], words: Any) -> tuple[Any, Totals]:
            params, args, key, sigma = merge(arrays)
            start = lax.axis_index(AXIS) * share
            rows_here = Rows(args, rows.axes, rows.population)
            kept, totals = self._units(averages, params, rows_here, key, sigma, words, start, share)
            sums, count = lax.psum((totals.sums, totals.count), AXIS) if totals.sums else (totals.sums, totals.count)
            return kept, Totals(sums, [x[None] for x in totals.firsts], count)

        each, whole = PartitionSpec(AXIS), PartitionSpec()
        out_specs, names = (each, Totals(whole, each, whole)), set(placement.manual)
        options: dict[str, Any] = {"mesh": mesh, "out_specs": out_specs, "axis_names": names, "check_vma": False}
        kept, totals = jax.shard_map(local, in_specs=(whole, each), **options)(arrays, words)
        totals = totals._replace(firsts=[x[0] for x in totals.firsts])  # of the first device
        kept = jax.tree.map(lambda x: lax.with_sharding_constraint(x, placement.on(each)), kept)
        return kept, placement.whole(averages.mean(totals))

    def _averages(self, params: PyTree, rows: Rows) -> Averages:
        def one(params: PyTree, *args: Any) -> PyTree:
            return self.split(self.program.evaluate(Interpreter(Policy("allow")), (params, *args)))[1]

        return Averages.of(one, self.split(self.program.out_shape)[1], params, self.sampler.plan, rows)

    def _units(
        self,
        averages: Averages,
        params: PyTree,
        rows: Rows,
        key: jax.Array,
        sigma: Scalar,
        words: Any,
        start: Index,
        n: int,
    ) -> tuple[Any, Totals]:
        """(kept outputs `[n·signs, ...]`, totals of the averaged outputs) of `n` units from `start` on."""
        signs, member = self.population.signs, self._member(params, rows, key, sigma)

        def chunk(first: Index, count: int) -> tuple[Any, Totals]:
            shared = self._shared(key, words, start, first, count)
            own = rows.of_members((start + first) * signs, count * signs)
            units = start + first + jnp.arange(count)
            if self.arrangement.copies:
                noise, who = shared, jnp.arange(count * signs) % signs
                kept, averaged = jax.vmap(member, in_axes=(0, None, 0, 0))(noise, start, who, own)
            else:
                kept, averaged = _of_units(member, signs, shared, units, own)
            return kept, averages.totals(averaged, _all_finite(kept, count * signs))

        return _in_chunks(chunk, n, min(self.arrangement.units, n))

    def some(
        self, params: PyTree, rows: Rows, key: jax.Array, sigma: Scalar, who: jax.Array, *, paired: bool
    ) -> PyTree:
        """Kept outputs of members `who [n]`, of which each has a row; `paired`: they are whole units in order."""
        signs, member = self.population.signs, self._member(params, rows, key, sigma)
        own, units = rows.of_members(0, len(who)), who // signs
        units = units[::signs] if paired else units
        noise = self.sampler.draw(self.sampler.streams.draw(key, units))
        if paired:
            return _of_units(member, signs, noise, units, own)[0]
        return jax.vmap(member)(noise, units, who % signs, own)[0]

    def _member(self, params: PyTree, rows: Rows, key: jax.Array, sigma: Scalar) -> Callable[..., Any]:
        """A function of a member's noise, unit, place in it and own rows that gives its outputs, split."""
        policy = Policy(self.population.fallback)

        def member(noise: Noise, unit: Index, index: Index, own: list[jax.Array]) -> tuple[PyTree, PyTree]:
            who = Member(noise, key, unit, index, sigma, self.population.relative)
            return self.split(who.evaluate(self.program, self.sampler, policy, params, rows.merged(own)))

        return member

    def _shared(self, key: jax.Array, words: Any, start: Index, first: Index, count: int) -> Noise:
        """Noise of a chunk's units, or of their members where each has a copy: of words, or a part of what is kept."""
        if words is None or isinstance(words, jax.Array):
            drawn = self.sampler.words(key, words, start, first, count)
            return self.sampler.draw(drawn, signs=self.population.signs if self.arrangement.copies else 0)
        chosen = jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, first, count), words)
        return repeated(chosen, self.population.signs) if self.arrangement.copies else chosen


def _of_units(member: Callable[..., Any], signs: int, noise: Noise, units: jax.Array, own: list[Any]) -> PyTree:
    """What each member of these units makes, which share their noise; `own` has their rows, `[units·signs, ...]`."""
    own = [x.reshape(len(units), signs, *x.shape[1:]) for x in own]
    unit = jax.vmap(member, in_axes=(None, None, 0, 0))
    outs = jax.vmap(unit, in_axes=(0, 0, None, 0))(noise, units, jnp.arange(signs), own)
    return jax.tree.map(lambda x: x.reshape(len(units) * signs, *x.shape[2:]), outs)


def _in_chunks(chunk: Callable[[Any, int], tuple[Any, Totals]], n: int, size: int) -> tuple[Any, Totals]:
    """Runs whole chunks under scan and the rest after it; the memory of one chunk is all that lives."""
    whole, left = divmod(n, size)
    if whole == 1:
        kept, totals = chunk(0, size)
    else:
        shapes = jax.eval_shape(lambda: chunk(0, size)[1])
        zeros = jax.tree.map(lambda s: lax.full(s.shape, 0, s.dtype), shapes)

        def step(carry: Totals, i: Index) -> tuple[Totals, Any]:
            kept, new = chunk(i * size, size)
            return _add(carry, new, i == 0), kept

        totals, kept = lax.scan(step, zeros, jnp.arange(whole))
        kept = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), kept)
    if left:
        last, new = chunk(whole * size, left)
        kept = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), kept, last)
        totals = _add(totals, new, False)
    return kept, totals


def _add(total: Totals, new: Totals, is_first: Index) -> Totals:
    sums = [a + b for a, b in zip(total.sums, new.sums, strict=True)]
    firsts = [jnp.where(is_first, b, a) for a, b in zip(total.firsts, new.firsts, strict=True)]
    return Totals(sums, firsts, total.count + new.count)


def _all_finite(kept: Any, members: int) -> jax.Array:
    """`[members]` bool: which have finite kept outputs."""
    finite = jnp.ones(members, bool)
    for leaf in jax.tree.leaves(kept):
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            finite = finite & jnp.isfinite(leaf).reshape(members, -1).all(1)
    return finite
