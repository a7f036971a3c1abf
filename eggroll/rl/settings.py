"""Everything that decides a run in an environment, with defaults by environment. Quick to import."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from eggroll.training.options import (
    Checked,
    Option,
    RunSettings,
    SettingsError,
    as_begun,
    check_pairs,
    keywords_of,
)

Kind = Literal["mlp", "cnn", "gru"]
Seeds = Literal["shared", "pair", "own"]
Optimizer = Literal["adam", "adamw", "sgd"]
Shaping = Literal["zscore", "centered_rank", "sign", "none"]


@dataclass(frozen=True, kw_only=True)
class Settings(RunSettings):
    """Settings of a run; the defaults are those of environments that have none of their own."""

    _own = "env"

    env: Annotated[str, Option(metavar="FAMILY:NAME")] = "gymnax:CartPole-v1"
    """The environment; `eggroll rl list` tells of all."""
    env_option: Annotated[tuple[str, ...], Option("none", "NAME=VALUE", repeated=True)] = ()
    """An option of the environment's own, such as backend=spring; may be given several times."""
    policy: Kind = "mlp"
    """The policy: layers on all numbers of an observation, a convolution on an image, or a recurrent unit."""
    width: Annotated[int, Option(least=1)] = 64
    """Units of each hidden layer."""
    layers: Annotated[int, Option(least=1)] = 2
    """Hidden layers, of an mlp."""
    population: Annotated[int, Option(least=2)] = 64
    """Members in a generation; an even number."""
    episodes: Annotated[int, Option(least=1)] = 1
    """Episodes of a member in a generation; its fitness is their mean return."""
    seeds: Seeds = "own"
    """Whether all members play the same episodes of a generation, both of each pair do, or none."""
    cap: Annotated[int | None, Option("the environment's limit", least=1)] = None
    """Steps of an episode at most."""
    adaptive_cap: bool = False
    """Cap episodes at twice the mean length of those of the generation before."""
    normalise: bool = True
    """Normalise observations by the statistics of all steps so far, which are saved with the policy."""
    sample: bool = False
    """Draw choices while training, with the policy's outputs as logits."""
    rank: Annotated[int, Option(least=1)] = 1
    """Columns of each noise factor."""
    sigma: Annotated[float, Option(positive=True)] = 0.1
    """Noise scale, in the units of the weights."""
    learning_rate: Annotated[float, Option(positive=True)] = 0.1
    """Of the optimizer, in the first generation."""
    decay: Annotated[float, Option(positive=True)] = 1.0
    """Sigma and learning rate are multiplied by this in every generation."""
    optimizer: Optimizer = "adam"
    """Of optax."""
    shaping: Shaping = "zscore"
    """How fitness becomes the weight of a member. Ranks forget how much better the few are that found something."""
    generations: Annotated[int, Option(least=1)] = 200
    """Number of updates, at most."""
    target: Annotated[float | None, Option("none")] = None
    """The run ends when the greedy return reaches this."""
    evaluate_every: Annotated[int, Option(least=1)] = 10
    """Generations between two measurements of the greedy return."""
    evaluation_episodes: Annotated[int, Option(least=2)] = 32
    """Episodes of a measurement, the same ones every time, which no member plays."""
    seed: Annotated[int, Option(least=0)] = 0
    """Decides initial parameters, noise and episodes."""
    out: Annotated[Path | None, Option("runs/ENVIRONMENT")] = None
    """Run folder."""

    @property
    def name(self) -> str:
        """What the run's folder is called."""
        return re.split("[:/]", self.env)[-1].lower() or "rl"

    def check(self) -> None:
        """Raises `SettingsError` for a value that no run can use."""
        super().check()
        check_pairs(self.population)
        options_given(self.env_option)


@dataclass(frozen=True, kw_only=True)
class PlaySettings(Checked):
    """Settings of what is done with a trained policy."""

    parameters: Annotated[Path | None, Option("the run's", "PATH")] = None
    """An .npz file of `eggroll replay` in place of the run's own parameters."""
    episodes: Annotated[int, Option(least=2)] = 100
    """Episodes that are played."""
    seed: Annotated[int, Option(least=0)] = 0
    """Decides them."""


CARTPOLE: dict[str, Any] = {"population": 32, "sigma": 0.2, "learning_rate": 0.15, "seeds": "pair"}
CARTPOLE |= {"evaluate_every": 1, "evaluation_episodes": 64, "target": 500.0}
PENDULUM: dict[str, Any] = {"evaluate_every": 2, "evaluation_episodes": 64, "target": -200.0}
# What learns, by environment: measured with `bench.rl`.
DEFAULTS: dict[str, Settings] = {
    "gymnax:CartPole-v1": Settings(**CARTPOLE),
    "gymnax:Pendulum-v1": Settings(env="gymnax:Pendulum-v1", **PENDULUM),
}


@keywords_of(Settings)
def settings_for(env: str | None = None, **given: Any) -> Settings:
    """Checked settings: the environment's defaults, replaced by what is given.

    Args:
        env: as in `Settings`.
        **given: attributes of `Settings`; None keeps the default. With `resume=True`, what is not given is what the run
            in the folder, if there is one, was begun with.

    Returns:
        The settings.

    Raises:
        SettingsError: an unknown setting, or a value that no run can use. The environment itself is looked for later.

    Example:
        >>> settings_for("gymnax:CartPole-v1", seed=3).target
        500.0
    """
    asked = {"env": Settings.env} | as_begun(Settings, given if env is None else {"env": env, **given})
    settings = replace(DEFAULTS.get(str(asked["env"]), Settings()), **asked)
    settings.check()
    return settings


def options_given(pairs: tuple[str, ...]) -> dict[str, Any]:
    """Options of an environment, `NAME=VALUE`, as numbers, flags or text.

    Raises:
        SettingsError: one without a name.

    Example:
        >>> options_given(("backend=spring", "max_steps=50", "flag=true"))
        {'backend': 'spring', 'max_steps': 50, 'flag': True}
    """
    found = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not (name.isidentifier() and equals):
            raise SettingsError(f"got the option {pair!r} of the environment; NAME=VALUE is required.")
        found[name] = _value(text)
    return found


def _value(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text
