"""What a run carries from one generation to the next, and where its arrays lie on a mesh.

Parameters are whole along `"population"`: members share them. Under `update="weights"` what only the update needs
(master copies, optimizer state) is split over `"population"` too, along one axis of each matrix.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import jax
import numpy as np
from jax.core import Tracer
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from eggroll.engine.annotations import PyTree
from eggroll.engine.paths import leaf_paths
from eggroll.strategy.plan.leaves import LeafPlan, Plan
from eggroll.strategy.plan.parameters import as_arrays, check_no_module, is_low
from eggroll.strategy.population import AXIS, Population, ShardingRules, axes_of, is_split
from eggroll.strategy.serialization import serializable


@serializable
@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """The state of a run: an ordinary pytree to jit, shard and checkpoint; `flax.serialization` knows it too.

    Attributes:
        params: the parameters, in the dtypes they were given in.
        master: float32 copies of the parameters of lower precision, in order; they take the updates.
        opt_state: the optimizer's state; frozen parameters have none.
        key: the run's random key; never changes.
        generation: int32 scalar, the number of updates made.
    """

    params: PyTree
    master: tuple[jax.Array, ...]
    opt_state: PyTree
    key: jax.Array
    generation: jax.Array

    owner: ClassVar[str] = ""  # of a subclass: the strategy that alone knows what more it has

    def __repr__(self) -> str:
        """Its generation, and how large the parameters are: a notebook would print them all otherwise."""
        return f"{type(self).__name__}(generation={self.generation}, params={summary(self.params)})"


def summary(tree: PyTree) -> str:
    """How large a pytree is, and of what dtype.

    Example:
        >>> summary({"w": np.zeros((4, 3), np.float32), "b": np.zeros(3, np.float32)})
        '<2 arrays, 15 numbers, float32>'
    """
    leaves = [leaf for leaf in jax.tree.leaves(tree) if hasattr(leaf, "shape") and hasattr(leaf, "dtype")]
    dtypes = "/".join(sorted({str(leaf.dtype) for leaf in leaves}))
    count = f"{len(leaves)} array" if len(leaves) == 1 else f"{len(leaves)} arrays"
    return f"<{count}, {sum(math.prod(leaf.shape) for leaf in leaves):,} numbers{dtypes and ', ' + dtypes}>"


def check_state(state: object) -> None:
    """Raises `TypeError` unless `state` is a `State`."""
    if not isinstance(state, State):
        raise TypeError(
            f"got {type(state).__name__} as the state; an eggroll.State is required, as in es.ask(state), "
            "es.tell(state, members, fitness) and es.step(state, fitness_fn, *args). Make one from parameters with "
            "es.init(params, key); tell and step return (state, metrics)."
        )
    if state.owner:
        raise TypeError(
            f"got {type(state).__name__} as the state, of which {state.owner} alone knows all: go on with that, or "
            "make one from parameters with es.init(params, key)."
        )


@dataclass(frozen=True)
class Placement:
    """Where each parameter lies.

    Attributes:
        mesh: the devices.
        specs: of each parameter, in the order of `jax.tree.leaves(params)`.
        parts: the axis of each parameter that its update is split along over `"population"`; None: it is not.
        still: which parameters are frozen.
    """

    mesh: Mesh
    specs: tuple[PartitionSpec, ...]
    parts: tuple[int | None, ...]
    still: tuple[bool, ...]

    @property
    def manual(self) -> frozenset[str]:
        """Axes that `jax.shard_map` splits by hand: along the others the compiler splits as the parameters are."""
        return frozenset({AXIS}) if any(map(is_split, self.specs)) else frozenset(self.mesh.axis_names)

    @property
    def is_split(self) -> bool:
        """Whether any parameter is split."""
        return any(map(is_split, self.specs))

    @property
    def update_specs(self) -> list[PartitionSpec]:
        """Of gradients, master copies and moments."""
        return [_with_population(spec, part) for spec, part in zip(self.specs, self.parts, strict=True)]

    def on(self, spec: PartitionSpec) -> NamedSharding:
        """The spec on this mesh."""
        return NamedSharding(self.mesh, spec)

    def pinned(self, leaves: Sequence[Any], specs: Sequence[PartitionSpec]) -> list[Any]:
        """Under `jit`, the parameters' leaves (None for some) held to the specs."""
        return [
            x if x is None else jax.lax.with_sharding_constraint(x, self.on(spec))
            for x, spec in zip(leaves, specs, strict=True)
        ]

    def pinned_tree(self, tree: PyTree, params: PyTree, specs: Sequence[PartitionSpec]) -> PyTree:
        """The same for a pytree as `params`."""
        structure = jax.tree.structure(params)
        return structure.unflatten(self.pinned(structure.flatten_up_to(tree), specs))

    def whole(self, tree: PyTree) -> PyTree:
        """`tree`, under `jit`, whole on every device: every process can read it."""
        return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, self.on(PartitionSpec())), tree)

    def of_state(self, state: State) -> State:
        """The sharding of every array of a state: what is made like a parameter lies like it."""
        params, structure = jax.tree.flatten(state.params)
        every = zip(params, self.update_specs, self.still, strict=True)
        low = [spec for x, spec, still in every if is_low(x) and not still]
        whole: Any = self.on(PartitionSpec())
        master: Any = tuple(map(self.on, low))
        where = structure.unflatten(map(self.on, self.specs)), master, self.of_optimizer(state.params, state.opt_state)
        return State(*where, key=whole, generation=whole)

    def of_optimizer(self, params: PyTree, opt_state: PyTree) -> PyTree:
        """Shardings of an optimizer's state: of a leaf at a parameter's path, with its shape, the parameter's."""
        keyed = jax.tree_util.tree_leaves_with_path(params)
        known = {keys: (tuple(x.shape), spec) for (keys, x), spec in zip(keyed, self.update_specs, strict=True)}

        def one(keys: tuple, leaf: Any) -> NamedSharding:
            for start in range(len(keys) + 1):
                shape, spec = known.get(keys[start:], (None, PartitionSpec()))
                if shape is not None and leaf.shape[leaf.ndim - len(shape) :] == shape:
                    # L-BFGS keeps several of each: axes before the parameter's own.
                    return self.on(PartitionSpec(*[None] * (leaf.ndim - len(shape)), *spec))
            return self.on(PartitionSpec())

        return jax.tree_util.tree_map_with_path(one, opt_state)


def make_placement(mesh: Mesh, rules: ShardingRules, update: str, leaves: Sequence[LeafPlan]) -> Placement:
    """The placement of parameters.

    Args:
        mesh: with an axis `"population"`.
        rules: the user's `sharding`.
        update: `"weights"` splits matrices' updates over `"population"`.
        leaves: of the parameters, in order.

    Returns:
        The placement.

    Raises:
        ValueError: a spec that does not fit its parameter, or a rule that matches nothing.
    """
    shapes = [tuple(leaf.shape) for leaf in leaves]
    specs = rules.specs([leaf.path for leaf in leaves], shapes, mesh)
    split = update == "weights" and mesh.shape[AXIS] > 1
    parts = [_part(s, spec, mesh.shape[AXIS]) if split else None for s, spec in zip(shapes, specs, strict=True)]
    return Placement(mesh, specs, tuple(parts), tuple(leaf.kind == "frozen" for leaf in leaves))


def on_mesh(params: PyTree, settings: Population) -> PyTree:
    """Parameters as arrays, on the mesh of the settings where there is one."""
    if settings.mesh is None:
        return as_arrays(params)
    check_no_module(params)
    # Arrays of the host go to the devices part by part: they may be larger than one.
    params = jax.tree.map(lambda x: _canonical(x) if isinstance(x, np.ndarray) else as_arrays(x), params)
    shapes = [tuple(x.shape) for x in jax.tree.leaves(params)]
    specs = settings.sharding.specs(leaf_paths(params), shapes, settings.mesh)
    where = [NamedSharding(settings.mesh, spec) for spec in specs]
    return place(params, jax.tree.structure(params).unflatten(where))


def _canonical(x: np.ndarray) -> np.ndarray:
    return x.astype(jax.dtypes.canonicalize_dtype(x.dtype), copy=False)


def for_mesh(plan: Plan, settings: Population) -> Plan:
    """The plan, in which no factors stay keys where parameters are split: a kernel makes those of whole matrices."""
    if settings.mesh is None or not make_placement(settings.mesh, settings.sharding, "members", plan.leaves).is_split:
        return plan
    return Plan(tuple(replace(leaf, matrix=None) for leaf in plan.leaves))


def _part(shape: tuple[int, ...], spec: PartitionSpec, devices: int) -> int | None:
    """The longest axis that splits evenly and is not split yet; None for vectors, whose bytes do not matter."""
    entries = [*spec, *[None] * (len(shape) - len(spec))]
    free = [a for a, n in enumerate(shape) if n and n % devices == 0 and not axes_of(entries[a])]
    return max(free, key=lambda a: shape[a]) if free and len(shape) > 1 else None


def _with_population(spec: PartitionSpec, part: int | None) -> PartitionSpec:
    if part is None:
        return spec
    entries = [*spec, *[None] * (part + 1 - len(spec))]
    entries[part] = AXIS
    return PartitionSpec(*entries)


def place(tree: PyTree, shardings: Any) -> PyTree:
    """Arrays, or numbers of NumPy's, as global arrays of these shardings; under a trace they are held to them."""
    return jax.tree.map(_place, tree, shardings)


def _place(x: Any, sharding: NamedSharding) -> jax.Array:
    if isinstance(x, Tracer):
        return jax.lax.with_sharding_constraint(x, sharding)
    if sharding.is_fully_addressable or (isinstance(x, jax.Array) and not x.is_fully_addressable):
        return jax.device_put(x, sharding)
    if jax.numpy.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_place(jax.random.key_data(x), sharding), impl=jax.random.key_impl(x))
    # Every process holds the same numbers, and puts the parts of its own devices.
    host = np.asarray(x)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])
