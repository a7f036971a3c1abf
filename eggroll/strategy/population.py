"""The settings that say who the members are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jax.sharding import Mesh

from eggroll.engine.annotations import Chunk
from eggroll.engine.checks import as_count
from eggroll.engine.fallback import Fallback, check_fallback
from eggroll.ops import check_distribution
from eggroll.strategy.mesh.sharding import AXIS, as_sharding

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

    def __post_init__(self) -> None:
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
        if self.update not in UPDATES:
            raise ValueError(f"got update={self.update!r}; one of {', '.join(map(repr, UPDATES))} is required.")

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _check_mesh(self, mesh: Mesh) -> None:
        if AXIS not in mesh.shape:
            raise ValueError(f'got a mesh with axes {tuple(mesh.shape)}; an axis named "{AXIS}" is required.')
        if self.units % mesh.shape[AXIS]:
            unit = "pairs" if self.antithetic else "members"
            raise ValueError(
                f"got {self.units} {unit} for {mesh.shape[AXIS]} devices; the population must split evenly over the "
                f'mesh axis "{AXIS}".'
            )

    @property
    def signs(self) -> int:
        """Members in a unit: 2 for an antithetic pair, else 1."""
        return 2 if self.antithetic else 1

    @property
    def units(self) -> int:
        """Draws of noise in a generation."""
        return self.size // self.signs


def check_chunk(chunk: Any) -> int | str:
    """`chunk` as a Python integer, or "auto"; raises unless it is one of them."""
    if isinstance(chunk, str) and chunk == "auto":
        return chunk
    return as_count("chunk", chunk, 1, ' It is the number of members evaluated at once; "auto" chooses one.')
