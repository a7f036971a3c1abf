"""A Linen model in its ordinary `TrainState`: the gradient comes from evaluations, all else stays as it was."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax.training.train_state import TrainState

import eggroll


class MLP(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(1)(nn.tanh(nn.Dense(32)(x)))[..., 0]


model = MLP()
x = jnp.linspace(-3, 3, 64)[:, None]
y = jnp.sin(x[:, 0])


def loss_fn(params, x, y):
    return jnp.mean((model.apply({"params": params}, x) - y) ** 2)


@jax.jit
def train_step(state: TrainState, key: jax.Array) -> tuple[TrainState, jax.Array]:
    # loss, grads = jax.value_and_grad(loss_fn)(state.params, x, y)
    loss, grads = eggroll.value_and_grad(loss_fn, population=256, sigma=0.05)(state.params, x, y, key=key)
    return state.apply_gradients(grads=grads), loss


params = model.init(jax.random.key(0), x)["params"]
state = TrainState.create(apply_fn=model.apply, params=params, tx=optax.adam(0.01))
first = loss_fn(params, x, y)
for key in jax.random.split(jax.random.key(1), 200):  # a new key at every step
    state, loss = train_step(state, key)
print(f"mean squared error {first:.3f} -> {loss_fn(state.params, x, y):.4f}")
