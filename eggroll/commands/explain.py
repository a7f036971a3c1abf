"""`eggroll explain`: how a network uses its parameters."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console

from eggroll.commands.common import WIDE
from eggroll.recipes.settings import Model, Settings
from eggroll.training.options import SettingsError


@dataclass(frozen=True)
class Explain:
    """Print how a network uses each parameter, and what noise each gets."""

    model: Model = Settings.model
    """The network."""
    rank: int = Settings.rank
    """Columns of each noise factor."""


def explain(command: Explain) -> int:
    """Runs the command; the exit status."""
    import jax.numpy as jnp

    import eggroll.nnx
    from eggroll.recipes.models import SIDE, build

    console = Console()
    console = console if console.is_terminal else Console(width=WIDE)
    try:
        model = build(command.model, seed=0)
        table = eggroll.nnx.explain(lambda model, x: model(x), model, jnp.ones((2, SIDE, SIDE)), rank=command.rank)
    except (TypeError, ValueError) as why:
        raise SettingsError(str(why)) from why
    console.print(table)
    return 0
