"""A model taken apart into parameters and other state, and put together again with what its members made of that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from eggroll.engine.annotations import Function, PyTree
from eggroll.engine.checks import is_traced
from eggroll.engine.sameness import Fixed
from eggroll.strategy.evaluate.averages import check_carried
from eggroll.strategy.noise.keys import as_threefry, member_keys

OF_FLAX = "_pytree__nodes"  # an attribute of every model, which says which others are variables


@jax.tree_util.register_static
@dataclass(frozen=True)
class _Slot:
    """Where an NNX object was among the arguments."""

    index: int


def taken_out(model: Any, args: Any) -> tuple[tuple, Any]:
    """`((model, *NNX objects among the arguments), the arguments with slots in their places)`."""
    nodes = [model]

    def slot(x: Any) -> Any:
        if not _is_node(x):
            return x
        index = next((i for i, node in enumerate(nodes) if node is x), len(nodes))
        nodes[index:] = nodes[index:] or [x]
        return _Slot(index)

    args = jax.tree.map(slot, args, is_leaf=_is_node)
    return tuple(nodes), args


def _is_node(x: Any) -> bool:
    return isinstance(x, nnx.Pytree | nnx.Variable)


def filled(args: Any, nodes: tuple) -> Any:
    """The arguments with the objects back in their slots."""
    is_slot = lambda x: isinstance(x, _Slot)  # noqa: E731
    return jax.tree.map(lambda x: nodes[x.index] if is_slot(x) else x, args, is_leaf=is_slot)


def check_model(model: Any) -> None:
    """Raises TypeError unless it is an NNX module, or a tuple, list or dictionary of such, of at least one."""
    models = jax.tree.leaves(model, is_leaf=lambda x: _parts(x) is None)
    wrong = [type(x).__name__ for x in models if not isinstance(x, nnx.Pytree)]
    if wrong or not models:
        held = "" if _parts(model) is None else f", which holds {wrong[0] if wrong else 'nothing'}"
        raise TypeError(
            f"got {type(model).__name__} as the model; an NNX module is required, or a tuple, list or dictionary of "
            f"such{held}. For plain parameters use eggroll.value_and_grad or eggroll.ES."
        )


def _parts(models: Any) -> dict[Any, Any] | None:
    """Models by name or number, None of a single one."""
    if type(models) is dict:
        return models
    return dict(enumerate(models)) if type(models) in (tuple, list) else None


def of_each(model: Any, state: Any) -> Any:
    """A state of several models as a state for each, in what holds them, as `nnx.grad` returns it."""
    parts = _parts(model)
    if parts is None:
        return state
    each = {name: of_each(part, state[name] if name in state else nnx.State({})) for name, part in parts.items()}
    return each if type(model) is dict else type(model)(each.values())


def as_state(params: Any) -> Any:
    """The inverse of `of_each`, as `nnx.merge` takes it."""
    parts = _parts(params)
    return params if parts is None else nnx.State({name: as_state(part) for name, part in parts.items()})


@jax.tree_util.register_static
class Split(Fixed):
    """How a model and the NNX objects among the arguments come apart and together; hashable, without arrays."""

    def __init__(self, graphdef: Any, wrt: Any) -> None:
        self.graphdef, self.wrt = graphdef, wrt

    def __hash__(self) -> int:
        return hash(self.graphdef)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Split) and self.wrt == other.wrt and self.graphdef == other.graphdef

    def refers_to(self) -> list[Any]:
        """The classes of a model and what it has besides variables, which may change behind its equality."""
        classes = dict.fromkeys(getattr(node, "type", None) for node in self.graphdef.nodes)
        return [*classes, *(getattr(x, "value", None) for name, x in self.graphdef.attributes if name != OF_FLAX)]

    @staticmethod
    def of(nodes: tuple, wrt: Any) -> tuple[Split, Any, Any]:
        """`(split, trained state of the model, all other state)`."""
        check_model(nodes[0])
        graphdef, params, rest = nnx.split(nodes, _of_model(wrt), ...)
        if not jax.tree.leaves(params):
            raise ValueError(f"got wrt={wrt!r}, which selects no variable of the model.")
        return Split(graphdef, wrt), of_each(nodes[0], params[0]), rest

    def merge(self, params: PyTree, rest: PyTree) -> tuple:
        """The model and the other objects."""
        return nnx.merge(self.graphdef, nnx.State({0: as_state(params)}), rest)

    def rest_of(self, nodes: tuple) -> Any:
        """All state that is not trained, as the function left it."""
        return nnx.split(nodes, _of_model(self.wrt), ...)[2]


def _of_model(wrt: Any) -> Any:
    """The filter for trained variables of the first node only."""
    return nnx.All(lambda path, _: path[0] == 0, wrt)


@dataclass(frozen=True)
class Pure:
    """A function of a model as one of its parameters; equal for the same function, which is so compiled once.

    Attributes:
        fun: `fun(model, *args, **kwargs)`.
        has_aux: whether it returns a pair.
    """

    fun: Function
    has_aux: bool

    @property
    def __wrapped__(self) -> Function:
        """Whose name and line messages have."""
        return self.fun

    def __call__(self, params: PyTree, rest: PyTree, keys: Any, split: Split, args: tuple, kwargs: dict) -> Any:
        """`(output, (aux, what the function changed of the other state))`."""
        before = _by_path(rest)  # the merged model may share its variables, which the function changes
        nodes = split.merge(params, _with_keys(rest, keys))
        args, kwargs = filled((args, kwargs), nodes)
        out = self.fun(nodes[0], *args, **kwargs)
        if self.has_aux and not (isinstance(out, tuple) and len(out) == 2):
            raise TypeError(f"has_aux=True requires the function to return a pair; got {type(out).__name__}.")
        out, aux = out if self.has_aux else (out, ())
        return out, (aux, _changed(before, split.rest_of(nodes)))


@dataclass(frozen=True)
class AtPlaces:
    """`fun` of several arguments as a function of those that `argnums` names, a model or several, and of the others.

    Attributes:
        fun: the user's function.
        argnums: an integer or a tuple of such.
    """

    fun: Function
    argnums: int | tuple[int, ...]

    @property
    def __wrapped__(self) -> Function:
        """Whose name and line messages have."""
        return self.fun

    def __call__(self, model: Any, *others: Any, **kwargs: Any) -> Any:
        """The function with its arguments in order."""
        numbers, models = (self.argnums, model) if isinstance(self.argnums, tuple) else ((self.argnums,), (model,))
        args, total = list(others), len(others) + len(numbers)
        for number, one in sorted(zip((n % total for n in numbers), models, strict=True), key=lambda x: x[0]):
            args.insert(number, one)
        return self.fun(*args, **kwargs)


class Call:
    """A call of a function of a model: what `Pure` takes for it, and the way back of what the function changed.

    Args:
        model: NNX module.
        args: further arguments, NNX objects among them.
        kwargs: those by name.
        wrt: filter for the variables of the model that are parameters.

    Attributes:
        params: the parameters.
        rest: all other state, of the model under 0, of the other objects under their numbers.

    Raises:
        TypeError: no NNX module.
        ValueError: `wrt` selects nothing.
    """

    def __init__(self, model: Any, args: tuple, kwargs: dict[str, Any], wrt: Any) -> None:
        self.nodes, (self._args, self._kwargs) = taken_out(model, (args, kwargs))
        self.split, self.params, self.rest = Split.of(self.nodes, wrt)

    def arguments(self, keys: list[jax.Array]) -> tuple:
        """Of `Pure`, after the parameters."""
        return self.rest, keys, self.split, self._args, self._kwargs

    def keys(self, population: int, antithetic: bool, key: jax.Array) -> list[jax.Array]:
        """One key per member for every RNG stream; a pair shares its own."""
        return [member_keys(stream, as_threefry(key), population, antithetic) for stream in _keys_of(self.rest)]

    def write(self, changed: Any, lost: Any = False) -> None:
        """Writes to the objects what the function changed; nothing where, under a trace, the generation was lost."""
        new = check_carried(self.rest, _with_unchanged(self.rest, changed))
        nnx.update(self.nodes, kept_if(lost, self.rest, new))


def axes_of(in_axes: Any, share_rngs: bool, rest: Any = None) -> tuple:
    """`in_axes` of `Pure`: one row per member only where the user says so, and for keys that are not shared."""
    own = in_axes if in_axes is None or isinstance(in_axes, int) else tuple(in_axes)
    return rest, None if share_rngs else 0, None, own, None


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _keys_of(state: Any) -> list[jax.Array]:
    return [x for x in jax.tree.leaves(state) if _is_key(x)]


def _with_keys(state: Any, keys: list[jax.Array]) -> Any:
    """`state` with its random keys replaced, in order; unchanged without keys."""
    if not keys:
        return state
    new = iter(keys)
    return jax.tree.map(lambda x: next(new) if _is_key(x) else x, state)


def _by_path(state: Any) -> dict[Any, Any]:
    return dict(jax.tree_util.tree_leaves_with_path(state))


def _changed(before: dict[Any, Any], new: PyTree) -> Any:
    """The new state, None where it is the very same array (a mean would be that but for rounding) or a random key."""
    same = lambda path, x: path in before and (x is before[path] or _is_key(x))  # noqa: E731
    return jax.tree_util.tree_map_with_path(lambda path, x: None if same(path, x) else x, new)


def _with_unchanged(old: PyTree, changed: Any) -> Any:
    """What `_changed` was made of, with the old arrays where nothing changed."""
    before = _by_path(old)
    fill = lambda path, x: before[path] if x is None else x  # noqa: E731
    return jax.tree_util.tree_map_with_path(fill, changed, is_leaf=lambda x: x is None)


def kept_if(lost: Any, old: PyTree, new: PyTree) -> Any:
    """The new state; where, under a trace, the generation was lost, the old one, as far as it has the same shapes."""
    if not is_traced(lost):  # then losing it is an error
        return new
    before = _by_path(old)

    def one(path: Any, x: Any) -> Any:
        kept = before.get(path, x)
        return jnp.where(lost, kept, x) if kept.shape == x.shape and kept.dtype == x.dtype else x

    return jax.tree_util.tree_map_with_path(one, new)
