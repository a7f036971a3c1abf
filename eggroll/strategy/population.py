"""Who the members are, on which devices they and the parameters lie, and how these split an update."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import jax
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from eggroll.engine.annotations import Chunk, PyTree
from eggroll.engine.checks import as_count, check_flag, check_one_of
from eggroll.engine.interpreter import Fallback, check_fallback
from eggroll.engine.lowrank import accumulator_dtype
from eggroll.engine.paths import leaf_paths, path_name
from eggroll.ops import check_distribution
from eggroll.strategy.plan.parameters import is_low
from eggroll.strategy.plan.rules import compile_pattern, unused_pattern

AXIS = "population"

Sharding = Any  # None, a pytree of PartitionSpec or NamedSharding, or (pattern, PartitionSpec) pairs


@dataclass(frozen=True)
class ShardingRules:
    """A user's `sharding`, in a form that can be hashed.

    Attributes:
        pairs: `(regular expression, spec)`; the whole path must match, the first match wins.
        exact: whether every parameter has to have a rule: they come from a pytree as the parameters.
    """

    pairs: tuple[tuple[str, PartitionSpec], ...] = ()
    exact: bool = False

    def specs(self, paths: Sequence[str], shapes: Sequence[tuple[int, ...]], mesh: Mesh) -> tuple[PartitionSpec, ...]:
        """The spec of every parameter; `PartitionSpec()`, whole on every device, where no rule matches.

        Raises:
            ValueError: a rule that decides for no parameter, or a spec that does not fit its parameter.
        """
        compiled = [compile_pattern(pattern) for pattern, _ in self.pairs]
        used: set[int] = set()
        specs = []
        for path, shape in zip(paths, shapes, strict=True):
            i = next((i for i, regex in enumerate(compiled) if regex.fullmatch(path)), None)
            if i is None and self.exact:
                raise ValueError(
                    f"got a pytree as sharding without an entry for '{path}': one PartitionSpec per parameter is "
                    "required (PartitionSpec() keeps it whole), or pairs (pattern, PartitionSpec)."
                )
            spec = PartitionSpec() if i is None else self.pairs[i][1]
            used |= set() if i is None else {i}
            _check_fits(path, shape, spec, mesh)
            specs.append(spec)
        for i, (pattern, _) in enumerate(self.pairs):
            if i not in used:
                raise ValueError(unused_pattern(pattern, list(paths), "sharding "))
        return tuple(specs)


def as_sharding(sharding: Sharding, mesh: Mesh | None) -> ShardingRules:
    """The rules that a user's `sharding` stands for; checks all that can be checked without parameters.

    Raises:
        TypeError: neither None nor a pytree of specs nor pairs.
        ValueError: no mesh, a broken pattern, an axis that the mesh has not, one that is named twice, or the members'.
    """
    if sharding is None or isinstance(sharding, ShardingRules):
        return sharding or ShardingRules()
    if mesh is None:
        raise ValueError("got sharding without a mesh: pass mesh=, whose axes the specs name.")
    exact = not _is_pairs(sharding)
    pairs = _of_tree(sharding) if exact else [(pattern, spec) for pattern, spec in sharding]
    rules = tuple((pattern, _checked(pattern, spec, mesh)) for pattern, spec in pairs)
    for pattern, _ in rules:
        compile_pattern(pattern)
    return ShardingRules(rules, exact)


def axes_of(entry: Any) -> tuple[str, ...]:
    """The mesh axes that one entry of a spec names.

    Example:
        >>> axes_of(None), axes_of("model"), axes_of(("data", "model"))
        ((), ('model',), ('data', 'model'))
    """
    if entry is None:
        return ()
    return tuple(entry) if isinstance(entry, tuple | list) else (entry,)


def is_split(spec: PartitionSpec) -> bool:
    """Whether a spec names any axis."""
    return any(axes_of(entry) for entry in spec)


def _is_pairs(sharding: Any) -> bool:
    return isinstance(sharding, list | tuple) and all(
        isinstance(pair, tuple | list) and len(pair) == 2 and isinstance(pair[0], str) for pair in sharding
    )


def _of_tree(sharding: Any) -> list[tuple[str, Any]]:
    """Every path of the pytree as a pattern; None is `PartitionSpec()`."""
    leaf = lambda x: x is None or isinstance(x, PartitionSpec | NamedSharding)  # noqa: E731
    found = jax.tree_util.tree_leaves_with_path(sharding, is_leaf=leaf)
    return [(re.escape(path_name(keys)), PartitionSpec() if x is None else x) for keys, x in found]


def _checked(pattern: str, spec: Any, mesh: Mesh) -> PartitionSpec:
    """The spec; raises unless it names axes of the mesh, each once, and not the members'."""
    if isinstance(spec, NamedSharding):
        if dict(spec.mesh.shape) != dict(mesh.shape):
            raise ValueError(
                f"got a NamedSharding on a mesh {dict(spec.mesh.shape)} for {pattern!r}; the mesh of mesh=, "
                f"{dict(mesh.shape)}, is required. Pass a PartitionSpec."
            )
        spec = spec.spec
    if not isinstance(spec, PartitionSpec):
        raise TypeError(
            f"got {spec!r} as the sharding of {pattern!r}; a jax.sharding.PartitionSpec is required, such as "
            'PartitionSpec(None, "model").'
        )
    if any(entry is PartitionSpec.UNCONSTRAINED for entry in spec):
        raise ValueError(f"got {spec} for {pattern!r}; every entry must be None, an axis or a tuple of axes.")
    named = [axis for entry in spec for axis in axes_of(entry)]
    for axis in named:
        if axis == AXIS:
            raise ValueError(
                f'got {spec} for {pattern!r}; members share the parameters, which are whole along "{AXIS}": name '
                f'another axis of the mesh. update="weights" splits master copies and optimizer state over "{AXIS}".'
            )
        if axis not in mesh.shape:
            raise ValueError(
                f"got {spec} for {pattern!r}; the mesh has no axis {axis!r}, only {', '.join(map(repr, mesh.shape))}."
            )
        if named.count(axis) > 1:
            raise ValueError(f"got {spec} for {pattern!r}, which names the axis {axis!r} twice.")
    return spec


def _check_fits(path: str, shape: tuple[int, ...], spec: PartitionSpec, mesh: Mesh) -> None:
    if len(spec) > len(shape):
        raise ValueError(
            f"got {spec} for '{path}' of shape {shape}: {len(spec)} entries for {len(shape)} axes. Leave the last out."
        )
    for number, (size, entry) in enumerate(zip(shape, spec, strict=False)):
        parts = math.prod(mesh.shape[axis] for axis in axes_of(entry))
        if size % parts:
            raise ValueError(
                f"got {spec} for '{path}' of shape {shape}: axis {number} of size {size} does not split into {parts} "
                "equal parts. Split another axis, or leave this one whole (None)."
            )


NOISES, CREDITS = ("weights", "activations"), ("dependent", "own")
UPDATES = ("auto", "members", "weights")


@dataclass(frozen=True)
class Population:
    """Settings that say who the members are; see `eggroll.ES` for their meaning.

    Raises:
        ValueError: settings that do not fit together.
    """

    size: int
    antithetic: bool = True
    distribution: str = "rademacher"
    groups: int = 1
    chunk: Chunk = "auto"
    mesh: Mesh | None = None
    fallback: Fallback = "warn"
    sharding: Any = None
    update: str = "members"
    noise: str = "weights"
    credit: str = "dependent"
    discount: float = 1.0
    relative: bool = False

    def __post_init__(self) -> None:
        self._check_names()
        self._set("size", as_count("population", self.size, 2 if self.antithetic else 1))
        if self.antithetic and self.size % 2:
            raise ValueError(
                f"got population={self.size} with antithetic pairs; an even population is required. Use "
                f"{self.size + 1}, or antithetic=False."
            )
        self._set("groups", as_count("groups", self.groups))
        if self.size % self.groups or (self.antithetic and (self.size // self.groups) % 2):
            even = " into parts of an even number of members, so that pairs stay together" if self.antithetic else ""
            raise ValueError(f"got groups={self.groups}, which must divide population={self.size}{even}.")
        check_distribution(self.distribution)
        self._set("chunk", check_chunk(self.chunk))
        check_fallback(self.fallback)
        if self.mesh is not None:
            self._check_mesh(self.mesh)
            # `jax.make_mesh` gives axes of type Explicit, along which JAX sorts and slices nothing.
            self._set("mesh", Mesh(self.mesh.devices, self.mesh.axis_names))
        self._set("sharding", as_sharding(self.sharding, self.mesh))

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _check_mesh(self, mesh: Mesh) -> None:
        if AXIS not in getattr(mesh, "shape", ()):
            got = f"a mesh with axes {tuple(mesh.shape)}" if hasattr(mesh, "shape") else f"mesh={mesh!r:.80}"
            raise ValueError(f'got {got}; a mesh with an axis named "{AXIS}" is required.')
        if self.units % mesh.shape[AXIS]:
            unit, devices = "pairs" if self.antithetic else "members", mesh.shape[AXIS]
            raise ValueError(
                f"got {self.units} {unit} for {devices} devices; the population must split evenly over the mesh axis "
                f'"{AXIS}".'
            )

    def _check_names(self) -> None:
        for name, known in (("update", UPDATES), ("noise", NOISES), ("credit", CREDITS)):
            check_one_of(name, getattr(self, name), known)
        check_flag("antithetic", self.antithetic)
        check_flag("relative", self.relative)
        if isinstance(self.discount, bool) or not isinstance(self.discount, Real) or not 0 <= self.discount <= 1:
            raise ValueError(f"got discount={self.discount!r:.80}; a number from 0 (own loss alone) to 1 is required.")
        named = f"credit={self.credit!r}, discount={self.discount!r} and relative={self.relative!r}"
        if (self.credit, self.discount, self.relative) != ("dependent", 1.0, False) and self.noise == "weights":
            raise ValueError(f'got {named} with noise="weights"; they say something of noise="activations" alone.')
        if self.credit == "own" and self.discount != 1:
            raise ValueError(f'got {named}; credit="own" is discount=0: give one.')

    @property
    def signs(self) -> int:
        """Members in a unit: 2 for an antithetic pair, else 1."""
        return 2 if self.antithetic else 1

    @property
    def units(self) -> int:
        """Draws of noise in a generation."""
        return self.size // self.signs


def check_chunk(chunk: object) -> int | str:
    """`chunk` as a Python integer, or "auto"; raises unless it is one of them."""
    if isinstance(chunk, str) and chunk == "auto":
        return chunk
    return as_count("chunk", chunk, 1, ' It is the number of members evaluated at once; "auto" chooses one.')


def layout(
    settings: Population, params: PyTree, optimizer: optax.GradientTransformation, memory: float | None = None
) -> str:
    """`"weights"` where what an update by members holds does not fit a device, else `"members"`.

    Args:
        settings: the population and its mesh.
        params: pytree of arrays or shapes.
        optimizer: that of the run.
        memory: bytes that a device may use. Default None: as far as it tells.
    """
    if settings.mesh is None or settings.mesh.shape[AXIS] == 1:
        return "members"
    memory = _device_memory() if memory is None else memory
    return "weights" if _held(settings, params, optimizer) > memory else "members"


def _held(settings: Population, params: PyTree, optimizer: optax.GradientTransformation) -> float:
    """Bytes on each device by members: weights, sums, master copies, and what the optimizer keeps beside them."""
    leaves = [x for x in jax.tree.leaves(params) if jax.numpy.issubdtype(x.dtype, jax.numpy.floating)]
    wide = [jax.ShapeDtypeStruct(x.shape, accumulator_dtype(x.dtype)) for x in leaves]
    try:
        state = jax.eval_shape(optimizer.init, wide)
    except Exception:  # one for parameters of another structure, or for none: `ES.init` says what is wrong
        state = ()
    kept = sum(_bytes(x) for x in jax.tree.leaves(state)) / max(sum(map(_bytes, wide)), 1)
    assert settings.mesh is not None
    specs = settings.sharding.specs(
        leaf_paths(params), [tuple(x.shape) for x in jax.tree.leaves(params)], settings.mesh
    )
    total = 0.0
    for x, spec in zip(jax.tree.leaves(params), specs, strict=True):
        shards = math.prod(settings.mesh.shape[axis] for entry in spec for axis in axes_of(entry))
        sums = 4 * math.prod(x.shape)
        total += (_bytes(x) + sums * (1 + is_low(x) + kept)) / shards
    return total


def _bytes(x: Any) -> int:
    return math.prod(x.shape) * x.dtype.itemsize


def _device_memory() -> float:
    """Bytes that a device may use; as many as one likes where it does not tell."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats.get("bytes_limit") or math.inf
