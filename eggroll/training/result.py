"""What a run came to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from eggroll.strategy.state import State


@dataclass(frozen=True)
class Result:
    """What a run came to.

    Attributes:
        state: the strategy's state; `state.params` are the trained parameters.
        carry: the model's own state.
        ended: `"finished"`, `"interrupted"`, `"interrupted at once"` (by a second Ctrl-C: nothing was saved any more),
            `"out of time"`, `"out of data"`, `"stopped early"`, or what went wrong.
        seconds: of all generations, also those before a resumption, compilation included.
        resumed: the generation that the run went on from; 0 for one from the start.
    """

    state: State
    carry: Any
    ended: str
    seconds: float
    resumed: int

    @property
    def generation(self) -> int:
        """Updates made."""
        return int(self.state.generation)
