"""Does a language model learn a task without backpropagation, and how much from equally many generated tokens?

`eggroll finetune`, as a user calls it, by both methods and by noise on activations: the same model, task, held-out
prompts and number of generated tokens, several seeds, the methods in turns. A seed decides the prompts, their order and
the noise. A run that is there already is read, and one that was interrupted goes on, so that the runs need not be made
at once. Against the tokens generated in training: mean reward of greedy answers to held-out prompts, as mean over seeds
with its standard error. Curves of `bench.grpo` can be drawn beside (`--beside`). A picture is kept beside the result.
"""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import tyro

from bench.tools.environment import device_slug
from bench.tools.finetune_curves import Curve, Point, panels, row, series, summary
from bench.tools.options import Common
from bench.tools.plots import draw
from bench.tools.report import RESULTS, Report

STDERR = 2  # its file descriptor: a notebook's or a test's sys.stderr may have none


@dataclass(frozen=True)
class Tuned:
    """What is particular to a method; as in `eggroll finetune`.

    Attributes:
        population: members in a generation.
        sigma: noise scale.
        learning_rate: of the optimizer; for full rank the paper's α.
        prompts: in a generation; all members answer all of them, under noise on activations one each.
        eval_every: generations between two evaluations.
    """

    population: int
    sigma: float
    learning_rate: float
    prompts: int
    eval_every: int = 2


@dataclass(frozen=True)
class Options(Common):
    """Options of bench.finetune.

    Attributes:
        model: Hugging Face folder, hub id or GGUF file; a quick run makes a tiny random one.
        task: name of a task.
        system: system message; default: none at all, which halves the prompts of SmolLM2.
        max_tokens: of an answer.
        degenerate: what an answer gets that says nothing; default: what its scoring says, as in the paper.
        tokens: generated in training, stop tokens included, after which a run ends.
        seeds: runs of each method.
        first_seed: of the first run.
        eggroll: settings of `--method eggroll`.
        full_rank: settings of `--method full-rank`.
        activations: settings of `--noise activations`, of which a member writes one answer.
        methods: those that are run.
        runs: folder of the run folders.
        beside: results of bench.grpo to draw beside.
    """

    model: str = ""
    task: str = "conciseness"
    system: str = ""
    max_tokens: int = 24
    degenerate: Literal["worst", "scored"] = "scored"
    tokens: int = 40_000
    seeds: int = 3
    first_seed: int = 0
    eggroll: Tuned = field(default_factory=lambda: Tuned(32, 0.01, 1e-4, 4))
    full_rank: Tuned = field(default_factory=lambda: Tuned(16, 0.01, 0.01, 8))
    activations: Tuned = field(default_factory=lambda: Tuned(128, 0.1, 3e-4, 4))
    methods: tuple[str, ...] = ("eggroll", "full-rank", "activations")
    runs: pathlib.Path = pathlib.Path("runs/bench-finetune")
    beside: tuple[pathlib.Path, ...] = ()

    def reduced(self) -> Options:
        """Small enough to see in seconds that the script works."""
        small = {"population": 4, "prompts": 2}
        tuned = {name: replace(getattr(self, name), **small) for name in ("eggroll", "full_rank", "activations")}
        return replace(self, task="conciseness", max_tokens=4, tokens=60, seeds=1, **tuned)

    def tuned(self, method: str) -> Tuned:
        """Settings of a method."""
        return getattr(self, method.replace("-", "_"))


def main(argv: Sequence[str] | None = None) -> None:
    options = tyro.cli(Options, args=argv, description=__doc__)
    if not options.quick:
        if not options.model:
            raise SystemExit("got no --model; a Hugging Face folder, a hub id or a GGUF file is required.")
        return _report(options)
    from bench.tools.tiny_language import tiny_language  # brings transformers, which a full run leaves to the command
    from eggroll.llm import save

    with tempfile.TemporaryDirectory() as scratch:
        save(tiny_language(), pathlib.Path(scratch) / "model")
        runs = pathlib.Path(scratch) / "runs"
        return _report(replace(options.reduced(), model=f"{scratch}/model", runs=runs))


def _report(options: Options) -> None:
    """Makes the runs, and shows and keeps what they came to."""
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    curves = [run(options, method, seed) for seed in seeds for method in options.methods]
    curves += [curve for file in options.beside for curve in from_grpo(file, options)]
    report = Report("finetune", options, [row(curve) for curve in curves], notes=NOTES, summary=summary(curves))
    names = list(dict.fromkeys(curve.method for curve in curves))
    means = [series([curve for curve in curves if curve.method == name]) for name in names]
    report.series = [curve.as_dict() for curve in curves] + means
    kept = options.out or (None if options.quick else RESULTS / "finetune" / f"{options.task}-{device_slug()}.json")
    if kept is not None:
        title = f"{pathlib.Path(options.model).name}, {options.task}: mean of the seeds with the standard error"
        draw(panels(means), kept.with_suffix(".png"), title=title, columns=2)
    report.finish(quick=options.quick, out=kept)


def run(options: Options, method: str, seed: int) -> Curve:
    """The curve of a run, which is made unless it is there; the command refuses one of other settings."""
    folder = options.runs / f"{options.task}-{method}-{seed}"
    more = ["--resume"] if (folder / "metrics.jsonl").exists() else []
    command = [sys.executable, "-m", "eggroll", "finetune", *arguments(options, method, seed, folder), *more]
    print(" ".join(command[1:]), flush=True)
    subprocess.run(command, check=True, stdout=STDERR)
    return from_run(folder, method, seed)


def arguments(options: Options, method: str, seed: int, folder: pathlib.Path) -> list[str]:
    """Of `eggroll finetune`."""
    tuned, kind = options.tuned(method), {"method": method, "groups": 1}
    if method == "activations":
        kind = {"method": "eggroll", "noise": method}
    given: dict[str, Any] = {"model": options.model, "task": options.task, "system": options.system} | kind
    given |= {"max-tokens": options.max_tokens, "token-budget": options.tokens, "generations": options.tokens}
    given |= {name: getattr(tuned, name) for name in ("population", "sigma", "learning_rate", "prompts", "eval_every")}
    given |= {"degenerate": options.degenerate, "seed": seed, "out": folder}
    return [text for name, value in given.items() for text in (f"--{name.replace('_', '-')}", str(value))]


def from_run(folder: pathlib.Path, method: str, seed: int) -> Curve:
    """What a run folder tells."""
    before = json.loads((folder / "evaluation.json").read_text())["before"]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    points = [Point(0, 0.0, before["reward"], before["error"])]
    points += [
        Point(line["tokens"], line["seconds"], line["test_reward"], line["test_reward_error"])
        for line in lines
        if line.get("test_reward") is not None
    ]
    return Curve(method, seed, lines[-1]["generation"], tuple(points))


def from_grpo(file: pathlib.Path, options: Options) -> list[Curve]:
    """The curves of a result of bench.grpo, which has to be of the same model, task and answers."""
    found = json.loads(file.read_text())
    for name in ("model", "task", "system", "max_tokens", "degenerate"):
        theirs, ours = found["settings"].get(name, "scored"), getattr(options, name)
        if theirs != ours:
            raise SystemExit(f"got {name}={theirs!r} in {file} and {ours!r} here; they have to be the same.")
    names = "tokens", "seconds", "held_out", "held_out_error"
    return [
        Curve("grpo", one["seed"], one["points"][-1]["round"], tuple(Point(*map(p.get, names)) for p in one["points"]))
        for one in found["series"]
    ]


NOTES = [
    "held out: mean reward of greedy answers to prompts that are not trained on; its error: over these prompts. In the "
    "summary and the picture: mean over seeds with its standard error; the rise is that of each seed above its start.",
    "tokens: generated in training, stop tokens included, evaluations left out. Between two evaluations a curve is a "
    "straight line; the means end with the shortest run.",
    "minutes: of all generations, with compilation and evaluations; for bench.grpo without evaluations.",
]

if __name__ == "__main__":
    main()
