"""Checks that rooms share, of what users give. Without JAX: what refuses early does not wait for it."""

from __future__ import annotations

import inspect
import operator
import sys
from collections.abc import Collection
from numbers import Integral
from pathlib import Path, PurePath
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

LARGEST = 2**31 - 1  # of int32, in which JAX counts


def is_huge(x: object) -> bool:
    """Whether it is an integer that no float holds."""
    return isinstance(x, int) and x.bit_length() > sys.float_info.max_exp - 1


def is_of(value: object, kind: Any) -> bool:
    """Whether a value is of a type as annotations have it; flags are no numbers, integers are, texts may be paths.

    Example:
        >>> is_of(("a", "b"), tuple[str, ...]), is_of(True, float | None), is_of(3, float | None)
        (True, False, True)
    """
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Literal:
        return isinstance(value, str) and value in parts
    if origin in (Union, UnionType):
        return any(is_of(value, part) for part in parts)
    if origin is tuple:
        return isinstance(value, list | tuple) and all(is_of(each, parts[0]) for each in value)
    known = {float: (int, float), Path: (str, PurePath)}.get(kind, kind)
    return isinstance(value, known) and (kind is bool or not isinstance(value, bool))


def as_count(name: str, value: object, least: int = 1, hint: str = "") -> int:
    """`value` as a Python integer of at least `least`; NumPy's integers count, booleans and floats do not.

    Args:
        name: the setting's name, for the message.
        value: what the user gave.
        least: the smallest allowed value.
        hint: what to do, added to the message.

    Returns:
        The integer.

    Raises:
        ValueError: no integer, one below `least`, or one that JAX's int32 does not hold.

    Example:
        >>> import numpy as np
        >>> as_count("population", np.int64(8))
        8
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ValueError(f"got {name}={value!r:.80}; an integer of at least {least} is required.{hint}")
    if (count := int(value)) > LARGEST:
        raise ValueError(f"got {name}={value!r:.80}; at most {LARGEST} is required.{hint}")
    return count


def check_one_of(name: str, value: object, known: Collection[str]) -> None:
    """Raises `ValueError` unless `value` is one of these words."""
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"got {name}={value!r:.80}; one of {', '.join(map(repr, known))} is required.")


def check_flag(name: str, value: object) -> None:
    """Raises `ValueError` unless `value` is True or False."""
    if not isinstance(value, bool):
        raise ValueError(f"got {name}={value!r:.80}; True or False is required.")


def as_index(name: str, value: Any, required: str = "an integer") -> int:
    """`value` as a Python integer, of either sign; raises `TypeError` unless it is one, which booleans are not."""
    try:
        if isinstance(value, bool):
            raise TypeError("a flag")
        return operator.index(value)
    except TypeError as why:
        raise TypeError(f"got {name}={value!r}; {required} is required.") from why


def as_number(what: str, value: Any, hint: str = "") -> float:
    """`value` as a Python float: a number or an array of one, without axes; text is none.

    Args:
        what: what gave it, for the message.
        value: what the user's function returned.
        hint: what to do, added to the message.

    Returns:
        The number.

    Raises:
        TypeError: anything else.

    Example:
        >>> as_number("scorer(output)", 3)
        3.0
    """
    try:
        if getattr(value, "ndim", 0):
            got = f"an array of shape {value.shape}"
        elif not isinstance(value, str | bytes):
            return float(value)
        else:
            got = repr(value)
    except (TypeError, ValueError, OverflowError):
        got = "None" if value is None else type(value).__name__
    raise TypeError(f"got {got} from {what}; one real number is required.{hint}")


def as_flag(what: str, value: Any) -> bool:
    """`value` as a Python boolean; raises `TypeError` unless it is one, of Python, NumPy or JAX."""
    if not isinstance(value, bool) and (getattr(value, "ndim", 1) or str(getattr(value, "dtype", None)) != "bool"):
        got = f"an array of {value.dtype} {value.shape}" if getattr(value, "ndim", 0) else repr(value)
        raise TypeError(f"got {got} from {what}; True or False is required, as return value in every case.")
    return bool(value)


def check_function(name: str, fun: object, usage: str) -> None:
    """Raises `TypeError` unless `fun` can be called; `usage` shows where it belongs."""
    if not callable(fun):
        raise TypeError(f"got {type(fun).__name__} as {name}; a function of the parameters is required: {usage}.")


def check_callback(name: str, fun: Any, arguments: str) -> None:
    """Raises `TypeError` unless `fun` is None, or takes what `fit` calls it with, as far as Python knows."""
    if fun is None:
        return
    if not callable(fun):
        raise TypeError(f"got {type(fun).__name__} as {name}; a function that `fit` calls is required, or None.")
    try:
        taken = inspect.signature(fun)
    except (TypeError, ValueError):  # of C code
        return
    try:
        taken.bind(*filter(None, arguments.split(", ")))
    except TypeError as why:
        from eggroll.engine.user_code import place_of

        raise TypeError(f"got {name}={place_of(fun)}, which takes {taken}; {name}({arguments}) is called.") from why


def is_traced(*trees: Any) -> bool:
    """True while a transformation traces these values, when nothing can be checked or raised by value."""
    import jax
    from jax.core import Tracer

    return any(isinstance(x, Tracer) for x in jax.tree.leaves(trees))
