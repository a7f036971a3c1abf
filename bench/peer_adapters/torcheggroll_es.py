"""torcheggroll: `TorchEggrollES` in PyTorch, low-rank normal noise in antithetic pairs, z-scores, gradient descent.

The digits are measured with its `step(inputs, loss_fn, targets)`, which evaluates the population under one
`torch.vmap`. `step` gives all members the same inputs, so the layer with a row per member takes the other documented
way: `prepare_population`, `get_stacked_params`, our `vmap` over stacked parameters and rows, `apply_fitness_scores`.
It draws factors but forms dense noise and dense parameters for every member. Nothing is left out. PyTorch has a
thread a core, as JAX has.
"""

from __future__ import annotations

from typing import Any

from bench.peer_adapters import Candidate, Work, distribution_version, torch_models

NAME = "torcheggroll"
GET = "pip install torch torcheggroll"
UNIT = "torch"


def version() -> str:
    """Version of the distribution."""
    distribution_version("torch", GET)
    return distribution_version("torcheggroll", GET)


def dense_copies(work: Work) -> float:
    """Noise, parameters, and noise times fitness."""
    return 3.0


def prepare(work: Work) -> Candidate:
    """The step, and inference in PyTorch."""
    version()
    from torcheggroll import TorchEggrollES

    torch_models.threads()
    model = torch_models.network(work)
    es = TorchEggrollES(model, pop_size=work.population, sigma=work.sigma, lr=work.learning_rate, rank=work.rank)
    inputs, labels = torch_models.rows(work)
    loss = torch_models.loss(work)

    def step() -> None:
        if work.name == "layer":
            _own_rows(es, model, inputs)
        else:
            es.step(inputs, loss, labels)
        torch_models.synchronise()

    return Candidate(step, torch_models.inference(work, torch_models.network(work)))


def _own_rows(es: Any, model: Any, inputs: Any) -> None:
    import torch
    from torch.func import functional_call, vmap

    with torch.no_grad():
        es.prepare_population()
        outputs = vmap(lambda params, row: functional_call(model, params, (row,)))(es.get_stacked_params(), inputs)
        es.apply_fitness_scores(-outputs.square().mean(dim=-1))
