"""A function, its parameters and its other arguments: which have a row per member, traced and checked."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from eggroll.engine import jax_compat
from eggroll.engine.annotations import Function, Index, PyTree, Scalar
from eggroll.engine.factored import Program, abstract, discover, is_array, partition, trace
from eggroll.engine.interpreter import DenseFallback, Interpreter, Policy
from eggroll.engine.paths import leaf_paths
from eggroll.ops import Choice
from eggroll.strategy.activations.noise import Seen, Streams
from eggroll.strategy.activations.sites import find_sites, walked
from eggroll.strategy.noise.sampler import Noise, Sampler, member_sign
from eggroll.strategy.plan.leaves import LeafPlan, Plan, dense_matrices, make_plan
from eggroll.strategy.plan.rules import Rules, match_rules
from eggroll.strategy.population import Population
from eggroll.strategy.state import for_mesh

InAxes = Any  # None, an int, or a pytree prefix of the arguments with such leaves


@dataclass(frozen=True)
class Rows:
    """The arguments of the evaluated function, with the axis that runs over members for each array.

    Attributes:
        args: the positional arguments after the parameters.
        axes: for each array leaf, the axis that holds one row per member or group, or None where it is shared.
        population: number of members.
    """

    args: tuple
    axes: tuple[int | None, ...]
    population: int

    def of_members(self, first: Index, count: int) -> list[Any]:
        """The rows of members `first` to `first + count − 1`, `[count, ...]` of each array that has rows.

        Group `g` is members `g·N/G` to `(g+1)·N/G − 1`.
        """
        arrays, _, _ = partition(self.args)
        return [
            self._rows(a, axis, first, count) for a, axis in zip(arrays, self.axes, strict=True) if axis is not None
        ]

    def _rows(self, array: Any, axis: int, first: Index, count: int) -> Any:
        if array.shape[axis] == self.population:  # neighbours: a slice, where a gather would go number by number
            return jnp.moveaxis(lax.dynamic_slice_in_dim(array, first, count, axis), axis, 0)
        groups = (first + jnp.arange(count)) // (self.population // array.shape[axis])
        return jnp.moveaxis(jnp.take(array, groups, axis, mode="clip"), axis, 0)

    def merged(self, own: Sequence[Any]) -> tuple:
        """The arguments that one member sees: its own rows, from `of_members`, beside what all share."""
        arrays, merge, _ = partition(self.args)
        rest = iter(own)
        return merge([a if axis is None else next(rest) for a, axis in zip(arrays, self.axes, strict=True)])

    def after(self, shared: Any) -> Rows:
        """These rows with one more argument in front, which all members share."""
        none = (None,) * len(partition(shared)[0])
        return Rows((shared, *self.args), none + self.axes, self.population)

    def arrays_alone(self) -> Rows:
        """These rows for a function that is traced: leaves that are no arrays are in its program already."""
        args = jax.tree.map(lambda leaf: leaf if is_array(leaf) else 0, self.args)
        return Rows(args, self.axes, self.population)

    def abstract(self) -> tuple:
        """Shapes of one member's arguments."""
        arrays, merge, _ = partition(self.args)
        shapes = []
        for array, axis in zip(arrays, self.axes, strict=True):
            shape = abstract(array)
            if axis is not None:
                kept = [n for i, n in enumerate(shape.shape) if i != axis]
                shape = jax.ShapeDtypeStruct(kept, shape.dtype)
            shapes.append(shape)
        return merge(shapes)


def make_rows(args: tuple, in_axes: InAxes, population: int, groups: int) -> Rows:
    """Matches `in_axes` with the arguments.

    Args:
        args: positional arguments after the parameters.
        in_axes: None (all shared), an int (every array), or a tuple with an entry per argument, each None, an int or
            a pytree prefix of that argument, as in `jax.vmap`.
        population: number of members.
        groups: number of groups; an array may have a row per member or per group.

    Returns:
        The rows.

    Raises:
        ValueError: a prefix that does not fit, an axis that is not there, or a wrong number of rows.
    """
    arrays, _, _ = partition(args)
    axes = _flat_axes(args, in_axes)
    for array, axis in zip(arrays, axes, strict=True):
        if axis is not None:
            _check_rows(abstract(array).shape, axis, population, groups)
    normal = [None if axis is None else axis % len(abstract(a).shape) for a, axis in zip(arrays, axes, strict=True)]
    return Rows(args, tuple(normal), population)


def _flat_axes(args: tuple, in_axes: InAxes) -> list[int | None]:
    if in_axes is None or isinstance(in_axes, int):
        in_axes = (in_axes,) * len(args)
    if not isinstance(in_axes, tuple | list) or len(in_axes) != len(args):
        raise ValueError(
            f"got in_axes={in_axes!r} for {len(args)} argument(s) after the parameters; None, an int, or one entry "
            "per argument is required."
        )
    flat: list[int | None] = []
    for prefix, arg in zip(in_axes, args, strict=True):
        flat += _spread(prefix, arg)
    return flat


def _spread(prefix: Any, arg: Any) -> list[int | None]:
    def under(axis: int | None, subtree: Any) -> list[int | None]:
        return [axis] * len(partition(subtree)[0])

    if prefix is None or isinstance(prefix, int):
        return under(prefix, arg)
    try:
        parts = jax.tree.map(under, prefix, arg, is_leaf=lambda x: x is None)
    except ValueError as why:
        raise ValueError(f"in_axes entry {prefix!r} is not a prefix of its argument: {why}") from why
    return _flatten_lists(parts)


def _flatten_lists(parts: Any) -> list[int | None]:
    lists = jax.tree.leaves(
        parts, is_leaf=lambda x: isinstance(x, list) and all(i is None or isinstance(i, int) for i in x)
    )
    return [axis for part in lists for axis in part]


def _check_rows(shape: Sequence[int], axis: int, population: int, groups: int) -> None:
    if not -len(shape) <= axis < len(shape):
        raise ValueError(f"in_axes names axis {axis}, but the argument has shape {tuple(shape)}.")
    if shape[axis] not in (population, groups):
        per_group = f", or one per group ({groups})" if groups > 1 else ""
        raise ValueError(
            f"got {shape[axis]} rows along axis {axis} of an argument of shape {tuple(shape)}; one row per member "
            f"({population}){per_group} is required. Use in_axes=None for an argument that all members share."
        )


def trace_member(fun: Function, params: PyTree, rows: Rows) -> Program:
    """Traces `fun(params, *args)` as one member sees it."""
    return trace(fun, (params, *rows.abstract()))


def plan_for(program: Program, params: PyTree, rows: Rows, settings: Population, rank: int, rules: Rules) -> Plan:
    """Discovers how the program uses the parameters and decides their perturbation."""
    uses = discover(program, leaf_paths(params), (params, *rows.abstract()))
    plan = make_plan(params, uses, rank=rank, rules=rules)
    if settings.noise == "activations":
        plan, _ = with_sites(program, plan, params, rows, rules)
    policy = Policy(settings.fallback)
    for record in dense_matrices(plan, uses, rules, rank, settings.size):
        policy.tell(record)
    plan = for_kernels(program, plan, jax.tree.map(abstract, params), rows, settings.distribution)
    return for_mesh(plan, settings)


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
    """

    noise: Noise
    key: jax.Array
    unit: Index
    index: Index
    sigma: Scalar

    def evaluate(self, program: Program, sampler: Sampler, policy: Policy, params: PyTree, args: tuple) -> PyTree:
        """The program's output for this member."""
        sign, plan = member_sign(self.index), sampler.plan
        seen = sampler.perturb(params, self.noise, sign, self.sigma)
        if not plan.sites:
            return program.evaluate(Interpreter(policy), (seen, *args))
        streams = Streams.of(self.key, plan.sites, sampler.distribution)
        hook = Seen(streams, self.unit, sign, self.sigma)
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


def check_scalar(out: PyTree, has_aux: bool, what: str, *, rows: bool = False) -> None:
    """Raises unless a function that returns these shapes returns a real scalar, or `(scalar, aux)`.

    With `rows`, an array of any shape with a number in it will do.
    """
    if has_aux and not (isinstance(out, tuple) and len(out) == 2):
        raise TypeError(f"has_aux=True requires the function to return ({what}, aux); got {_describe(out)}.")
    value = out[0] if has_aux else out
    if not isinstance(value, jax.ShapeDtypeStruct):
        hint = "" if has_aux or value is None else "; pass has_aux=True for a function that returns a pair"
        raise TypeError(f"the function must return one scalar {what} per member; got {_describe(value)}{hint}.")
    if value.shape != () and not rows:
        raise ValueError(
            f"the function must return one scalar {what} per member; got shape {value.shape}. Reduce it, for "
            "instance with .mean()."
        )
    if math.prod(value.shape) == 0:
        raise ValueError(f"the function returned no {what}: got shape {value.shape}.")
    if jnp.issubdtype(value.dtype, jnp.complexfloating):
        raise TypeError(f"the {what} must be real; got {value.dtype}. Take its real part or its modulus.")


def _describe(tree: PyTree) -> str:
    if tree is None:
        return "None: a `return` may be missing"
    return str(jax.tree.structure(tree)) + " of shapes " + str([x.shape for x in jax.tree.leaves(tree)])


def split_aux(has_aux: bool) -> Callable[[Any], tuple[Any, Any]]:
    """Parts a member's output into its scalar and its auxiliary output."""
    return (lambda out: (out[0], out[1])) if has_aux else (lambda out: (out, ()))


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
