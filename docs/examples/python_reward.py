"""A fitness that is plain Python: ask for members, run them, tell what they scored."""

import jax
import jax.numpy as jnp
import optax

import eggroll

TARGET = "evolve"
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def write(params, prompt):
    """Six letters for a prompt of numbers; they are rounded, so there is no derivative."""
    hidden = jnp.tanh(prompt @ params["in"])
    places = jnp.round(13 + 4 * (hidden @ params["out"]))
    return jnp.int32(jnp.clip(places, 0, len(LETTERS) - 1))


def score(letters) -> float:
    """Any Python: a simulator, a unit test, a judge. More is better; `nan` drops the member and its pair."""
    word = "".join(LETTERS[i] for i in letters)
    return -float(sum(abs(ord(a) - ord(b)) for a, b in zip(word, TARGET, strict=True)))


keys = jax.random.split(jax.random.key(0), 3)
params = {
    "in": jax.random.normal(keys[0], (8, 16)) / 8**0.5,
    "out": jax.random.normal(keys[1], (16, len(TARGET))) / 4,
}
prompt = jax.random.normal(keys[2], (8,))

es = eggroll.ES(population=256, sigma=0.1, optimizer=optax.adam(0.03), shaping="centered_rank")
state = es.init(params, jax.random.key(1))
for _ in range(120):
    members = es.ask(state)  # nothing dense is built
    outputs = members.apply(write, prompt)  # [256, 6]
    state, metrics = es.tell(state, members, [score(out) for out in outputs.tolist()])

word = "".join(LETTERS[i] for i in write(state.params, prompt).tolist())
print(f"wrote '{word}' after {int(state.generation)} generations")
