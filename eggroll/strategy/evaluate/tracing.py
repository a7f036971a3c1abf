"""A function, its parameters and its other arguments: which have a row per member, traced and checked."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from eggroll.engine import jax_compat
from eggroll.engine.annotations import Function, Index, PyTree
from eggroll.engine.factored import Program, abstract, is_array, partition, trace

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

    def shapes(self) -> Any:
        """What a compiled function is fixed to of them."""
        leaves, tree = jax.tree.flatten(self.args)
        fixed = ((x.shape, x.dtype, getattr(x, "weak_type", False)) if is_array(x) else (type(x), x) for x in leaves)
        return self.axes, tree, tuple(fixed)

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


@contextmanager
def all_at_once(program: Program) -> Iterator[None]:
    """Names the lines of calls to the host that cannot be made for all members at once, where JAX finds any.

    Not sooner: a callback that nothing of the members reaches, such as Equinox's that raise errors, needs no batches.

    Raises:
        ValueError: there is one.
    """
    try:
        yield
    except (NotImplementedError, ValueError) as why:
        calls = list(jax_compat.equations(program.jaxpr))
        for name, option, value, what in _AT_ONCE:
            lines = [jax_compat.source_line(e) for e in calls if e.primitive.name == name and e.params[option] is value]
            if lines and "vmap" in str(why):
                where = " or ".join(dict.fromkeys(lines))
                raise ValueError(f"got a {name} with {option}={value} at {where}; {what}") from why
        raise


_AT_ONCE = (
    (
        "pure_callback",
        "vmap_method",
        None,
        'members are evaluated together, so one is required: vmap_method="expand_dims", and the function on the host '
        'gets many members at once, as axes before its own, or "sequential", and it is called for one after the other.',
    ),
    (
        "io_callback",
        "ordered",
        True,
        "members are evaluated together, in no order: ordered=False is required, or jax.pure_callback for what only "
        "computes.",
    ),
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
