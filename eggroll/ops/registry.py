"""Which implementations an operation has, and which of them runs.

A kernel plugs in by registering itself under the operation's name; nothing else changes::

    @register("lowrank_dot", "mosaic_tpu", platforms=("tpu",))
    def lowrank_dot_tpu(x, w, left, right, *, scale, precision, preferred_element_type):
        if left.shape[-1] > 16:
            raise NotImplementedError("rank above 16")
        ...
"""

from __future__ import annotations

import importlib
import os
import re
import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import jax

REFERENCE = "reference"  # every operation has it; it runs everywhere and takes everything
SWITCH = "EGGROLL_KERNELS"  # environment variable: "off" leaves everything to XLA that names no kernel
_CHECKS = "eggroll.ops.trials"  # loaded where a kernel is about to be used, and nowhere else

# What this process found about the kernels that it came across: operation, implementation and kind of its operands →
# "used" or "refused". For records of a run; empty on a CPU.
chosen: dict[str, str] = {}

_Function = TypeVar("_Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class Implementation:
    """One way to compute an operation.

    Args:
        name: what a caller passes as `implementation`.
        function: takes the operation's arguments; raises `NotImplementedError` where it cannot do them.
        platforms: JAX platforms (`"cpu"`, `"gpu"`, `"tpu"`) on which it is tried without being named.
    """

    name: str
    function: Callable[..., Any]
    platforms: tuple[str, ...] = ()


_OPERATIONS: dict[str, dict[str, Implementation]] = {}
# Loaded, and tried in this order, when an implementation for their platform is first looked for: they import this file.
_PLUGINS = {
    "gpu": ["eggroll.kernels.gpu_lowrank_dot", "eggroll.kernels.gpu_rank_update", "eggroll.ops.xla_parts"],
    "tpu": ["eggroll.kernels.tpu_lowrank_dot", "eggroll.kernels.tpu_rank_update"],
}


def register(
    operation: str, implementation: str, *, platforms: tuple[str, ...] = ()
) -> Callable[[_Function], _Function]:
    """Return a decorator that adds a function as an implementation of an operation.

    Args:
        operation: the operation's name, such as `"lowrank_dot"`. A new name makes a new operation.
        implementation: the name callers select it by, such as `"mosaic_tpu"`.
        platforms: JAX platforms on which it is tried when the caller names none, in order of registration.
            Default: only when named.

    Returns:
        A decorator that registers the function and returns it unchanged.

    Raises:
        ValueError: the operation already has an implementation of that name.

    Example:
        >>> from eggroll.kernels import register
        >>> register("rank_update", "reference")(print)
        Traceback (most recent call last):
        ValueError: rank_update already has an implementation 'reference': use another name
    """

    def decorate(function: _Function) -> _Function:
        known = _OPERATIONS.setdefault(operation, {})
        if implementation in known:
            raise ValueError(f"{operation} already has an implementation {implementation!r}: use another name")
        known[implementation] = Implementation(implementation, function, tuple(platforms))
        return function

    return decorate


def implementations(operation: str, *, platform: str | None = None) -> tuple[str, ...]:
    """Return the names of an operation's implementations, in order of registration.

    Args:
        operation: the operation's name.
        platform: leave out those that are not tried on this JAX platform without being named; the reference always
            is. Default None: all names.

    Returns:
        The names that the operation accepts as `implementation`.

    Raises:
        ValueError: no such operation.

    Example:
        >>> from eggroll.kernels import implementations
        >>> "reference" in implementations("rank_update")
        True
        >>> "mosaic_tpu" in implementations("rank_update", platform="gpu")
        False
    """
    known = _known(operation, *(_PLUGINS if platform is None else (platform,)))
    if platform is None:
        return tuple(known)
    return tuple(name for name, found in known.items() if name == REFERENCE or platform in found.platforms)


def kernels(operation: str) -> dict[str, Callable[..., Any]]:
    """What is tried on the current platform before the reference, by name and in that order; on a CPU nothing."""
    switch = os.environ.get(SWITCH, "")
    if switch not in ("", "off"):
        raise ValueError(f"got {SWITCH}={switch!r}; 'off' is required, or nothing: set it to off to leave all to XLA")
    return {} if switch or _within.unchecked else candidates(operation)


def candidates(operation: str) -> dict[str, Callable[..., Any]]:
    """Every kernel of the current platform by its name, whatever `kernels` leaves out."""
    platform = current_platform()
    return {name: found.function for name, found in _known(operation, platform).items() if platform in found.platforms}


def state() -> Hashable:
    """What decides, beside arguments, which implementation is taken: equal where the same one is."""
    return os.environ.get(SWITCH, ""), _within.unchecked, tuple((n, *_OPERATIONS[n].values()) for n in _OPERATIONS)


class _Within(threading.local):
    """What holds for a thread alone."""

    unchecked = False


_within = _Within()


@contextmanager
def unchecked() -> Iterator[None]:
    """Within it a kernel runs where it is named, whether it is right or not, and nowhere else: for its own check."""
    before, _within.unchecked = _within.unchecked, True
    try:
        yield
    finally:
        _within.unchecked = before


def trusted(operation: str, name: str, function: Callable[..., Any], *args: Any, **options: Any) -> bool:
    """Whether a kernel of this platform computes such arguments as the reference does; the first time it is tried.

    Raises `NotImplementedError` where it is tried and does not take these arguments.
    """
    if _within.unchecked:
        return True
    return importlib.import_module(_CHECKS).trusted(operation, name, function, *args, **options)


def check_taken(function: Callable[..., Any], *args: Any, **options: Any) -> None:
    """Raises NotImplementedError where the kernel does; about any other error its check decides."""
    try:
        jax.eval_shape(lambda *args: function(*args, **options), *args)
    except NotImplementedError:
        raise
    except Exception:
        return


class Choice(NamedTuple):
    """One call of an operation, as the name stack of its equations tells.

    Attributes:
        operation: its name.
        implementation: the one that did it.
        name: of the parameter whose seeded factors it used; empty where they were arrays or had none.
    """

    operation: str
    implementation: str
    name: str

    def scope(self) -> str:
        """For `jax.named_scope`: profiles show it, and `in_scope` reads it."""
        return f"{self.operation}[{self.implementation}]({self.name})"

    @staticmethod
    def in_scope(names: str) -> Choice | None:
        """What made an equation whose name stack is `names`; None if it was no operation."""
        found = re.search(r"(\w+)\[(\w+)\]\(([^)]*)\)", names)
        return Choice(*found.groups()) if found else None


def dispatch(operation: str, *args: Any, implementation: str | None, **options: Any) -> Any:
    """Run an operation with the named implementation, or with the first that can do it.

    Args:
        operation: the operation's name.
        *args: passed on.
        implementation: a name, which then runs or raises; or None for those registered for the current
            platform, in order, then the reference, moving on when one raises `NotImplementedError` or computed
            wrong numbers when it was tried. A named one is tried, too, and runs whatever came of it, with a warning.
        **options: passed on.

    Returns:
        What the implementation returns.

    Raises:
        ValueError: no such operation or implementation.
        NotImplementedError: the named implementation cannot do these shapes or dtypes.
    """
    parameter = next((name for arg in args if (name := getattr(arg, "name", ""))), "")

    def run(name: str, function: Callable[..., Any]) -> Any:
        with jax.named_scope(Choice(operation, name, parameter).scope()):
            return function(*args, **options)

    if implementation is not None:
        known = _known(operation, *(() if implementation == REFERENCE else _PLUGINS))
        if implementation not in known:
            raise ValueError(
                f"{operation} has no implementation {implementation!r}: choose one of {', '.join(known)}, "
                "or None to let the platform decide"
            )
        named = known[implementation]
        if current_platform() in named.platforms:
            trusted(operation, implementation, named.function, *args, **options)
        return run(implementation, named.function)
    for name, function in kernels(operation).items():
        try:
            if trusted(operation, name, function, *args, **options):
                return run(name, function)
        except NotImplementedError:
            continue
    return run(REFERENCE, _known(operation)[REFERENCE].function)


def current_platform() -> str:
    """Return the platform that JAX computes on by default: `"cpu"`, `"gpu"` or `"tpu"`."""
    # What `with jax.default_device(...)` sets; it outranks the backend.
    device = jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]
    if device is None:
        return jax.default_backend()
    return device if isinstance(device, str) else device.platform


def _known(operation: str, *platforms: str) -> dict[str, Implementation]:
    """What an operation has by name, once what is there for these platforms is loaded."""
    for platform in platforms:
        while waiting := _PLUGINS.get(platform):
            importlib.import_module(waiting[0])
            waiting.pop(0)
    if operation not in _OPERATIONS:
        raise ValueError(f"there is no operation {operation!r}: choose one of {', '.join(sorted(_OPERATIONS))}")
    return _OPERATIONS[operation]
