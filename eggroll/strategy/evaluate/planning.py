"""What happens to a function's parameters: the plan, what one member sees, and what that makes dense."""

from __future__ import annotations

import math
import weakref
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from eggroll.engine import jax_compat
from eggroll.engine.annotations import Function, Index, PyTree, Scalar
from eggroll.engine.factored import Program, Use, abstract, discover, partition
from eggroll.engine.interpreter import DenseFallback, Interpreter, Policy
from eggroll.engine.paths import leaf_paths
from eggroll.ops import Choice
from eggroll.strategy.activations.noise import Seen
from eggroll.strategy.activations.sites import find_sites, walked
from eggroll.strategy.activations.streams import Streams
from eggroll.strategy.evaluate.compiled import CompiledCache, Recent
from eggroll.strategy.evaluate.tracing import Rows, all_at_once
from eggroll.strategy.noise.sampler import Noise, Sampler, member_sign
from eggroll.strategy.plan.leaves import LeafPlan, Plan, make_plan
from eggroll.strategy.plan.rules import DenseRule, Rules, Small, match_rules
from eggroll.strategy.population import Population
from eggroll.strategy.state import for_mesh


def plan_for(
    program: Program,
    params: PyTree,
    rows: Rows,
    settings: Population,
    rank: int,
    rules: Rules,
    small_layers: Small = "dense",
) -> Plan:
    """Discovers how the program uses the parameters and decides their perturbation."""
    uses = discover(program, leaf_paths(params), (params, *rows.abstract()))
    plan = make_plan(params, uses, rank=rank, rules=rules, small_layers=small_layers)
    if settings.noise == "activations":
        plan, _ = with_sites(program, plan, params, rows, rules)
    policy = Policy(settings.fallback)
    for record in dense_matrices(plan, uses, rules, rank, settings.size):
        policy.tell(record)
    plan = for_kernels(program, plan, jax.tree.map(abstract, params), rows, settings.distribution)
    return for_mesh(plan, settings)


def dense_matrices(
    plan: Plan, uses: Mapping[str, Sequence[Use]], rules: Rules, rank: int, members: int | None
) -> list[DenseFallback]:
    """Matrices that products use, but that get a number for every element, though no rule asks for it.

    Something before their product keeps no factors apart, or no side of them is apart there.
    """
    chosen = match_rules(rules, [leaf.path for leaf in plan.leaves])
    found = []
    for leaf in plan.leaves:
        if leaf.kind != "dense" or isinstance(chosen.get(leaf.path), DenseRule):
            continue
        # Layers that a loop walks are a stack: of vectors, it is no matrix, unless the loop makes one of them.
        stacks = [set(use.walked) & set(use.stack) for use in uses[leaf.path] if use.walked]
        whole = not stacks or any(use.whole for use in uses[leaf.path])
        layers = set() if whole else set.intersection(*stacks)
        own = [n for a, n in enumerate(leaf.shape) if a not in layers]
        factors = leaf.numbers // max(math.prod(own), 1) * rank * (math.prod(own[:-1]) + own[-1]) if own else 1
        matrix = sum(n > 1 for n in own) > 1 and leaf.numbers > factors
        if not matrix or not any(use.multiplied for use in uses[leaf.path]):
            continue
        use = next((u for u in uses[leaf.path] if u.kind == "elementwise"), uses[leaf.path][0])
        reason = "its noise has a number for every element: "
        reason += "nothing keeps two factors apart there" if use.kind == "elementwise" else "no axis of it is left over"
        size = math.prod(leaf.shape) * jnp.dtype(leaf.dtype).itemsize * (members or 1)
        found.append(DenseFallback(leaf.path, use.primitive, use.line, reason, size, members, leaf.numbers / factors))
    return found


def with_sites(program: Program, plan: Plan, params: PyTree, rows: Rows, rules: Rules) -> tuple[Plan, dict[str, str]]:
    """The plan in which parameters without a rule have noise on the outputs that they enter; and why others have not.

    The reasons are by path: what else is done with a parameter.
    """
    ruled = match_rules(rules, [leaf.path for leaf in plan.leaves])
    free = [i for i, leaf in enumerate(plan.leaves) if leaf.path not in ruled and leaf.kind in ("low_rank", "dense")]
    sites, refusals = find_sites(program, params, rows.abstract(), free)
    moved = {path for site in sites for path in site.paths}
    leaves = [
        LeafPlan(leaf.path, leaf.shape, leaf.dtype, "activations") if leaf.path in moved else leaf
        for leaf in plan.leaves
    ]
    return Plan(tuple(leaves), sites), refusals | dict.fromkeys(ruled, "a rule")


def at_sites(program: Program, plan: Plan, params: PyTree, rows: Rows) -> Plan:
    """A plan that is known but for its sites, with those of the program; raises ValueError where it has others."""
    sites, refusals = find_sites(program, params, rows.abstract(), plan.by_output)
    if refusals.keys() & {plan.leaves[i].path for i in plan.by_output}:
        raise ValueError("another function than the run's: it uses parameters in another way")
    return Plan(plan.leaves, sites)


@dataclass(frozen=True)
class Member:
    """Who sees the parameters.

    Attributes:
        noise: of the parameters, drawn for the unit.
        key: of the generation.
        unit: number of the member's unit.
        index: of the member in it: 0, or 1 for the second of a pair.
        sigma: noise scale.
        relative: whether noise on outputs is in units of their RMS.
    """

    noise: Noise
    key: jax.Array
    unit: Index
    index: Index
    sigma: Scalar
    relative: bool = False

    def evaluate(self, program: Program, sampler: Sampler, policy: Policy, params: PyTree, args: tuple) -> PyTree:
        """The program's output for this member."""
        sign, plan = member_sign(self.index), sampler.plan
        seen = sampler.perturb(params, self.noise, sign, self.sigma)
        with all_at_once(program):
            if not plan.sites:
                return program.evaluate(Interpreter(policy), (seen, *args))
            streams = Streams.of(self.key, plan.sites, sampler.distribution, sampler.members)
            hook = Seen(streams, self.unit, sign, self.sigma, self.relative)
            return walked(program, hook, policy, (seen, *args), plan.by_output)[0]


def check_covered(plan: Plan, program: Program, params: PyTree, rows: Rows) -> None:
    """Raises if the program reads parameters that the plan, made for the members' first function, holds for unused."""
    idle = [leaf.path for leaf in plan.leaves if leaf.kind == "unused" and math.prod(leaf.shape)]
    if not idle:
        return
    uses = discover(program, leaf_paths(params), (params, *rows.abstract()))
    late = [path for path in idle if uses[path]]
    if late:
        raise ValueError(
            f"the function uses {', '.join(late[:5])}, which the first function of these members did not use: the plan "
            "gives them no noise. Apply a function of all parameters first, or ask for other members."
        )


UNITS, SIGNS = 2, 2


class DryRun(NamedTuple):
    """What was found.

    Attributes:
        fallbacks: every place where a perturbation has to be made dense.
        choices: what computes with factors that stay keys.
    """

    fallbacks: Sequence[DenseFallback]
    choices: Sequence[Choice]

    def implementations(self, path: str) -> tuple[str, ...]:
        """Of the products of one parameter whose factors stay keys."""
        return tuple(dict.fromkeys(choice.implementation for choice in self.choices if choice.name == path))


def for_kernels(program: Program, plan: Plan, params: PyTree, rows: Rows, distribution: str) -> Plan:
    """The plan, in which only those factors stay keys that nothing but kernels uses.

    Anything else would draw them anew at every use: at every turn of a loop, where arrays are drawn once.
    """
    sampler = Sampler(plan, distribution, None)
    if not any(sampler.seeded(leaf) for leaf in plan.leaves):
        return plan
    found = dry_run(program, plan, params, rows, distribution, None)
    drawn = {choice.name for choice in found.choices if choice.implementation == "reference"}
    leaves = tuple(replace(leaf, matrix=None) if leaf.path in drawn else leaf for leaf in plan.leaves)
    return replace(plan, leaves=leaves)


def abstract_key() -> jax.ShapeDtypeStruct:
    """The shape of a generation's key."""
    return jax.ShapeDtypeStruct((), jax.eval_shape(lambda: jax.random.key(0, impl="threefry2x32")).dtype)


def dry_run(program: Program, plan: Plan, params: PyTree, rows: Rows, distribution: str, members: int | None) -> DryRun:
    """Traces the evaluation of two pairs.

    Args:
        program: the function of one member, traced.
        plan: how each parameter is perturbed.
        params: the parameters, or their shapes.
        rows: the other arguments, or their shapes.
        distribution: of the noise.
        members: population, for messages.

    Returns:
        What it is made of.
    """
    policy, sampler = Policy("allow"), Sampler(plan, distribution, members)
    args, merge, _ = partition(rows.abstract())
    own = [
        jax.ShapeDtypeStruct((UNITS, SIGNS, *a.shape), a.dtype) if axis is not None else a
        for a, axis in zip(args, rows.axes, strict=True)
    ]
    axes = [None if axis is None else 0 for axis in rows.axes]

    def run(words: jax.Array, params: PyTree, args: list[Any], key: jax.Array) -> Any:
        def member(noise: Any, unit: Index, index: Index, args: list[Any]) -> PyTree:
            return Member(noise, key, unit, index, 1.0).evaluate(program, sampler, policy, params, merge(args))

        pair = jax.vmap(member, in_axes=(None, None, 0, axes))
        units = jnp.arange(UNITS)
        return jax.vmap(pair, in_axes=(0, 0, None, axes))(sampler.draw(words), units, jnp.arange(SIGNS), args)

    words, key = jax.ShapeDtypeStruct((UNITS, sampler.streams.words), jnp.uint32), abstract_key()
    found = map(Choice.in_scope, jax_compat.name_stacks(jax.make_jaxpr(run)(words, params, own, key)))
    return DryRun(policy.records, [choice for choice in found if choice and choice.name])


class Plans:
    """One plan for each function, however often it is made anew, and each shape of its arguments."""

    def __init__(
        self, settings: Population, rank: int, rules: Rules, cache: CompiledCache, small_layers: Small
    ) -> None:
        self._settings, self._rank, self._rules, self._cache = settings, rank, rules, cache
        self._small_layers: Small = small_layers
        self._of_shapes = Recent()
        self._of_program: weakref.WeakKeyDictionary[Program, Plan] = weakref.WeakKeyDictionary()

    def plan_for(self, params: PyTree, fun: Function | None = None, rows: Rows | None = None) -> Plan:
        """The plan for a function; without one that of the last function of such parameters, else one by shapes."""
        if (fun is None or rows is None) and self._settings.noise == "activations":
            raise ValueError(
                'got no function for noise="activations", which is on the outputs that a function makes: apply one to '
                "the members first."
            )
        if fun is None or rows is None:
            last = self._of_shapes.used(_shapes(params))
            if last is not None:
                return last
            return make_plan(params, None, rank=self._rank, rules=self._rules, small_layers=self._small_layers)
        return self.of(self._cache.program(fun, params, rows), params, rows)

    def of(self, program: Program, params: PyTree, rows: Rows) -> Plan:
        """The plan for a program of such parameters."""
        shapes = _shapes(params)
        last: Plan | None = self._of_shapes.used(shapes)
        plan = self._of_program.get(program)
        if plan is None:
            of_shapes = jax.tree.map(abstract, params)
            plan = plan_for(program, of_shapes, rows, self._settings, self._rank, self._rules, self._small_layers)
            plan = self._of_program[program] = last if last is not None and plan == last else plan
        return self._of_shapes.keep(shapes, plan)


def _shapes(params: PyTree) -> Hashable:
    leaves, tree = jax.tree.flatten(params)
    return tree, tuple((tuple(x.shape), str(x.dtype)) for x in leaves)
