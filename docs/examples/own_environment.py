"""Reinforcement learning in an environment of one's own: a cart that is pushed to the middle of its track."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import eggroll
import eggroll.rl
from eggroll.training import fit


class Cart(NamedTuple):
    position: jax.Array
    speed: jax.Array


class Track:
    """What an environment has to have: `actions`, `reset` and `step`; `limit` is the longest episode."""

    actions = eggroll.rl.Discrete(3)  # left, nothing, right
    limit = 40

    def reset(self, key: jax.Array) -> tuple[Cart, jax.Array]:
        cart = Cart(jax.random.uniform(key, (), jnp.float32, -1.0, 1.0), jnp.zeros(()))
        return cart, jnp.stack(cart)

    def step(self, cart: Cart, action: jax.Array, key: jax.Array):
        speed = 0.95 * cart.speed + 0.03 * (action.astype(jnp.float32) - 1.0)
        cart = Cart(cart.position + speed, speed)
        lost = jnp.abs(cart.position) > 2.0
        return cart, jnp.stack(cart), 1.0 - jnp.abs(cart.position), lost, False


world = Track()
network = eggroll.rl.MLP(2, world.actions.outputs, width=16, rngs=nnx.Rngs(3))
policy = eggroll.rl.Policy(network, world.actions, eggroll.rl.observed(world))
rollouts = eggroll.rl.Rollouts(world, policy, episodes=2)
es = eggroll.ES(population=64, sigma=0.1, optimizer=optax.adam(0.05))
state = es.init(policy.params, jax.random.key(0))
start = rollouts.greedy(state.params, rollouts.begin(), jax.random.key(1), 32).mean()
result = fit(es, state, rollouts, generations=30, carry=rollouts.begin())
end = rollouts.greedy(result.state.params, result.carry, jax.random.key(1), 32).mean()
print(f"mean return {start:.1f} -> {end:.1f}")
