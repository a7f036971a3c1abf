"""What is compiled, once for all functions that are the same; and a warning where it is compiled again and again."""

from __future__ import annotations

import inspect
import threading
import types
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import jax
import numpy as np

from eggroll.engine import jax_compat
from eggroll.engine.annotations import Function, PyTree
from eggroll.engine.checks import is_traced
from eggroll.engine.factored import Program, abstract, partition
from eggroll.engine.same_program import NotDescribed, array_key, program_key
from eggroll.engine.sameness import described
from eggroll.engine.user_code import code_of, is_library
from eggroll.ops import registry
from eggroll.strategy.evaluate.recompiled import counted
from eggroll.strategy.evaluate.tracing import Rows, trace_member

KEPT = 64  # entries; a function made anew at every call must not fill the memory
HELD = 1 << 28  # bytes of captured arrays that all programs of one line of code may hold
STRATEGIES = 8  # whose compiled functions are kept for others that are made with the same settings


class Recent(OrderedDict[Hashable, Any]):
    """The entries that were used last, `most` at most (default: `KEPT`)."""

    def __init__(self, most: int | None = None) -> None:
        super().__init__()
        self._most, self._lock = KEPT if most is None else most, threading.RLock()

    def used(self, key: Hashable) -> Any | None:
        """The entry, which counts as used, or None."""
        with self._lock:
            if key not in self:
                return None
            self.move_to_end(key)
            return self[key]

    def keep(self, key: Hashable, value: Any) -> Any:
        """`value`, kept under `key`; the one that was used longest ago goes."""
        with self._lock:
            self[key] = value
            self.move_to_end(key)
            if len(self) > self._most:
                self.popitem(last=False)
        return value

    def drop(self, chosen: Callable[[Hashable, Any], bool]) -> None:
        """Lets go of the entries `(key, value)` that are chosen."""
        with self._lock:
            for key in [key for key, value in self.items() if chosen(key, value)]:
                del self[key]


class CompiledCache:
    """Functions traced and compiled once, for what they are.

    Called, it compiles `fun(*args)` once per structure, non-array leaves and `static` key; arrays are traced.

    Args:
        kept: what others that are the same have compiled, to be shared with them. Default: nothing.
        same: whether its owner is still what those share; asked when it first uses something, and for all traced.
        options: what its owner is fixed to, by names, for a warning. None: nothing that is compiled is counted.
    """

    def __init__(
        self,
        kept: tuple[Recent, ...] = (),
        same: Callable[[], bool] = lambda: True,
        options: Callable[[], Mapping[str, Any]] | None = dict,
    ) -> None:
        self._variants, self._programs, self._described, self._held = kept or [Recent() for _ in range(4)]
        self._same, self._options, self._asked_for = same, options, set[int]()

    def __call__(self, fun: Function, static: Hashable, *args: Any) -> Any:
        """Calls `fun(*args)` compiled; `static` names everything else that `fun` depends on."""
        arrays, merge, structure = partition(args)
        leaves = jax.tree.leaves(merge([None] * len(arrays)), is_leaf=lambda x: x is None)
        try:
            key = (static, structure, tuple((type(leaf), leaf) for leaf in leaves))
            name = hash(key)
        except TypeError:  # an unhashable leaf: right, but compiled at every call
            return jax.jit(lambda a: fun(*merge(a)))(arrays)
        if name not in self._asked_for:
            self._leave_if_changed()
            self._asked_for.add(name)
        try:
            return (self._variants.used(key) or self._kept(key, fun, merge))(arrays)
        except _Changed:  # the owner, or that of another cache, which compiled it for other shapes
            self._leave_if_changed()
            return self._kept(key, fun, merge)(arrays)

    def _leave_if_changed(self) -> None:
        if not self._same():
            self._variants, self._same = Recent(), lambda: True  # nobody else gets what is compiled from now on

    def _kept(self, key: Hashable, fun: Function, merge: Function) -> Function:
        same = self._same

        def traced(arrays: Any) -> Any:
            if not same():
                raise _Changed
            return fun(*merge(arrays))

        return self._variants.keep(key, jax.jit(traced))

    def program(
        self,
        fun: Function,
        params: PyTree,
        rows: Rows,
        group: Hashable = None,
        own: Function | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> Program:
        """`fun(params, *args)` as one member sees it, traced: the same object for all functions that are the same.

        A function that can be described with all that it refers to is looked up. Any other one is traced, which tells
        what it is, whatever changed behind it: no program is older than its function.

        Args:
            fun: what is traced.
            params: arrays or shapes.
            rows: the other arguments.
            group: what else decides what is compiled, by the user's choice.
            own: the user's function, where `fun` calls it with keywords before its other arguments. Default: `fun`.
            options: what is in the group, by names, for a warning. Default: the owner's.
        """
        arrays, merge, structure = partition((params, rows.abstract()))
        plain = jax.tree.leaves(merge([None] * len(arrays)))
        shapes = tuple((a.shape, a.dtype, a.weak_type) for a in map(abstract, arrays))
        where = structure, shapes, jax_compat.trace_context(), group
        found = described(fun, plain, structure)
        if found is not None:
            kept = self._described.used((found, where))
            if kept is not None and kept[1].holds():
                return kept[0]
        program = trace_member(fun, params, rows)
        try:
            what = program_key(program.jaxpr, program.consts)
        except NotDescribed:
            if not is_traced(list(program.consts)):
                self._note(fun, own, params, rows, options, program)
            return program
        key = what, program.out_tree, where
        known = self._programs.used(key)
        if known is None or not known[1].holds():
            known = self._programs.keep(key, (program, what))
            self._note(fun, own, params, rows, options, program)
        if found is not None:
            self._described.keep((found, where), known)
        return known[0]

    def _note(
        self,
        fun: Function,
        own: Function | None,
        params: PyTree,
        rows: Rows,
        options: Mapping[str, Any] | None,
        program: Program,
    ) -> None:
        """Counts one more compilation of the function's code, and tells of the third what was other than before."""
        named, fun = own is not None, inspect.unwrap(fun if own is None else own)
        code, arrays = code_of(fun), partition((params, rows.args))[0]
        if code is None or is_traced(arrays):  # what is traced around is what is compiled
            return
        self._hold(code, program)
        if self._options is None or is_library(code.co_filename):
            return
        keywords, *args = rows.args if named else ({}, *rows.args)
        options = self._options() if options is None else options
        _TOLD.keep(code, counted(_TOLD.used(code), fun, params, tuple(args), keywords, options))

    def _hold(self, code: types.CodeType, program: Program) -> None:
        """Lets go of the first programs of a line of code where all of them hold too much."""
        holding = self._held.used(code) or ()
        if program.consts:
            holding = (*holding, (weakref.ref(program), sum(getattr(x, "nbytes", 0) for x in program.consts)))
            while sum(size for _, size in holding) > HELD and len(holding) > 1:
                self._forget(holding[0][0]())
                holding = holding[1:]
            self._held.keep(code, holding)

    def _forget(self, program: Program | None) -> None:
        self._programs.drop(lambda _, value: value[0] is program)
        self._described.drop(lambda _, value: value[0] is program)
        self._variants.drop(lambda key, _: isinstance(key, tuple) and isinstance(key[0], tuple) and program in key[0])


class _Changed(Exception):
    """What is about to be traced is no longer what it is kept for."""


_SHARED = Recent(STRATEGIES)
_TOLD = Recent()  # by code: how often it was compiled, by whomever, and for what at last


def shared(settings: Callable[[], tuple], options: Callable[[], Mapping[str, Any]] | None = dict) -> CompiledCache:
    """A cache with what all others of the same settings compiled, so that a strategy made anew compiles nothing again.

    One of its own where they cannot be compared.

    Args:
        settings: gives them as they are when it is called: what they refer to may be changed.
        options: see `CompiledCache`.
    """
    found = described(*settings())
    if found is None:
        return CompiledCache(options=options)
    key = found, registry.state()  # which kernels there are is read when a function is traced
    kept = _SHARED.used(key) or _SHARED.keep(key, tuple(Recent() for _ in range(4)))
    return CompiledCache(kept, lambda: described(*settings()) == found, options)


def forget() -> None:
    """Lets go of all that strategies share, which the next ones compile anew: for measurements."""
    _SHARED.clear()
    _TOLD.clear()


def settings_key(shaping: Any, sigma: Any, population: int) -> Hashable:
    """What tells a shaping and a sigma apart, which may be functions, by what they compute today.

    As of a function that is evaluated: known by its description, or else traced.
    """
    found = described(shaping, sigma)
    if found is not None:
        return found
    row, number = jax.ShapeDtypeStruct((population,), np.float32), jax.ShapeDtypeStruct((), np.int32)
    try:
        return tuple(
            program_key(*jax_compat.open_jaxpr(jax.make_jaxpr(x)(shape))) if callable(x) else array_key(x)
            for x, shape in ((shaping, row), (sigma, number))
            if not isinstance(x, str)
        )
    except (NotDescribed, jax.errors.TracerArrayConversionError):
        return object()  # another at every call
