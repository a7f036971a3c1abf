"""The user's function while JAX traces it: what it raises is told from its own line on."""

from __future__ import annotations

import functools
import linecache
import sys
import sysconfig
import types
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import jax

from eggroll.engine.annotations import Function

ON_THE_HOST = (
    "JAX traces the function: arrays in it have a shape and a dtype, and no values yet. Write it in jax.numpy "
    "(jnp.where or jax.lax.cond for an `if`), or compute a reward in Python on the host: outputs = "
    "members.apply(fun, ...) with members = es.ask(state), then es.tell(state, members, [reward(o) for o in outputs]); "
    "in fit, eggroll.training.Scored(fun, reward)."
)
OF_A_MODEL = (
    "The function changes a Flax NNX model from outside of it. Give the model itself to eggroll.nnx.ES or "
    "eggroll.nnx.value_and_grad: functions take it, and what they change of it (batch statistics, RNG streams, caches) "
    "goes from generation to generation."
)
WHILE_TRACED = "Raised while JAX traced the function for one member, before anything was computed."


@functools.cache
def _libraries() -> tuple[str, ...]:
    """Folders of code that is not the user's: the standard library's, installed packages' and this package's."""
    paths = sysconfig.get_paths()
    own = Path(__file__).parents[1]
    return tuple(str(p) for p in (paths["stdlib"], paths["purelib"], paths["platlib"], own, Path(jax.__file__).parent))


def is_library(file: str) -> bool:
    """Whether a file of Python is no code of the user's."""
    inside = any(file.startswith(folder) for folder in _libraries())
    compiled = file.startswith("<frozen") or file.endswith((".pyx", ".pxd"))  # Cython's have no folder
    return inside or compiled or "site-packages" in file or "dist-packages" in file


def code_of(fun: Any) -> types.CodeType | None:
    """The code that a call of `fun` runs: of functions, methods, partials, wrapped ones and callable objects."""
    for _ in range(32):
        if isinstance(fun, functools.partial):
            fun = fun.func
        elif hasattr(fun, "__wrapped__"):
            fun = fun.__wrapped__
        elif isinstance(fun, types.MethodType):
            fun = fun.__func__
        elif isinstance(fun, types.FunctionType):
            return fun.__code__
        else:
            call = next((vars(cls)["__call__"] for cls in type(fun).__mro__ if "__call__" in vars(cls)), None)
            if not isinstance(call, types.FunctionType):
                return None
            fun = call
    return None


def place_of(fun: Any) -> str:
    """`file:line (name)` of a function, or its description where Python does not know."""
    code = code_of(fun)
    return repr(fun) if code is None else f"{code.co_filename}:{code.co_firstlineno} ({code.co_name})"


def warn_user(text: str, category: type[Warning]) -> None:
    """Warns at the user's line whose call led here, so that Python shows it once for each such line."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and is_library(frame.f_code.co_filename):
        frame, level = frame.f_back, level + 1
    warnings.warn(text, category, stacklevel=level)


@contextmanager
def telling(fun: Function) -> Iterator[None]:
    """What `fun` raises inside says first at which of the user's lines, and what to do; its type stays."""
    try:
        yield
    except Exception as error:
        if getattr(error, "_eggroll_told", False):  # by a call inside this one
            raise
        _raise_told(error, fun)


def _raise_told(error: Exception, fun: Function) -> NoReturn:
    told = f"{_where(error, fun)}\n{_advice(error)}"
    original = str(error)
    text = f"{told}\n\n{type(error).__name__}: {original}"
    if isinstance(error, StopIteration):  # which a loop around this call would take for its own end
        error = RuntimeError(text)
        _mark(error)
        raise error
    if len(error.args) == 1 and original == error.args[0]:
        error.args = (text,)  # the same object, with its traceback and whatever else it carries
        _mark(error)
        raise error
    # An exception that writes its own message, as KeyError does: one of its type, with another.
    kind = type(error)
    named = {"__str__": lambda _: text, "__module__": kind.__module__, "__qualname__": kind.__qualname__}
    try:
        told_kind: Any = type(kind.__name__, (kind,), named)
        again = told_kind.__new__(told_kind, *error.args)
        again.args = error.args
        again.__dict__.update(error.__dict__)
    except Exception:  # a type that cannot be made so: itself, with a note
        error.add_note(told)
        raise error from error.__cause__
    _mark(again)
    raise again from error


def _mark(error: Exception) -> None:
    error._eggroll_told = True  # type: ignore[attr-defined]


def _where(error: Exception, fun: Function) -> str:
    """`file:line (name): code` of the user's innermost frame, or of where the function begins."""
    frames = [f for f in _frames(error.__traceback__) if not is_library(f[0])]
    if frames:
        file, line, name = frames[-1]
    elif (code := code_of(fun)) is not None:
        file, line, name = code.co_filename, code.co_firstlineno, code.co_name
    else:
        return f"{fun!r}:"
    return f"{file}:{line} ({name}): {linecache.getline(file, line).strip()}"


def _frames(traceback: types.TracebackType | None) -> Iterator[tuple[str, int, str]]:
    """Of the calls below the one that catches the error."""
    while traceback is not None:
        code = traceback.tb_frame.f_code
        yield code.co_filename, traceback.tb_lineno, code.co_name
        traceback = traceback.tb_next


def _advice(error: Exception) -> str:
    if type(error).__name__ == "TraceContextError":  # Flax's, which need not be installed
        return OF_A_MODEL
    needs_values = (
        jax.errors.ConcretizationTypeError,
        jax.errors.TracerArrayConversionError,
        jax.errors.TracerIntegerConversionError,
        jax.errors.NonConcreteBooleanIndexError,
    )
    return ON_THE_HOST if isinstance(error, needs_values) or _of_a_tracer(str(error)) else WHILE_TRACED


def _of_a_tracer(text: str) -> bool:
    return "Tracer" in text or "not available on traced array" in text
