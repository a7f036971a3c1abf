"""A ledger's record of what a model carries along beside its parameters, such as statistics of what it saw."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from eggroll.engine.paths import leaf_paths
from eggroll.training.folder.disk import parse_json
from eggroll.training.ledger.format import to_numpy

_NUMBER = struct.Struct("<Q")


@dataclass(frozen=True, eq=False)
class Carried:
    """What a model carries along after a generation.

    Attributes:
        generation: number of updates before that generation.
        arrays: by path.
    """

    generation: int
    arrays: Mapping[str, np.ndarray]

    @classmethod
    def of(cls, generation: int, carry: Any) -> Carried:
        """The record of a pytree."""
        leaves = map(to_numpy, jax.device_get(jax.tree.leaves(carry)))
        return cls(generation, dict(zip(leaf_paths(carry), leaves, strict=True)))

    def pack(self) -> bytes:
        """The payload.

        Example:
            >>> Carried.unpack(Carried.of(3, {"mean": np.float32([1, 2])}).pack()).arrays
            {'mean': array([1., 2.], dtype=float32)}
        """
        kinds = {path: [array.dtype.name, list(array.shape)] for path, array in self.arrays.items()}
        data = b"".join(array.tobytes() for array in self.arrays.values())
        return _NUMBER.pack(self.generation) + json.dumps(kinds).encode() + b"\n" + data

    @classmethod
    def unpack(cls, payload: bytes) -> Carried:
        """The arrays from their payload; raises ValueError where the payload holds none."""
        if len(payload) < _NUMBER.size:
            raise ValueError("a payload too short for what is carried along")
        (number,) = _NUMBER.unpack_from(payload)
        head, _, data = payload[_NUMBER.size :].partition(b"\n")
        try:
            arrays = {}
            for path, (name, shape) in parse_json(head).items():
                size = math.prod(shape) * jnp.dtype(name).itemsize
                if min(shape, default=0) < 0 or jnp.dtype(name).hasobject:
                    raise ValueError
                arrays[path] = np.frombuffer(data[:size], jnp.dtype(name)).reshape(shape).copy()
                data = data[size:]
        except (AttributeError, TypeError, ValueError) as why:
            raise ValueError("a payload that does not hold the arrays that it names") from why
        if data:
            raise ValueError(f"{len(data)} bytes more than it names")
        return cls(number, arrays)
