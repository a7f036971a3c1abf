"""Packages whose names are loaded when they are asked for."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence


def lazy(
    package: str, files: Mapping[str, str], packages: Sequence[str] = ()
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """Makes `__getattr__` and `__dir__` of a package.

    Type checkers must not see the result, or every misspelt name would be one of the package: they get imports under
    `TYPE_CHECKING`, and this stands under `if not TYPE_CHECKING`.

    Args:
        package: its full name.
        files: full name of the module in which each public name is found.
        packages: full names of modules that are attributes of the package without an import of their own.
    """
    modules = {name.rpartition(".")[2]: name for name in packages}

    def __getattr__(name: str) -> object:
        if name in files:
            value = getattr(importlib.import_module(files[name]), name)
            setattr(sys.modules[package], name, value)  # found at once from now on
            return value
        if name in modules:
            return importlib.import_module(modules[name])
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*vars(sys.modules[package]), *files, *modules})

    return __getattr__, __dir__
