"""Which axes of a mesh each parameter is split over: by rules on paths, or by a pytree as the parameters."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from eggroll.engine.paths import path_name
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
