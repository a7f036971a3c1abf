"""Packages whose names are loaded when they are asked for, and what waits for a package of others."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


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
        own = (name for name in vars(sys.modules[package]) if name.startswith("__"))
        return sorted({*own, *files, *modules})  # and not what the file itself needs

    return __getattr__, __dir__


def when_imported(name: str, then: Callable[[ModuleType], object]) -> None:
    """Calls `then(module)` once the module of that name is loaded: now if it is, else after whoever imports it."""
    if name in sys.modules:
        then(sys.modules[name])
    else:
        sys.meta_path.insert(0, _Waiting(name, then))


class _Waiting(importlib.abc.MetaPathFinder):
    """Finds nothing itself; of the module that it waits for it changes what happens after loading."""

    def __init__(self, name: str, then: Callable[[ModuleType], object]) -> None:
        self._name, self._then = name, then

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """What the other finders find."""
        if fullname != self._name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                load(module)
                self._then(module)

            spec.loader.exec_module = exec_module
        return spec
