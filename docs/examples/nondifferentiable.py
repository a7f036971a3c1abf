"""A network of hard thresholds, which has no derivative: noise on what its layers put out, a fitness for each row."""

import jax
import jax.numpy as jnp
import optax

import eggroll


def logits(params, x):
    h = jnp.sign(x @ params["w1"] + params["b1"])  # ±1, flat almost everywhere
    h = jnp.sign(h @ params["w2"] + params["b2"])
    return h @ params["w3"]


def fitness(params, x, y):
    return -optax.softmax_cross_entropy_with_integer_labels(logits(params, x), y)  # [rows]: not their mean


keys = jax.random.split(jax.random.key(0), 5)
x = jax.random.uniform(keys[0], (512, 2), minval=-1, maxval=1)
y = jnp.int32(jnp.sum(x**2, axis=-1) < 0.6)  # inside a circle, or not
params = {
    "w1": jax.random.normal(keys[1], (2, 64)),
    "b1": jax.random.normal(keys[2], (64,)),
    "w2": jax.random.normal(keys[3], (64, 64)) / 8,
    "b2": jnp.zeros(64),
    "w3": jax.random.normal(keys[4], (64, 2)) / 8,
}

es = eggroll.ES(population=16, sigma=0.2, optimizer=optax.adam(0.01), noise="activations")
state = es.init(params, jax.random.key(1))
for _ in range(100):
    state, metrics = es.step(state, fitness, x, y)
accuracy = jnp.mean(jnp.argmax(logits(state.params, x), -1) == y)
print(f"accuracy {accuracy:.3f}")
