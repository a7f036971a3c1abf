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

__all__ = ["DEFAULTS", "Distribution", "Model", "Noise", "Settings", "SettingsError", "Shaping", "settings_for"]

Model = Literal["mlp", "cnn", "transformer", "sign"]
Noise = Literal["weights", "activations"]
Distribution = Literal["rademacher", "normal"]
Shaping = Literal["zscore", "centered_rank", "sign", "none"]


@dataclass(frozen=True, kw_only=True)
class Settings(RunSettings):
    """Settings of a run; the defaults are those of the MLP."""

    _own = "batch_size"

    model: Model = field(default="mlp", kw_only=False)
    """The network: an ordinary Flax NNX module. The activations of sign are 1 or -1: it has no derivative."""
    population: Annotated[int, Option(least=2)] = 1024
    """Members in a generation; an even number."""
    noise: Annotated[Noise, Option(absent="weights")] = "weights"
    """Where members have noise: on the weights, or on the activations: the outputs of layers, each image's own. The
    defaults of the latter are those of the model sign."""
    rank: Annotated[int, Option(least=1)] = 1
    """Columns of each noise factor."""
    sigma: Annotated[float | Literal["auto"], Option(positive=True)] = "auto"
    """Noise scale, in the units of what it is on. auto: where the spread of fitness that noise makes, less the fitness
    that it costs, is largest."""
    generations: Annotated[int, Option(least=1)] = 150
    """Number of updates."""
    learning_rate: Annotated[float | Literal["auto"], Option(positive=True)] = "auto"
    """Adam's learning rate at the start; it falls along a cosine. auto: from 0.6 of sigma; on activations, 0.06 of the
    weights' RMS."""
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


OF_ACTIVATIONS: dict[str, Any] = {"noise": "activations", "population": 16, "batch_size": 128}
DEFAULTS: dict[str, Settings] = {
    "mlp": Settings(),
    "cnn": Settings("cnn", population=512),
    "transformer": Settings("transformer", population=512, generations=200),
    "sign": Settings("sign", generations=300, **OF_ACTIVATIONS),
}


@keywords_of(Settings)
def settings_for(model: str | None = None, **given: Any) -> Settings:
    """Checked settings: the model's defaults, replaced by what is given.

    Args:
        model: `"mlp"`, `"cnn"`, `"transformer"` or `"sign"`. Default `"mlp"`.
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
    of_noise = OF_ACTIVATIONS if asked.get("noise") == "activations" else {}
    settings = replace(DEFAULTS[asked["model"]], **{**of_noise, **asked})
    settings.check()
    return settings
