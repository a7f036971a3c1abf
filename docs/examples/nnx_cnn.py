"""A Flax NNX CNN with BatchNorm and dropout on the handwritten digits: statistics and random streams go along."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

import eggroll


class CNN(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.conv1 = nnx.Conv(1, 8, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(8, momentum=0.9, rngs=rngs)
        self.conv2 = nnx.Conv(8, 16, (3, 3), strides=2, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.out = nnx.Linear(16 * 4 * 4, 10, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        x = nnx.relu(self.norm(self.conv1(images)))
        x = nnx.relu(self.conv2(x)).reshape(len(images), -1)
        return self.out(self.dropout(x))


def fitness_fn(model: CNN, images: jax.Array, labels: jax.Array) -> jax.Array:
    return -optax.softmax_cross_entropy_with_integer_labels(model(images), labels).mean()


digits = load_digits()
images = np.float32(digits.images[..., None] / 8 - 1)
labels = np.int32(digits.target)
random = np.random.default_rng(0)

es = eggroll.nnx.ES(population=128, sigma=0.03, optimizer=optax.adam(0.02))
state = es.init(CNN(nnx.Rngs(0)), jax.random.key(0))
for _ in range(45):
    batch = random.choice(1400, 64)
    state, metrics = es.step(state, fitness_fn, images[batch], labels[batch])

model = es.model(state)  # with its statistics
model.eval()  # which are used from here on; nothing is dropped
accuracy = float(jnp.mean(jnp.argmax(model(images[1400:]), -1) == labels[1400:]))
print(f"test accuracy {accuracy:.3f}")
