"""What is OpenAI's evolution of 2017 on a game of Atari here: frames a second of a core, where it goes, and the score?

Salimans et al. (arXiv 1703.03864) as settings of the same engine: normal noise of full rank in pairs of opposite signs,
centred ranks, Adam with weight decay, episodes capped at twice the mean length of the generation before, and the
network of DQN, 1.7 million parameters, with virtual batch normalisation by a batch of observations of random play
(`eggroll.rl.ReferenceCNN`). Frames are Gymnasium's: 84 × 84 grey, the last four of them, an action for four frames, up
to 30 idle ones first. Beside it the same at rank 1.

The game is stepped on the host, one member after the other, and all members act in one call with `members.hold()`.
Seconds are those of processors, of all threads together, so that other work on the machine does not count: of the
emulator with its preprocessing, of the update, and of the rest, the policy. The first generation, in which everything
is compiled, is left out.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import numpy as np
import optax
import tyro
from flax import nnx

import eggroll
from bench.tools.options import Common
from bench.tools.report import Report
from eggroll.extras import needed_for
from eggroll.rl import Discrete, HostEnvironment, HostRollouts, Policy, ReferenceCNN, observed

SKIP, STACK, SIZE = 4, 4, 84  # frames of an action, frames of an observation, its height and width
WHOLE = 1_000_000_000  # frames of a game in the paper
ARMS: dict[str, dict[str, Any]] = {
    "full rank": {"rules": [(".*", eggroll.DenseRule())], "distribution": "normal"},
    "rank 1": {},
}
REFERENCE_SHARE = 16  # of so many observations of random play one is taken


@dataclass(frozen=True)
class Options(Common):
    """Options of `bench.atari`.

    Attributes:
        game: of ALE.
        arms: kinds of noise.
        population: members.
        frames: of all members that a run is ended after.
        minutes: of wall time that it is ended after, too.
        limit: actions of an episode at most. Default 4500, five minutes of play.
        reference: observations in the reference batch.
        sigma: of the noise.
        learning_rate: of Adam.
        decay: weight decay, as OpenAI's code has it: added to a gradient of sigma times ours.
        games: that a score is the mean of.
        seed: of everything.
    """

    game: str = "SpaceInvaders"
    arms: tuple[str, ...] = tuple(ARMS)
    population: int = 32
    frames: int = 300_000
    minutes: float = 60.0
    limit: int = 4500
    reference: int = 128
    sigma: float = 0.02
    learning_rate: float = 0.01
    decay: float = 0.005
    games: int = 16
    seed: int = 0

    def reduced(self) -> Options:
        """Small enough to see that the script works."""
        return replace(self, arms=("rank 1",), population=2, frames=1000, limit=60, reference=4, games=2)


@dataclass
class Clock:
    """Seconds by name, and the games that are being played."""

    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    def timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """The call, whose seconds are added up under the name."""

        def run(*args: Any, **options: Any) -> Any:
            start = time.process_time()
            made = jax.block_until_ready(call(*args, **options))
            self.seconds[name] += time.process_time() - start
            return made

        return run


class Game:
    """A game of ALE as the paper plays it, with observations `[84, 84, 4]` in uint8."""

    def __init__(self, name: str, clock: Clock) -> None:
        import ale_py
        import gymnasium
        from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation

        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)  # it greets for every object
        gymnasium.register_envs(ale_py)
        options = {"frameskip": 1, "repeat_action_probability": 0.0, "disable_env_checker": True}
        plain: Any = gymnasium.make(f"ALE/{name}-v5", **options)
        grey = AtariPreprocessing(plain, noop_max=30, frame_skip=SKIP, screen_size=SIZE)
        self._own = FrameStackObservation(grey, STACK)
        self.choices = int(plain.action_space.n)
        self.reset, self.step = clock.timed("emulator", self._reset), clock.timed("emulator", self._step)

    def _reset(self, *, seed: int) -> tuple[np.ndarray, dict]:
        seen, more = self._own.reset(seed=seed)
        return np.moveaxis(seen, 0, -1), more

    def _step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        seen, reward, terminated, truncated, more = self._own.step(action)
        return np.moveaxis(seen, 0, -1), float(reward), terminated, truncated, more


@dataclass(frozen=True)
class Random:
    """What random play came to.

    Attributes:
        returns: of its games.
        steps: of all of them.
        reference: observations `[batch, 84, 84, 4]`.
    """

    returns: list[float]
    steps: int
    reference: np.ndarray


def at_random(game: Game, options: Options) -> Random:
    """Plays until there are games and observations enough."""
    draw, returns, kept, steps = np.random.default_rng(options.seed), [], [], 0
    while len(returns) < options.games or len(kept) < options.reference:
        seen, _ = game.reset(seed=len(returns))
        total, over, length = 0.0, False, 0
        while not over and length < options.limit:
            if draw.random() < 1 / REFERENCE_SHARE:
                kept.append(seen)
            seen, reward, terminated, truncated, _ = game.step(int(draw.integers(game.choices)))
            total, over, length = total + float(reward), terminated or truncated, length + 1
        returns.append(total)
        steps += length
    chosen = draw.permutation(len(kept))[: options.reference]
    return Random(returns, steps, np.stack([kept[i] for i in chosen]))


def strategy(arm: str, options: Options) -> eggroll.ES:
    """OpenAI's settings."""
    decayed = optax.add_decayed_weights(options.decay / options.sigma)  # our gradient is 1/sigma of theirs
    return eggroll.ES(
        population=options.population,
        sigma=options.sigma,
        optimizer=optax.chain(decayed, optax.adam(options.learning_rate)),
        shaping="centered_rank",
        **ARMS[arm],
    )


def played(arm: str, random: Random, choices: int, options: Options) -> tuple[dict[str, Any], dict[str, Any]]:
    """A row of the table, and the curve of its generations."""
    clock = Clock()
    seen = np.zeros((SIZE, SIZE, STACK), np.uint8)
    world: Any = HostEnvironment(lambda drawn=False: Game(options.game, clock), Discrete(choices), seen, options.limit)
    module = ReferenceCNN(random.reference, choices, rngs=nnx.Rngs(options.seed))
    policy = Policy(module, world.actions, observed(world))
    rollouts = HostRollouts(world, policy, cap="adaptive", normalise=False)
    es, key = strategy(arm, options), jax.random.key(options.seed)
    es.tell = clock.timed("update", es.tell)  # type: ignore[method-assign]
    state, carry = es.init(policy.params, key), rollouts.begin()
    curve: dict[str, list[float]] = {"frames": [], "return": [], "seconds": []}
    end = time.monotonic() + 60 * options.minutes
    while not curve["frames"] or (curve["frames"][-1] < options.frames and time.monotonic() < end):
        start = time.process_time()
        state, carry, metrics = rollouts(es, state, carry, ())
        curve["seconds"].append(time.process_time() - start)
        curve["frames"].append(SKIP * metrics["live_steps"])
        curve["return"].append(float(metrics["fitness_mean"]))
        if len(curve["frames"]) == 1:
            clock.seconds.clear()
    last = clock.seconds.copy()
    row = {"arm": arm, "frames": int(curve["frames"][-1]), "generations": len(curve["frames"])} | _times(curve, last)
    row |= _score("random", np.array(random.returns))
    return row | _score("after", rollouts.greedy(state.params, carry, key, options.games)), {"label": arm, **curve}


def _times(curve: dict[str, list[float]], seconds: dict[str, float]) -> dict[str, Any]:
    """Frames a second after the first generation, and shares of the time."""
    total = sum(curve["seconds"][1:])
    if not total:
        return dict.fromkeys(("frames_per_core_second", "emulator", "policy", "update", "core_days"))
    rate = (curve["frames"][-1] - curve["frames"][0]) / total
    shares = {name: seconds[name] / total for name in ("emulator", "update")}
    shares = {"emulator": shares["emulator"], "policy": 1 - sum(shares.values()), "update": shares["update"]}
    rounded = {name: round(share, 3) for name, share in shares.items()}
    return {"frames_per_core_second": round(rate)} | rounded | {"core_days": round(WHOLE / rate / 86400, 1)}


def _score(name: str, returns: np.ndarray) -> dict[str, float]:
    error = np.std(returns, ddof=1) / np.sqrt(len(returns))
    return {name: round(float(np.mean(returns)), 1), f"{name}_error": round(float(error), 1)}


def main(argv: list[str] | None = None) -> None:
    """Plays and reports."""
    options = tyro.cli(Options, args=argv, description=__doc__)
    options = replace(options.reduced(), out=options.out) if options.quick else options
    clock = Clock()
    with needed_for("games of Atari"):
        game = Game(options.game, clock)
    random = at_random(game, options)
    alone = round(SKIP * random.steps / clock.seconds["emulator"])
    rows, series = zip(*(played(arm, random, game.choices, options) for arm in options.arms), strict=True)
    report = Report("atari", options, list(rows), NOTES, {"emulator_frames_per_core_second": alone}, list(series))
    report.finish(quick=options.quick, out=options.out)


NOTES = [
    f"Frames are the emulator's, {SKIP} for an action. emulator, policy, update: shares of a generation's seconds, the "
    "first left out.",
    f"core_days: what the paper's {WHOLE:,} frames of a game take at that rate.",
    "random, after: mean score of games that no member plays, ± standard error; the policy takes its best choices. "
    "emulator_frames_per_core_second: random play, with preprocessing.",
]

if __name__ == "__main__":
    main()
