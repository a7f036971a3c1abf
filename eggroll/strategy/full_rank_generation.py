"""One generation of full-rank ES: its plan, every member's dense parameters, one at a time, and the update."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from eggroll.engine.annotations import Chunk, Flag, Function, Index, PyTree, Scalar
from eggroll.engine.interpreter import Interpreter, Policy
from eggroll.engine.paths import leaf_paths
from eggroll.strategy.evaluate.draw import Draw
from eggroll.strategy.evaluate.tracing import Rows
from eggroll.strategy.noise.dense import perturbed, unit_keys
from eggroll.strategy.noise.keys import as_threefry, generation_key
from eggroll.strategy.noise.sampler import check_noise_is_seen, member_sign
from eggroll.strategy.plan.leaves import LeafPlan, Plan, check_params, check_something_moves
from eggroll.strategy.plan.parameters import joined, parts_of
from eggroll.strategy.plan.rules import FrozenRule, LowRankRule, Rule, Rules
from eggroll.strategy.population import Population
from eggroll.strategy.state import State
from eggroll.strategy.update.dense import ROUNDING, moved, summed


def full_rank_plan(params: PyTree, rules: Rules) -> Plan:
    """Decides which parameters have noise.

    Args:
        params: pytree of arrays or shapes.
        rules: `(pattern, rule)` pairs, of which none is low-rank.

    Raises:
        TypeError: a leaf that is neither floating point nor complex, and not frozen.
        ValueError: a low-rank rule, a rule that matches nothing, no parameter left to perturb, or two paths with the
            same hash.
    """
    chosen = check_params(params, rules)
    paths, leaves = leaf_paths(params), jax.tree.leaves(params)
    plans = [_leaf_plan(path, leaf, chosen.get(path)) for path, leaf in zip(paths, leaves, strict=True)]
    check_something_moves(plans)
    return Plan(tuple(plans))


def _leaf_plan(path: str, leaf: Any, rule: Rule | None) -> LeafPlan:
    if isinstance(rule, LowRankRule):
        raise ValueError(
            f"got a low-rank rule for '{path}'; full-rank ES gives dense noise, or none by the rule \"frozen\". Use "
            "eggroll.ES for low-rank noise."
        )
    shape, dtype = tuple(leaf.shape), str(leaf.dtype)
    if isinstance(rule, FrozenRule):
        return LeafPlan(path, shape, dtype, "frozen")
    kind = "dense" if math.prod(shape) else "unused"
    return LeafPlan(path, shape, dtype, kind, sigma_scale=getattr(rule, "sigma_scale", 1.0))


@dataclass(frozen=True)
class FullRankGeneration:
    """Makes members and updates.

    Attributes:
        population: who the members are.
        plan: which parameters have noise: those that are `"dense"`.
        key: typed threefry key of the generation.
        sigma: noise scale, a Python float or a traced scalar.

    Raises:
        ValueError: a sigma that is zero in a parameter's dtype.
    """

    population: Population
    plan: Plan
    key: jax.Array
    sigma: Scalar

    def __post_init__(self) -> None:
        check_noise_is_seen(self.plan, self.sigma)

    @cached_property
    def _keys(self) -> list[jax.Array]:
        return unit_keys(self.key, self.plan, self.population.units)

    def buffers(self, params: PyTree) -> list[Any]:
        """Memory for a member's parameters: an array for each that has noise, else None."""
        each = zip(self.plan.leaves, jax.tree.leaves(params), strict=True)
        return [jnp.zeros_like(parts_of(p)) if leaf.kind == "dense" else None for leaf, p in each]

    def member(self, params: PyTree, i: Index, buffers: list[Any]) -> tuple[Any, list[Any]]:
        """The dense parameters of member `i`.

        Args:
            params: what all members share.
            i: the member.
            buffers: from `buffers` or from the last call, whose parameters are lost.

        Returns:
            (a pytree as `params`, its arrays for the next call).
        """
        leaves, tree = jax.tree.flatten(params)
        unit, sign = i // self.population.signs, member_sign(i % self.population.signs)
        made = list(buffers)
        for n, (leaf, param, old) in enumerate(zip(self.plan.leaves, leaves, buffers, strict=True)):
            if old is not None:
                scale = self.sigma * leaf.sigma_scale
                own = parts_of(param), self._keys[n], unit, sign, scale
                made[n] = perturbed(old, *own, distribution=self._distribution)
        return tree.unflatten([p if own is None else joined(own, p) for p, own in zip(leaves, made, strict=True)]), made

    def moved(self, state: State, weights: jax.Array, rate: Scalar, some: Flag) -> tuple[State, dict[str, jax.Array]]:
        """The state after one update, parameter after parameter.

        Args:
            state: before the update.
            weights: `[N]`, shaped fitness.
            rate: the learning rate α.
            some: False where there is nothing to follow, and the state is to stay as it is.

        Returns:
            (the new state, the norms of the gradient and of the update).
        """
        leaves, tree = jax.tree.flatten(state.params)
        rate = rate if some is True else jnp.where(some, rate, 0)
        # Not the noise's key, which may be that of the generation before.
        rounding = unit_keys(generation_key(as_threefry(state.key), state.generation), self.plan, 1, ROUNDING)
        new, sums, changes = [], [], []
        for leaf, param, own, other in zip(self.plan.leaves, leaves, self._keys, rounding, strict=True):
            if leaf.kind != "dense":
                new.append(param)
                continue
            scale = rate / (self.population.size * leaf.sigma_scale)
            given = parts_of(param), own, other[0], self._per_unit(weights), scale
            moved_leaf, total, change = moved(*given, distribution=self._distribution)
            new.append(joined(moved_leaf, param))
            sums.append(total / jnp.float32(leaf.sigma_scale) ** 2)
            changes.append(change)
        norms = _norms(sums, changes, self.population.size * self.sigma)
        generation = state.generation + jnp.asarray(some).astype(jnp.int32)
        return State(tree.unflatten(new), state.master, state.opt_state, state.key, generation), norms

    def gradient(self, weights: jax.Array, params: PyTree) -> PyTree:
        """The descent direction `−1/(N·σ)·Σ wᵢ·εᵢ`, float32 or wider; zeros where there is no noise."""
        leaves, tree = jax.tree.flatten(params)
        out = []
        for leaf, param, key in zip(self.plan.leaves, leaves, self._keys, strict=True):
            if leaf.kind == "dense":
                scale = -1.0 / (self.population.size * self.sigma * leaf.sigma_scale)
                like = jax.eval_shape(parts_of, param)
                part = summed(key, self._per_unit(weights), scale, distribution=self._distribution, like=like)
                out.append(joined(part, param))
            else:
                out.append(jnp.zeros_like(param))
        return tree.unflatten(out)

    @property
    def _distribution(self) -> str:
        return self.population.distribution

    def _per_unit(self, weights: jax.Array) -> jax.Array:
        return weights[0::2] - weights[1::2] if self.population.antithetic else weights


@jax.jit
def _norms(sums: list[jax.Array], changes: list[jax.Array], scale: Scalar) -> dict[str, jax.Array]:
    scale = jnp.asarray(scale).astype(jnp.float32)
    return {
        "gradient_norm": jnp.sqrt(sum(sums, jnp.float32(0))) / scale,
        "update_norm": jnp.sqrt(sum(changes, jnp.float32(0))),
    }


@dataclass(frozen=True)
class FullRankDraw(Draw):
    """What `FullRankES` makes members of: dense parameters, one member's at a time.

    Attributes:
        rules: of the strategy.
    """

    rules: Rules
    one_at_a_time = True

    def plan_for(self, params: PyTree, fun: Function | None = None, rows: Rows | None = None) -> Plan:
        """See `Draw.plan_for`."""
        return full_rank_plan(params, self.rules)

    def ready(self, plan: Plan, params: PyTree, fun: Function, rows: Rows, chunk: Chunk | None, held: Any) -> Function:
        """See `Draw.ready`: one compiled call after the other, of any function of dense parameters; nothing is kept."""
        return self._one_by_one(plan, params, fun, rows, np.arange(self.settings.size))

    def some(self, plan: Plan, params: PyTree, fun: Function, rows: Rows, who: np.ndarray) -> PyTree:
        """See `Draw.some`; one after the other."""
        return self._one_by_one(plan, params, fun, rows, who)(rows.arrays_alone().args)

    def _one_by_one(self, plan: Plan, params: PyTree, fun: Function, rows: Rows, who: np.ndarray) -> Function:
        generation, size = self._of(plan), len(who)
        program, axes = self.cache.program(fun, params, rows), rows.axes

        def run(params: PyTree, args: tuple, i: Index) -> Any:
            rows = Rows(args, axes, size)
            seen = params, *rows.merged([x[0] for x in rows.of_members(i, 1)])
            out = program.evaluate(Interpreter(Policy("allow")), seen)
            return jax.tree.map(lambda x: jnp.expand_dims(x, 0), out)  # never the parameters' own memory

        def all_of_them(args: tuple) -> PyTree:
            outputs, buffers = [], generation.buffers(params)
            for row, i in enumerate(who.tolist()):
                own, buffers = generation.member(params, i, buffers)
                outputs.append(self.cache(run, ("apply", program, axes, size), own, args, np.int32(row)))
            return _joined(outputs)

        return all_of_them

    def member(self, plan: Plan, params: PyTree, i: Index) -> PyTree:
        """See `Draw.member`: what `ready` evaluates, bit for bit."""
        generation = self._of(plan)
        return generation.member(params, i, generation.buffers(params))[0]

    def gradient(self, plan: Plan, params: PyTree, weights: jax.Array) -> PyTree:
        """See `Draw.gradient`: `−1/(N·σ)·Σ wᵢ·εᵢ`."""
        return self._of(plan).gradient(weights, params)

    def _of(self, plan: Plan) -> FullRankGeneration:
        return FullRankGeneration(self.settings, plan, self.key, self.sigma)


@jax.jit
def _joined(outputs: list[Any]) -> PyTree:
    return jax.tree.map(lambda *each: jnp.concatenate(each), *outputs)
