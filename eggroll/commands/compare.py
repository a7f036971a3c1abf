"""`eggroll compare`: one picture of several runs, and a table of the settings in which they differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from eggroll.commands.common import WIDE, say
from eggroll.training.errors import RunError, abridged
from eggroll.training.folder.integrity import check_run
from eggroll.training.folder.layout import METRICS, read_config
from eggroll.training.metrics import Record, read_before, read_metrics
from eggroll.training.options import SettingsError, check_path

METRIC_MEANS = {
    "test_accuracy": "share of held-out images",
    "test_reward": "mean of held-out prompts",
    "greedy_return": "of an episode without noise, mean",
}
METRIC_ORDER = ("test_reward", "test_accuracy", "greedy_return", "fitness_mean")  # what is compared if it is not said
OF_THE_FOLDER = ("out", "overwrite", "resume", "force")  # no settings of what is computed
AGAINST = {"generations": "generation", "evaluations": "evaluations", "seconds": "seconds", "tokens": "tokens"}
UNITS = {"generation": "generation", "evaluations": "member evaluations", "seconds": "seconds, compilation included"}
UNITS |= {"tokens": "tokens of answers"}
Row = Annotated[tuple[Path, ...], tyro.conf.arg(metavar="RUN [RUN ...]")]


@dataclass(frozen=True)
class Compare:
    """Draw a metric of several runs into one picture, and print the settings in which they differ."""

    runs: tyro.conf.Positional[Row]
    """Run folders, in the order in which they are named and coloured."""
    metric: str | None = None
    """What of metrics.jsonl (default: what all have of test_reward, test_accuracy, greedy_return and fitness_mean)."""
    against: str = "generations"
    """generations, evaluations (of members), seconds, tokens, or a metric that grows, such as live_steps."""
    out: Annotated[Path, tyro.conf.arg(metavar="PATH")] = Path("compare.png")
    """The picture, a .png."""
    overwrite: bool = False
    """Replace the picture."""


class Run(NamedTuple):
    """What is read of a run."""

    name: str
    settings: dict[str, Any]
    records: list[Record]


def compare(command: Compare) -> int:
    """Runs the command; the exit status."""
    for name, path in (*(("run", folder) for folder in command.runs), ("out", command.out)):
        check_path(name, path)
    if command.out.suffix != ".png":
        raise SettingsError(f"got out={str(command.out)!r}; the name of a .png is required, such as compare.png.")
    if command.out.exists() and not command.overwrite:
        raise RunError(f"'{command.out}' exists; choose another name with --out, or replace it with --overwrite.")
    names = names_of(command.runs)
    runs = [_read(folder, name) for folder, name in zip(command.runs, names, strict=True)]
    metric = _chosen(runs, command.metric)
    spent = AGAINST.get(command.against, command.against)
    lines = {run.name: _line(run, metric, spent) for run in runs}
    from eggroll.training.curve import draw_lines

    draw_lines(lines, command.out, (UNITS.get(spent, spent), _label(metric, runs)))
    console = Console()
    console = console if console.is_terminal else Console(width=WIDE)
    console.print(_table(runs, metric, lines))
    say(console, f"  {command.out}")
    return 0


def names_of(folders: Sequence[Path]) -> list[str]:
    """The folders' own names, with as many of those above as tell them apart.

    Example:
        >>> names_of([Path("first/mlp"), Path("second/mlp")])
        ['first/mlp', 'second/mlp']
    """
    parts = [folder.resolve().parts for folder in folders]
    if len(set(parts)) < len(parts):
        raise SettingsError(f"got {', '.join(map(str, folders))}, one of them twice; different runs are required.")
    depth = 1
    while len({part[-depth:] for part in parts}) < len(parts):
        depth += 1
    return ["/".join(part[-depth:]) for part in parts]


def _read(folder: Path, name: str) -> Run:
    if not (folder / METRICS).is_file():
        raise RunError(f"'{folder}' has no {METRICS}: it holds no run. The folder of one is required.")
    check_run(folder)
    config, records = read_config(folder), read_metrics(folder)
    if not records:
        raise RunError(f"'{folder}' has no generation in its {METRICS} yet: wait for one.")
    if before := read_before(folder):
        held_out = "test_" if "max_tokens" in config["options"] else ""  # language models' say so in the metrics alone
        before = {held_out + name: x for name, x in before.items()}
        records = [{"generation": 0, "seconds": 0.0, "tokens": 0, **before}, *records]
    members = config.get("strategy", {}).get("population", config["options"].get("population"))
    if isinstance(members, int):
        records = [{**record, "evaluations": members * record["generation"]} for record in records]
    parts = flat(config.get("strategy", {})), flat(config["options"]), flat(config.get("versions", {}), "version ")
    given = {key: x for part in parts for key, x in part.items() if key not in OF_THE_FOLDER}
    return Run(name, given, records)


def flat(settings: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Settings within settings by their names with dots between.

    Example:
        >>> flat({"population": 8, "optimizer": {"name": "adam", "arguments": {"b2": 0.9}}})
        {'population': 8, 'optimizer.name': 'adam', 'optimizer.arguments.b2': 0.9}
    """
    found = {}
    for name, x in settings.items():
        if name == "values" and isinstance(x, Mapping):  # what a function came to where it was tried: as one
            found[above + name] = ", ".join(map(str, x.values()))
        else:
            found |= flat(x, f"{above}{name}.") if isinstance(x, Mapping) else {above + name: x}
    return found


def _chosen(runs: Sequence[Run], metric: str | None) -> str:
    measured = [{name for record in run.records for name, x in record.items() if _number(x)} for run in runs]
    everywhere = set.intersection(*measured) - {"generation", "evaluations"}
    found = metric or next((name for name in METRIC_ORDER if name in everywhere), None)
    if found is None or found not in everywhere:
        lacking = [run.name for run, names in zip(runs, measured, strict=True) if found not in names]
        raise SettingsError(
            f"got metric={found!r}, which {', '.join(lacking) or 'no run'} has no numbers of; one that all have is "
            f"required: {', '.join(sorted(everywhere)) or 'there is none'}."
        )
    return found


def _number(x: Any) -> bool:
    return isinstance(x, int | float) and not isinstance(x, bool)


def _line(run: Run, metric: str, spent: str) -> list[tuple[float, float]]:
    line = [(r[spent], r[metric]) for r in run.records if _number(r.get(spent)) and _number(r.get(metric))]
    if not line:
        has = sorted({name for record in run.records for name, x in record.items() if _number(x)})
        raise SettingsError(
            f"got against={spent!r}, which {run.name} has not beside {metric}; generations, evaluations, seconds, or "
            f"one of its own is required: {', '.join(has)}."
        )
    if any(after[0] < before[0] for before, after in pairwise(line)):
        raise SettingsError(
            f"got against={spent!r}, which does not grow from line to line in {run.name}; what is spent is required, "
            "such as generations, evaluations, seconds or tokens."
        )
    return line


def _label(metric: str, runs: Sequence[Run]) -> str:
    """What a metric is, where its name does not say so."""
    if metric in METRIC_MEANS:
        return f"{metric} ({METRIC_MEANS[metric]})"
    if not metric.startswith("fitness"):
        return metric
    what = list(dict.fromkeys(_fitness(run.settings) for run in runs))
    return f"{metric} of the members; fitness = {' or '.join(what)}"


def _fitness(settings: Mapping[str, Any]) -> str:
    """What the commands' fitness is; of another run nobody but its author knows."""
    if "env" in settings:
        return "return of an episode"
    if "max_tokens" in settings:
        return "reward"
    return "−cross-entropy" if {"model", "batch_size"} <= set(settings) else "what the run maximised"


def _table(runs: Sequence[Run], metric: str, lines: Mapping[str, Sequence[tuple[float, float]]]) -> Table:
    table = Table("setting that differs")
    for run in runs:
        table.add_column(Text(run.name))
    for name in dict.fromkeys(name for run in runs for name in run.settings):
        values = [str(run.settings.get(name, "-")) for run in runs]
        if len(set(values)) > 1:
            table.add_row(Text(name), *(Text(abridged(value)) for value in values))
    if not table.row_count:
        table.add_row("none", *["" for _ in runs])
    table.add_section()
    table.add_row("generations made", *(str(run.records[-1]["generation"]) for run in runs))
    table.add_row(f"{metric}: first", *(f"{lines[run.name][0][1]:.5g}" for run in runs))
    table.add_row(f"{metric}: last", *(f"{lines[run.name][-1][1]:.5g}" for run in runs))
    table.add_row(f"{metric}: largest", *(f"{max(y for _, y in lines[run.name]):.5g}" for run in runs))
    return table
