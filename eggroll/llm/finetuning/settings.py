"""Everything that decides a fine-tuning run, with defaults that suit each method. Quick to import."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from eggroll.extras import check_installed
from eggroll.llm.finetuning.asked import Asked
from eggroll.strategy.methods import METHODS, method_named
from eggroll.training.options import (
    UNDECIDING,
    Option,
    RunSettings,
    SettingsError,
    as_begun,
    check_pairs,
    keywords_of,
)

Optimizer = Literal["sgd", "adam"]
Split = Literal["test", "train"]
ACTIVATIONS: Mapping[str, Any] = {"noise": "activations", "optimizer": "adam"}  # its other defaults


@dataclass(frozen=True, kw_only=True)
class FinetuneSettings(Asked, RunSettings):
    """Settings of a run; the defaults are those of `"eggroll"`."""

    _own = "method"
    # A run that goes on may end elsewhere: no schedule asks how long it will be.
    may_change = UNDECIDING | {"generations", "token_budget"}

    method: str = field(default="eggroll", kw_only=False)
    """EGGROLL (low-rank noise, members side by side), or full-rank noise (arXiv 2509.24372)."""
    population: Annotated[int, Option(least=2)] = 32
    """Members in a generation."""
    rank: Annotated[int, Option(least=1)] = 1
    """Columns of each noise factor (eggroll)."""
    noise: Annotated[Literal["weights", "activations"], Option(absent="weights")] = "weights"
    """On the weights, or on the outputs of the layers' matrices, of its own at every token (eggroll)."""
    sigma: Annotated[float | Literal["auto"], Option(positive=True)] = "auto"
    """Noise scale, in the units of the weights; on activations, of each output's RMS. auto: such that noise moves the
    next token's distribution by 0.2 nats, measured on answers of the model at the start."""
    learning_rate: Annotated[float | Literal["auto"] | None, Option(positive=True)] = "auto"
    """The optimizer's; for full-rank the α of its paper. auto: updates of 0.8 of the noise's size, which fall as one
    over the root of the generation; on activations 3e-4."""
    optimizer: Annotated[Optimizer, Option("sgd, on activations adam")] = "sgd"
    """Of eggroll."""
    lora: Annotated[int | None, Option("none", "RANK", least=1, absent=None)] = None
    """Evolve LoRA adapters of this rank alone, beside the model's weights; model/ is a PEFT adapter's folder then."""
    lora_alpha: Annotated[float | None, Option("twice --lora", positive=True, absent=None)] = None
    """Their scale times their rank."""
    lora_target_modules: Annotated[tuple[str, ...], Option("all of attention and MLP", "NAME", absent=())] = ()
    """Linear layers that have them, such as q_proj v_proj."""
    prompts: Annotated[int, Option(least=1)] = 4
    """Different prompts in a generation."""
    groups: Annotated[int | None, Option("eggroll --prompts, full-rank 1", least=1)] = None
    """Groups of members: each has its share of the prompts and compares fitness within. 1: all answer all prompts."""
    chunk: Annotated[int | None, Option("what fits --memory", least=1)] = None
    """Members that answer at once (eggroll)."""
    kl: Annotated[float | None, Option("none", "BETA", positive=True, absent=None)] = None
    """Subtract BETA times a member's KL to the model of the start, in nats a token of its answers, from its reward."""
    token_budget: Annotated[int | None, Option("none", least=1, most=2**60)] = None
    """Generate no more tokens of answers than this: end before a generation that could exceed it. An answer counts at
    least an eighth of --max-tokens."""
    eval_every: Annotated[int, Option(least=1)] = 10
    """Generations between two evaluations on held-out prompts."""
    eval_prompts: Annotated[int | None, Option("64, or what there is", least=1)] = None
    """Held-out prompts."""
    pool: Annotated[int | None, Option("1024, or what there is", least=1)] = None
    """Training prompts to draw from."""
    deliver: Annotated[Literal["best", "last"], Option(absent="last")] = "best"
    """Which model the run leaves: that of the evaluation with the best held-out reward, or the last generation's."""
    push_to_hub: Annotated[bool, Option(absent=False)] = False
    """Put the model that the run leaves into --hub-model-id, by the login of huggingface_hub."""
    hub_model_id: Annotated[str | None, Option("none", "OWNER/NAME", absent=None)] = None
    """The repository on the Hugging Face hub; made at the start if there is none."""
    hub_private_repo: Annotated[bool, Option(absent=False)] = False
    """Make it a private one."""
    samples: Annotated[int, Option(least=0)] = 3
    """Held-out prompts whose answers are shown."""
    log_completions: Annotated[Literal["jsonl", "parquet"] | None, Option("none", absent=None)] = None
    """Write every training answer with its rewards: a file a generation in completions/ (parquet: extra `data`)."""
    seed: Annotated[int, Option(least=0)] = 0
    """Decides prompts, noise and draws."""
    out: Annotated[Path | None, Option("runs/TASK-METHOD")] = None
    """Run folder."""
    keep: Annotated[int, Option(least=1)] = 1
    """Newest checkpoints that are kept."""
    keep_best: Annotated[int, Option(least=0)] = 0
    """Checkpoints of the highest held-out score that are kept besides."""

    @property
    def name(self) -> str:
        """What the run's folder is called."""
        return f"{self.label}-{self.method}" + ("-activations" if self.noise == "activations" else "")

    @property
    def rate(self) -> float | Literal["auto"]:
        """The learning rate: as given, or as runs of earlier versions had it where it is None."""
        if isinstance(self.learning_rate, float | int):
            return self.learning_rate
        if self.noise == "activations":
            return 3e-4
        if self.learning_rate is not None or isinstance(self.sigma, str):
            return "auto"
        return method_named(self.method).rate(self.sigma, self.population, self.optimizer)

    @property
    def parts(self) -> int:
        """Groups of members."""
        if self.groups is not None:
            return self.groups
        return self.prompts if method_named(self.method).grouped else 1

    def check(self) -> None:
        """Raises `SettingsError` for a value that no run can use: groups are even, and keep pairs together."""
        super().check()
        if self.push_to_hub != (self.hub_model_id is not None) or self.hub_private_repo > self.push_to_hub:
            raise SettingsError(
                f"got push_to_hub={self.push_to_hub} and hub_model_id={self.hub_model_id!r}; --push-to-hub "
                "--hub-model-id OWNER/NAME are required together, and by --hub-private-repo."
            )
        if self.log_completions == "parquet":
            check_installed("pyarrow", "answers as Parquet")
        groups, population, prompts = self.parts, self.population, self.prompts
        if self.noise == "activations" and groups != prompts and METHODS[self.method].grouped:
            raise SettingsError(
                f"got groups={groups} for prompts={prompts} with noise='activations', where each member writes one "
                "answer; as many groups as prompts are required. Leave --groups out."
            )
        if self.noise == "activations" and self.optimizer == "sgd" and not isinstance(self.learning_rate, float):
            raise SettingsError(
                "got optimizer='sgd' with noise='activations' and no learning_rate: what size its gradient has depends "
                "on the model. Give --learning-rate, or use --optimizer adam."
            )
        self._check_against_noise()
        pairs = METHODS[self.method].pairs
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
                f"got prompts={prompts} for groups={groups}; the same number of prompts for every group is required. "
                f"Use --prompts {-(-prompts // groups) * groups}, or other --groups."
            )
        if self.pool is not None and self.pool < prompts:
            raise SettingsError(f"got pool={self.pool} for prompts={prompts}; at least as many are required.")

    def _check_against_noise(self) -> None:
        for name in ("lora_alpha", "lora_target_modules"):
            if self.lora is None and getattr(self, name):
                raise SettingsError(f"got {name}={getattr(self, name)!r} without lora; give its rank, or leave it out.")
        if self.kl is not None and self.noise == "activations":
            raise SettingsError(
                f"got kl={self.kl} with noise='activations', which is of its own at every token that is written, and "
                "cannot be read again. Use --noise weights, or leave --kl out."
            )
        if self.lora is not None and self.noise == "activations":
            raise SettingsError(
                f"got lora={self.lora} with noise='activations': adapters begin with outputs of zero, on which noise "
                "relative to their size is none. Use --noise weights, or leave --lora out."
            )


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings(Asked):
    """Settings of an evaluation."""

    prompts: Annotated[int | None, Option("256, or what there is", least=1)] = None
    """Prompts that are answered."""
    split: Split = "test"
    """Which prompts: held-out ones, or those that fine-tuning may have seen."""
    seed: Annotated[int, Option(least=0)] = 0
    """Decides the prompts, and draws; that of a run gives the ones that it was tested on."""
    samples: Annotated[int, Option(least=0)] = 3
    """Answers that are shown."""


def defaults(method: str, noise: str = "weights") -> FinetuneSettings:
    """What a method is started with; raises `SettingsError` for one that is not known."""
    if not isinstance(method, str) or method not in METHODS:
        raise SettingsError(f"got method={method!r}; one of {', '.join(map(repr, METHODS))} is required.")
    own = ACTIVATIONS if noise == "activations" else {}
    return FinetuneSettings(method=method, population=METHODS[method].population, **own)


DEFAULTS = {name: defaults(name) for name in METHODS}  # for the command's help


@keywords_of(FinetuneSettings)
def settings_for(method: str | None = None, **given: Any) -> FinetuneSettings:
    """Checked settings: the method's defaults, replaced by what is given.

    Args:
        method: `"eggroll"` or `"full-rank"`. Default `"eggroll"`.
        **given: attributes of `FinetuneSettings`; None keeps the default. With `resume=True`, what is not given is what
            the run in the folder, if there is one, was begun with.

    Returns:
        The settings.

    Raises:
        SettingsError: an unknown method or setting, or a value that no run can use.

    Example:
        >>> settings_for("full-rank", model="folder", task="conciseness").sigma
        'auto'
    """
    asked = as_begun(FinetuneSettings, given if method is None else {"method": method, **given})
    settings = replace(defaults(asked.get("method", FinetuneSettings.method), asked.get("noise", "weights")), **asked)
    settings.check()
    _check_used(settings, given)
    return settings


def _check_used(settings: FinetuneSettings, given: Mapping[str, Any]) -> None:
    """What is given has to matter, or a comparison would be of something else than was asked for."""
    method = METHODS[settings.method]
    if settings.noise == "activations" and given.get("rank") is not None:
        raise SettingsError(f"got rank={given['rank']!r} with noise='activations', which has no factors; leave it out.")
    for name in ("rank", "optimizer", "chunk", "noise"):
        if name not in method.takes and given.get(name) is not None:
            raise SettingsError(
                f"got {name}={given[name]!r} for method={method.name!r}, which has {method.lacks}; leave it out, or "
                "use --method eggroll."
            )
