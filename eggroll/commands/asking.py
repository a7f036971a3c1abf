"""Options of the commands that have a language model answer prompts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from eggroll.commands.common import choices
from eggroll.llm.finetuning.settings import Dtype


def unless(metavar: str, default: str) -> Any:
    """Help for an option that is None by default."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=f"(default: {default})")


@dataclass(frozen=True)
class AskOptions:
    """Which model answers which prompts, and how."""

    model: Annotated[str, tyro.conf.arg(metavar="MODEL")]
    """A Hugging Face folder, a .gguf file, a hub id, or a run folder of `eggroll finetune`."""
    task: Annotated[str | None, unless("NAME", "none")] = None
    """Ready task: countdown, conciseness, arithmetic, or reasoning_gym:NAME (extra `reasoning`)."""
    task_options: Annotated[tuple[str, ...], unless("NAME=VALUE", "none")] = ()
    """Options of the task, such as `largest=20`; values in JSON."""
    reward: Annotated[str | None, unless("MODULE:FUNCTION", "none")] = None
    """A reward of your own, `function(text, problem)` → a number, with --prompts-file."""
    prompts_file: Annotated[Path | None, unless("PATH", "none")] = None
    """Prompts for --reward: text, one a line, or JSON lines with "prompt" and any other fields."""
    test_prompts_file: Annotated[Path | None, unless("PATH", "a fifth of the prompts")] = None
    """Prompts to test on."""
    system: Annotated[str | None, unless("TEXT", "the task's")] = None
    """System message."""
    template_options: Annotated[tuple[str, ...], unless("NAME=VALUE", "none")] = ()
    """Options of the model's chat template, such as `enable_thinking=false`; values in JSON."""
    max_tokens: Annotated[int | None, unless("INT", "the task's")] = None
    """Tokens of an answer."""
    temperature: float = 0.0
    """0 takes the likeliest token."""
    top_k: Annotated[int | None, unless("INT", "all")] = None
    """Draw among this many likeliest tokens."""
    top_p: Annotated[float | None, unless("FLOAT", "all")] = None
    """Draw among the likeliest tokens of this total probability."""
    dtype: Annotated[Dtype | None, unless(choices(Dtype), "float32 on CPUs, elsewhere the model's")] = None
    """Of the parameters."""
    memory: Annotated[float | None, unless("GB", "a share of the device's")] = None
    """What caches, activations and noise may take; decides how many members answer at once."""
    workers: Annotated[int | None, unless("INT", "one a core")] = None
    """Processes that score answers."""
    scorer_seconds: float = 10.0
    """An answer whose scoring takes longer has the worst reward."""
    worst: Annotated[float | None, unless("FLOAT", "unknown")] = None
    """The least that --reward can be: that of an answer whose scoring fails."""
    reward_env: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, unless("NAME", "none")] = ()
    """An environment variable that the reward is given, such as a key; once for each."""
