"""Twelve runs in one compiled call: a grid of sigma and learning rate under `jax.vmap`."""

import jax
import jax.numpy as jnp
import optax

import eggroll

keys = jax.random.split(jax.random.key(0), 3)
x = jax.random.normal(keys[0], (64, 8))
y = jnp.tanh(x @ jax.random.normal(keys[1], (8, 2)))


def loss_fn(params, x, y):
    return jnp.mean((jnp.tanh(x @ params["in"]) @ params["out"] - y) ** 2)


params = {"in": jax.random.normal(keys[2], (8, 32)) / 3, "out": jnp.zeros((32, 2))}
optimizer = optax.inject_hyperparams(optax.adam)(learning_rate=0.0)  # a rate that is an array


def final_loss(sigma: jax.Array, rate: jax.Array, key: jax.Array) -> jax.Array:
    def step(carry, key):
        params, opt_state = carry
        loss, grads = eggroll.value_and_grad(loss_fn, population=64, sigma=sigma)(params, x, y, key=key)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), loss

    opt_state = optimizer.init(params)
    opt_state.hyperparams["learning_rate"] = rate
    (trained, _), _ = jax.lax.scan(step, (params, opt_state), jax.random.split(key, 40))
    return loss_fn(trained, x, y)


sigmas, rates = jnp.array([0.01, 0.05, 0.25]), jnp.array([1e-4, 1e-3, 1e-2, 1e-1])
grid = jax.vmap(jax.vmap(final_loss, (None, 0, None)), (0, None, None))  # one key: the same noise for all
losses = jax.jit(grid)(sigmas, rates, jax.random.key(1))  # [3, 4]
row, column = jnp.unravel_index(jnp.argmin(losses), losses.shape)
print(f"best of {losses.size}: sigma {sigmas[row]:g}, learning rate {rates[column]:g}, loss {losses.min():.4f}")
