"""Members split over devices, and a layer over others; four simulated ones here, the same code on a pod."""

import os

# For a machine without several devices; before JAX starts. Leave both lines out on one that has them.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec as P

import eggroll


def fitness_fn(params, x, y):
    return -jnp.mean((jnp.tanh(x @ params["up"]) @ params["down"] - y) ** 2)


random = np.random.default_rng(0)
params = {
    "up": random.normal(size=(8, 32)).astype(np.float32) / 3,
    "down": random.normal(size=(32, 2)).astype(np.float32) / 6,
}
x = random.normal(size=(64, 8)).astype(np.float32)
y = x[:, :2]


def trained(**options):
    es = eggroll.ES(population=64, sigma=0.05, optimizer=optax.adam(0.02), **options)
    state = es.init(params, jax.random.key(0))
    for _ in range(20):
        state, metrics = es.step(state, fitness_fn, x, y)
    return state.params, float(metrics["fitness_mean"])


mesh = jax.make_mesh((2, 2), ("population", "model"))
split, fitness = trained(mesh=mesh, sharding=[("up", P(None, "model")), ("down", P("model"))])
whole, _ = trained()
# The noise is the same to the last bit on any mesh; sums are added in another order.
apart = max(float(np.max(np.abs(np.asarray(split[name]) - np.asarray(whole[name])))) for name in params)
print(f"{jax.device_count()} devices, fitness {fitness:.3f}, equal to one device's within 1e-4: {apart < 1e-4}")
