"""PPO, small and honest: what a method that differentiates comes to in the same environments, with the same policy.

The actor is the policy of `eggroll rl`, module, first parameters, head and normalised observations included; the critic
a network of its own. Of what is usual: generalised advantages, which an episode that is cut short does not end; clipped
ratios; advantages normalised in each minibatch; clipped gradients; rewards over the standard deviation of discounted
returns. Numbers within bounds are normal about the policy's, before its `tanh`.

References:
    J. Schulman et al., "Proximal Policy Optimization Algorithms", arXiv 1707.06347; "High-Dimensional Continuous
    Control Using Generalized Advantage Estimation", arXiv 1506.02438.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from eggroll.rl import MLP, Box, Discrete, Policy
from eggroll.rl.environments import as_floats, observed
from eggroll.rl.normalise import Statistics, no_statistics, no_sums, normalised, noted, updated
from eggroll.rl.policies import action
from eggroll.rl.rollout import episodes


@dataclass(frozen=True)
class Settings:
    """Settings of PPO.

    Attributes:
        environments: side by side.
        steps: of each for an update.
        epochs: over these steps.
        minibatches: of an epoch.
        learning_rate: of Adam, constant.
        gamma: discount.
        decay: lambda of generalised advantages.
        clip: of ratios.
        entropy: weight of the entropy.
        value: weight of the critic's error.
        norm: of a gradient at most.
    """

    environments: int = 8
    steps: int = 128
    epochs: int = 4
    minibatches: int = 4
    learning_rate: float = 1e-3
    gamma: float = 0.99
    decay: float = 0.95
    clip: float = 0.2
    entropy: float = 0.01
    value: float = 0.5
    norm: float = 0.5


# Where the defaults are not what is usual: after the settings that rl-baselines3-zoo has for the environment.
SETTINGS = {
    "gymnax:CartPole-v1": Settings(steps=32, epochs=20, minibatches=1, gamma=0.98, decay=0.8, entropy=0.0),
    "gymnax:Pendulum-v1": Settings(environments=4, steps=1024, epochs=10, minibatches=64, gamma=0.9, entropy=0.0),
}


class Learner(NamedTuple):
    """All that an update changes.

    Attributes:
        params: of actor and critic, and the logarithm of the standard deviation of numbers within bounds.
        moments: of the optimizer.
        worlds: states, observations and steps of the environments, and the discounted sums of their rewards.
        seen: statistics of observations.
        rewards: statistics of discounted sums.
        key: of what comes.
    """

    params: Any
    moments: Any
    worlds: Any
    seen: Statistics
    rewards: Statistics
    key: jax.Array


class Turn(NamedTuple):
    """One step of every environment, or rows of them."""

    observation: Any
    mask: Any
    drawn: Any
    likelihood: Any
    value: Any
    next_value: Any
    reward: Any
    terminated: Any
    over: Any


class PPO:
    """A run of PPO.

    Args:
        environment: in JAX.
        policy: of the actor, without a carry.
        settings: see `Settings`.
        limit: steps of an episode at most.
        seed: of everything but the policy's first parameters.
    """

    def __init__(self, environment: Any, policy: Policy, settings: Settings, limit: int, seed: int) -> None:
        if policy.recurrent or not isinstance(policy.actions, Box | Discrete):
            raise ValueError(f"got a policy for {policy.actions}; choices or numbers, and no carry, are required.")
        self.environment, self.policy, self.settings, self.limit = environment, policy, settings, limit
        shapes = observed(environment)
        inputs = sum(int(np.prod(x.shape)) for x in jax.tree.leaves(shapes))
        self._graph, critic = nnx.split(MLP(inputs, 1, width=64, layers=2, rngs=nnx.Rngs(seed)))
        spread = jnp.zeros(policy.actions.outputs) if isinstance(policy.actions, Box) else ()
        params = {"actor": policy.params, "critic": critic, "spread": spread}
        adam = optax.adam(settings.learning_rate, eps=1e-5)
        self._optimizer = optax.chain(optax.clip_by_global_norm(settings.norm), adam)
        key, own = jax.random.split(jax.random.key(seed))
        worlds = self._begun(jax.random.split(own, settings.environments))
        none = no_statistics(jax.ShapeDtypeStruct((), jnp.float32))
        self.state = Learner(params, self._optimizer.init(params), worlds, no_statistics(shapes), none, key)
        self.steps, self._update = 0, jax.jit(self._updated)
        self._play = episodes(environment, policy, greedy=True, normalise=True)

    def advance(self) -> int:
        """One update; live steps so far."""
        self.state = jax.block_until_ready(self._update(self.state))
        self.steps += self.settings.environments * self.settings.steps
        return self.steps

    def greedy(self, keys: jax.Array) -> np.ndarray:
        """Returns of the policy's best choices in episodes of these keys."""
        return np.asarray(self._play(self.state.params["actor"], self.state.seen, jnp.int32(self.limit), keys).reward)

    def _begun(self, keys: jax.Array) -> Any:
        state, seen = jax.vmap(self.environment.reset)(keys)
        return state, as_floats(seen), jnp.zeros(len(keys), jnp.int32), jnp.zeros(len(keys))

    def _value(self, params: Any, seen: Any) -> jax.Array:
        return jax.vmap(lambda x: nnx.merge(self._graph, params["critic"])(x)[0])(seen)

    def _outputs(self, params: Any, seen: Any, mask: Any) -> jax.Array:
        """What the policy returns for rows, choices that are not allowed left out."""
        outputs = jax.vmap(self.policy.module(params["actor"]))(seen)
        return outputs if mask is None else jnp.where(mask, outputs, -1e9)

    def _updated(self, learner: Learner) -> Learner:
        """After one more round of steps, and the epochs over them."""
        key, play, learn = jax.random.split(learner.key, 3)
        keys = jax.random.split(play, self.settings.steps)
        (worlds, rewards), (turns, raw) = jax.lax.scan(
            partial(self._turn, learner), (learner.worlds, learner.rewards), keys
        )
        seen = _more(learner.seen, jax.tree.map(_rows, raw))
        advantage = self._advantages(turns)
        rows = jax.tree.map(_rows, (turns, advantage, advantage + turns.value))
        params, moments = self._learned(learner.params, learner.moments, rows, learn)
        return Learner(params, moments, worlds, seen, rewards, key)

    def _turn(self, learner: Learner, at: Any, key: jax.Array) -> Any:
        """One step of every environment, a new episode after one that is over."""
        ((state, raw, count, total), rewards), params = at, learner.params
        draw, step, begin = (jax.random.split(k, len(count)) for k in jax.random.split(key, 3))
        normal = jax.vmap(partial(normalised, learner.seen))
        mask = jax.vmap(self.environment.mask)(state) if hasattr(self.environment, "mask") else None
        seen = normal(raw)
        outputs = self._outputs(params, seen, mask)
        drawn, chosen = self._drawn(params, outputs, draw)
        new, after, reward, terminated, truncated = jax.vmap(self.environment.step)(state, chosen, step)
        after, reward = as_floats(after), reward.astype(jnp.float32)
        over = terminated | truncated | (count + 1 >= self.limit)
        total = total * self.settings.gamma + reward
        rewards = _more(rewards, total)
        scaled = reward * jax.lax.rsqrt(rewards.square / rewards.count + 1e-8)
        likelihood, _ = self._likelihood(params, outputs, drawn)
        values = self._value(params, seen), self._value(params, normal(after))
        turn = Turn(seen, mask, drawn, likelihood, *values, scaled, terminated, over)
        fresh, going = self._begun(begin), (new, after, count + 1, total)
        worlds = jax.tree.map(lambda a, b: jnp.where(over.reshape(-1, *[1] * (b.ndim - 1)), a, b), fresh, going)
        return (worlds, rewards), (turn, raw)

    def _drawn(self, params: Any, outputs: jax.Array, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
        """What is drawn, and the actions that it means."""
        if isinstance(self.policy.actions, Discrete):
            drawn = jax.vmap(jax.random.categorical)(keys, outputs).astype(jnp.int32)
            return drawn, drawn
        noise = jax.vmap(lambda key, x: jax.random.normal(key, x.shape))(keys, outputs)
        drawn = outputs + jnp.exp(params["spread"]) * noise
        return drawn, jax.vmap(partial(action, self.policy.actions))(drawn)

    def _likelihood(self, params: Any, outputs: jax.Array, drawn: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Logarithms of the likelihood of what was drawn, and entropies; both but for constants."""
        if isinstance(self.policy.actions, Discrete):
            logs = jax.nn.log_softmax(outputs)
            chosen = jnp.take_along_axis(logs, drawn[:, None], 1)[:, 0]
            return chosen, -(jnp.exp(logs) * logs).sum(1)
        away = (drawn - outputs) * jnp.exp(-params["spread"])
        spread = params["spread"].sum()
        return -(away**2).sum(1) / 2 - spread, jnp.broadcast_to(spread, len(drawn))

    def _advantages(self, turns: Turn) -> jax.Array:
        """Generalised advantages `[steps, environments]`."""
        gamma, decay = self.settings.gamma, self.settings.decay
        errors = turns.reward + gamma * jnp.where(turns.terminated, 0, turns.next_value) - turns.value

        def back(later: jax.Array, now: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            error, over = now
            advantage = error + gamma * decay * jnp.where(over, 0, later)
            return advantage, advantage

        return jax.lax.scan(back, jnp.zeros_like(errors[0]), (errors, turns.over), reverse=True)[1]

    def _learned(self, params: Any, moments: Any, rows: Any, key: jax.Array) -> tuple[Any, Any]:
        """Parameters and moments after all epochs."""
        count = self.settings.environments * self.settings.steps

        def minibatch(at: tuple[Any, Any], chosen: jax.Array) -> tuple[tuple[Any, Any], None]:
            gradient = jax.grad(self._loss)(at[0], *jax.tree.map(lambda x: x[chosen], rows))
            with jax.numpy_dtype_promotion("standard"):  # optax mixes int32 counts with floats
                change, after = self._optimizer.update(gradient, at[1], at[0])
            return (optax.apply_updates(at[0], change), after), None

        def epoch(at: tuple[Any, Any], key: jax.Array) -> tuple[tuple[Any, Any], None]:
            order = jax.random.permutation(key, count).reshape(self.settings.minibatches, -1)
            return jax.lax.scan(minibatch, at, order)

        return jax.lax.scan(epoch, (params, moments), jax.random.split(key, self.settings.epochs))[0]

    def _loss(self, params: Any, turns: Turn, advantage: jax.Array, target: jax.Array) -> jax.Array:
        clip, numbers = self.settings.clip, self.settings
        outputs = self._outputs(params, turns.observation, turns.mask)
        likelihood, entropy = self._likelihood(params, outputs, turns.drawn)
        ratio = jnp.exp(likelihood - turns.likelihood)
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        gain = jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - clip, 1 + clip) * advantage).mean()
        error = ((self._value(params, turns.observation) - target) ** 2).mean() / 2
        return -gain + numbers.value * error - numbers.entropy * entropy.mean()


def _rows(x: jax.Array) -> jax.Array:
    return x.reshape(-1, *x.shape[2:])


def _more(statistics: Statistics, rows: Any) -> Statistics:
    """The statistics after rows more."""
    one: Callable[[Any], Any] = lambda x: noted(no_sums(statistics), statistics, x)  # noqa: E731
    return updated(statistics, jax.tree.map(lambda x: x.sum(0), jax.vmap(one)(rows)))
