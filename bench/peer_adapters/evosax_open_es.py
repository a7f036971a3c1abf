"""evosax: `Open_ES`, OpenAI-ES with full-rank normal noise in antithetic pairs.

Measured is ask, evaluation under one `vmap`, and tell, in the order of its README, with its default shaping (centered
ranks) and `optax.sgd`; the three are jitted together, which lets XLA leave out metrics that nobody reads. evosax has
no low-rank noise, so `rank` means nothing to it, and it holds the dense parameters of every member. Nothing is left
out.
"""

from __future__ import annotations

from typing import Any

from bench.peer_adapters import Candidate, Work, distribution_version

NAME = "evosax Open_ES"
GET = "pip install evosax"
UNIT = "jax"


def version() -> str:
    """Version of the distribution."""
    return distribution_version("evosax", GET)


def dense_copies(work: Work) -> float:
    """The noise, the population, and what tell makes of it."""
    return 3.0


def prepare(work: Work) -> Candidate:
    """One jitted generation, and inference in JAX."""
    import jax
    import optax
    from evosax.algorithms import Open_ES

    from bench.peer_adapters.ours import inference, problem

    task = problem(work)
    es = Open_ES(
        population_size=work.population,
        solution=task.params,
        optimizer=optax.sgd(work.learning_rate),
        std_schedule=optax.constant_schedule(work.sigma),
    )
    settings = es.default_params
    evaluate = jax.vmap(
        lambda params, *rows: -task.fitness(params, *rows), in_axes=(0, *[task.in_axes] * len(task.rows))
    )

    @jax.jit
    def generation(key: jax.Array, state: Any, *rows: jax.Array) -> Any:
        key, ask, tell = jax.random.split(key, 3)
        population, state = es.ask(ask, state, settings)
        state, _ = es.tell(tell, population, evaluate(population, *rows), state, settings)
        return key, state

    carry = jax.random.key(3), es.init(jax.random.key(4), task.params, settings)

    def step() -> Any:
        nonlocal carry
        carry = generation(*carry, *task.rows)
        return carry

    return Candidate(step, inference(task))
