"""Everything that decides a training run on the digits, with defaults that suit each model."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from eggroll.training.options import (
    Option,
    RunSettings,
    SettingsError,
    as_begun,
    check_choice,
    check_pairs,
    keywords_of,
)

__all__ = ["DEFAULTS", "Distribution", "Model", "Settings", "SettingsError", "Shaping", "settings_for"]

Model = Literal["mlp", "cnn", "transformer"]
Distribution = Literal["rademacher", "normal"]
Shaping = Literal["zscore", "centered_rank", "sign", "none"]


@dataclass(frozen=True, kw_only=True)
class Settings(RunSettings):
    """Settings of a run; the defaults are those of the MLP."""

    _own = "batch_size"

    model: Model = field(default="mlp", kw_only=False)
    """The network: an ordinary Flax NNX module."""
    population: Annotated[int, Option(least=2)] = 1024
    """Members in a generation; an even number."""
    rank: Annotated[int, Option(least=1)] = 1
    """Columns of each noise factor."""
    sigma: Annotated[float, Option(positive=True)] = 0.02
    """Noise scale, in the units of the weights."""
    generations: Annotated[int, Option(least=1)] = 150
    """Number of updates."""
    learning_rate: Annotated[float, Option(positive=True)] = 0.015
    """Adam's learning rate at the start; it falls along a cosine."""
    batch_size: Annotated[int, Option(least=1)] = 64
    """Images in a generation's minibatch, the same for all members."""
    distribution: Distribution = "rademacher"
    """Distribution of the noise."""
    shaping: Shaping = "zscore"
    """How fitness becomes the weight of a member."""
    seed: Annotated[int, Option(least=0)] = 0
    """Decides initial parameters, noise and the order of the data."""
    out: Annotated[Path | None, Option("runs/digits-MODEL")] = None
    """Run folder."""

    @property
    def name(self) -> str:
        """What the run's folder is called."""
        return f"digits-{self.model}"

    def check(self) -> None:
        """Raises `SettingsError` for a value that no run can use."""
        super().check()
        check_pairs(self.population)


DEFAULTS: dict[str, Settings] = {
    "mlp": Settings(),
    "cnn": Settings("cnn", population=512, learning_rate=0.02),
    "transformer": Settings("transformer", population=512, generations=200, learning_rate=0.02),
}


@keywords_of(Settings)
def settings_for(model: str | None = None, **given: Any) -> Settings:
    """Checked settings: the model's defaults, replaced by what is given.

    Args:
        model: `"mlp"`, `"cnn"` or `"transformer"`. Default `"mlp"`.
        **given: attributes of `Settings`; None keeps the default. With `resume=True`, what is not given is what the run
            in the folder, if there is one, was begun with.

    Returns:
        The settings.

    Raises:
        SettingsError: an unknown model or setting, or a value that no run can use. What `eggroll.ES` checks itself is
            left to it.

    Example:
        >>> settings_for("mlp", population=64).population
        64
    """
    asked = {"model": Settings.model} | as_begun(Settings, given if model is None else {"model": model, **given})
    check_choice("model", asked["model"], Model)
    settings = replace(DEFAULTS[asked["model"]], **asked)
    settings.check()
    return settings
