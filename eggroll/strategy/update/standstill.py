"""What is said where nothing can be learned: members that do not differ, generation after generation."""

from __future__ import annotations

import atexit
import weakref
from collections import deque
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from eggroll.engine.checks import is_traced
from eggroll.engine.user_code import warn_user


class Standstill:
    """Says once where members did not differ for several generations in a row: such a run ends as it began."""

    ROW = 5
    AHEAD = 2  # compiled steps that may be under way: no device waits for its next one
    NUMBERS = "gradient_norm", "generation", "equal_fitness", "nonfinite", "fitness_mean"

    def __init__(self, population: int) -> None:
        self._population, self._row, self._seen, self._said = population, 0, -1, False
        self._waiting: deque[list[Any]] = deque()
        atexit.register(type(self)._at_end, weakref.ref(self))

    def watch(self, metrics: dict[str, Any]) -> dict[str, Any]:
        """Takes note of a generation's metrics, of each once; those of a trace, when they come out of it."""
        if self._said or not metrics.keys() >= set(self.NUMBERS):
            return metrics
        if is_traced(metrics):
            return Leaving(metrics, self)
        self._waiting.clear()  # whoever shows them in order need not wait for those that came out
        self._note([metrics[name] for name in self.NUMBERS])
        return metrics

    def came_out(self, metrics: Leaving) -> None:
        """Remembers metrics that came out of a compiled step, and takes note of those that are computed by now."""
        numbers = [dict.get(metrics, name) for name in self.NUMBERS]
        if not self._said and _has_numbers(numbers[0]):
            self._waiting.append(numbers)
            self.look(self.AHEAD)

    def look(self, ahead: int = 0) -> None:
        """Takes note of what came out of compiled steps, but for the last ones, which may still be under way."""
        while len(self._waiting) > ahead:
            numbers = self._waiting.popleft()
            if not (isinstance(numbers[0], jax.Array) and numbers[0].is_deleted()):
                self._note(numbers)

    def _note(self, numbers: list[Any]) -> None:
        if self._said:
            return
        if np.ndim(numbers[0]) == 0 and float(numbers[0]) != 0:
            self._row = 0  # what a step costs that learns
            return
        norms, generations, *others = (np.atleast_1d(x) for x in numbers)
        if norms.ndim > 1 or (np.diff(generations) != 1).any():
            return  # of a vmap: different runs
        for i, (norm, generation) in enumerate(zip(norms, generations, strict=True)):
            # Parameters stand still where pairs or groups are equal among themselves, too.
            if norm != 0 or generation != self._seen:
                self._row, self._seen = self._row + 1 if norm == 0 else 0, generation
            if self._row == self.ROW:
                self._said = True
                equal, lost, mean = (x[i] for x in others)
                warn_user(_nothing_to_follow(equal, lost, mean, self._population, self.ROW), UserWarning)
                return

    @staticmethod
    def _at_end(ref: weakref.ref) -> None:
        if (one := ref()) is not None:
            one.look()

    def __eq__(self, other: object) -> bool:  # metrics of one strategy have the structure of another's
        return isinstance(other, Standstill)

    def __hash__(self) -> int:
        return 0


def _has_numbers(x: Any) -> bool:
    if isinstance(x, np.ndarray):
        return True
    return isinstance(x, jax.Array) and not isinstance(x, Tracer) and x.is_fully_replicated


@jax.tree_util.register_pytree_with_keys_class
class Leaving(dict[str, Any]):
    """Metrics of a step inside a function that the user compiles: they are looked at when they come out of it.

    No callback: that would cost every step time, and the compiled program its place in a cache on disk.
    """

    def __init__(self, metrics: dict[str, Any], standstill: Standstill) -> None:
        super().__init__(metrics)
        self._standstill = standstill

    def __getitem__(self, name: str) -> Any:
        """A metric; of a loop's, whoever reads them waits."""
        value = super().__getitem__(name)
        if not isinstance(value, Tracer):
            self._standstill.look(0 if name in Standstill.NUMBERS and np.ndim(value) else Standstill.AHEAD)
        return value

    def tree_flatten_with_keys(self) -> tuple[list[tuple[Any, Any]], Any]:
        """As a dictionary's."""
        names = sorted(self)
        each = [(jax.tree_util.DictKey(name), dict.__getitem__(self, name)) for name in names]
        return each, (tuple(names), self._standstill)

    @classmethod
    def tree_unflatten(cls, names: Any, values: Iterable[Any]) -> Leaving:
        """The inverse; with numbers, they are noted."""
        made = cls(dict(zip(names[0], values, strict=True)), names[1])
        names[1].came_out(made)
        return made


def _nothing_to_follow(equal: Any, lost: Any, mean: Any, population: int, row: int) -> str:
    value = float(mean)
    if not equal:
        what = f"a gradient of zero from the fitness of {population} members"
        why = "both members of each pair (or all of each group) are equally good, or the shaping gives no weights"
    else:
        others = f" but the {int(lost)} whose fitness is not finite" if lost else ""
        what = f"equal fitness ({value:.6g}) from all {population} members{others}"
        apart = abs(float(np.spacing(np.float32(value))))
        why = (
            "the fitness does not depend on the parameters, or goes by steps (a count, an accuracy, a clipped reward) "
            "that noise of this sigma does not cross: raise sigma or take a smoother fitness; or it was computed in "
            f"float32, which near {value:.3g} knows steps of {apart:.2g} alone: subtract what all scores have in common"
        )
    return (
        f"got {what} in {row} generations in a row: nothing is learned. Likely {why}. This is said once; "
        "metrics['equal_fitness'] tells it of every generation."
    )
