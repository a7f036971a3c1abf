"""An episode as an animated picture."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from eggroll.extras import needed_for
from eggroll.rl.environments import as_floats
from eggroll.rl.job import PLAYED, Trained, load
from eggroll.rl.normalise import normalised
from eggroll.training.errors import RunError
from eggroll.training.folder.files import check_writable, whole_file

MOST, PAUSE = 100, 50  # frames; milliseconds between two


class Rendered(NamedTuple):
    """What is in a picture.

    Attributes:
        steps: of the episode.
        reward: its return.
    """

    steps: int
    reward: float


class _Step(NamedTuple):
    """One step of an episode, on the host."""

    frame: Callable[[], np.ndarray | None]
    seen: np.ndarray
    action: np.ndarray
    reward: float


def render(
    folder: Path | str, out: Path | str, parameters: Path | str | None = None, *, seed: int = 0, overwrite: bool = False
) -> Rendered:
    """Plays an episode with the greedy policy of a run and writes it as a GIF.

    Environments that make no pictures themselves are drawn as what the policy sees and does.

    Args:
        folder: what `eggroll rl` wrote.
        out: the picture.
        parameters: as in `load`.
        seed: decides the episode.
        overwrite: whether `out` may be replaced. Default False.

    Raises:
        RunError: as `load`; a file that is there, or cannot be written.
    """
    out = Path(out)
    if out.suffix.lower() != ".gif":
        raise RunError(f"got out='{out}'; a name that ends in .gif is required.")
    if out.exists() and not overwrite:
        raise RunError(f"'{out}' exists; choose another place with --out, or replace it with --overwrite.")
    check_writable(out)
    trained = load(folder, parameters)
    key = jax.random.fold_in(jax.random.key(seed), PLAYED)
    steps = list(
        _hosted(trained, seed) if hasattr(trained.task.rollouts.environment, "make") else _played(trained, key)
    )
    every = -(-len(steps) // MOST)
    total = np.cumsum([step.reward for step in steps])
    shown = range(0, len(steps), every)
    frames = [steps[i].frame() for i in shown]
    _write(out, [x for x in frames if x is not None] if frames[0] is not None else list(_drawn(steps, total, shown)))
    return Rendered(len(steps), float(total[-1]))


def _played(trained: Trained, key: jax.Array) -> Iterator[_Step]:
    """The steps of an episode in JAX."""
    environment: Any = trained.task.rollouts.environment
    act = _act(trained)
    mask, frame = getattr(environment, "mask", None), getattr(environment, "frame", None)
    begin, key = jax.random.split(key)
    state, seen = jax.jit(environment.reset)(begin)
    step, carry = jax.jit(environment.step), trained.task.policy.start(trained.params)
    for i in range(trained.task.rollouts.limit):
        action, carry = act(carry, seen, mask and mask(state))
        own = jax.random.split(jax.random.fold_in(key, i))[1]
        drawn = _picture(frame, state)
        before, (state, seen, reward, terminated, truncated) = seen, step(state, action, own)
        yield _Step(drawn, _row(before), np.ravel(action), float(reward))
        if terminated or truncated:
            return


def _hosted(trained: Trained, seed: int) -> Iterator[_Step]:
    """The steps of an episode on the host."""
    environment: Any = trained.task.rollouts.environment
    own, act = environment.make(True), _act(trained)
    seen, carry = own.reset(seed=seed)[0], trained.task.policy.start(trained.params)
    for _ in range(trained.task.rollouts.limit):
        action, carry = act(carry, seen, None)
        picture = own.render()
        before, given = seen, np.asarray(action) if np.ndim(action) else int(action)
        seen, reward, terminated, truncated, _ = own.step(given)
        yield _Step(lambda picture=picture: picture, _row(before), np.ravel(action), float(reward))
        if terminated or truncated:
            break
    own.close()


def _act(trained: Trained) -> Callable[..., Any]:
    policy, statistics = trained.task.policy, trained.carry.statistics

    def act(carry: Any, seen: Any, mask: Any) -> Any:
        seen = as_floats(seen)
        seen = normalised(statistics, seen) if trained.task.rollouts.normalise else seen
        return policy.act(trained.params, carry, seen, mask)

    return jax.jit(act)


def _picture(frame: Callable[[Any], Any] | None, state: Any) -> Callable[[], np.ndarray | None]:
    return lambda: None if frame is None else np.asarray(frame(state))


def _row(seen: Any) -> np.ndarray:
    return np.concatenate([np.ravel(np.asarray(x, np.float32)) for x in jax.tree.leaves(seen)])


def _drawn(steps: list[_Step], total: np.ndarray, shown: range) -> Iterator[np.ndarray]:
    """What is seen and done at each step that is shown, and the return up to it."""
    with needed_for("pictures of episodes"):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    figure = Figure(figsize=(4, 4), dpi=60)
    canvas, (above, below) = FigureCanvasAgg(figure), figure.subplots(2, 1, height_ratios=(2, 1))
    most, margin = max(float(np.abs(step.seen).max()) for step in steps) or 1.0, 0.05 * (np.ptp(total) or 1.0)
    (line,) = above.plot(steps[0].seen, "o", color="#3465a4", markersize=3)
    (sofar,) = below.plot([], color="#2e8b57")
    above.set(ylim=(-1.1 * most, 1.1 * most), ylabel="observation")
    below.set(xlim=(0, max(len(steps), 2)), ylim=(total.min() - margin, total.max() + margin), ylabel="return")
    for i in shown:
        line.set_ydata(steps[i].seen)
        sofar.set_data(np.arange(i + 1), total[: i + 1])
        above.set_title(f"step {i}, action {np.round(steps[i].action, 2).tolist()}", fontsize=9)
        canvas.draw()
        yield np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _write(out: Path, frames: list[np.ndarray]) -> None:
    with needed_for("pictures of episodes"):
        from PIL import Image
    images = [Image.fromarray(frame) for frame in frames]
    with whole_file(out) as file:
        images[0].save(file, format="GIF", save_all=True, append_images=images[1:], duration=PAUSE, loop=0)
