"""Sites: where noise enters, found by walking the function once on shapes."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax

import eggroll.strategy.activations.loops  # noqa: F401  it fills the walk's table of loops
from eggroll.engine import jax_compat
from eggroll.engine.annotations import JaxprEqn, PyTree
from eggroll.engine.factored import Program, abstract, partition
from eggroll.engine.interpreter import Policy
from eggroll.engine.lowrank import as_perturbed, is_low_rank
from eggroll.engine.paths import leaf_paths
from eggroll.strategy.activations.walk import Frame, Hook, Linear, Walk, Where
from eggroll.strategy.plan.sites import Site


@dataclass
class Found:
    """What a walk on shapes found: a hook that looks on.

    Attributes:
        paths: of all parameters.
        sites: in the order of the walk.
        refusals: by parameter, where it is used otherwise than linearly.
    """

    paths: Sequence[str]
    sites: dict[Where, Site] = field(default_factory=dict)
    refusals: dict[str, str] = field(default_factory=dict)

    def site(self, made: Linear, frame: Frame) -> Any:
        """Notes the site; its value is that of the parameters."""
        assert made.eqn is not None
        paths = tuple(self.paths[i] for i in sorted(names_of(made, frame)))
        line, shape = jax_compat.source_line(made.eqn), tuple(made.value.shape)
        loops = tuple(length for _, length in frame.loops)
        name = made.eqn.primitive.name
        site = Site(made.where, paths, name, line, shape, str(made.value.dtype), loops)
        assert self.sites.setdefault(made.where, site) == site, f"two sites at {site.where}"
        return made.value

    def refused(self, made: Linear, frame: Frame, eqn: JaxprEqn | None) -> None:
        """Notes why parameters get weight noise."""
        what = "it is returned" if eqn is None else f"`{eqn.primitive.name}` at {jax_compat.source_line(eqn)}"
        for i in names_of(made, frame):
            self.refusals.setdefault(self.paths[i], what)


def names_of(made: Linear, frame: Frame) -> frozenset[int]:
    """The function's parameters that a value is made of."""
    return frozenset().union(*(frame.names[i] for i in made.uses))


def walked(
    program: Program, hook: Hook, policy: Policy, args: tuple, chosen: Collection[int], summing: bool = False
) -> tuple[PyTree, Frame]:
    """Evaluates a function of `(params, *args)`, with a hook at every site.

    Args:
        program: the function, traced.
        hook: what happens at sites.
        policy: of parameters with weight noise that are made dense.
        args: as it was traced with; parameters may be `LowRank`.
        chosen: numbers of the parameters whose noise is on the outputs they enter.
        summing: whether the hook gives the parameters anything.

    Returns:
        (the function's result, the frame with what the parameters were given).
    """
    arrays, _, tree = partition((args, {}))
    if tree != program.in_tree:
        raise TypeError(f"got arguments of structure {tree}; the function was traced with {program.in_tree}.")
    count = len(jax.tree.leaves(args[0], is_leaf=is_low_rank))
    values = [as_perturbed(x) if is_low_rank(x) else x for x in arrays]
    order = sorted(chosen)
    frame = Frame([values[i] for i in order], [frozenset({i}) for i in order], summing=summing)
    for k, i in enumerate(order):
        values[i] = frame.leaf(k)
    ctx = Walk(policy, hook)
    fed = [i >= count for i in range(len(values))]
    found = ctx.walk(program, values, fed, frame, ())
    outs = [ctx.dense(ctx.settle(o, frame, None), None, "the function returns the parameter itself") for o, _ in found]
    frame.sums = {order[k]: total for k, total in frame.sums.items()}
    return jax.tree.unflatten(program.out_tree, outs), frame


def find_sites(
    program: Program, params: PyTree, args: tuple, chosen: Collection[int]
) -> tuple[tuple[Site, ...], dict[str, str]]:
    """The sites of a function, and why some parameters have none.

    Args:
        program: the function of one member, traced.
        params: pytree of arrays or shapes.
        args: its other arguments, or their shapes.
        chosen: numbers of the parameters that are to get noise on outputs, if they can.

    Returns:
        (sites in order, path → why that parameter has to get weight noise).
    """
    paths, refusals, left = leaf_paths(params), {}, set(chosen)
    arrays, merge, _ = partition((params, *args))
    while True:
        found = Found(paths)

        def run(values: list[Any], found: Found = found, left: set[int] = left) -> None:
            walked(program, found, Policy("allow"), merge(values), left)

        jax.eval_shape(run, [abstract(a) for a in arrays])
        refusals |= found.refusals
        again = {i for i in left if paths[i] in found.refusals}
        if not again:
            return tuple(found.sites.values()), refusals
        left = left - again
