"""Answers written down as a run goes on: to a few held-out prompts, and all of training."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from eggroll.llm.finetuning.evaluation import Measured
from eggroll.llm.finetuning.questions import Questions
from eggroll.training import processes
from eggroll.training.errors import RunError
from eggroll.training.folder.disk import open_to_read, own_folder, parse_json
from eggroll.training.folder.files import whole_file, write_text
from eggroll.training.folder.layout import COMPLETIONS, SAMPLES
from eggroll.training.metrics import read_metrics

SAMPLED = {"generation": int, "prompt": str, "answer": str}
SHOWN = 400  # characters of a prompt or an answer that are printed


@dataclass(frozen=True)
class Samples:
    """The file of a run's samples.

    Attributes:
        folder: the run folder.
        asked: the held-out questions.
        count: how many of them.
    """

    folder: Path
    asked: Questions
    count: int

    def add(self, generation: int, measured: Measured) -> None:
        """Writes the answers of a generation; what the file has of it or of later ones, made anew, is replaced.

        So is what it has of a generation where a run was interrupted that has gone on since.
        """
        due = {0} | {record["generation"] for record in read_metrics(self.folder) if "test_reward" in record}
        kept = [line for line in self.read() if line["generation"] < generation and line["generation"] in due]
        lines = [*kept, *samples_of(self.asked, measured, self.count, generation)]
        write_text(self.folder / SAMPLES, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))

    def read(self) -> list[dict[str, Any]]:
        """All samples so far."""
        path = self.folder / SAMPLES
        if not path.exists():
            return []
        try:
            with open_to_read(path) as file:
                lines = [parse_json(line) for line in file.read().splitlines() if line.strip()]
            if not all(isinstance(line, dict) and SAMPLED.items() <= _kinds(line).items() for line in lines):
                raise ValueError("a line that is no sample")
        except (OSError, ValueError) as why:
            raise RunError(f"cannot read '{path}' ({why}). Restore it from a copy, or remove it to go on.") from why
        return lines


@dataclass(frozen=True)
class Completions:
    """The answers of training, a file a generation, with the names of files and columns that TRL's trainers give them.

    A generation that is made again, by a run that was killed, writes the same file again.

    Attributes:
        folder: the run folder.
        form: `"jsonl"` or `"parquet"`.
    """

    folder: Path
    form: str

    def write(self, generation: int, columns: Mapping[str, Sequence[Any]]) -> None:
        """Writes the answers of this process: a row each, with the generation as `step`, and NaN as null.

        Raises:
            RunError: the file cannot be written.
        """
        whole = {"step": [generation] * len(columns["completion"])}
        whole |= {name: [None if x != x else x for x in column] for name, column in columns.items()}
        part = f".{jax.process_index()}" if processes.count() > 1 else ""
        name = f"completions_{generation:05}{part}.{self.form}"
        with whole_file(own_folder(self.folder / COMPLETIONS) / name) as file:
            if self.form == "parquet":
                import pyarrow
                from pyarrow.parquet import write_table

                write_table(pyarrow.table(whole), file)
                return
            for row in zip(*whole.values(), strict=True):
                line = json.dumps(dict(zip(whole, row, strict=True)), ensure_ascii=False)
                file.write(line.encode() + b"\n")


def _kinds(line: dict[str, Any]) -> dict[str, type]:
    return {name: type(value) for name, value in line.items()}


def samples_of(asked: Questions, measured: Measured, count: int, generation: int | None = None) -> list[dict[str, Any]]:
    """The answers to the first `count` questions, with the generation that gave them, if there is one."""
    rows = zip(asked.problems[:count], measured.texts, measured.rewards, strict=False)
    when = {} if generation is None else {"generation": generation}
    return [{**when, "prompt": p.prompt, "answer": text, "reward": reward} for p, text, reward in rows]


def shown(samples: Sequence[dict[str, Any]]) -> Iterable[str]:
    """A prompt after the other, with its first answer, one half way and its last."""
    for prompt in dict.fromkeys(line["prompt"] for line in samples):
        lines = [line for line in samples if line["prompt"] == prompt]
        yield f"prompt: {_short(prompt)}"
        picked = {lines[i].get("generation"): lines[i] for i in (0, len(lines) // 2, len(lines) - 1)}
        for generation, line in picked.items():
            when = "" if generation is None else f"generation {generation}, "
            yield f"  {when}{_scored(line['reward'])}: {_short(line['answer'])}"


def _scored(reward: float | None) -> str:
    return "no reward" if reward is None else f"reward {reward:.3f}"


def _short(text: str) -> str:
    text = " ⏎ ".join(text.strip().splitlines())
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"
