"""How a run shows that it is getting on: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

from collections import deque
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

LINES = 10  # printed over a run where there is no terminal
WINDOW = 10  # generations that the speed is averaged over


class Meter:
    """Shows the records of a run of `generations`, as a context around it.

    Args:
        console: where to.
        generations: how many records to expect.
        label: what runs.
    """

    def __init__(self, console: Console, generations: int, label: str) -> None:
        self._console, self._generations = console, generations
        self._shown = 0  # records
        self._accuracy: float | None = None
        self._recent: deque[float] = deque(maxlen=WINDOW)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            TimeRemainingColumn(compact=True),
        )
        self._bar = Progress(*columns, console=console, disable=not console.is_terminal, expand=True)
        self._task = self._bar.add_task(label, total=generations, status="")

    def __enter__(self) -> Meter:
        return self

    def __exit__(self, *_: Any) -> None:
        self._bar.stop()

    def update(self, record: dict[str, Any]) -> None:
        """Shows one line of the metrics; the first one, of generation 0, starts the bar."""
        generation = record["generation"]
        self._accuracy = record.get("test_accuracy", self._accuracy)
        if self._shown > 1:  # the first generation's time is compilation
            self._recent.append(record["members_per_second"])
        self._shown += 1
        status = self.status(record.get("fitness_mean"))
        if generation == 0:
            status += "  compiling"
            self._bar.start()
        self._bar.update(self._task, completed=generation, status=status)
        every = max(1, self._generations // LINES)
        if not self._console.is_terminal and (generation % every == 0 or generation == self._generations):
            self._console.print(f"generation {generation}/{self._generations}  {status}", highlight=False)

    def status(self, fitness: float | None) -> str:
        """Fitness, the latest accuracy and the recent speed, as far as they are known."""
        parts = [] if fitness is None else [f"fitness {fitness:.3f}"]
        if self._accuracy is not None:
            parts.append(f"accuracy {self._accuracy:.1%}")
        if self._recent:
            speed = len(self._recent) / sum(1 / x for x in self._recent)
            parts.append(f"{speed:,.0f} members/s")
        return "  ".join(parts)
