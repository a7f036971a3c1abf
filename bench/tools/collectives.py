"""What crosses a mesh: the collective operations of a compiled program, read from its text."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jax.sharding import Mesh

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute")

_OPERATION = re.compile(rf"= (?P<type>.+?) (?P<kind>{'|'.join(KINDS)})(?P<start>-start)?\(")
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\]")
_COMPUTATION = re.compile(r"^(?P<entry>ENTRY )?%?(?P<name>[\w.\-]+) .*-> .*\{$")
_CALLED = re.compile(r"(?:body|condition|to_apply|calls|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_IOTA = re.compile(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_AXES = re.compile(r"mesh\[([^\]]*)\](?:, device_ids=\((?:\[([\d,]+)\]T\(([\d,]+)\)|([\d,]+))\))?\s*\{([^}]*)\}")
_PART = re.compile(r"'([^']+)'(?::\((\d+)\)(\d+))?")
_LISTS = re.compile(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{}\s]*\})?\}")


@dataclass(frozen=True)
class Collective:
    """One collective operation.

    Attributes:
        kind: one of `KINDS`.
        bytes: of the array that is gathered, summed, scattered or sent, on one device: what theory counts. How much of
            it crosses a link is the algorithm's: about twice as much for an all-reduce in a ring.
        groups: devices that take part together, by their number in the mesh; pairs for a permutation.
        times: how often it runs: trips of the loops around it, as far as the compiler knows them.
        name: where it comes from in the JAX program.
    """

    kind: str
    bytes: int
    groups: tuple[tuple[int, ...], ...]
    times: int = 1
    name: str = ""

    def axes(self, mesh: Mesh) -> frozenset[str]:
        """The axes of the mesh that it crosses."""
        crossed = set()
        for group in self.groups or (tuple(range(mesh.size)),):
            places = np.array(np.unravel_index(np.array(group), tuple(mesh.shape.values())))
            crossed |= {axis for axis, row in zip(mesh.shape, places, strict=True) if len(set(row.tolist())) > 1}
        return frozenset(crossed)


def collectives(compiled: Any) -> list[Collective]:
    """The collectives of a compiled program, those of loops and branches included.

    Args:
        compiled: what `jax.jit(f).lower(...).compile()` returned, or its text.

    Returns:
        In the order of the text; those between a device and itself are left out.

    Raises:
        ValueError: groups of devices in a form that is not known.
    """
    text = compiled if isinstance(compiled, str) else compiled.as_text()
    bodies, entry = _computations(text)
    times = dict.fromkeys(bodies, 0)
    _count(bodies, entry, 1, times)
    found = []
    for computation, lines in bodies.items():
        for line in lines:
            operation = _OPERATION.search(line)
            if operation and times[computation]:
                found.append(_collective(line, operation, times[computation]))
    return [c for c in found if not c.groups or max(map(len, c.groups)) > 1]


def crossing(found: list[Collective], mesh: Mesh, axis: str) -> list[Collective]:
    """Those that cross an axis of the mesh."""
    return [c for c in found if axis in c.axes(mesh)]


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """`(lines by computation, the name of the first)`."""
    bodies: dict[str, list[str]] = {}
    entry, name = "", ""
    for line in text.splitlines():
        head = _COMPUTATION.match(line)
        if head:
            name = head["name"]
            bodies[name] = []
            entry = name if head["entry"] else entry
        elif name:
            bodies[name].append(line)
    return bodies, entry


def _count(bodies: Mapping[str, list[str]], name: str, times: int, total: dict[str, int]) -> None:
    """Adds how often a computation runs, and what it calls."""
    if name not in total:
        return
    total[name] += times
    for line in bodies[name]:
        trips = _TRIPS.search(line) if " while(" in line else None
        for called in _called(line):
            _count(bodies, called, times * (int(trips[1]) if trips else 1), total)


def _called(line: str) -> Iterator[str]:
    yield from (m[1] for m in _CALLED.finditer(line))
    branches = _BRANCHES.search(line)
    if branches:
        yield from (name.strip().removeprefix("%") for name in branches[1].split(","))


def _collective(line: str, operation: re.Match[str], times: int) -> Collective:
    sizes = [_array_bytes(dtype, dims) for dtype, dims in _ARRAY.findall(operation["type"])]
    kind = operation["kind"]
    if operation["start"] and kind in ("all-gather", "collective-permute", "reduce-scatter", "all-to-all"):
        sizes = sizes[: len(sizes) // 2] if kind == "reduce-scatter" else sizes[len(sizes) // 2 :]
    groups = _groups(line)
    scattered = kind == "reduce-scatter" and not operation["start"]
    size = sum(sizes) * (len(groups[0]) if scattered and groups else 1)
    name = re.search(r'op_name="([^"]*)"', line)
    return Collective(kind, size, groups, times, name[1] if name else "")


def _array_bytes(dtype: str, dims: str) -> int:
    bits = {"pred": 8, "token": 0}.get(dtype) or int((re.search(r"\d+", dtype) or ["0"])[0])
    return math.prod(map(int, filter(None, dims.split(",")))) * bits // 8


def _groups(line: str) -> tuple[tuple[int, ...], ...]:
    """The groups of a collective, in the three forms in which XLA writes them; none: all devices together."""
    if lists := _LISTS.search(line):
        return tuple(tuple(map(int, group.split(","))) for group in re.findall(r"\{([\d,\s]+)\}", lists[1] or ""))
    named = line.partition("replica_groups=")[2]
    if iota := _IOTA.match(named):
        shape, source, order = (tuple(map(int, part.split(","))) if part else () for part in iota.groups())
        numbers = np.arange(math.prod(source)).reshape(source)
        return _rows((numbers.transpose(order) if order else numbers).reshape(shape))
    if axes := _AXES.match(named):
        return _of_axes(*axes.groups())
    raise ValueError(f"got a collective whose groups are written in an unknown form: {named[:200]}")


def _of_axes(sizes: str, iota: str | None, order: str | None, listed: str | None, chosen: str) -> tuple:
    """`'a'=2,'b'=4`, the devices' order, and the axes `'a'`, or parts of axes `'b':(1)2`, that a group spans."""
    named = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", sizes)}
    devices = np.arange(math.prod(named.values()))
    if iota and order:
        devices = devices.reshape(_ints(iota)).transpose(_ints(order))
    if listed:
        devices = np.array(_ints(listed))
    parts = {name: (int(before or 1), int(size or named[name])) for name, before, size in _PART.findall(chosen)}
    shape, inner = [], []
    for name, size in named.items():
        before, own = parts.get(name, (size, 1))
        inner += [len(shape) + 1] if name in parts else []
        shape += [before, own, size // before // own]
    outer = [i for i in range(len(shape)) if i not in inner]
    return _rows(devices.reshape(shape).transpose(*outer, *inner).reshape(-1, math.prod(shape[i] for i in inner)))


def _ints(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))


def _rows(numbers: np.ndarray) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(int(i) for i in row) for row in numbers)
