"""HyperscaleES, the code of the EGGROLL paper: its `EggRoll` noiser with its own layers, from a local checkout.

Measured is a generation as its end-to-end test makes it: the model's `forward` under `vmap` over `(epoch, member)`,
`convert_fitnesses` and `do_updates`, here in one jit, so that XLA may share the noise of the two halves.
`noise_reuse=1` draws new noise in every generation. The layer is its `MM`, the MLP its `MLP` with biases. Its noise
is normal. Nothing of the method is left out.

HYPERSCALEES_PATH names the checkout; modules are imported from there and nothing of it is kept here. Only those that
the estimator and these layers need: the rest asks for gymnax, transformers and more, and a note names it.
"""

from __future__ import annotations

import os
import pathlib
from typing import Any

from bench.peer_adapters import Candidate, Work, checkout, not_loaded, without_init

NAME = "HyperscaleES"
GET = "clone ESHyperscale/HyperscaleES and set HYPERSCALEES_PATH to it"
UNIT = "jax"


def version() -> str:
    """It has none that matters: a checkout."""
    _package()
    return "checkout"


def _package() -> pathlib.Path:
    return checkout(os.environ.get("HYPERSCALEES_PATH"), "hyperscalees", GET)


def dense_copies(work: Work) -> float:
    """None: it keeps factors. Activations of the whole population are what it needs."""
    return 0.0


def prepare(work: Work) -> Candidate:
    """One jitted generation, and inference in JAX."""
    package = _package()
    without_init(package)
    import jax
    import jax.numpy as jnp
    import optax
    from hyperscalees.models.common import simple_es_tree_key
    from hyperscalees.noiser.eggroll import EggRoll

    from bench.peer_adapters.ours import inference, problem

    task = problem(work)
    model, (frozen, params, scan_map, es_map) = _model(work, jax.random.key(0))
    keys = simple_es_tree_key(params, jax.random.key(1), scan_map)
    settings, noise = EggRoll.init_noiser(
        params, work.sigma, work.learning_rate, solver=optax.sgd, rank=work.rank, noise_reuse=1
    )
    reduce, own = _fitness(work)

    @jax.jit
    def generation(noise: Any, params: Any, epoch: jax.Array, inputs: jax.Array, *targets: jax.Array) -> Any:
        which = jnp.full(work.population, epoch), jnp.arange(work.population)

        def member(which: Any, x: jax.Array) -> jax.Array:
            return reduce(model.forward(EggRoll, settings, noise, frozen, params, keys, which, x), *targets)

        raw = jax.vmap(member, in_axes=(0, own))(which, inputs)
        fitness = EggRoll.convert_fitnesses(settings, noise, raw)
        noise, params = EggRoll.do_updates(settings, dict(noise), params, keys, fitness, which, es_map)
        return noise, params, epoch + 1

    rows = (task.rows[0].reshape(len(task.rows[0]), -1), *task.rows[1:])
    carry = noise, params, jnp.int32(0)

    def step() -> Any:
        nonlocal carry
        carry = generation(*carry, *rows)
        return carry

    return Candidate(step, inference(task), f"not loaded, since no step needs it: {', '.join(not_loaded(package))}")


def _model(work: Work, key: Any) -> tuple[Any, Any]:
    from hyperscalees.models.common import MLP, MM

    if work.name == "layer":
        return MM, MM.rand_init(key, work.width, work.width, "float32")
    first, *hidden, last = work.widths
    return MLP, MLP.rand_init(
        key, in_dim=first, out_dim=last, hidden_dims=hidden, use_bias=True, activation="relu", dtype="float32"
    )


def _fitness(work: Work) -> tuple[Any, int | None]:
    """Outputs to fitness, and the axis of the members in the inputs."""
    from bench.tools.linear import reduced
    from bench.tools.networks import log_likelihood

    return (reduced, 0) if work.name == "layer" else (log_likelihood, None)
