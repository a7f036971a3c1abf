"""A Haiku model: `hk.transform` gives a function of parameters, which is all that is needed."""

import haiku as hk
import jax
import jax.numpy as jnp
import optax

import eggroll

net = hk.without_apply_rng(hk.transform(lambda x: hk.nets.MLP([32, 32, 1], activation=jnp.tanh)(x)[:, 0]))
x = jax.random.normal(jax.random.key(1), (128, 2))
y = x[:, 0] * x[:, 1]
params = net.init(jax.random.key(0), x)


def fitness_fn(params, x, y):
    return -jnp.mean((net.apply(params, x) - y) ** 2)


es = eggroll.ES(population=128, sigma=0.05, optimizer=optax.adam(0.01))
state = es.init(params, jax.random.key(2))
for _ in range(200):
    state, metrics = es.step(state, fitness_fn, x, y)
print(f"fitness {fitness_fn(params, x, y):.3f} -> {fitness_fn(state.params, x, y):.3f}")
