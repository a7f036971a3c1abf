"""What a function is: whether another one, made anew by the same line, would be traced to the same program.

A description is right or it is not given: what may change behind an object that is not described stops it, and the
function is then traced again, which is dear beside a lookup and cheap beside compiling.
"""

from __future__ import annotations

import builtins
import dis
import enum
import functools
import hashlib
import sys
import types
import weakref
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

MOST = 4000  # objects looked at: what reaches more is traced instead
PLAIN = (type(None), bool, int, str, bytes, type(...), types.CodeType, jax.tree_util.PyTreeDef)
# Modules whose functions compute the same from the same: no clock, file, environment or random numbers of theirs.
KNOWN = {"eggroll", "einops", "flax", "jax", "jaxlib", "ml_dtypes", "numpy", "optax"}
KNOWN |= {"abc", "bisect", "builtins", "cmath", "collections", "contextlib", "copy", "dataclasses", "enum", "fractions"}
KNOWN |= {"functools", "heapq", "inspect", "itertools", "math", "numbers", "operator", "re", "statistics", "string"}
KNOWN |= {"struct", "textwrap", "types", "typing", "typing_extensions", "warnings", "_abc", "_operator"}
BY_NAME = {"globals", "locals", "vars", "getattr", "eval", "exec", "__import__", "import_module"}  # hide what is read
RANDOM = "numpy.random"  # has a state of its own
BY_NAME |= {"open", "input"}  # what they give is another each time


class NotDescribed(Exception):
    """There is something whose changes would not be seen."""


@dataclass(frozen=True, eq=False)
class Described:
    """What was found of a value: equal for values that are the same to a trace.

    Attributes:
        key: what is compared.
        alive: what the key has by its identity, which is its own only while it lives.
    """

    key: Hashable
    alive: list[weakref.ref]

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Described) and self.key == other.key and self._holds() and other._holds()

    def _holds(self) -> bool:
        return all(ref() is not None for ref in self.alive)


def described(*values: Any) -> Described | None:
    """The description of values, functions among them with all that they refer to; None where there is none."""
    walk = _Walk()
    try:
        found = Described(tuple(walk.of(value) for value in values), walk.alive)
        hash(found)
        return found
    except (NotDescribed, RecursionError, TypeError):
        return None


@dataclass
class _Walk:
    seen: dict[int, int] = field(default_factory=dict)
    alive: list[weakref.ref] = field(default_factory=list)
    kept: list[Any] = field(default_factory=list)  # so that no id is used twice

    def of(self, x: Any) -> Hashable:
        kind = type(x)
        if kind in PLAIN:
            return kind, x
        if kind in (float, complex):
            return kind, repr(x)
        if id(x) in self.seen:
            return "again", self.seen[id(x)]
        if len(self.seen) >= MOST:
            raise NotDescribed
        if kind in (tuple, list, dict, set, frozenset) and len(x) > MOST:
            raise NotDescribed
        self.seen[id(x)] = len(self.seen)
        self.kept.append(x)
        return self._new(x, kind)

    def _new(self, x: Any, kind: type) -> Hashable:
        if isinstance(x, Tracer):
            raise NotDescribed
        if isinstance(x, jax.Array):
            return self._itself(x)
        if isinstance(x, np.ndarray | np.generic):
            return array_key(x)
        if kind in (tuple, list):
            return (kind, *map(self.of, x))
        if kind in (dict, types.MappingProxyType):
            return (kind, *((self.of(k), self.of(v)) for k, v in x.items()))
        if kind in (set, frozenset):
            return kind, frozenset(map(self.of, x))
        if issubclass(kind, tuple) and hasattr(kind, "_fields"):
            return (self.of(kind), *map(self.of, tuple(x)))
        if kind is range or kind is slice:
            return kind, str(x)
        if isinstance(x, enum.Enum):
            return self._itself(kind), x.name
        if kind is weakref.ReferenceType:
            return kind, self.of(x())
        return self._code(x, kind)

    def _code(self, x: Any, kind: type) -> Hashable:
        """What can be called, or is found by its name."""
        if kind is types.FunctionType:
            return self._function(x)
        if kind is types.MethodType:
            return kind, self.of(x.__self__), self.of(x.__func__)
        if isinstance(x, functools.partial):
            return kind, self.of(x.func), self.of(x.args), self.of(x.keywords)
        if kind is types.BuiltinFunctionType:
            owner = x.__self__
            if isinstance(owner, types.ModuleType) and not _is_library(owner.__name__):
                raise NotDescribed  # C code, such as a clock
            return kind, x.__name__, self.of(owner)
        return self._other(x, kind)

    def _other(self, x: Any, kind: type) -> Hashable:
        if isinstance(x, type):
            return self._class(x)
        if isinstance(x, types.ModuleType):
            if x.__name__.startswith(RANDOM):
                raise NotDescribed
            return self._itself(x)  # its attributes are looked at where a function reads them
        if kind.__name__ in ("PjitFunction", "Device"):
            return self._itself(x)  # of JAX, and without a state
        if isinstance(x, np.dtype | jax.sharding.Mesh | jax.sharding.Sharding | jax.sharding.PartitionSpec):
            return kind, x
        if kind.__name__ == "_lru_cache_wrapper":
            return self._itself(x), self.of(x.__wrapped__)
        if kind.__name__ in ("ufunc", "_ArrayFunctionDispatcher"):
            return "itself", x  # of NumPy, and there as long as it is
        return self._object(x, kind)

    def _itself(self, x: Any) -> Hashable:
        try:
            self.alive.append(weakref.ref(x))
        except TypeError as why:
            raise NotDescribed from why
        return "itself", id(x)

    def _function(self, f: types.FunctionType) -> Hashable:
        cells = [cell.cell_contents if filled(cell) else _EMPTY for cell in f.__closure__ or ()]
        own = f.__code__, *map(self.of, cells), self.of(f.__defaults__), self.of(f.__kwdefaults__ or ())
        if _is_library(f.__globals__.get("__name__", "")):
            return ("function", *own)
        read = _reads(f.__code__)
        roots = {**f.__globals__, **dict(zip(f.__code__.co_freevars, cells, strict=True))}
        if any(roots.get(name) is np for name in read.random):
            raise NotDescribed
        return ("function", *own, self.of(dict(f.__dict__)), *self._globals(f, read), *self._of_modules(cells, read))

    def _globals(self, f: types.FunctionType, read: _Reads) -> Iterable[Hashable]:
        missing = object()
        for name in read.globals:
            value = f.__globals__.get(name, missing)
            if value is missing:
                value = getattr(builtins, name, None)
            yield name, self.of(value)
            yield from self._of_modules([value], read)
        for name in read.imports:
            if name not in sys.modules or (name.startswith("numpy") and "random" in read.attributes):
                raise NotDescribed
            yield from self._of_modules([sys.modules[name]], read)

    def _of_modules(self, values: Iterable[Any], read: _Reads) -> Iterable[Hashable]:
        """The attributes that code reads of modules of the user's."""
        for module in values:
            if not isinstance(module, types.ModuleType) or _is_library(module.__name__):
                continue
            for name in read.attributes & vars(module).keys():
                inner = vars(module)[name]
                yield name, self.of(inner)
                yield from self._of_modules([inner], read)

    def _class(self, cls: type) -> Hashable:
        if _is_library(cls.__module__):
            return self._itself(cls)
        parts = []
        for name, value in vars(cls).items():
            if isinstance(value, staticmethod | classmethod):
                parts.append((name, self.of(value.__func__)))
            elif isinstance(value, property):
                parts.append((name, *(self.of(f) for f in (value.fget, value.fset))))
            elif isinstance(value, types.FunctionType) or not name.startswith(("__", "_abc_")):
                passed = isinstance(value, types.MemberDescriptorType | types.GetSetDescriptorType)
                parts.append((name, None if passed else self.of(value)))
        return self._itself(cls), *parts, *(self.of(base) for base in cls.__bases__)

    def _object(self, x: Any, kind: type) -> Hashable:
        """Of an object all of whose state is in attributes."""
        slots = [name for cls in kind.__mro__ for name, v in vars(cls).items() if type(v) is types.MemberDescriptorType]
        extra = (kind.__dictoffset__ > 0) + (kind.__weakrefoffset__ > 0)
        if kind.__basicsize__ > object.__basicsize__ + 8 * (len(slots) + extra) or kind.__itemsize__:
            raise NotDescribed  # state of C's
        state = {name: getattr(x, name) for name in slots if hasattr(x, name)} | getattr(x, "__dict__", {})
        return "object", self.of(kind), *((name, self.of(value)) for name, value in state.items())


_EMPTY = "an empty cell"


def filled(cell: types.CellType) -> bool:
    """Whether a captured variable has a value yet."""
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True


def _is_library(module: str) -> bool:
    """Whether a module of this name is known to keep nothing that changes what its functions compute."""
    return module.partition(".")[0] in KNOWN


@dataclass(frozen=True)
class _Reads:
    globals: tuple[str, ...]
    imports: tuple[str, ...]
    attributes: frozenset[str]
    random: frozenset[str]


@functools.lru_cache(maxsize=1024)
def _reads(code: types.CodeType) -> _Reads:
    """The names that code, and the code inside it, reads: of globals, of modules that it imports, of attributes.

    `random` are the names of which it reads an attribute `random`, as of NumPy's module.
    """
    names: dict[str, None] = {}
    imports: dict[str, None] = {}
    attributes, random, before = set(code.co_names), set(), None
    for one in dis.get_instructions(code):
        if one.argval == "random" and before is not None and one.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            random.add(str(before.argval))
        before = one
        if one.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            names[one.argval] = None
        elif one.opname == "IMPORT_NAME":
            imports[one.argval] = None
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            inner = _reads(const)
            names |= dict.fromkeys(inner.globals)
            imports |= dict.fromkeys(inner.imports)
            attributes |= inner.attributes
            random |= inner.random
    if BY_NAME & (names.keys() | attributes):
        raise NotDescribed
    return _Reads(tuple(names), tuple(imports), frozenset(attributes), frozenset(random))


def array_key(x: Any) -> Hashable:
    """An array of the host by its numbers; they may be changed in place."""
    x = np.asarray(x)
    if x.dtype.hasobject:
        raise NotDescribed
    numbers: Any = np.ascontiguousarray(x).reshape(-1).view(np.uint8)
    return "array", x.shape, x.dtype.str, str(x.dtype), hashlib.blake2b(numbers, digest_size=16).digest()
