"""What every script ends with: a card for people, a file in bench/results, and one line of JSON."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.tools.environment import describe, device_slug

RESULTS = pathlib.Path(__file__).parents[1] / "results"
WIDTH = 180  # of the card in a file or a pipe


@dataclass
class Report:
    """The answer to one question.

    Attributes:
        question: the script's name, such as `"layer"`.
        settings: the options it ran with: a dataclass or a mapping.
        rows: the table; every row has the same keys.
        notes: sentences below the table: what a column means, what was left out and why.
        summary: the few figures that matter, by name.
        series: curves, kept but not shown; left out where there are none.
    """

    question: str
    settings: Any
    rows: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    series: list[dict[str, Any]] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Everything that JSON can hold, with versions and device."""
        settings = dataclasses.asdict(self.settings) if dataclasses.is_dataclass(self.settings) else dict(self.settings)
        return {
            "question": self.question,
            "summary": self.summary,
            "settings": settings,
            "environment": describe(),
            "rows": self.rows,
            "notes": self.notes,
            **({"series": self.series} if self.series else {}),
        }

    def finish(self, *, quick: bool, out: pathlib.Path | None = None) -> None:
        """Print the card, keep the result, and print the JSON as the last line.

        Args:
            quick: a quick run shows that the script works; it is kept only where `out` says so.
            out: file for the result; None (default) keeps a full run in
                `bench/results/<question>/<device>.json`.
        """
        self.card(Console(width=None if sys.stdout.isatty() else WIDTH))
        if out is None and not quick:
            out = RESULTS / self.question / f"{device_slug()}.json"
        content = _plain(self.as_dict())
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps(content, indent=1) + "\n")
            print(f"kept in {out}")
        print(json.dumps(content), flush=True)

    def card(self, console: Console) -> None:
        """The table, the notes and the summary, for people."""
        if self.rows:
            table = Table(title=f"bench.{self.question} on {describe()['device']}")
            for name in self.rows[0]:
                table.add_column(name.replace("_", " "))
            for row in self.rows:
                table.add_row(*(_cell(row.get(name)) for name in self.rows[0]))
            console.print(table)
        for note in self.notes:
            console.print(note, highlight=False, markup=False)
        for name, value in self.summary.items():
            console.print(f"  {name.replace('_', ' ')}: {_cell(value)}", highlight=False, markup=False)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _plain(value: Any) -> Any:
    """JSON has no NaN, no tuples and no numpy."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(v) for v in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float):
        return None if value != value or value in (float("inf"), float("-inf")) else float(f"{value:.6g}")
    return value if isinstance(value, int | str | None) else str(value)
