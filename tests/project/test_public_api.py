"""The public names and signatures are a contract: a change to them shows up here."""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MODULES = ("eggroll", "eggroll.kernels", "eggroll.llm", "eggroll.nnx", "eggroll.rl", "eggroll.training")
SNAPSHOT = Path(__file__).with_name("public_api.txt")
UPDATE = "EGGROLL_UPDATE_API"


class Name:
    """Prints a function or class by its name, without the address where it happens to lie."""

    def __init__(self, value: Any) -> None:
        self.name = value.__name__

    def __repr__(self) -> str:
        return self.name


def signature(function: Any) -> str:
    """Return parameters and defaults, without annotations, whose text depends on the version of Python."""
    if inspect.isclass(function) and issubclass(function, Exception):
        return ""  # some versions of Python find a signature for these, some do not
    plain = []
    for parameter in inspect.signature(function).parameters.values():
        named = parameter.default is not inspect.Parameter.empty and hasattr(parameter.default, "__name__")
        default = Name(parameter.default) if named else parameter.default
        plain.append(parameter.replace(annotation=inspect.Parameter.empty, default=default))
    return str(inspect.Signature(plain))


def describe(name: str, value: Any) -> Iterator[str]:
    """Yield a line for a public name, and one for each public member of a class."""
    if inspect.ismodule(value):
        yield f"{name} (module)"
    elif inspect.isclass(value):
        yield name + signature(value)
        own = [base for base in inspect.getmro(value) if base.__module__.startswith("eggroll")]  # and what it inherits
        for member, inner in {name: each for base in reversed(own) for name, each in vars(base).items()}.items():
            if not member.startswith("_"):
                inner = inner.__func__ if isinstance(inner, classmethod | staticmethod) else inner
                yield f"{name}.{member}" + (signature(inner) if inspect.isfunction(inner) else "")
    else:
        yield name + (signature(value) if callable(value) else "")


def public_api() -> list[str]:
    """Return all lines of the snapshot."""
    lines = []
    for module_name in MODULES:
        module = importlib.import_module(module_name)
        for name in module.__all__:
            lines += describe(f"{module_name}.{name}", getattr(module, name))
    return sorted(set(lines))


def test_public_api_is_the_snapshot():
    lines = public_api()
    if os.environ.get(UPDATE):
        SNAPSHOT.write_text("\n".join(lines) + "\n", encoding="utf-8")
    known = SNAPSHOT.read_text(encoding="utf-8").splitlines() if SNAPSHOT.exists() else []
    missing, added = sorted(set(known) - set(lines)), sorted(set(lines) - set(known))
    assert lines == known, (
        f"the public interface changed. Gone: {missing}. New: {added}. If that is meant, note it in "
        f"CHANGELOG.md and run: {UPDATE}=1 python -m pytest tests/project/test_public_api.py"
    )


def test_every_public_name_is_documented():
    for module_name in MODULES:
        module = importlib.import_module(module_name)
        for name in module.__all__:
            value = getattr(module, name)
            if callable(value):
                assert value.__doc__, f"{module_name}.{name} has no docstring"
