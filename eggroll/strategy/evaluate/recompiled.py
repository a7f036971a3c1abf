"""A warning where one line of code is compiled again and again: what was other than before, by names for the user."""

from __future__ import annotations

import functools
import inspect
import reprlib
import types
from collections.abc import Hashable, Mapping
from typing import Any

import jax
import numpy as np

from eggroll.engine.annotations import Function, PyTree
from eggroll.engine.factored import is_array
from eggroll.engine.paths import path_name
from eggroll.engine.sameness import described, filled
from eggroll.engine.user_code import place_of, warn_user

TOLD_AT = 3  # compilations

Part = tuple[Hashable, str]  # what something is, None where that cannot be told, and the same in words
Told = tuple[int, dict[str, Part]]


class RecompilationWarning(UserWarning):
    """A function is compiled again and again, as something that is fixed when it is compiled is another each time."""


def counted(
    before: Told | None, fun: Function, params: PyTree, args: tuple, keywords: Mapping, options: Mapping[str, Any]
) -> Told:
    """One more compilation of a function's code, and what it is for; warns of the third what was other than before.

    Args:
        before: what this returned for the one before, or None.
        fun: the user's function.
        params: what it is compiled for.
        args: its other arguments.
        keywords: its arguments by name.
        options: what else it is fixed to, by name.
    """
    parts: dict[str, Part] = {}
    for what, tree in (("argument", keywords), ("argument", dict(enumerate(args, 1))), ("parameter", params)):
        for keys, leaf in jax.tree_util.tree_leaves_with_path(tree):
            parts[f"{what} {path_name(keys)}"] = described(_shown(leaf) if is_array(leaf) else leaf), _shown(leaf)
    fixed = {f"the option `{name}`": _shown(x) if is_array(x) else x for name, x in options.items()}
    parts |= _refers_to(fun) | {name: (described(x) or id(x), _shown(x)) for name, x in fixed.items()}
    count, known = before or (0, {})
    if count + 1 == TOLD_AT:
        warn_user(_again(fun, known, parts), RecompilationWarning)
    return count + 1, parts


def _again(own: Function, before: dict[str, Part], now: dict[str, Part]) -> str:
    changed = []
    for name, (found, text) in now.items():
        old, was = before.get(name, (None, "nothing"))
        if found is None or old != found:
            changed.append(f"{name} ({was} -> {text})" if was != text else f"{name} (another {text})")
    what = ", ".join(changed[:4]) or "the operations that it makes"
    return (
        f"{place_of(own)} is compiled for the third time, since this changed: {what}. Shapes of arrays, "
        "options, and what is no array among the arguments, are fixed when a function is compiled. Pass what changes "
        "as an array among the arguments, in few shapes: fun(params, jnp.asarray(x)) instead of a captured x or a "
        "Python number; as an option, sigma=jnp.asarray(x)."
    )


def _refers_to(fun: Any) -> dict[str, Part]:
    """What a function refers to, by names for the user: a description of each, and what it is in words."""
    parts: dict[str, Any] = {}
    while isinstance(fun, functools.partial | types.MethodType):
        if isinstance(fun, functools.partial):
            parts |= {f"argument {i} of the partial": x for i, x in enumerate(fun.args)}
            parts |= {f"argument '{name}' of the partial": x for name, x in fun.keywords.items()}
            fun = fun.func
        else:
            parts |= {f"self.{name}": x for name, x in getattr(fun.__self__, "__dict__", {}).items()}
            fun = fun.__func__
    if isinstance(fun, types.FunctionType):
        cells = zip(fun.__code__.co_freevars, fun.__closure__ or (), strict=True)
        parts |= {f"the captured `{name}`": cell.cell_contents for name, cell in cells if filled(cell)}
        arguments = inspect.signature(fun, follow_wrapped=False).parameters.values()
        parts |= {f"the default of `{a.name}`": a.default for a in arguments if a.default is not a.empty}
        read = {name: fun.__globals__[name] for name in fun.__code__.co_names if name in fun.__globals__}
        parts |= {f"the global `{name}`": x for name, x in read.items() if not isinstance(x, types.ModuleType)}
    else:
        parts |= {f"self.{name}": x for name, x in getattr(fun, "__dict__", {}).items()}
    return {name: (described(x), _shown(x)) for name, x in parts.items()}


def _shown(x: Any) -> str:
    """A value in a few words."""
    if isinstance(x, jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct):
        return f"{x.dtype}[{','.join(map(str, x.shape))}]"
    return reprlib.repr(x) if type(x) in (str, bool, int, float, complex, tuple, list, dict) else type(x).__name__
