"""A run in an environment, from its settings to its folder; and its policy again from that."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from eggroll.rl.adapters import make
from eggroll.rl.environments import HostEnvironment, observed
from eggroll.rl.host import HostRollouts
from eggroll.rl.networks import CNN, GRU, MLP
from eggroll.rl.policies import Policy
from eggroll.rl.settings import PlaySettings, Settings, options_given
from eggroll.rl.step import Carry, Rollouts
from eggroll.strategy.es import ES
from eggroll.strategy.state import State
from eggroll.training.curve import Drawn, draw_curve
from eggroll.training.errors import RunError
from eggroll.training.folder.arrays import by_path, read_arrays, save_arrays
from eggroll.training.folder.layout import CURVE, PARAMETERS
from eggroll.training.ledger.replay_files import CARRY
from eggroll.training.loop import fit
from eggroll.training.metrics import Record, counted, read_before, read_metrics, write_before
from eggroll.training.optimizers import named, schedule
from eggroll.training.options import SettingsError, from_json, options_of_run
from eggroll.training.progress import Shown
from eggroll.training.stopping import EarlyStopping
from eggroll.training.store import Saving

GREEDY, ERROR = "greedy_return", "greedy_error"
PLAYED = 0x706C6179  # the branch of a key for episodes that are played after a run
SHOWN = Shown(
    {"fitness_mean": "return {:.4g}", GREEDY: "greedy {:.4g}", ERROR: "± {:.2g}", "live_steps": "{:,} steps"},
    speed="steps_per_second",
    unit="steps",
)


class Task:
    """An environment, a policy, and the strategy that moves its parameters.

    Args:
        settings: see `Settings`.

    Attributes:
        rollouts: the step of its generations.
        policy: how it acts.
        es: the strategy.

    Raises:
        SettingsError: settings that the environment, the policy or the strategy cannot use.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings, self._measured = settings, (-1, {})
        environment = make(settings.env, **options_given(settings.env_option))
        seen = observed(environment)
        module = _module(settings, seen, environment.actions.outputs)
        self.policy = Policy(module, environment.actions, seen, sample=settings.sample)
        host = isinstance(environment, HostEnvironment)
        if settings.adaptive_cap and settings.cap is not None:
            raise SettingsError("got both --cap and --adaptive-cap; one of them is required.")
        self.rollouts = (HostRollouts if host else Rollouts)(
            environment,  # type: ignore[arg-type]
            self.policy,
            episodes=settings.episodes,
            seeds=settings.seeds,
            cap="adaptive" if settings.adaptive_cap else settings.cap,
            normalise=settings.normalise,
        )
        self.es = _strategy(settings)

    def evaluate(self, state: State, carry: Carry) -> dict[str, float]:
        """The greedy return in episodes of its own, and its standard error."""
        generation, numbers = int(state.generation), self._settings
        if self._measured[0] != generation:
            returns = self.rollouts.greedy(state.params, carry, state.key, numbers.evaluation_episodes)
            self._measured = generation, _summary(returns)
        return self._measured[1]

    def until(self, state: State, carry: Carry) -> bool:
        """Whether the target is reached."""
        if self._settings.target is None or int(state.generation) % self._settings.evaluate_every:
            return False
        return self.evaluate(state, carry)[GREEDY] >= self._settings.target


def _module(settings: Settings, seen: Any, outputs: int) -> nnx.Module:
    shapes, rngs = [x.shape for x in jax.tree.leaves(seen)], nnx.Rngs(settings.seed)
    inputs = sum(int(np.prod(shape)) for shape in shapes)
    if settings.policy == "cnn":
        if len(shapes) != 1 or len(shapes[0]) != 3 or min(shapes[0][:2]) < 3:
            raise SettingsError(
                f"got --policy cnn for observations of shape {shapes}; one image [height, width, channels] of 3 × 3 at "
                "least is required. Use mlp."
            )
        return CNN(shapes[0], outputs, width=settings.width, rngs=rngs)
    if settings.policy == "gru":
        return GRU(inputs, outputs, width=settings.width, rngs=rngs)
    return MLP(inputs, outputs, width=settings.width, layers=settings.layers, rngs=rngs)


def _strategy(settings: Settings) -> ES:
    def falling(value: float) -> Any:
        decay = {"transition_steps": 1, "decay_rate": settings.decay}
        return value if settings.decay == 1 else schedule("exponential_decay", init_value=value, **decay)

    try:
        return ES(
            population=settings.population,
            sigma=falling(settings.sigma),
            rank=settings.rank,
            optimizer=named(settings.optimizer, learning_rate=falling(settings.learning_rate)),
            shaping=settings.shaping,
        )
    except ValueError as why:
        raise SettingsError(str(why)) from why


def _summary(returns: np.ndarray) -> dict[str, float]:
    """Mean and standard error."""
    error = np.std(returns, ddof=1) / np.sqrt(len(returns))
    return {GREEDY: round(float(np.mean(returns)), 4), ERROR: round(float(error), 4)}


@dataclass(frozen=True)
class Outcome:
    """What a run came to.

    Attributes:
        folder: where it is written.
        greedy: mean return of the greedy policy.
        error: its standard error.
        generations: updates made.
        resumed: the generation that the run went on from; 0 for one from the start.
        steps: live steps that all members made.
        seconds: wall time of all generations, compilation included.
        ended: as in `eggroll.training.Result`.
    """

    folder: Path
    greedy: float
    error: float
    generations: int
    resumed: int
    steps: int
    seconds: float
    ended: str


def train(
    settings: Settings,
    *,
    show: Callable[[Record], None] = lambda record: None,
    asked_to_stop: Callable[[], bool] | None = None,
) -> Outcome:
    """Evolves a policy in an environment and writes the run folder.

    Args:
        settings: from `settings_for`.
        show: called with every line of the metrics, and first with the generation that it starts at.
        asked_to_stop: as in `eggroll.training.fit`.

    Returns:
        What came out. A run that is interrupted, or that finds no finite return, writes what there is just the same.

    Raises:
        RunError: settings that do not fit, or a folder that holds another run or cannot be written.
    """
    task, base = Task(settings), f"{settings.env}, {settings.policy}, seed {settings.seed}"
    initial, carry = task.es.init(task.policy.params, jax.random.key(settings.seed)), task.rollouts.begin()

    def started(generation: int) -> None:
        first = write_before(settings.folder, task.evaluate(initial, carry))
        show({"generation": generation} if generation else first)

    result = fit(
        task.es,
        initial,
        task.rollouts,
        **settings.of_fit(),
        carry=carry,
        saving=Saving(**settings.of_saving(), score=GREEDY, carry=True, base=base, initial=True),
        evaluate=task.evaluate,
        evaluate_every=settings.evaluate_every,
        early_stopping=EarlyStopping(GREEDY, settings.patience) if settings.patience else None,
        until=task.until,
        started=started,
        show=show,
        asked_to_stop=asked_to_stop,
    )
    found = task.evaluate(result.state, result.carry)
    folder, steps = settings.folder, counted(result.carry.steps)
    carried = {f"{CARRY}/{path}": x for path, x in by_path(result.carry).items()}
    save_arrays(folder / PARAMETERS, by_path(result.state.params) | carried)
    title = f"{settings.env}, {settings.population} members"
    what = Drawn(title, "return of an episode", GREEDY, "greedy return", "", ERROR, "live_steps")
    draw_curve([{"generation": 0, **read_before(folder)}, *read_metrics(folder)], folder / CURVE, what)
    reached = result.generation, result.resumed, steps, result.seconds, result.ended
    return Outcome(folder, found[GREEDY], found[ERROR], *reached)


@dataclass(frozen=True)
class Trained:
    """The policy of a run.

    Attributes:
        task: the environment and how to act in it.
        params: the parameters.
        carry: with the statistics of observations.
    """

    task: Task
    params: Any
    carry: Carry


def load(folder: Path | str, parameters: Path | str | None = None) -> Trained:
    """The policy of a run again.

    Args:
        folder: what `eggroll rl` wrote.
        parameters: an `.npz` file that `eggroll replay` made of it. Default None: the run's last ones.

    Raises:
        FileNotFoundError: no finished run in that folder.
        RunError: a file that is damaged, or not as it was written; parameters that do not fit the run's policy.
    """
    folder = Path(folder)
    options = options_of_run(folder, Settings, "eggroll rl", () if parameters else (PARAMETERS,))
    if Settings._own not in options:
        raise RunError(f"'{folder}' holds a run of another command; one of `eggroll rl` is required.")
    task = Task(Settings(**from_json(Settings, options)))
    params, carry = task.policy.params, task.rollouts.begin()
    like = by_path(params) | {f"{CARRY}/{path}": x for path, x in by_path(carry).items()}
    file = folder / PARAMETERS if parameters is None else Path(parameters)
    mend = f"The parameters of the policy of '{folder}' are required, with its carry."
    found = read_arrays(file, {path: x.shape for path, x in like.items()}, mend)
    leaves, tree = jax.tree.flatten((params, carry))
    arrays = [jnp.asarray(found[path], x.dtype) for path, x in zip(like, leaves, strict=True)]
    return Trained(task, *tree.unflatten(arrays))


def evaluate(folder: Path | str, settings: PlaySettings) -> dict[str, float]:
    """The greedy return of a run's policy in new episodes.

    Args:
        folder: what `eggroll rl` wrote.
        settings: how many episodes, and which.

    Returns:
        `greedy_return`, its standard error `greedy_error`, and the `least` and `most` of all episodes.

    Raises:
        RunError: as `load`.
    """
    settings.check()
    trained = load(folder, settings.parameters)
    key = jax.random.fold_in(jax.random.key(settings.seed), PLAYED)
    returns = trained.task.rollouts.greedy(trained.params, trained.carry, key, settings.episodes)
    return {**_summary(returns), "least": float(returns.min()), "most": float(returns.max())}
