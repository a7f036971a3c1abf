"""`factored`: a function traced once and evaluated on perturbed parameters; and how it uses each of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import numpy as np
from jax import lax

import eggroll.engine.rules  # noqa: F401  they fill the interpreter's table
from eggroll.engine import jax_compat
from eggroll.engine.ahead import Weights
from eggroll.engine.annotations import Function, JaxprEqn, OpenJaxpr, PyTree
from eggroll.engine.interpreter import Fallback, Interpreter, Policy, check_fallback
from eggroll.engine.lowrank import Factor, LowRank, Perturbed, Source, Term, as_perturbed, is_low_rank
from eggroll.engine.paths import path_name
from eggroll.engine.user_code import telling


@dataclass(frozen=True, eq=False)
class Program:
    """A function traced once on the shapes of dense parameters, to be evaluated on perturbed ones."""

    jaxpr: OpenJaxpr
    consts: Sequence[Any]
    in_tree: Any
    out_tree: Any

    def evaluate(self, interpreter: Interpreter, args: tuple, kwargs: dict[str, Any] | None = None) -> Any:
        """Evaluates the traced function; perturbed outputs are made dense."""
        arrays, _, tree = partition((args, kwargs or {}))
        if tree != self.in_tree:
            raise TypeError(f"got arguments of structure {tree}; the function was traced with {self.in_tree}.")
        interpreter.weights = self.weights(args, kwargs or {})
        inputs = [as_perturbed(leaf) if is_low_rank(leaf) else leaf for leaf in arrays]
        outs = interpreter.evaluate(self, inputs)
        outs = [interpreter.dense(o, None, "the function returns the parameter itself") for o in outs]
        return jax.tree.unflatten(self.out_tree, outs)

    def weights(self, args: tuple, kwargs: dict[str, Any]) -> Weights:
        """What it makes of its parameters alone: of the arguments, each a pytree, that hold a perturbed value.

        An array of the shape of a perturbed matrix is held for a mask: it counts as a constant, not as an input.
        """
        parts = [partition(a)[0] for a in (*args, *(kwargs[name] for name in sorted(kwargs)))]
        matrices = {a.shape for part in parts for a in part if _is_value(a) and sum(n > 1 for n in a.shape) > 1}
        made: list[frozenset[int] | None] = []
        for part in parts:
            if any(map(_is_value, part)):
                made += [frozenset({len(made) + i}) for i in range(len(part))]
            else:
                made += [frozenset() if a.shape in matrices else None for a in part]
        return Weights().look(self.jaxpr, made)

    @property
    def out_shape(self) -> Any:
        """Shapes and dtypes of the function's result."""
        avals: list[Any] = [v.aval for v in self.jaxpr.outvars]
        return self.out_tree.unflatten([jax.ShapeDtypeStruct(a.shape, a.dtype) for a in avals])


def partition(tree: PyTree) -> tuple[list[Any], Callable[[Sequence[Any]], Any], Any]:
    """Splits a pytree into array leaves, a function that puts (other) arrays back, and the structure.

    `LowRank` and `Perturbed` count as one array. Leaves that are not arrays (strings, None, Python numbers and
    booleans, callables) are part of the function that puts the arrays back.
    """
    leaves, structure = jax.tree.flatten(tree, is_leaf=_is_value)
    dynamic = [is_array(leaf) for leaf in leaves]

    def merge(arrays: Sequence[Any]) -> Any:
        rest = iter(arrays)
        return structure.unflatten([next(rest) if d else leaf for d, leaf in zip(dynamic, leaves, strict=True)])

    return [leaf for leaf, d in zip(leaves, dynamic, strict=True) if d], merge, structure


def trace(fun: Function, args: tuple, kwargs: dict[str, Any] | None = None) -> Program:
    """Traces `fun(*args, **kwargs)` on the shapes of its arrays."""
    arrays, merge, in_tree = partition((args, kwargs or {}))
    out_trees: list[Any] = []

    def flat_fun(*values: Any) -> list[Any]:
        call_args, call_kwargs = merge(values)
        leaves, out_tree = jax.tree.flatten(fun(*call_args, **call_kwargs))
        out_trees.append(out_tree)
        return leaves

    shapes = [abstract(a) for a in arrays]
    with telling(fun), jax_compat.apart():
        closed = jax.make_jaxpr(flat_fun)(*shapes)
    jaxpr, consts = jax_compat.open_jaxpr(closed)
    return Program(jax_compat.drop_dead_code(jaxpr), consts, in_tree, out_trees[-1])


def abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    """Shape and dtype of an array or of the dense form of a perturbed one."""
    if isinstance(leaf, LowRank):
        leaf.check()
    if _is_value(leaf):
        leaf = leaf.base
    return leaf if isinstance(leaf, jax.ShapeDtypeStruct) else jax_compat.abstract(leaf)


def _is_value(leaf: Any) -> bool:
    return isinstance(leaf, LowRank | Perturbed)


def is_array(leaf: Any) -> bool:
    """Whether a leaf is traced: an array, a shape, or a perturbed value."""
    return isinstance(leaf, jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct | LowRank | Perturbed)


def factored(fun: Function, *, fallback: Fallback = "warn", population: int | None = None) -> Function:
    """Makes `fun` accept parameters of which some leaves are `LowRank`, without forming the dense weights.

    The result equals `fun` on `leaf.dense()` to rounding. `fun` is traced once per call and its jaxpr is walked:
    products, lookups, convolutions, reshapes, loops and calls keep the factors apart; anything else gets the dense
    weight under the `fallback` policy. Use `jax.vmap` over the factors (and not over the bases) to evaluate many
    members with one shared product, and `jax.jit` outside.

    Args:
        fun: any traceable function of pytrees. Leaves that are not arrays (strings, None, Python numbers and
            booleans, callables) reach it unchanged.
        fallback: `"warn"` (default), `"allow"` or `"error"` where a dense weight has to be formed.
        population: how many members the `jax.vmap` around it evaluates, for the bytes in messages; None (default)
            speaks of each member.

    Returns:
        A function with the signature of `fun`.

    Raises:
        DenseFallbackError: under `fallback="error"`.
        NotImplementedError: when the result is differentiated through a `custom_jvp` or `custom_vjp` function that
            a perturbed parameter entered: its rule speaks of the dense weight and would be wrong.

    Example:
        >>> import jax, jax.numpy as jnp, eggroll
        >>> w = eggroll.LowRank(jnp.eye(3), jnp.ones((3, 1)), jnp.ones((3, 1)), (0,), (1,))
        >>> f = eggroll.factored(lambda params, x: x @ params["w"])
        >>> f({"w": w}, jnp.array([1.0, 0.0, 0.0])).tolist()
        [2.0, 1.0, 1.0]

    References:
        Sarkar et al., "Evolution Strategies at the Hyperscale", arXiv 2511.16652, Section 4.
    """
    check_fallback(fallback)

    def factored_fun(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = _named(args, population), _named(kwargs, population)
        return trace(fun, args, kwargs).evaluate(Interpreter(Policy(fallback)), args, kwargs)

    return factored_fun


def _named(tree: PyTree, population: int | None) -> PyTree:
    """The same arguments, where a `LowRank` without a source takes its path inside its argument for a name."""

    def name(keys: tuple, leaf: Any) -> Any:
        if not is_low_rank(leaf):
            return leaf
        path, members = leaf.source.path, leaf.source.members
        return replace(leaf, source=Source(path or path_name(keys[1:] or keys), members or population))

    return jax.tree_util.tree_map_with_path(name, tree, is_leaf=_is_value)


Kind = Literal["product", "lookup", "elementwise"]


@dataclass(frozen=True)
class Use:
    """One use of a parameter.

    Attributes:
        path: parameter path.
        kind: `"product"` (contraction or convolution), `"lookup"` (rows picked by index) or `"elementwise"`.
        primitive: JAX primitive.
        line: the user's source line.
        left: parameter axes that are contracted or looked up.
        right: the other axes.
        stack: axes over which a loop runs, or that a batched product pairs up (layers, experts).
        walked: those of the stack over which a loop runs.
        dtype: of the weight where it is used: a model may cast it first.
        multiplied: whether a product or a lookup follows before it meets an input: it is a weight there.
        whole: whether one does outside of the loops that walk it, which then make a weight, part by part.
    """

    path: str
    kind: Kind
    primitive: str
    line: str
    left: tuple[int, ...]
    right: tuple[int, ...]
    stack: tuple[int, ...]
    walked: tuple[int, ...] = ()
    dtype: str = "float32"
    multiplied: bool = False
    whole: bool = False

    def known(self, number: int, weights: Weights) -> Use:
        """With what becomes of the parameter of that number; axes that a loop walks may be all that is left of it."""
        use = replace(self, multiplied=number in weights.multiplied, whole=number in weights.whole)
        own = set(self.right) - set(self.walked)
        if use.multiplied and (self.kind == "elementwise" or not own):
            return use
        stack = {*self.stack, *self.right} - own
        return replace(use, right=tuple(sorted(own)), stack=tuple(sorted(stack)))


class UsageObserver:
    """Collects uses, in the order in which the function makes them."""

    def __init__(self) -> None:
        self.uses: list[Use] = []

    def product(self, eqn: JaxprEqn, value: Perturbed, contracted: Sequence[int], batch: Sequence[int]) -> None:
        """A contraction: its summed axes are one side, its free axes the other."""
        for term in value.terms:
            if _is_broadcast_addend(value, term):
                self._record(eqn, value, term, "elementwise")
            else:
                self._record(eqn, value, term, "product", set(contracted), set(batch))

    def dense(self, eqn: JaxprEqn | None, value: Perturbed) -> None:
        """Any other use; after a lookup, the looked-up axes are one side."""
        for term in value.terms:
            self._record(eqn, value, term, "lookup" if term.looked_up else "elementwise")

    def _record(
        self,
        eqn: JaxprEqn | None,
        value: Perturbed,
        term: Term,
        kind: Kind,
        contracted: set[int] = frozenset(),  # type: ignore[assignment]
        batch: set[int] = frozenset(),  # type: ignore[assignment]
    ) -> None:
        sides: dict[str, set[int]] = {"left": set(), "right": set(), "stack": set()}
        for f in term.factors:
            sides[_side(f, term, kind, contracted, batch)] |= f.origin
        name, line = ("return", "") if eqn is None else (eqn.primitive.name, jax_compat.source_line(eqn))
        left, right, stack = (tuple(sorted(sides[s])) for s in ("left", "right", "stack"))
        walked, dtype = tuple(sorted(term.walked)), str(value.dtype)
        use = Use(term.source.path, kind, name, line, left, right, stack, walked, dtype)
        if use not in self.uses:
            self.uses.append(use)


def _side(f: Factor, term: Term, kind: Kind, contracted: set[int], batch: set[int]) -> str:
    axes = set(f.axes)
    if axes & contracted or (kind == "lookup" and f.origin & term.looked_up):
        return "left"
    if axes & batch or not axes:  # an axis that is gone was walked by a loop, or picked by a constant index
        return "stack"
    return "right"


def _is_broadcast_addend(value: Perturbed, term: Term) -> bool:
    """True for a bias: broadcast along a real axis and added to something before it met the product."""
    owned = {a for f in term.factors for a in f.axes}
    return term.added and any(n != 1 and a not in owned for a, n in enumerate(value.shape))


def probe(path: str, leaf: Any) -> Perturbed:
    """A parameter whose every axis is a factor of its own, so that each can be followed."""
    factors = [Factor(lax.full((n, 1), 0, leaf.dtype), (a,), frozenset({a})) for a, n in enumerate(leaf.shape)]
    scalar = [Factor(lax.full((1,), 0, leaf.dtype), ())]
    return Perturbed(leaf, (Term(tuple(factors or scalar), Source(path)),))


def discover(program: Program, paths: Sequence[str], args: tuple) -> dict[str, list[Use]]:
    """Finds how `program` uses the leaves of its first argument.

    Args:
        program: the traced function.
        paths: the path of each leaf of the first argument.
        args: the arguments it was traced with (arrays or shapes); nothing is computed.

    Returns:
        path → its uses in order; an empty list for an unused parameter.
    """
    observer, weights = UsageObserver(), list[Weights]()
    arrays, merge, _ = partition(args)

    def run(values: list[Any]) -> None:
        params, *rest = merge(values)
        leaves, tree = jax.tree.flatten(params)
        probes = [probe(path, leaf) for path, leaf in zip(paths, leaves, strict=True)]
        args = (tree.unflatten(probes), *rest)
        weights.append(program.weights(args, {}))
        program.evaluate(Interpreter(Policy("allow"), observer), args)

    jax.eval_shape(run, [abstract(a) for a in arrays])
    return {p: [u.known(i, weights[0]) for u in observer.uses if u.path == p] for i, p in enumerate(paths)}
