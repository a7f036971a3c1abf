"""What a function is: whether another one, made anew by the same line, would be traced to the same program.

A description is right or it is not given: what may change behind an object that is not described stops it, and the
function is then traced again, which is dear beside a lookup and cheap beside compiling.
"""

from __future__ import annotations

import builtins
import dis
import enum
import functools
import sys
import types
import typing
import weakref
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from eggroll.engine.same_program import NotDescribed, array_key

MOST = 4000  # objects looked at: what reaches more is traced instead
PLAIN = (type(None), bool, int, str, bytes, type(...), types.CodeType, types.UnionType)
# Modules whose functions compute the same from the same: no clock, file, environment or random numbers of theirs.
KNOWN = {"diffrax", "eggroll", "einops", "equinox", "flax", "jax", "jaxlib", "jaxtyping", "lineax", "ml_dtypes"}
KNOWN |= {"abc", "bisect", "builtins", "cmath", "collections", "contextlib", "copy", "dataclasses", "enum", "fractions"}
KNOWN |= {"functools", "heapq", "inspect", "itertools", "math", "numbers", "operator", "re", "string", "struct"}
KNOWN |= {"numpy", "optax", "optimistix", "textwrap", "types", "typing", "typing_extensions", "warnings"}
KNOWN |= {"_abc", "_operator"}
# What is not so among theirs: it reads a file or a clock, or what is not looked at here.
READS = {"load", "loadtxt", "genfromtxt", "fromfile", "fromregex", "memmap", "open_memmap", "restore_checkpoint"}
READS |= {"open", "input", "globals", "locals", "vars", "dir", "eval", "exec", "__import__", "datetime64"}
READS |= {"currentframe", "inspect.stack", "tree_deserialise_leaves"}
BEHIND = {"__globals__", "__builtins__", "f_globals", "f_locals", "f_builtins"}  # ways round what is looked at
# Of classes, and of objects that stand for functions: what decides no number.
OF_CLASSES = {"__doc__", "__module__", "__qualname__", "__dict__", "__weakref__", "__annotations__", "__annotate__"}
OF_CLASSES |= {"__annotate_func__", "__annotations_cache__", "__firstlineno__", "__static_attributes__", "__slots__"}
OF_CLASSES |= {"__match_args__", "__orig_bases__", "__parameters__", "__abstractmethods__", "__classcell__"}
OF_CLASSES |= {"__dataclass_params__", "__dataclass_fields__", "__dataclass_transform__"}
OF_C = (types.MemberDescriptorType, types.GetSetDescriptorType)  # attributes themselves, whose values objects have
DISPATCHED, CACHED = type(np.sum), type(functools.cache(len))
JITTED = type(jax.jit(lambda: 0))


class Fixed:
    """Auxiliary data of a pytree that may refer to what changes behind its equality."""

    def refers_to(self) -> Any:
        """What has to be looked at besides."""
        raise NotImplementedError


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
    if _intercepted():
        return None
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
        if kind is jax.tree_util.PyTreeDef:
            return (kind, x, *self._tree(x))
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
        if kind in (tuple, list):
            return (kind, *map(self.of, x))
        if kind in (dict, types.MappingProxyType):
            return (kind, *((self.of(k), self.of(v)) for k, v in x.items()))
        if kind is types.FunctionType:
            return self._function(x)
        if isinstance(x, type):
            return self._class(x)
        if kind is np.ndarray or isinstance(x, np.generic):  # of another kind there is more than the numbers
            return kind, array_key(x)
        if isinstance(x, Tracer | jax.Ref):
            raise NotDescribed
        if isinstance(x, jax.Array | jax.Device | typing.TypeVar | typing.ParamSpec):  # generic functions' own
            return self._itself(x)
        if kind in (set, frozenset):
            return kind, len(x), frozenset(map(self.of, x))
        if issubclass(kind, tuple) and hasattr(kind, "_fields"):
            return (self.of(kind), *map(self.of, tuple(x)))
        if kind is range or kind is slice:
            return kind, str(x)
        if isinstance(x, enum.Enum):
            return self.of(kind), x.name, None if _is_library(kind.__module__) else self.of(vars(x))
        return self._code(x, kind)

    def _tree(self, tree: Any) -> Iterable[Hashable]:
        """The auxiliary data of a pytree's nodes, which may change and stay equal."""
        if _is_plain(tree):
            return
        _, aux = tree.node_data() or (None, None)
        yield self.of(aux.refers_to() if isinstance(aux, Fixed) else aux)
        for child in tree.children():
            yield from self._tree(child)

    def _code(self, x: Any, kind: type) -> Hashable:
        """What can be called, and else an object."""
        if kind is types.MethodType:
            return kind, self.of(x.__self__), self.of(x.__func__)
        if isinstance(x, functools.partial):
            return kind, self.of(x.func), self.of(x.args), self.of(x.keywords)
        if kind is types.BuiltinFunctionType:
            owner = x.__self__
            if not isinstance(owner, types.ModuleType):
                return kind, x.__name__, self.of(owner)
            if not _is_library(owner.__name__) or x.__name__ in READS:
                raise NotDescribed  # C code, such as a clock
            return kind, x.__name__, owner.__name__
        if kind is JITTED:
            return self._itself(x), None if _is_library(x.__module__) else self.of(x.__wrapped__)
        if kind in (CACHED, jax.custom_jvp, jax.custom_vjp) and _is_library(x.__module__):
            return self._itself(x)
        return self._other(x, kind)

    def _other(self, x: Any, kind: type) -> Hashable:
        if isinstance(x, types.ModuleType):
            raise NotDescribed  # but where code reads attributes of one: anything may be read of it
        if kind is weakref.ReferenceType:
            return kind, self.of(x())
        if isinstance(x, np.dtype | jax.sharding.Mesh | jax.sharding.Sharding | jax.sharding.PartitionSpec):
            return kind, x
        if kind in (np.ufunc, DISPATCHED):
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
        held = [self.of(x) for x in cells if not isinstance(x, types.ModuleType)]
        own = f.__code__, *held, self.of(f.__defaults__), self.of(f.__kwdefaults__ or ())
        module = f.__globals__.get("__name__", "")
        if _is_library(module):
            if READS & {f.__name__, f"{module}.{f.__name__}"}:
                raise NotDescribed
            return ("function", *own)
        return ("function", *own, self.of(dict(f.__dict__)), *self._names(f, cells))

    def _names(self, f: types.FunctionType, cells: list[Any]) -> Iterable[Hashable]:
        """What code reads by name: globals, and the attributes of modules."""
        reads = _reads(f.__code__)
        if reads is None:
            raise NotDescribed
        captured = dict(zip(f.__code__.co_freevars, cells, strict=True))
        for name, attributes in reads:
            value = captured[name] if name in captured else f.__globals__.get(name, getattr(builtins, name, None))
            for attribute in attributes:
                if isinstance(value, types.ModuleType):
                    if attribute not in vars(value):  # a module that makes them when they are asked for
                        raise NotDescribed
                    value = vars(value)[attribute]
            yield name, attributes, self.of(value)

    def _class(self, cls: type) -> Hashable:
        own = (self._itself(cls), *map(self.of, cls.__bases__))
        if _is_library(cls.__module__):
            if cls.__name__ in READS:
                raise NotDescribed
            return (*own, *(f for f in vars(cls).values() if type(f) is types.FunctionType))  # may be replaced
        parts: list[Hashable] = [None if type(cls) is type else self.of(type(cls))]
        for name, value in vars(cls).items():
            if name in OF_CLASSES or name.startswith("_abc_") or isinstance(value, OF_C):
                continue
            if isinstance(value, staticmethod | classmethod):
                parts.append((name, self.of(value.__func__)))
            elif isinstance(value, property):
                parts.append((name, *(self.of(f) for f in (value.fget, value.fset))))
            else:
                parts.append((name, self.of(value)))
        return (*own, *parts)

    def _object(self, x: Any, kind: type) -> Hashable:
        """An object all of whose state is in attributes."""
        slots = [name for cls in kind.__mro__ for name, v in vars(cls).items() if type(v) is types.MemberDescriptorType]
        extra = (kind.__dictoffset__ > 0) + (kind.__weakrefoffset__ > 0)
        if kind.__basicsize__ > object.__basicsize__ + 8 * (len(slots) + extra) or kind.__itemsize__:
            raise NotDescribed  # state of C's
        state = {name: getattr(x, name) for name in slots if hasattr(x, name)} | getattr(x, "__dict__", {})
        return "object", self.of(kind), *((n, self.of(value)) for n, value in state.items() if n not in OF_CLASSES)


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


@functools.lru_cache(maxsize=256)
def _is_plain(tree: Any) -> bool:
    """Whether the auxiliary data of a pytree is names and types alone: numbers may be equal and of other types."""

    def plain(x: Any) -> bool:
        return x is None or isinstance(x, str | type) or (type(x) in (tuple, list) and all(map(plain, x)))

    return plain((tree.node_data() or (None, None))[1]) and all(map(_is_plain, tree.children()))


def _intercepted() -> bool:
    """Whether Flax Linen has been told to call something else in place of a module's methods."""
    return bool(getattr(sys.modules.get("flax.linen.module"), "_global_interceptor_stack", None))


@functools.lru_cache(maxsize=1024)
def _reads(code: types.CodeType) -> tuple[tuple[str, tuple[str, ...]], ...] | None:
    """The names that are not local which code, and the code inside it, reads, with the attributes that follow each.

    None where it imports or looks behind: then they are not all.
    """
    found: dict[tuple[str, tuple[str, ...]], None] = {}
    if BEHIND & set(code.co_names):
        return None
    name, attributes = None, ()
    for one in dis.get_instructions(code):
        if one.opname == "IMPORT_NAME":
            return None
        if name is not None and one.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            attributes = (*attributes, one.argval)
        elif name is not None and one.opname != "EXTENDED_ARG":
            found[name, attributes] = None
            name = None
        if one.opname.startswith("LOAD_") and any(kind in one.opname for kind in ("GLOBAL", "NAME", "DEREF")):
            name, attributes = one.argval, ()
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            inner = _reads(const)
            if inner is None:
                return None
            found |= dict.fromkeys(inner)
    return tuple(found)
