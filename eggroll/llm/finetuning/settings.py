"""Everything that decides a fine-tuning run, with defaults that suit each method. Quick to import."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from eggroll.llm.rewards.environment import environment
from eggroll.strategy.methods import METHODS, method_named
from eggroll.training.options import RunSettings, SettingsError, check_choice, check_count, check_pairs, check_positive

Optimizer = Literal["sgd", "adam"]
Dtype = Literal["float32", "bfloat16"]
Split = Literal["test", "train"]
MOST_SECONDS = 86400  # for scoring an answer; timers do not take any number
OF_TEMPLATES = {
    *("tokenize", "add_generation_prompt", "continue_final_message"),
    *("return_tensors", "return_dict", "padding"),
}


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Which model answers which prompts, and how: what fine-tuning and evaluating have in common.

    Attributes:
        model: a Hugging Face folder, a `.gguf` file, a hub id, or a run folder of `eggroll finetune`.
        task: name of a ready task; None with `reward`.
        task_options: options of the task, each `"name=value"`, the value in JSON or a word.
        reward: `"module:function"`, the user's own reward; needs `prompts_file`.
        prompts_file: prompts to train on: text, one a line, or JSON lines.
        test_prompts_file: prompts to test on. None: a fifth of `prompts_file`.
        system: system message; None: the task's.
        template_options: further options of the chat template, each `"name=value"`, such as `"enable_thinking=false"`.
        max_tokens: of an answer; None: the task's.
        temperature: 0: the likeliest token is taken.
        top_k: draw among this many likeliest tokens; None: all.
        top_p: draw among the likeliest tokens of this total probability; None: all.
        dtype: of the parameters; None: float32 on CPUs, elsewhere the model's own.
        memory: GB that caches, activations and noise may take; None: a share of the device's.
        workers: processes that score answers; None: one per core.
        scorer_seconds: an answer whose scoring takes longer has the worst reward; at most a day.
        worst: the least that `reward` can be, which answers get that cannot be scored; None: unknown.
        reward_env: names of environment variables that the reward is given besides those that programs need.
    """

    model: str = ""
    task: str | None = None
    task_options: tuple[str, ...] = ()
    reward: str | None = None
    prompts_file: Path | None = None
    test_prompts_file: Path | None = None
    system: str | None = None
    template_options: tuple[str, ...] = ()
    max_tokens: int | None = None
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    dtype: Dtype | None = None
    memory: float | None = None
    workers: int | None = None
    scorer_seconds: float = 10.0
    worst: float | None = None
    reward_env: tuple[str, ...] = ()

    def check_asked(self) -> None:
        """Raises `SettingsError` for what no model can be asked."""
        if (self.task is None) == (self.reward is None):
            got = "neither --task nor --reward" if self.task is None else "both --task and --reward"
            raise SettingsError(f"got {got}; one of them is required: a ready task, or a reward of your own.")
        if (self.reward is None) != (self.prompts_file is None):
            got = "prompts_file without a reward" if self.reward is None else "a reward without prompts_file"
            raise SettingsError(
                f"got {got}; a reward of your own needs both: --reward module:function --prompts-file FILE."
            )
        if self.test_prompts_file is not None and self.reward is None:
            raise SettingsError("got a file of test prompts for a ready task, which has its own; leave it out.")
        if self.worst is not None and (self.reward is None or not math.isfinite(self.worst)):
            raise SettingsError(f"got worst={self.worst!r}; a finite number, for a --reward of your own, is required.")
        if not self.temperature >= 0:
            raise SettingsError(f"got temperature={self.temperature!r}; 0 (greedy) or more is required.")
        for name in ("top_k", "top_p"):
            if getattr(self, name) is not None and not self.temperature:
                raise SettingsError(
                    f"got {name}={getattr(self, name)!r} at temperature=0, where the likeliest token is taken; give a "
                    "--temperature above 0, or leave it out."
                )
        if self.dtype is not None:
            check_choice("dtype", self.dtype, Dtype)
        for name in ("max_tokens", "workers", "top_k"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name), 1)
        for name in ("top_p", "memory", "scorer_seconds"):
            if getattr(self, name) is not None:
                check_positive(name, getattr(self, name))
        if self.scorer_seconds > MOST_SECONDS:
            raise SettingsError(f"got scorer_seconds={self.scorer_seconds!r}; at most {MOST_SECONDS} (a day) may pass.")
        environment(self.reward_env)
        options_from(self.task_options)
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
        name = self.task or (self.reward or "").partition(":")[2]
        return re.sub(r"[^\w.-]+", "-", name)


@dataclass(frozen=True, kw_only=True)
class FinetuneSettings(Asked, RunSettings):
    """Settings of a run; the defaults are those of `"eggroll"`.

    Attributes:
        method: `"eggroll"` (low-rank noise, pairs with opposite signs) or `"full-rank"` (arXiv 2509.24372).
        population: members in a generation; even for `"eggroll"`.
        rank: columns of each noise factor of `"eggroll"`.
        sigma: noise scale, in the units of the weights.
        learning_rate: of `"eggroll"`, the optimizer's; of `"full-rank"` the paper's α. None: see `rate`.
        optimizer: of `"eggroll"`, `"sgd"` or `"adam"`.
        prompts: different prompts in a generation.
        groups: groups of members; each has `prompts / groups` prompts of its own, and fitness is compared with that of
            the group. 1: all members answer all prompts. None: the method's own, which is `prompts` for `"eggroll"`.
        chunk: members that answer at once; None: what fits.
        token_budget: tokens of generated answers after which the run ends; None: no limit.
        eval_every: generations between two evaluations on held-out prompts.
        eval_prompts: how many held-out prompts; None: as many as the task has, up to 64.
        pool: training prompts to draw from; None: as many as the task has, up to 1024.
        samples: held-out prompts whose answers are written down and shown.
    """

    method: str = "eggroll"
    population: int = 256
    rank: int = 1
    sigma: float = 2e-3
    learning_rate: float | None = None
    optimizer: Optimizer = "sgd"
    prompts: int = 8
    groups: int | None = None
    chunk: int | None = None
    token_budget: int | None = None
    eval_every: int = 10
    eval_prompts: int | None = None
    pool: int | None = None
    samples: int = 3
    keep: int = 1
    keep_best: int = 0

    @property
    def name(self) -> str:
        """What the run's folder is called."""
        return f"{self.label}-{self.method}"

    @property
    def rate(self) -> float:
        """The learning rate: as given, or the method's own."""
        if self.learning_rate is not None:
            return self.learning_rate
        return method_named(self.method).rate(self.sigma, self.population, self.optimizer)

    @property
    def parts(self) -> int:
        """Groups of members."""
        if self.groups is not None:
            return self.groups
        return self.prompts if method_named(self.method).grouped else 1


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings(Asked):
    """Settings of an evaluation.

    Attributes:
        prompts: how many are answered; None: as many as the task has, up to 256.
        split: `"test"`, or `"train"`: prompts that fine-tuning may have seen.
        seed: decides the prompts, and the draws of a temperature above 0; that of a run gives its held-out prompts.
        samples: answers that are shown.
    """

    prompts: int | None = None
    split: Split = "test"
    seed: int = 0
    samples: int = 3

    def check(self) -> None:
        """Raises `SettingsError` for a value that cannot be used."""
        self.check_asked()
        check_choice("split", self.split, Split)
        least = {"seed": 0, "samples": 0} | ({} if self.prompts is None else {"prompts": 1})
        for name, number in least.items():
            check_count(name, getattr(self, name), number)


def defaults(method: str) -> FinetuneSettings:
    """What a method is started with; raises `SettingsError` for one that is not known."""
    if method not in METHODS:
        raise SettingsError(f"got method={method!r}; one of {', '.join(map(repr, METHODS))} is required.")
    return FinetuneSettings(method=method, population=METHODS[method].population, sigma=METHODS[method].sigma)


DEFAULTS = {name: defaults(name) for name in METHODS}  # for the command's help


def settings_for(method: str = "eggroll", **given: Any) -> FinetuneSettings:
    """Checked settings: the method's defaults, replaced by what is given.

    Args:
        method: `"eggroll"` or `"full-rank"`.
        **given: attributes of `FinetuneSettings`; None keeps the default.

    Returns:
        The settings.

    Raises:
        SettingsError: an unknown method, or a value that no run can use.

    Example:
        >>> settings_for("full-rank", model="folder", task="conciseness").rate
        0.0005
    """
    settings = replace(defaults(method), **{name: value for name, value in given.items() if value is not None})
    check_choice("optimizer", settings.optimizer, Optimizer)
    settings.check_asked()
    _check_used(settings, given)
    counts = ["rank", "prompts", "eval_every"]
    unless_none = ("chunk", "token_budget", "pool", "groups", "eval_prompts")
    counts += [name for name in unless_none if getattr(settings, name) is not None]
    least = [("population", 2), ("samples", 0), *((name, 1) for name in counts)]
    settings.check(least, ["sigma", "learning_rate"])
    _check_groups(settings)
    return settings


def _check_used(settings: FinetuneSettings, given: Mapping[str, Any]) -> None:
    """What is given has to matter, or a comparison would be of something else than was asked for."""
    method = METHODS[settings.method]
    for name in ("rank", "optimizer", "chunk"):
        if name not in method.takes and given.get(name) is not None:
            raise SettingsError(
                f"got {name}={given[name]!r} for method={method.name!r}, which has {method.lacks}; leave it out, or "
                "use --method eggroll."
            )


def _check_groups(settings: FinetuneSettings) -> None:
    """Members and prompts have to be divided evenly, and pairs stay together."""
    groups, population, prompts = settings.parts, settings.population, settings.prompts
    pairs = METHODS[settings.method].pairs
    if pairs:
        check_pairs(population)
    unit = 2 if pairs or groups > 1 else 1
    if population % (groups * unit):
        each = "an even number" if unit == 2 else "the same number"
        raise SettingsError(
            f"got population={population} in {groups} groups; {each} of members in every group is required. Use "
            f"--population {-(-population // (groups * unit)) * groups * unit}, or other --groups (1: all members "
            "answer all prompts)."
        )
    if prompts % groups:
        raise SettingsError(
            f"got prompts={prompts} for groups={groups}; the same number of prompts for every group is required. Use "
            f"--prompts {-(-prompts // groups) * groups}, or other --groups."
        )
    if settings.pool is not None and settings.pool < prompts:
        raise SettingsError(f"got pool={settings.pool} for prompts={prompts}; at least as many are required.")


def options_from(texts: Sequence[str]) -> dict[str, Any]:
    """Options of a task from `"name=value"`, the value read as JSON where it is JSON.

    Raises:
        SettingsError: something else.

    Example:
        >>> options_from(["sizes=[3, 4]", "operations=+-"])
        {'sizes': (3, 4), 'operations': '+-'}
    """
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise SettingsError(f"got the task option {text!r}; name=value is required, such as largest=20.")
        try:
            read = json.loads(value)
        except ValueError:
            read = value
        found[name] = tuple(read) if isinstance(read, list) else read
    return found
