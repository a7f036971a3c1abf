"""Optimizers, shapings and schedules as JSON, by what they do: their results on fixed inputs.

Two that compute the same are the same, however they are written and wherever their code lies; results are compared up
to rounding (`apart`), so that other versions of JAX and other processors agree. What is not seen: a fork in the road
that no input takes, such as a step of an optimizer's schedule between two of the `GENERATIONS`, or a mask by the size
of parameters that are larger than `LARGE` together, which are cut to try them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from eggroll.engine.annotations import PyTree
from eggroll.engine.paths import leaf_paths, path_name
from eggroll.strategy.plan.leaves import check_params
from eggroll.strategy.plan.parameters import full, master_copies, without
from eggroll.strategy.plan.rules import FrozenRule
from eggroll.strategy.protocol import Strategy
from eggroll.strategy.update.optimizer import updates
from eggroll.training.folder.settings import FUNCTION, SCHEDULE, UNSEEN, VALUES
from eggroll.training.optimizers import NamedOptimizer, NamedSchedule

LEADS = (1, 1.2, 1.5, 1.8, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 9)
GENERATIONS = (*range(10), *(round(lead * 10**power) for power in range(1, 6) for lead in LEADS), 10**6)
SPANS = tuple(2**power for power in range(3, 17))  # a schedule's mean from each to its double finds every step
SIZES = (1e-8, 1e-3, 1.0, 1e4, 0.1, 1e-5, 10.0, 0.3)  # of successive gradients: below and above any epsilon and clip
PATIENCE = 1000  # updates in which an optimizer has to move something: some gather gradients first
LARGE = 2**20  # numbers in all parameters; of more, an array keeps 132 along its longest two axes and 4 along others


def described(name: str, value: Any, params: PyTree, members: int) -> Any:
    """JSON for a setting of a strategy; a function by its results, what `named` and `schedule` made by its arguments.

    Args:
        name: of the setting: `"shaping"` and `"rules"` are read as such.
        value: a number, a string, an optimizer, or a function.
        params: what an optimizer is given: a pytree of arrays, or of their shapes.
        members: of the population.

    Example:
        >>> from eggroll.training.folder.settings import apart
        >>> one, other = (described("", optax.adam(rate), {"w": jnp.ones(3)}, 8)["values"] for rate in (0.1, 0.1001))
        >>> apart(one["w"], other["w"]) is None
        False
    """
    if name == "rules":
        return [[pattern, str(rule)] for pattern, rule in value]
    if isinstance(value, NamedOptimizer):
        return value.spec
    if isinstance(value, optax.GradientTransformation):
        return _results(value.update, lambda: _moves(optax.with_extra_args_support(value), params))
    if callable(value):
        found = _results(value, lambda: _weights(value, members) if name == "shaping" else schedule_values(value))
        return {SCHEDULE: value.spec, VALUES: found[VALUES]} if isinstance(value, NamedSchedule) else found
    return value.tolist() if hasattr(value, "tolist") else value


def schedule_values(schedule: Callable[[Any], Any]) -> dict[str, Any]:
    """The values of a schedule at `GENERATIONS`, to nine digits; its means over `SPANS` if it can be mapped.

    Example:
        >>> schedule_values(lambda generation: 0.5)["1000"]
        0.5
    """
    found = {str(at): _tried(lambda at=at: float(schedule(jnp.int32(at)))) for at in GENERATIONS}
    if all(isinstance(x, type) for x in found.values()):
        raise TypeError(f"{next(iter(found.values())).__name__} at every generation")
    values: dict[str, Any] = {at: x.__name__ if isinstance(x, type) else _number(x) for at, x in found.items()}
    span = jnp.arange(2 * SPANS[-1], dtype=jnp.int32)
    many = _tried(lambda: np.asarray(jax.jit(jax.vmap(schedule))(span), np.float64))
    means = {} if isinstance(many, type) else {f"mean from {at}": _number(many[at : 2 * at].mean()) for at in SPANS}
    return values | means


def _tried(result: Callable[[], Any]) -> Any:
    """The result, or the class of the error: a schedule may be a list that ends, or know nothing of arrays."""
    try:
        return result()
    except Exception as why:
        return type(why)


def _results(function: Any, values: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """The function's name and results; what keeps it from having any, whose name alone is then compared, and told."""
    with ExitStack() as context:
        if not isinstance(device := _tried(lambda: jax.local_devices(backend="cpu")[0]), type):
            context.enter_context(jax.default_device(device))  # its rounding is what is compared
        context.enter_context(jax.default_matmul_precision("highest"))
        context.enter_context(np.errstate(all="ignore"))  # what overflows is a result, too
        context.enter_context(jax.numpy_dtype_promotion("standard"))  # optax mixes int32 counts with floats
        try:
            return {FUNCTION: _name(function), VALUES: dict(values())}
        except Exception as why:
            return {FUNCTION: _name(function), UNSEEN: f"{type(why).__name__}: {str(why).partition(chr(10))[0]:.100}"}


def _weights(shaping: Any, members: int) -> dict[str, str]:
    """What a shaping makes of several kinds of fitness, for the run's population: others it need not know."""
    x = _even(members, 0)
    kinds = {"spread": x - 0.25, "ties": np.floor(3 * x), "falling": -np.arange(members), "large": 1e5 * x}
    kinds["one ahead"] = np.where(np.arange(members) == members // 2, 1e3, x)
    shaped = jax.jit(shaping)
    return {f"{kind}, {members} members": _summary(shaped(jnp.float32(each))) for kind, each in kinds.items()}


def _moves(optimizer: optax.GradientTransformationExtraArgs, params: PyTree) -> dict[str, Any]:
    """What an optimizer makes of gradients of several sizes one after the other, and then at far generations.

    By parameter, since masks and labels may go by names: the first updates that moved something. Then all of them
    together: after so many updates as the counts in the state can be made to say, and after a gradient that is no
    number.
    """
    inputs = _inputs(params)

    @jax.jit
    def update(size: Any, inputs: tuple[PyTree, PyTree], state: Any) -> Any:
        gradient = jax.tree.map(lambda g, p: (size * g).astype(p.dtype), *inputs)
        return updates(optimizer, gradient, state, inputs[1], jnp.float32(1))

    before = state = jax.jit(optimizer.init)(inputs[0][1])
    told: dict[int, list[str]] = {}
    for step in range(PATIENCE):
        moved, after = update(SIZES[len(told)], inputs[len(told) % 2], state)
        each = jax.tree.leaves(moved)
        if any(np.any(np.asarray(u)) for u in each):
            told[step], before = [_summary(u) for u in each], state
        if len(told) == len(SIZES):
            break
        state = after
    by_path = zip(leaf_paths(params), zip(*told.values(), strict=True), strict=True) if told else ()
    found: dict[str, Any] = {path: ", ".join(each) for path, each in by_path}
    for at in GENERATIONS[len(SIZES) :]:
        found[f"update {at}"] = _together(update(1.0, inputs[0], _at(before, at))[0])
    last = _together(update(math.nan, inputs[0], before)[0])
    return {"moved at": " ".join(map(str, told)), **found, "not a number": str(last)}


def _inputs(params: PyTree) -> list[tuple[PyTree, PyTree]]:
    """Two gradients, each with the parameters that it is given at, on the host."""
    leaves, tree = jax.tree.flatten(params)
    shapes = [leaf.shape for leaf in leaves]
    if sum(map(math.prod, shapes)) > LARGE:
        shapes = [_cut(shape) for shape in shapes]
    x = [_even(math.prod(shape), i).reshape(shape) for i, shape in enumerate(shapes)]
    made = []
    for turn, size in ((0.4, 100), (0.8, 50)):
        slope = [(1.5 * ((each + turn) % 1) - 0.5).astype(np.float32) for each in x]
        start = [(size * (each - 0.25)).astype(leaf.dtype) for each, leaf in zip(x, leaves, strict=True)]
        made.append((tree.unflatten(slope), tree.unflatten(start)))
    return made


def _at(state: Any, count: int) -> Any:
    """The state, as if that many updates had been made; those that wait for an update of several stay as they are."""

    def one(path: Any, leaf: Any) -> Any:
        counts = jnp.ndim(leaf) == 0 and jnp.issubdtype(leaf.dtype, jnp.integer) and path_name(path[-1:]) != "mini_step"
        return np.full((), min(count, jnp.iinfo(leaf.dtype).max), leaf.dtype) if counts else leaf

    return jax.tree_util.tree_map_with_path(one, state)


def _cut(shape: tuple[int, ...]) -> tuple[int, ...]:
    longest = sorted(range(len(shape)), key=lambda axis: -shape[axis])[:2]
    return tuple(min(size, 132 if axis in longest else 4) for axis, size in enumerate(shape))


def _even(size: int, seed: int) -> np.ndarray:
    """Numbers that cover `[0, 1)` evenly, the same everywhere: multiples of the golden ratio."""
    return ((np.arange(size) + 1.0) * 0.6180339887498949 + seed * 0.7548776662466927) % 1.0


def _summary(array: Any) -> str:
    """A weighted mean, in which order and signs are seen, and the root of the mean square."""
    x = np.asarray(array).astype(np.float64).reshape(-1)
    return f"{(x * (0.5 + _even(x.size, 1))).sum() / max(x.size, 1):.7g} {_norm(x):.7g}"


def held(leaves: Iterable[tuple[Any, Any]]) -> dict[str, Any]:
    """What arrays hold, by path, to be compared up to rounding: of those that this process has whole.

    Example:
        >>> held(jax.tree_util.tree_leaves_with_path({"w": np.zeros(3)}))
        {'function': 'arrays', 'values': {'w': '0 0'}}
    """
    found = {}
    for path, leaf in leaves:
        if isinstance(leaf, jax.Array) and leaf.is_fully_replicated:
            leaf = leaf.addressable_data(0)
        elif isinstance(leaf, jax.Array):
            continue
        if hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.number):
            flat = np.asarray(leaf).reshape(-1)
            flat = np.concatenate([np.real(flat), np.imag(flat)]) if np.iscomplexobj(flat) else flat
            found[path_name(path)] = _summary(flat[:: max(1, flat.size // LARGE)])
    return {FUNCTION: "arrays", VALUES: found}


def _norm(array: Any) -> float:
    x = np.asarray(array).astype(np.float64)
    return math.sqrt((x * x).sum() / max(x.size, 1))


def _together(moved: PyTree) -> Any:
    return _number(sum(map(_norm, jax.tree.leaves(moved))))


def _number(x: float) -> float | str:
    return float(f"{x:.9g}") if math.isfinite(x) else str(float(x))


def _name(function: Any) -> str:
    """What it is called, in the package or module that it comes from; a script has no name when it is run."""
    named = function if hasattr(function, "__qualname__") else getattr(function, "func", type(function))
    package = (getattr(named, "__module__", None) or "").split(".")[0]
    name = getattr(named, "__qualname__", type(named).__name__).replace(".<locals>", "")
    return name if package in ("", "__main__") else f"{package}.{name}"


def describe(es: Strategy, params: PyTree) -> dict[str, Any]:
    """The settings of a strategy that decide its numbers, as JSON can hold them.

    Args:
        es: the strategy.
        params: of the run, for their names, shapes and dtypes.

    Example:
        >>> import eggroll, jax.numpy as jnp
        >>> describe(eggroll.ES(population=4, sigma=0.1), {"w": jnp.zeros(3)})["population"]
        4
    """

    def moving(params: PyTree) -> PyTree:
        return full(without(params, still), master_copies(without(params, still)))

    rules = check_params(params, es.rules)
    still = [isinstance(rules.get(path), FrozenRule) for path in leaf_paths(params)]
    shapes = jax.eval_shape(moving, params)
    return {name: described(name, value, shapes, es.population) for name, value in es.options().items()}
