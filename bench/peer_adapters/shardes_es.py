"""shardes: `ShardedES` with `Mirrored(LowRank(r))`, installed, or from a local checkout.

Measured is a generation as its README makes it, jitted whole: ask, apply, tell, over a mesh of all devices (one, on a
CPU), with its default shaping (centered ranks). The model is written with its `nn.dense`, which its low-rank noise
requires. Its noise is normal. Left out: the layer with a row per member, since `apply` gives all members the same
inputs by design.

It asks for Python 3.12 and JAX 0.11. SHARDES_PATH names a checkout, or a folder that `pip install --target` made.
"""

from __future__ import annotations

import os
from typing import Any

from bench.peer_adapters import Candidate, LeftOut, Missing, Work, checkout, distribution_version

NAME = "shardes"
GET = "pip install shardes (Python 3.12 or newer), or set SHARDES_PATH to a checkout"
UNIT = "jax"


def version() -> str:
    """Version of the package, or where it comes from."""
    if path := os.environ.get("SHARDES_PATH"):
        checkout(path, "shardes", GET)
    try:
        return distribution_version("shardes", GET)
    except Missing:
        if path:
            return "checkout"
        raise


def dense_copies(work: Work) -> float:
    """None: it keeps factors. Activations of the whole population are what it needs."""
    return 0.0


def prepare(work: Work) -> Candidate:
    """One jitted generation, and inference in JAX."""
    version()
    if work.name == "layer":
        raise LeftOut("apply gives all members the same inputs")
    import jax
    import shardes

    from bench.peer_adapters.ours import inference, problem
    from bench.tools.networks import log_likelihood

    task = problem(work)
    es = shardes.ShardedES(
        shardes.Mirrored(shardes.LowRank(r=work.rank)),
        n=work.population,
        sigma=work.sigma,
        lr=work.learning_rate,
        mesh=shardes.make_mesh(),
    )

    def loss(params: Any, batch: Any) -> jax.Array:
        x, labels = batch
        for i, layer in enumerate(params):
            x = shardes.nn.dense(x if i == 0 else jax.nn.relu(x), layer["weight"]) + layer["bias"]
        return -log_likelihood(x, labels)

    @jax.jit
    def generation(state: Any, batch: Any) -> Any:
        perturbation, state = es.ask(state)
        return es.tell(state, perturbation, es.apply(loss, state, perturbation)(batch))

    state = es.init(jax.random.key(3), _params(work.widths))
    batch = task.rows[0].reshape(work.rows, -1), task.rows[1]

    def step() -> Any:
        nonlocal state
        state = generation(state, batch)
        return state

    return Candidate(step, inference(task))


def _params(widths: tuple[int, ...]) -> list[dict[str, Any]]:
    """Weights `[out, in]`, as `dense` takes them, and biases."""
    import jax
    import jax.numpy as jnp

    keys = jax.random.split(jax.random.key(0), len(widths) - 1)
    sizes = zip(keys, widths, widths[1:], strict=False)
    return [{"weight": jax.random.normal(k, (b, a)) / jnp.sqrt(float(a)), "bias": jnp.zeros(b)} for k, a, b in sizes]
