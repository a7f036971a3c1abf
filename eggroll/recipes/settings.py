"""Everything that decides a training run on the digits, with defaults that suit each model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from eggroll.training.options import RunSettings, SettingsError, check_choice, check_pairs

__all__ = ["DEFAULTS", "Distribution", "Model", "Settings", "SettingsError", "Shaping", "settings_for"]

Model = Literal["mlp", "cnn", "transformer"]
Distribution = Literal["rademacher", "normal"]
Shaping = Literal["zscore", "centered_rank", "sign", "none"]


@dataclass(frozen=True, kw_only=True)
class Settings(RunSettings):
    """Settings of a run; the defaults are those of the MLP. The seed decides parameters, noise and the data's order.

    Attributes:
        model: `"mlp"`, `"cnn"` or `"transformer"`.
        population: members in a generation, even.
        rank: columns of each noise factor.
        sigma: noise scale, in the units of the weights.
        learning_rate: Adam's, at the start; it falls along a cosine to 2 % of that.
        batch_size: images in a generation's minibatch, the same for all members.
        distribution: of the noise, `"rademacher"` or `"normal"`.
        shaping: of the fitness, `"zscore"`, `"centered_rank"`, `"sign"` or `"none"`.
    """

    model: Model = "mlp"
    generations: int = 150
    population: int = 1024
    rank: int = 1
    sigma: float = 0.02
    learning_rate: float = 0.015
    batch_size: int = 64
    distribution: Distribution = "rademacher"
    shaping: Shaping = "zscore"

    @property
    def name(self) -> str:
        """What the run's folder is called."""
        return f"digits-{self.model}"


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
        SettingsError: an unknown model or setting, or a value that no run can use. What `eggroll.ES` checks itself is
            left to it.

    Example:
        >>> settings_for("mlp", population=64).population
        64
    """
    check_choice("model", model, Model)
    settings = DEFAULTS[model].replaced(given)
    check_choice("distribution", settings.distribution, Distribution)
    check_choice("shaping", settings.shaping, Shaping)
    settings.check([("population", 2), ("rank", 1), ("batch_size", 1)], ["sigma", "learning_rate"])
    check_pairs(settings.population)
    return settings
