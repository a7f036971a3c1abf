"""What a function, a schedule or an optax optimizer computes, as JSON: so that another one in its place is seen.

A function is its name, its code and what it has captured, again and again down to numbers, strings and arrays. Of
functions of installed packages, whose code goes with the package's version, the name stands for the code.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import math
import site
import sysconfig
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from eggroll.training.folder.layout import FUNCTION

COUNTS = (0, 1, 10, 100, 1000, 10_000, 100_000)  # generations at which schedules are compared
LONGEST = 20_000  # characters; a longer description is its digest
SHOWN = 8  # numbers of an array, beyond which its digest stands for it


def described(value: Any) -> Any:
    """A description that is equal, in any process, for what computes the same from the same numbers.

    Args:
        value: a function, an optimizer, a schedule, or anything that they may have captured.

    Returns:
        JSON. Two descriptions may differ though the results are the same (other code that does the same); what reads
        files, clocks or random numbers is not seen into.

    Example:
        >>> import optax
        >>> described(optax.sgd(0.1)) == described(optax.sgd(0.1)) != described(optax.sgd(0.2))
        True
    """
    found = _Walk().of(value)
    text = json.dumps(found, sort_keys=True)
    return found if len(text) <= LONGEST else {FUNCTION: _name(value), "digest": _digest(text.encode())}


def schedule_values(schedule: Callable[[Any], Any]) -> dict[str, Any]:
    """The values of a schedule at several generations, to nine digits.

    Example:
        >>> schedule_values(lambda generation: 0.5)["1000"]
        0.5
    """
    found = {}
    for count in COUNTS:
        with jax.numpy_dtype_promotion("standard"):  # optax mixes integers and floats
            x = float(schedule(jnp.int32(count)))
        found[str(count)] = float(f"{x:.9g}") if math.isfinite(x) else str(x)
    return found


class _Walk:
    """Goes down into what a value consists of; what is met again on the way is not entered again."""

    def __init__(self) -> None:
        self._inside: set[int] = set()

    def of(self, value: Any) -> Any:
        """The description of one value."""
        if value is None or isinstance(value, bool | int | str):
            return value
        if isinstance(value, float | complex):
            return value if isinstance(value, float) and math.isfinite(value) else repr(value)
        if isinstance(value, np.ndarray | np.generic | jax.Array):
            return _array(value)
        if isinstance(value, type | types.ModuleType | types.BuiltinFunctionType | np.ufunc):
            return {FUNCTION: _name(value)}
        if id(value) in self._inside:
            return "..."
        self._inside.add(id(value))
        try:
            return self._inner(value)
        finally:
            self._inside.discard(id(value))

    def _inner(self, value: Any) -> Any:
        if hasattr(value, "spec") and isinstance(value.spec, dict):
            return value.spec
        if isinstance(value, tuple) and hasattr(value, "_asdict"):
            return {name: self.of(each) for name, each in value._asdict().items()}  # type: ignore[attr-defined]
        if isinstance(value, Mapping):
            return {str(key): self.of(each) for key, each in value.items()}
        if isinstance(value, set | frozenset):
            return sorted((self.of(each) for each in value), key=lambda each: json.dumps(each, sort_keys=True))
        if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
            return [self.of(each) for each in value]
        if isinstance(value, functools.partial):
            return {**self._called(value.func), "args": self.of(value.args), "keywords": self.of(value.keywords)}
        if isinstance(value, types.MethodType):
            return {**self._called(value.__func__), "self": self.of(value.__self__)}
        return self._called(value)

    def _called(self, value: Any) -> dict[str, Any]:
        """A function, or an object with what it holds."""
        plain = inspect.unwrap(value)  # what `jax.jit` and decorators made of one
        if not isinstance(plain, types.FunctionType):
            held = {name: each for name, each in getattr(value, "__dict__", {}).items() if name != "__wrapped__"}
            call = inspect.getattr_static(type(value), "__call__", None)
            more = {"call": self._called(call)} if isinstance(call, types.FunctionType) else {}
            return {FUNCTION: _name(type(value)), **more, **{name: self.of(each) for name, each in held.items()}}
        found: dict[str, Any] = {FUNCTION: _name(plain)}
        if not _installed(plain):
            found["code"] = _digest(_code(plain.__code__))
            found |= {name: self.of(plain.__globals__[name]) for name in _globals(plain)}
        found |= {name: self.of(each) for name, each in _captured(plain)}
        if plain.__defaults__ or plain.__kwdefaults__:
            found["defaults"] = self.of([plain.__defaults__, plain.__kwdefaults__])
        return found


def _captured(function: types.FunctionType) -> list[tuple[str, Any]]:
    found = []
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            found.append((name, cell.cell_contents))
        except ValueError:  # not assigned yet
            continue
    return found


def _globals(function: types.FunctionType) -> list[str]:
    """Global names that the function, or one inside it, reads; modules say nothing."""
    names, codes = set(), [function.__code__]
    while codes:
        code = codes.pop()
        names |= set(code.co_names)
        codes += [each for each in code.co_consts if isinstance(each, types.CodeType)]
    there = function.__globals__
    return sorted(name for name in names if name in there and not isinstance(there[name], types.ModuleType))


def _code(code: types.CodeType) -> bytes:
    """Instructions, names and constants; not the lines that they stand in."""
    parts = [code.co_code, repr(code.co_names).encode(), repr(code.co_varnames).encode()]
    for each in code.co_consts:
        set_like = sorted(map(repr, each)) if isinstance(each, frozenset) else each
        parts.append(_code(each) if isinstance(each, types.CodeType) else repr(set_like).encode())
    return b"\0".join(parts)


@functools.cache
def _libraries() -> tuple[str, ...]:
    paths = [sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")]
    return tuple({*paths, *site.getsitepackages(), site.getusersitepackages()})


def _installed(function: types.FunctionType) -> bool:
    ours = function.__module__ or ""
    return function.__code__.co_filename.startswith(_libraries()) or ours.split(".")[0] == "eggroll"


def _name(value: Any) -> str:
    module = getattr(value, "__module__", None) or ""
    name = getattr(value, "__qualname__", None) or getattr(value, "__name__", None) or type(value).__name__
    short = module if module in ("", "__main__") else module.split(".")[0] + "."
    # A script is `__main__` when it is run and has a name when it is imported.
    return ("" if short == "__main__" else short) + name.replace(".<locals>", "")


def _array(value: Any) -> Any:
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        value = jax.random.key_data(value)
    array = np.asarray(value)
    if array.dtype.kind in "biuf" and array.size <= SHOWN and np.isfinite(array).all():
        return array.tolist()
    shape = ",".join(map(str, array.shape))
    return f"{array.dtype.name}[{shape}] {_digest(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)}"


def _digest(data: Any) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
