"""What is said where nothing can be learned: members that do not differ, generation after generation."""

from __future__ import annotations

from typing import Any

import numpy as np

from eggroll.engine.checks import is_traced
from eggroll.engine.user_code import warn_user


class Standstill:
    """Says once where members did not differ for several generations in a row: such a run ends as it began."""

    ROW = 5

    def __init__(self, population: int) -> None:
        self._population, self._row, self._seen, self._said = population, 0, -1, False

    def watch(self, metrics: dict[str, Any]) -> None:
        """Takes note of a generation's metrics, of each once; not under a trace.

        There a callback would cost a small step a quarter of its time, and metrics that notice when they come out of
        it (a class of dictionaries) are another tree than a dictionary to `jax.lax.scan` and `jax.tree.map`.
        """
        if self._said or is_traced(metrics) or not metrics.keys() >= {"generation", "equal_fitness"}:
            return
        generation, norm = int(metrics["generation"]), float(metrics["gradient_norm"])
        if generation == self._seen:
            return
        # Parameters stand still where pairs or groups are equal among themselves, too.
        self._row, self._seen = self._row + 1 if norm == 0 else 0, generation
        if self._row == self.ROW:
            self._said = True
            equal, lost, mean = (metrics[name] for name in ("equal_fitness", "nonfinite", "fitness_mean"))
            warn_user(_nothing_to_follow(equal, lost, mean, self._population, self.ROW), UserWarning)


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
            f"float32, which near {value:.3g} knows steps of {apart:.2g} alone: subtract what all scores have in "
            "common; or every member already has the best score that there is"
        )
    return (
        f"got {what} in {row} generations in a row: nothing is learned. Likely {why}. This is said once; "
        "metrics['equal_fitness'] tells it of every generation."
    )
