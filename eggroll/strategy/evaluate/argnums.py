"""Which positional arguments are the parameters, as `jax.value_and_grad` counts them, and arguments by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import jax

from eggroll.engine.annotations import Function, PyTree
from eggroll.engine.checks import as_index

# What the functions here and their namesakes for models take and return, for those who pass options on.
Params = TypeVar("Params")


class ValueAndGrad(Protocol):
    """What `value_and_grad` returns."""

    def __call__(self, params: Params, *args: Any, key: jax.Array, **kwargs: Any) -> tuple[jax.Array, Params]:
        """Loss and gradient."""
        ...


class ValueAuxAndGrad(Protocol):
    """What `value_and_grad` returns with `has_aux`."""

    def __call__(
        self, params: Params, *args: Any, key: jax.Array, **kwargs: Any
    ) -> tuple[tuple[jax.Array, PyTree], Params]:
        """Loss with auxiliary output, and gradient."""
        ...


class Grad(Protocol):
    """What `grad` returns."""

    def __call__(self, params: Params, *args: Any, key: jax.Array, **kwargs: Any) -> Params:
        """The gradient."""
        ...


class GradAux(Protocol):
    """What `grad` returns with `has_aux`."""

    def __call__(self, params: Params, *args: Any, key: jax.Array, **kwargs: Any) -> tuple[Params, PyTree]:
        """Gradient and auxiliary output."""
        ...


def check_argnums(argnums: int | Sequence[int]) -> int | tuple[int, ...]:
    """`argnums` as Python integers.

    Raises:
        TypeError: no integers.
        ValueError: none at all.
    """
    what = "an integer or a sequence of integers"
    if not isinstance(argnums, Sequence) or isinstance(argnums, str):
        return as_index("argnums", argnums, what)
    several = tuple(as_index("argnums", n, what) for n in argnums)
    if several == ():
        raise ValueError("got argnums=(); at least one argument is required to take the gradient for.")
    return several


def taken_out(argnums: int | tuple[int, ...], args: tuple) -> tuple[PyTree, tuple, Any]:
    """`(the arguments that argnums names, the others, a function that puts both together again)`.

    Raises:
        TypeError: fewer arguments than argnums counts.
        ValueError: a negative number beyond the first argument, or an argument that is named twice.
    """
    numbers = argnums if isinstance(argnums, tuple) else (argnums,)
    if max(numbers) >= len(args):
        raise TypeError(
            f"got {len(args)} positional arguments for argnums={argnums}, which requires at least {max(numbers) + 1}: "
            "pass by position what the gradient is taken for."
        )
    if min(numbers) < -len(args):
        raise ValueError(
            f"got argnums={argnums} for {len(args)} positional arguments; numbers from {-len(args)} to {len(args) - 1} "
            "are required."
        )
    places = [n % len(args) for n in numbers]
    if len(set(places)) < len(places):
        raise ValueError(f"got argnums={argnums} for {len(args)} positional arguments, which names one of them twice.")
    chosen = tuple(args[n] for n in places)
    rest = [n for n in range(len(args)) if n not in places]

    def put(params: PyTree, others: Sequence[Any]) -> list[Any]:
        each = params if isinstance(argnums, tuple) else (params,)
        found = dict(zip([*places, *rest], [*each, *others], strict=True))
        return [found[n] for n in range(len(found))]

    return chosen if isinstance(argnums, tuple) else chosen[0], tuple(args[n] for n in rest), put


@dataclass(frozen=True)
class ByName:
    """`fun(params, *args, **kwargs)` as a function of `(params, kwargs, *args)`; equal for the same function.

    Attributes:
        fun: the user's function.
    """

    fun: Function

    def __post_init__(self) -> None:
        if hasattr(self.fun, "wrote"):
            raise TypeError(
                f"got arguments by name of {self.fun!r:.80}, which writes turn by turn: pass them by position."
            )

    @property
    def __wrapped__(self) -> Function:
        """Whose name and line messages have."""
        return self.fun

    def __call__(self, params: PyTree, kwargs: dict[str, Any], *args: Any) -> Any:
        """The function with its arguments by name."""
        return self.fun(params, *args, **kwargs)


def by_name(fun: Function, args: tuple, in_axes: Any, kwargs: dict[str, Any]) -> tuple[Function, tuple, Any]:
    """The function, arguments and axes with those by name, which all members share, as the first argument if any."""
    return (ByName(fun), (kwargs, *args), axes_after_shared(in_axes, len(args))) if kwargs else (fun, args, in_axes)


def axes_after_shared(in_axes: Any, count: int) -> Any:
    """`in_axes` of so many arguments, with one before them that all members share."""
    if isinstance(in_axes, tuple | list):
        return (None, *in_axes)
    return in_axes if in_axes is None else (None, *[in_axes] * count)
