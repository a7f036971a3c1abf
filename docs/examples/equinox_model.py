"""An Equinox model: its arrays are the parameters, the rest is put back inside the function."""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

import eggroll

model = eqx.nn.MLP(2, 1, width_size=32, depth=2, activation=jnp.tanh, key=jax.random.key(0))
params, static = eqx.partition(model, eqx.is_inexact_array)
x = jax.random.normal(jax.random.key(1), (128, 2))
y = x[:, 0] * x[:, 1]


def fitness_fn(params, x, y):
    model = eqx.combine(params, static)
    return -jnp.mean((jax.vmap(model)(x)[:, 0] - y) ** 2)


es = eggroll.ES(population=128, sigma=0.05, optimizer=optax.adam(0.01))
state = es.init(params, jax.random.key(2))
for _ in range(200):
    state, metrics = es.step(state, fitness_fn, x, y)
model = eqx.combine(state.params, static)
print(f"fitness {fitness_fn(params, x, y):.3f} -> {fitness_fn(state.params, x, y):.3f}")
