"""`explain`: how a function uses its parameters and what noise each will get."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict

import jax
from rich.console import Console
from rich.table import Table

from eggroll.engine.annotations import Function, PyTree
from eggroll.engine.checks import check_function
from eggroll.engine.factored import Use, abstract, discover
from eggroll.engine.interpreter import DenseFallback
from eggroll.engine.paths import leaf_paths
from eggroll.ops import check_distribution
from eggroll.strategy.activations.credit import Relation, relations
from eggroll.strategy.evaluate.planning import DryRun, dense_matrices, dry_run, for_kernels, with_sites
from eggroll.strategy.evaluate.tracing import InAxes, make_rows, trace_member
from eggroll.strategy.plan.leaves import LeafPlan, Plan, check_params, make_plan
from eggroll.strategy.plan.parameters import as_array, check_no_module
from eggroll.strategy.plan.rules import Rules
from eggroll.strategy.plan.sites import Site
from eggroll.strategy.population import NOISES


class ExplainOptions(TypedDict, total=False):
    """Options of `eggroll.explain`."""

    rank: int
    rules: Rules
    in_axes: InAxes
    population: int | None
    distribution: str
    noise: Literal["weights", "activations"]


@dataclass(frozen=True)
class Row:
    """What `explain` says of one parameter.

    Attributes:
        plan: path, shape, dtype, kind of perturbation, rank, axes of each factor, random numbers.
        uses: every use the function makes of it, in order.
        fallbacks: every place where its perturbation has to be made dense.
        reason: why its noise is dense where nobody asked for that and it could have factors, or, under
            `noise="activations"`, not on the outputs that it enters; else empty.
        implementations: what computes its perturbed products on this platform: names of
            `eggroll.kernels.implementations("lowrank_dot")`; `"reference"` is plain XLA. None without factors.
    """

    plan: LeafPlan
    uses: tuple[Use, ...]
    fallbacks: tuple[DenseFallback, ...]
    implementations: tuple[str, ...] = ()
    reason: str = ""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.plan, name)

    @property
    def use(self) -> str:
        """Primitives that use it, with counts."""
        names = [u.primitive if u.kind != "lookup" else f"lookup, {u.primitive}" for u in self.uses]
        return ", ".join(f"{n} x{names.count(n)}" if names.count(n) > 1 else n for n in dict.fromkeys(names)) or "-"


@dataclass(frozen=True)
class Explanation:
    """A table of parameters: print it, or read `.rows`.

    Attributes:
        rows: one `Row` per parameter, in the order of `jax.tree.leaves(params)`.
        plan: the plan that sampling follows; its `sites` are where noise on outputs enters.
        per_row: of every site, its numbers for each row of the batch (and token), as far as the losses tell rows apart.
    """

    rows: tuple[Row, ...]
    plan: Plan = field(repr=False)
    per_row: tuple[int, ...] = ()

    @property
    def fallbacks(self) -> tuple[DenseFallback, ...]:
        """Every place where some perturbation has to be made dense."""
        return tuple(f for row in self.rows for f in row.fallbacks)

    def __str__(self) -> str:
        # A notebook would be shown the table at once, and the text be empty; it also asks for colours in all text.
        console = Console(file=io.StringIO(), width=130, color_system=None, force_jupyter=False)
        console.print(self)
        return console.file.getvalue().rstrip()  # type: ignore[attr-defined]

    def __repr__(self) -> str:
        return str(self)

    def __rich_console__(self, console: Console, options: Any) -> Iterator[Any]:
        yield _table(self)
        if self.plan.sites:
            yield _sites(self)
        for row in self.rows:
            if row.reason and self.plan.sites and row.kind in ("low_rank", "dense"):
                yield f"weight noise: '{row.path}', for {row.reason}"
        for fallback in self.fallbacks:
            yield f"dense fallback: {fallback}"


def _table(explanation: Explanation) -> Table:
    table = Table(caption=f"{explanation.plan.numbers:,} random numbers per pair of members")
    for name in ("parameter", "shape", "use", "noise", "left axes", "right axes", "stack"):
        table.add_column(name, overflow="fold")
    table.add_column("numbers", justify="right")
    table.add_column("implementation", overflow="fold")
    for row in explanation.rows:
        reason = row.reason and not explanation.plan.sites and f": {row.reason}"  # those of sites have lines below
        parts = ", complex" if row.is_complex and row.kind in ("low_rank", "dense") else ""
        noise = f"rank {row.rank}{parts}" if row.kind == "low_rank" else f"{row.kind}{parts}{reason or ''}"
        if row.fallbacks:
            noise += f", {len(row.fallbacks)} dense fallback(s)"
        own = [[a for a in side if a not in row.stack_axes] for side in (row.left_axes, row.right_axes)]
        axes = [_axes(side) for side in (*own, row.stack_axes)]
        numbers, implementation = f"{row.numbers:,}", ", ".join(row.implementations) or "-"
        table.add_row(row.path, "x".join(map(str, row.shape)), row.use, noise, *axes, numbers, implementation)
    return table


def _sites(explanation: Explanation) -> Table:
    sites = explanation.plan.sites
    table = Table(caption=f"{sum(site.size for site in sites):,} random numbers per pair of members on outputs")
    for name in ("site", "parameters", "operation", "shape", "loops", "line"):
        table.add_column(name, overflow="fold")
    for name in ("numbers", "a row"):
        table.add_column(name, justify="right")
    for number, (site, own) in enumerate(zip(sites, explanation.per_row, strict=True)):
        loops = ", ".join("?" if n is None else str(n) for n in site.loops) or "-"
        shape, line = "x".join(map(str, site.shape)) or "1", site.line.rpartition("/")[2]
        sizes = f"{site.size:,}", f"{own:,}"
        table.add_row(str(number), ", ".join(site.paths), site.primitive, shape, loops, line, *sizes)
    return table


def _axes(axes: Any) -> str:
    return ", ".join(map(str, axes)) or "-"


def explain(
    fun: Function,
    params: PyTree,
    *args: Any,
    rank: int = 1,
    rules: Rules = (),
    in_axes: InAxes = None,
    population: int | None = None,
    distribution: str = "rademacher",
    noise: Literal["weights", "activations"] = "weights",
) -> Explanation:
    """Says how `fun` uses each parameter, and what noise each gets; nothing is computed.

    The plan is the one that sampling follows: the contracted axes of a parameter's first product (or the looked-up
    axis, or the input side of a convolution) belong to the left factor, the others to the right; axes that a loop
    walks or a batched product pairs up belong to both (the stack).

    Args:
        fun: `fun(params, *args)`.
        params: pytree of arrays or `jax.ShapeDtypeStruct`.
        *args: arguments, or their shapes.
        rank: columns of each factor. A layer that is smaller gets dense noise.
        rules: `(pattern, rule)` pairs, as for `eggroll.ES`.
        in_axes: as in `members.apply`, if some arguments have a row per member; needs `population`.
        population: number of members, for `in_axes` and for the sizes of dense fallbacks.
        distribution: of the noise, `"rademacher"` (default) or `"normal"`; kernels may know one of them only.
        noise: on the `"weights"` (default) or on `"activations"`: then the table names the outputs that get it, and why
            a parameter has weight noise all the same.

    Returns:
        `str()` is a table, `.rows` the data, `.fallbacks` the dense fallbacks.

    Raises:
        TypeError: no function, parameters of integers or the like, or an NNX module.
        ValueError: rules that match nothing, or parameters that `fun` does not use.

    Example:
        >>> import jax.numpy as jnp, eggroll
        >>> params = {"kernel": jnp.ones((8, 4)), "bias": jnp.ones(4)}
        >>> table = eggroll.explain(lambda p, x: x @ p["kernel"] + p["bias"], params, jnp.ones((2, 8)))
        >>> [(row.path, row.kind, row.left_axes, row.right_axes, row.numbers) for row in table.rows]
        [('bias', 'dense', (), (), 4), ('kernel', 'low_rank', (0,), (1,), 12)]
    """
    check_function("fun", fun, "explain(fun, params, *args)")
    check_distribution(distribution)
    check_no_module(params)
    shape = lambda path, x: x if isinstance(x, jax.ShapeDtypeStruct) else abstract(as_array(path, x))  # noqa: E731
    params = jax.tree_util.tree_map_with_path(shape, params)
    check_params(params, rules)  # before it is traced: a flag among them would be an array in the function
    rows = make_rows(args, in_axes, population or 1, 1)
    program = trace_member(fun, params, rows)
    uses = discover(program, leaf_paths(params), (params, *rows.abstract()))
    plan, why, per_row = make_plan(params, uses, rank=rank, rules=rules), {}, ()
    if noise == "activations":
        plan, why = with_sites(program, plan, params, rows, rules)
        found = relations(program, plan, params, rows.abstract())
        per_row = tuple(map(_per_row, plan.sites, found))
    elif noise != "weights":
        raise ValueError(f"got noise={noise!r}; one of {', '.join(map(repr, NOISES))} is required.")
    plan = for_kernels(program, plan, params, rows, distribution)
    found = dry_run(program, plan, params, rows, distribution, population)
    factors = make_plan(params, uses, rank=rank, rules=rules, small_layers="low_rank").leaves
    fallbacks = [*dense_matrices(plan, uses, rules, rank, population), *found.fallbacks]
    pairs = zip(plan.leaves, factors, strict=True)
    shown = [
        _row(found, leaf, uses[leaf.path], fallbacks, why.get(leaf.path) or _why_dense(leaf, f)) for leaf, f in pairs
    ]
    return Explanation(tuple(shown), plan, per_row)


def _why_dense(leaf: LeafPlan, factors: LeafPlan) -> str:
    if leaf.kind != "dense" or leaf.kind == factors.kind:
        return ""
    factor, weight = ("(2m+n)", "2·m·n") if leaf.is_complex else ("(m+n)", "m·n")
    return f"rank·{factor} = {factors.numbers} ≥ {weight} = {leaf.numbers}"


def _per_row(site: Site, relation: Relation | None) -> int:
    """Numbers of a site over those of its axes along which losses are told apart."""
    shape = (*site.steps, *site.shape)
    axes = {along.axis for along in relation or () if along is not None}
    return site.size // max(math.prod(shape[a] for a in axes), 1)


def _row(found: DryRun, leaf: LeafPlan, uses: Sequence[Use], every: Sequence[DenseFallback], reason: str) -> Row:
    fallbacks = tuple(f for f in every if f.path == leaf.path)
    plain = ("reference",) if leaf.kind == "low_rank" else ()
    return Row(leaf, tuple(uses), fallbacks, found.implementations(leaf.path) or plain, reason)
