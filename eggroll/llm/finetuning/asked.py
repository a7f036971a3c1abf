"""Which model answers which prompts, and how it is rewarded: what fine-tuning and evaluating have in common."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from eggroll.llm.rewards.environment import environment
from eggroll.llm.tasks.base import Degenerate
from eggroll.llm.tasks.options import options_from
from eggroll.training.options import Checked, Option, SettingsError, check_path

Template = Literal["model", "none"]
Dtype = Literal["float32", "bfloat16"]
MOST_SECONDS = 86400  # for scoring an answer; timers do not take any number
OF_TEMPLATES = frozenset(
    ["tokenize", "add_generation_prompt", "continue_final_message", "return_tensors", "return_dict", "padding"]
)


@dataclass(frozen=True, kw_only=True)
class Asked(Checked):
    """Which model answers which prompts, and how: what fine-tuning and evaluating have in common."""

    model: Annotated[str, Option("required", "MODEL")] = ""
    """A Hugging Face folder, a .gguf file, a hub id, or a run folder of `eggroll finetune`."""
    task: Annotated[str | None, Option("none", "NAME")] = None
    """Ready task: countdown, conciseness, arithmetic, or reasoning_gym:NAME (extra `reasoning`)."""
    task_options: Annotated[tuple[str, ...], Option("none", "NAME=VALUE")] = ()
    """Options of the task, such as `largest=20`; values in JSON."""
    reward: Annotated[str | tuple[str, ...] | None, Option("none", "MODULE:FUNCTION[=WEIGHT]", repeated=True)] = None
    """A reward of your own, `function(text, problem)` → a number, or in TRL's form, with --prompts-file; again for each
    of several, of which the weighted mean counts."""
    prompts_file: Annotated[Path | None, Option("none")] = None
    """Prompts for --reward: text, one a line (.txt), or a table whose other columns the reward gets: .csv, .tsv, .json,
    .jsonl, .parquet, or a folder that `datasets` has saved."""
    prompt_column: Annotated[str | None, Option("prompt, messages or question", "NAME", absent=None)] = None
    """The table's column of prompts: texts, or lists of messages."""
    test_prompts_file: Annotated[
        Path | tuple[Path, ...] | None, Option("a fifth of the prompts", "FILE", repeated=True)
    ] = None
    """Prompts to test on; again for each of several sets, whose rewards are told apart."""
    system: Annotated[str | None, Option("the task's", "TEXT")] = None
    """System message."""
    template: Annotated[Template | None, Option("the model's, if it has one", absent=None)] = None
    """Whether prompts go through the model's chat template; none: as they are."""
    template_options: Annotated[tuple[str, ...], Option("none", "NAME=VALUE")] = ()
    """Options of the model's chat template, such as `enable_thinking=false`; values in JSON."""
    answer_prefix: Annotated[str | None, Option("none", "TEXT", absent=None)] = None
    """How every answer begins: it stands behind the prompt, and counts as part of the answer."""
    max_tokens: Annotated[int | None, Option("the task's", least=1)] = None
    """Tokens of an answer."""
    temperature: float = 0.0
    """0 takes the likeliest token."""
    top_k: Annotated[int | None, Option("all", least=1)] = None
    """Draw among this many likeliest tokens."""
    top_p: Annotated[float | None, Option("all", positive=True)] = None
    """Draw among the likeliest tokens of this total probability."""
    dtype: Annotated[Dtype | None, Option("float32 on CPUs, elsewhere the model's")] = None
    """Of the parameters."""
    memory: Annotated[float | None, Option("a share of the device's", "GB", positive=True)] = None
    """What caches, activations and noise may take; decides how many members answer at once."""
    workers: Annotated[int | None, Option("one a core", least=1)] = None
    """Processes that score answers."""
    scorer_seconds: Annotated[float, Option(positive=True)] = 10.0
    """An answer whose scoring takes longer has the worst reward; at most a day."""
    worst: Annotated[float | None, Option("unknown")] = None
    """The least that --reward can be: that of an answer whose scoring fails."""
    degenerate: Annotated[Degenerate | None, Option("worst; for --reward scored", absent="scored")] = None
    """What an answer gets that is empty, repeats itself or is cut off: the least reward, or what its scoring says."""
    reward_env: Annotated[tuple[str, ...], Option("none", "NAME", repeated=True)] = ()
    """An environment variable that the reward is given, such as a key; once for each."""

    def __post_init__(self) -> None:
        """One reward, and one file, is written as one, however it was given."""
        for name, found in (("reward", self.rewards), ("test_prompts_file", self.test_prompts_files)):
            object.__setattr__(self, name, found[0] if len(found) == 1 else found or None)

    @property
    def rewards(self) -> tuple[str, ...]:
        """Rewards of the user's own."""
        return _several(self.reward)

    @property
    def test_prompts_files(self) -> tuple[Path, ...]:
        """Files of prompts to test on."""
        return tuple(Path(file) if isinstance(file, str) else file for file in _several(self.test_prompts_file))

    def check(self) -> None:
        """Raises `SettingsError` for what no model can be asked."""
        super().check()
        if not self.model:
            raise SettingsError("got no model; --model is required: a folder, a .gguf file, a hub id or a run folder.")
        check_path("model", self.model)
        self._check_prompts()
        self._check_answers()

    def _check_prompts(self) -> None:
        for file in self.test_prompts_files:
            check_path("test_prompts_file", file)
        if (self.task is None) == (self.reward is None):
            got = "neither --task nor --reward" if self.task is None else "both --task and --reward"
            raise SettingsError(f"got {got}; one of them is required: a ready task, or a reward of your own.")
        if (self.reward is None) != (self.prompts_file is None):
            got = "prompts_file without a reward" if self.reward is None else "a reward without prompts_file"
            raise SettingsError(
                f"got {got}; a reward of your own needs both: --reward module:function --prompts-file FILE."
            )
        for name, what in (("test_prompts_file", "a file of test prompts"), ("prompt_column", "a column of prompts")):
            if getattr(self, name) is not None and self.reward is None:
                raise SettingsError(f"got {what} for a ready task, which has its own; leave it out.")
        if self.worst is not None and (self.reward is None or not -math.inf < self.worst < math.inf):
            raise SettingsError(f"got worst={self.worst!r}; a finite number, for a --reward of your own, is required.")

    def _check_answers(self) -> None:
        if not self.temperature >= 0:
            raise SettingsError(f"got temperature={self.temperature!r}; 0 (greedy) or more is required.")
        for name in ("top_k", "top_p"):
            if getattr(self, name) is not None and not self.temperature:
                raise SettingsError(
                    f"got {name}={getattr(self, name)!r} at temperature=0, where the likeliest token is taken; give a "
                    "--temperature above 0, or leave it out."
                )
        if self.scorer_seconds > MOST_SECONDS:
            raise SettingsError(f"got scorer_seconds={self.scorer_seconds!r}; at most {MOST_SECONDS} (a day) may pass.")
        environment(self.reward_env)
        options_from(self.task_options)
        if self.template == "none" and self.template_options:
            raise SettingsError("got template='none' with options of the template; leave one of them out.")
        own = sorted(options_from(self.template_options).keys() & OF_TEMPLATES)
        if own:
            raise SettingsError(f"got the template option {own[0]!r}, which eggroll sets by itself; leave it out.")

    @property
    def budget(self) -> float | None:
        """Bytes that answering may take; None: what is free, in part."""
        return None if self.memory is None else 1e9 * self.memory

    @property
    def label(self) -> str:
        """Task, or the name of the reward function, as it may stand in a file's name."""
        name = self.task or "-".join(reward.partition("=")[0].partition(":")[2] for reward in self.rewards)
        return re.sub(r"[^\w.-]+", "-", name)


def _several(given: Any) -> tuple[Any, ...]:
    """What may be given once or in a row, in a row; `check` tells of what else it is."""
    return tuple(given) if isinstance(given, list | tuple) else () if given is None else (given,)
