"""One adapter a peer: the same work, asked for as the peer's own documentation does.

An adapter is a module with `NAME`, `GET` (how to get the peer), `UNIT` (the framework whose pure inference it is
compared with), `version()`, `dense_copies(work)` and `prepare(work)`; one with `OWN_PROCESS` has `command()` instead
of `prepare`. The peer is imported inside functions only, so a missing one is a row of the report and never an
ImportError. This file imports neither JAX nor eggroll: eggroll-es, whose import package has our name, is measured by
a process that must not see ours.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import pathlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

ADAPTERS = ("ours", "ours_normal", "evosax_open_es", "torcheggroll_es", "eggroll_es", "hyperscale_es", "shardes_es")
WORKS = ("layer", "digits")
LAYERS = {"digits": (64, 256, 256, 10)}  # widths of the MLP, with biases


class Missing(Exception):
    """The peer is not installed, or no checkout of it is named."""


class LeftOut(Exception):
    """The peer cannot do this work, and why."""


@dataclass(frozen=True)
class Work:
    """What all do alike.

    Attributes:
        name: `"layer"`: one linear layer without bias, a row of input per member, fitness minus the mean square of
            the outputs; or `"digits"`: the MLP 64-256-256-10 with biases and ReLU, rows that all members share, fitness
            minus the mean cross entropy.
        population: members, in antithetic pairs.
        width: of the layer.
        rows: of the digits.
        rank: of the noise, where the peer has one.
        sigma: noise scale.
        learning_rate: of plain gradient descent, the one update that all peers have.
    """

    name: str
    population: int
    width: int = 512
    rows: int = 128
    rank: int = 1
    sigma: float = 0.01
    learning_rate: float = 1e-3

    @property
    def widths(self) -> tuple[int, ...]:
        """Inputs of the network, then outputs of each layer."""
        return (self.width, self.width) if self.name == "layer" else LAYERS[self.name]

    @property
    def parameters(self) -> int:
        """Numbers that are trained."""
        pairs = zip(self.widths, self.widths[1:], strict=False)
        return sum(a * b + (b if self.name == "digits" else 0) for a, b in pairs)

    @property
    def dense_bytes(self) -> int:
        """Memory of one dense float32 copy of the parameters for every member."""
        return 4 * self.parameters * self.population

    @property
    def activation_bytes(self) -> int:
        """Memory of the widest float32 activation of the whole population."""
        return 4 * self.population * (1 if self.name == "layer" else self.rows) * max(self.widths)


@dataclass(frozen=True)
class Candidate:
    """What is timed.

    Attributes:
        step: one generation: noise, evaluation, update; every call goes on from the last one. What it returns can be
            waited for.
        inference: pure inference of the same rows by the same framework, all members in one call.
        note: what is said of it beside its figures.
    """

    step: Callable[[], Any]
    inference: Callable[[], Any]
    note: str | None = None


def adapter(name: str) -> ModuleType:
    """The adapter module of that name."""
    return importlib.import_module(f"bench.peer_adapters.{name}")


def distribution_version(name: str, get: str) -> str:
    """The version of an installed distribution.

    Raises:
        Missing: it is not installed.
    """
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        raise Missing(get) from None


def checkout(path: str | None, package: str, get: str) -> pathlib.Path:
    """Makes the package of a local checkout importable, from its root or its `src`; its folder.

    Raises:
        Missing: no path, or no such package there.
    """
    if not path:
        raise Missing(get)
    for folder in (pathlib.Path(path), pathlib.Path(path) / "src"):
        if (folder / package).is_dir():
            if str(folder) not in sys.path:
                sys.path.append(str(folder))  # last: a checkout must not hide what is installed
            return folder / package
    raise Missing(f"no package {package} in {path}; {get}")


def without_init(package: pathlib.Path) -> None:
    """Makes a package's modules importable one by one: its `__init__` files, and what they import, do not run.

    They may ask for libraries that nothing measured needs. A package that is imported already stays as it is.
    """
    for file in sorted(package.rglob("__init__.py")):
        module = ModuleType(".".join(file.parent.relative_to(package.parent).parts))
        module.__path__ = [str(file.parent)]
        sys.modules.setdefault(module.__name__, module)


def not_loaded(package: pathlib.Path) -> list[str]:
    """Modules of a package that nothing has imported, by their names in it."""
    files = (file for file in package.rglob("*.py") if file.name != "__init__.py")
    names = (".".join(file.relative_to(package).with_suffix("").parts) for file in files)
    return sorted(name for name in names if f"{package.name}.{name}" not in sys.modules)
