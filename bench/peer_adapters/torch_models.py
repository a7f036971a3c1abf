"""The works in PyTorch, for the peers that use it: network, rows, loss, and pure inference.

Imports neither JAX nor eggroll.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable
from typing import Any

from bench.peer_adapters import Work


def threads() -> None:
    """As many threads as JAX has: one a core."""
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def device() -> str:
    """The accelerator, where PyTorch has one."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def synchronise() -> None:
    """Waits for the accelerator."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def network(work: Work) -> Any:
    """A bias-free linear layer, or the MLP."""
    from torch import nn

    widths = work.widths
    if work.name == "layer":
        return nn.Linear(*widths, bias=False).to(device())
    layers: list[Any] = []
    for a, b in itertools.pairwise(widths):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1]).to(device())


def rows(work: Work) -> tuple[Any, Any]:
    """Inputs and labels: a row of input per member, or rows that members share. Random: values do not change times."""
    import torch

    count = work.population if work.name == "layer" else work.rows
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(count, work.widths[0], generator=generator)
    return inputs.to(device()), torch.randint(0, work.widths[-1], (count,), generator=generator).to(device())


def loss(work: Work) -> Callable[[Any, Any], Any]:
    """`loss(outputs, labels)` → scalar."""
    import torch.nn.functional as F

    return (lambda outputs, labels: outputs.square().mean()) if work.name == "layer" else F.cross_entropy


def inference(work: Work, model: Any) -> Callable[[], Any]:
    """Pure inference as users write it: one `vmap` over members, the parameters shared."""
    import torch

    @functools.cache
    def copies() -> Any:
        inputs, _ = rows(work)
        return inputs if work.name == "layer" else inputs.repeat(work.population, 1, 1)

    def call() -> None:
        with torch.inference_mode():
            torch.vmap(model)(copies())
        synchronise()

    return call
