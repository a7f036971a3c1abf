"""`explain`: how a function uses its parameters and what noise each will get."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict

import jax
from rich.console import Console
from rich.table import Table

from eggroll.engine.annotations import Function, PyTree
from eggroll.engine.checks import check_function
from eggroll.engine.factored import Use, abstract, discover
from eggroll.engine.interpreter import DenseFallback
from eggroll.engine.paths import leaf_paths
from eggroll.ops import check_distribution
from eggroll.strategy.evaluate.tracing import DryRun, InAxes, dry_run, for_kernels, make_rows, trace_member
from eggroll.strategy.plan.leaves import LeafPlan, Plan, dense_matrices, make_plan
from eggroll.strategy.plan.parameters import as_array, check_no_module
from eggroll.strategy.plan.rules import Rules


class ExplainOptions(TypedDict, total=False):
    """Options of `eggroll.explain`."""

    rank: int
    rules: Rules
    in_axes: InAxes
    population: int | None
    distribution: str


@dataclass(frozen=True)
class Row:
    """What `explain` says of one parameter.

    Attributes:
        plan: path, shape, dtype, kind of perturbation, rank, axes of each factor, random numbers.
        uses: every use the function makes of it, in order.
        fallbacks: every place where its perturbation has to be made dense.
        reason: why its noise is dense where nobody asked for that and it could have factors; else empty.
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
        plan: the plan that sampling follows.
    """

    rows: tuple[Row, ...]
    plan: Plan = field(repr=False)

    @property
    def fallbacks(self) -> tuple[DenseFallback, ...]:
        """Every place where some perturbation has to be made dense."""
        return tuple(f for row in self.rows for f in row.fallbacks)

    def __str__(self) -> str:
        console = Console(file=io.StringIO(), width=130, no_color=True)
        console.print(self)
        return console.file.getvalue().rstrip()  # type: ignore[attr-defined]

    def __rich_console__(self, console: Console, options: Any) -> Iterator[Any]:
        yield _table(self)
        for fallback in self.fallbacks:
            yield f"dense fallback: {fallback}"


def _table(explanation: Explanation) -> Table:
    table = Table(caption=f"{explanation.plan.numbers:,} random numbers per pair of members")
    for name in ("parameter", "shape", "use", "noise", "left axes", "right axes", "stack"):
        table.add_column(name, overflow="fold")
    table.add_column("numbers", justify="right")
    table.add_column("implementation", overflow="fold")
    for row in explanation.rows:
        noise = f"rank {row.rank}" if row.kind == "low_rank" else row.kind + (row.reason and f": {row.reason}")
        if row.fallbacks:
            noise += f", {len(row.fallbacks)} dense fallback(s)"
        own = [[a for a in side if a not in row.stack_axes] for side in (row.left_axes, row.right_axes)]
        axes = [_axes(side) for side in (*own, row.stack_axes)]
        numbers, implementation = f"{row.numbers:,}", ", ".join(row.implementations) or "-"
        table.add_row(row.path, "x".join(map(str, row.shape)), row.use, noise, *axes, numbers, implementation)
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

    Returns:
        `str()` is a table, `.rows` the data, `.fallbacks` the dense fallbacks.

    Raises:
        TypeError: no function, parameters that are not floating point, or an NNX module.
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
    rows = make_rows(args, in_axes, population or 1, 1)
    program = trace_member(fun, params, rows)
    uses = discover(program, leaf_paths(params), (params, *rows.abstract()))
    plan = make_plan(params, uses, rank=rank, rules=rules)
    plan = for_kernels(program, plan, params, rows, distribution)
    found = dry_run(program, plan, params, rows, distribution, population)
    fallbacks = [*dense_matrices(plan, uses, rules, rank, population), *found.fallbacks]
    factors = make_plan(params, uses, rank=rank, rules=rules, small_layers="low_rank").leaves
    pairs = zip(plan.leaves, factors, strict=True)
    return Explanation(tuple(_row(found, leaf, other, uses[leaf.path], fallbacks) for leaf, other in pairs), plan)


def _row(found: DryRun, leaf: LeafPlan, factors: LeafPlan, uses: Sequence[Use], every: Sequence[DenseFallback]) -> Row:
    reason = "" if leaf.kind == factors.kind else f"rank·(m+n) = {factors.numbers} ≥ m·n = {leaf.numbers}"
    fallbacks = tuple(f for f in every if f.path == leaf.path)
    plain = ("reference",) if leaf.kind == "low_rank" else ()
    return Row(leaf, tuple(uses), fallbacks, found.implementations(leaf.path) or plain, reason)
