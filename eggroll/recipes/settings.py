"""Everything that decides a training run on the digits, with defaults that suit each model."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from eggroll.training.errors import RunError

Model = Literal["mlp", "cnn", "transformer"]
Distribution = Literal["rademacher", "normal"]
Shaping = Literal["zscore", "centered_rank", "sign", "none"]

LEAST = {
    "population": 2,
    "rank": 1,
    "generations": 1,
    "batch_size": 1,
    "seed": 0,
    "checkpoint_every": 1,
    "keep": 1,
    "keep_best": 0,
    "patience": 0,
}
MAX_SEED = 2**31 - 1  # what a key is made from without 64-bit integers


class SettingsError(RunError):
    """A run that cannot start because of what was asked for."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of a run; the defaults are those of the MLP.

    Attributes:
        model: `"mlp"`, `"cnn"` or `"transformer"`.
        population: members in a generation, even.
        rank: columns of each noise factor.
        sigma: noise scale, in the units of the weights.
        generations: number of updates.
        learning_rate: Adam's, at the start; it falls along a cosine to 2 % of that.
        batch_size: images in a generation's minibatch, the same for all members.
        distribution: of the noise, `"rademacher"` or `"normal"`.
        shaping: of the fitness, `"zscore"`, `"centered_rank"`, `"sign"` or `"none"`.
        seed: decides initial parameters, noise and the order of the data; 0 to 2³¹ − 1.
        out: the run folder; None means `runs/digits-<model>`.
        overwrite: whether a run in that folder may be replaced.
        resume: whether a run in that folder goes on, from its newest whole checkpoint.
        force: whether it may go on with other settings.
        checkpoint_every: generations between two checkpoints.
        keep: newest checkpoints that are kept.
        keep_best: checkpoints of the highest test accuracy that are kept besides.
        patience: measurements of the test accuracy that may bring nothing better before the run ends; 0: it goes on.
        time_limit: seconds after which the run saves and ends; None: no limit.
        tensorboard: whether TensorBoard's files are written.
    """

    model: Model = "mlp"
    population: int = 1024
    rank: int = 1
    sigma: float = 0.02
    generations: int = 150
    learning_rate: float = 0.015
    batch_size: int = 64
    distribution: Distribution = "rademacher"
    shaping: Shaping = "zscore"
    seed: int = 0
    out: Path | None = None
    overwrite: bool = False
    resume: bool = False
    force: bool = False
    checkpoint_every: int = 50
    keep: int = 2
    keep_best: int = 1
    patience: int = 0
    time_limit: float | None = None
    tensorboard: bool = False

    @property
    def folder(self) -> Path:
        """Where the run is written."""
        return Path("runs") / f"digits-{self.model}" if self.out is None else Path(self.out)

    def to_json(self) -> dict[str, Any]:
        """The settings as JSON can hold them."""
        return {f.name: getattr(self, f.name) for f in fields(self)} | {"out": self.folder.as_posix()}


DEFAULTS: dict[str, Settings] = {
    "mlp": Settings(),
    "cnn": Settings(model="cnn", population=512, learning_rate=0.02),
    "transformer": Settings(model="transformer", population=512, generations=200, learning_rate=0.02),
}


def settings_for(model: str = "mlp", **given: Any) -> Settings:
    """Checked settings: the model's defaults, replaced by what is given.

    Args:
        model: `"mlp"`, `"cnn"` or `"transformer"`.
        **given: attributes of `Settings`; None keeps the default.

    Returns:
        The settings.

    Raises:
        SettingsError: an unknown model, or a value that no run can use. What `eggroll.ES` checks itself is left to it.

    Example:
        >>> settings_for("mlp", population=64).population
        64
    """
    _check_choice("model", model, Model)
    settings = replace(DEFAULTS[model], **{name: value for name, value in given.items() if value is not None})
    _check_choice("distribution", settings.distribution, Distribution)
    _check_choice("shaping", settings.shaping, Shaping)
    for name, least in LEAST.items():
        _check_count(name, getattr(settings, name), least)
    if settings.population % 2:
        raise SettingsError(
            f"got population={settings.population}; an even number is required, because members come in pairs with "
            f"opposite noise. Use {settings.population + 1}."
        )
    if settings.seed > MAX_SEED:
        raise SettingsError(f"got seed={settings.seed}; at most {MAX_SEED} is required.")
    for name in ("sigma", "learning_rate", "time_limit"):
        if name != "time_limit" or settings.time_limit is not None:
            _check_positive(name, getattr(settings, name))
    return settings


def _check_choice(name: str, value: Any, choices: Any) -> None:
    if value not in get_args(choices):
        raise SettingsError(f"got {name}={value!r}; one of {', '.join(map(repr, get_args(choices)))} is required.")


def _check_count(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise SettingsError(f"got {name}={value!r}; an integer of at least {least} is required.")


def _check_positive(name: str, value: Any) -> None:
    if not 0 < value < math.inf:
        raise SettingsError(f"got {name}={value!r}; a finite number > 0 is required.")
