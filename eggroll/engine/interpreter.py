"""`factored`: evaluate a function on perturbed parameters by walking its jaxpr."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import jax
import numpy as np

from eggroll.engine import jax_compat
from eggroll.engine.fallback import Fallback, Policy, Unsupported, check_fallback
from eggroll.engine.lowrank import LowRank, Perturbed, Source, Term, as_perturbed, is_low_rank
from eggroll.engine.paths import path_name


class Observer(Protocol):
    """Told how parameters are used; given only while usage is being discovered."""

    def product(self, eqn: Any, value: Perturbed, contracted: Sequence[int], batch: Sequence[int]) -> None:
        """`value` enters a product which sums over `contracted` and pairs up `batch` axes."""

    def dense(self, eqn: Any | None, value: Perturbed) -> None:
        """`value` is used where only its dense form will do."""


class Interpreter:
    """Walks a jaxpr whose inputs may be `Perturbed`.

    With an `observer`, terms are probes (one factor per parameter axis): rules track axes, and products report what
    they contract instead of adding corrections.
    """

    def __init__(self, policy: Policy, observer: Observer | None = None) -> None:
        self.policy = policy
        self.observer = observer
        self._varying: dict[int, tuple[Any, frozenset[int]]] = {}
        self._silent = False

    def evaluate(self, jaxpr: Any, args: Sequence[Any]) -> list[Any]:
        """Evaluates an open or closed jaxpr; outputs may be `Perturbed`."""
        jaxpr, consts = jax_compat.open_jaxpr(jaxpr)
        env: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
        env.update(zip(jaxpr.invars, args, strict=True))

        def read(atom: Any) -> Any:
            return atom.val if isinstance(atom, jax_compat.Literal) else env[atom]

        for eqn in jaxpr.eqns:
            outs = self._apply(eqn, [read(v) for v in eqn.invars])
            env.update(zip(eqn.outvars, outs, strict=True))
        return [read(v) for v in jaxpr.outvars]

    def _apply(self, eqn: Any, args: list[Any]) -> list[Any]:
        from eggroll.engine.rules import RULES

        if not any(isinstance(a, Perturbed) for a in args):
            outs = jax_compat.bind(eqn, args)
            if eqn.primitive.name == "broadcast_in_dim":
                self._note_broadcast(eqn, args[0], outs[0])
            return outs
        rule = RULES.get(eqn.primitive.name)
        reason = "no rule for this primitive"
        if rule is not None:
            try:
                with jax_compat.source_context(eqn):
                    return rule(self, eqn, args)
            except Unsupported as why:
                reason = str(why)
        return jax_compat.bind(eqn, [self.dense(a, eqn, reason) for a in args])

    def base(self, eqn: Any, args: Sequence[Any]) -> Any:
        """The equation applied to the bases: the product or reshaping that all members share."""
        return jax_compat.bind(eqn, [a.base if isinstance(a, Perturbed) else a for a in args])[0]

    def dense(self, value: Any, eqn: Any | None, reason: str) -> Any:
        """The dense form of a value, reported to the policy; other values pass through."""
        if not isinstance(value, Perturbed):
            return value
        if self.observer is not None:
            if not self._silent:
                self.observer.dense(eqn, value)
            return value.base
        if not self._silent:
            for term in value.terms:
                self.policy.report(value, term, eqn, reason)
        return value.dense()

    @contextmanager
    def silent(self) -> Iterator[None]:
        """Reports nothing: for abstract evaluations that only find out structure."""
        before, self._silent = self._silent, True
        try:
            yield
        finally:
            self._silent = before

    def product(self, eqn: Any, value: Perturbed, contracted: Sequence[int], batch: Sequence[int]) -> bool:
        """True where a product only has to be reported (discovery)."""
        if self.observer is not None and not self._silent:
            self.observer.product(eqn, value, contracted, batch)
        return self.observer is not None

    def _note_broadcast(self, eqn: Any, operand: Any, out: Any) -> None:
        dims = eqn.params["broadcast_dimensions"]
        inner = self.varying(operand)
        axes = frozenset(dims[i] for i in inner if np.shape(operand)[i] != 1)
        self._varying[id(out)] = (out, axes)  # the array is kept, so its id stays its own

    def varying(self, value: Any) -> frozenset[int]:
        """Axes along which a plain array may vary, as far as its own broadcast tells."""
        known = self._varying.get(id(value))
        return known[1] if known else frozenset(range(np.ndim(value)))


@dataclass(frozen=True)
class Program:
    """A function traced once on the shapes of dense parameters, to be evaluated on perturbed ones."""

    jaxpr: Any
    consts: Sequence[Any]
    in_tree: Any
    out_tree: Any

    def evaluate(self, interpreter: Interpreter, args: tuple, kwargs: dict[str, Any] | None = None) -> Any:
        """Evaluates the traced function; perturbed outputs are made dense."""
        arrays, _, tree = partition((args, kwargs or {}))
        if tree != self.in_tree:
            raise TypeError(f"got arguments of structure {tree}; the function was traced with {self.in_tree}.")
        inputs = [as_perturbed(leaf) if is_low_rank(leaf) else leaf for leaf in arrays]
        outs = interpreter.evaluate(self, inputs)
        outs = [interpreter.dense(o, None, "the function returns the parameter itself") for o in outs]
        return jax.tree.unflatten(self.out_tree, outs)

    @property
    def out_shape(self) -> Any:
        """Shapes and dtypes of the function's result."""
        avals = [v.aval for v in self.jaxpr.outvars]
        return self.out_tree.unflatten([jax.ShapeDtypeStruct(a.shape, a.dtype) for a in avals])


def partition(tree: Any) -> tuple[list[Any], Callable[[Sequence[Any]], Any], Any]:
    """Splits a pytree into array leaves, a function that puts (other) arrays back, and the structure.

    `LowRank` and `Perturbed` count as one array. Leaves that are not arrays (strings, None, Python numbers and
    booleans, callables) are part of the function that puts the arrays back.
    """
    leaves, structure = jax.tree.flatten(tree, is_leaf=_is_value)
    dynamic = [_is_array(leaf) for leaf in leaves]

    def merge(arrays: Sequence[Any]) -> Any:
        rest = iter(arrays)
        return structure.unflatten([next(rest) if d else leaf for d, leaf in zip(dynamic, leaves, strict=True)])

    return [leaf for leaf, d in zip(leaves, dynamic, strict=True) if d], merge, structure


def trace(fun: Callable[..., Any], args: tuple, kwargs: dict[str, Any] | None = None) -> Program:
    """Traces `fun(*args, **kwargs)` on the shapes of its arrays."""
    arrays, merge, in_tree = partition((args, kwargs or {}))
    out_trees: list[Any] = []

    def flat_fun(*values: Any) -> list[Any]:
        call_args, call_kwargs = merge(values)
        leaves, out_tree = jax.tree.flatten(fun(*call_args, **call_kwargs))
        out_trees.append(out_tree)
        return leaves

    closed = jax.make_jaxpr(flat_fun)(*[abstract(a) for a in arrays])
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


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct | LowRank | Perturbed)


def factored(
    fun: Callable[..., Any], *, fallback: Fallback = "warn", population: int | None = None
) -> Callable[..., Any]:
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


def _named(tree: Any, population: int | None) -> Any:
    """The same arguments, where a `LowRank` without a source takes its path inside its argument for a name."""

    def name(keys: tuple, leaf: Any) -> Any:
        if not is_low_rank(leaf):
            return leaf
        path, members = leaf.source.path, leaf.source.members
        return replace(leaf, source=Source(path or path_name(keys[1:] or keys), members or population))

    return jax.tree_util.tree_map_with_path(name, tree, is_leaf=_is_value)


def map_terms(value: Perturbed, base: Any, change: Callable[[Term], Term]) -> list[Any]:
    """The usual end of a rule with one output: a new base, every term changed."""
    return [value.map(base, change)]
