"""Import paths of version 0.1.0 that lie elsewhere now: each is an error that names the new one. For one version."""

from __future__ import annotations

import importlib.abc
import sys
from collections.abc import Callable
from typing import Any

MOVED = {
    "eggroll.engine.fallback": "eggroll.engine.interpreter",
    "eggroll.engine.rules.calls": "eggroll.engine.rules.control_flow",
    "eggroll.engine.rules.contraction": "eggroll.engine.rules.products",
    "eggroll.engine.rules.joining": "eggroll.engine.rules.indexing",
    "eggroll.engine.rules.structural": "eggroll.engine.rules.linear",
    "eggroll.engine.usage": "eggroll.engine.factored",
    "eggroll.llm.config": "eggroll.llm.model.config",
    "eggroll.llm.decoder": "eggroll.llm.model.decoder",
    "eggroll.llm.decoding": "eggroll.llm.answers.decoding",
    "eggroll.llm.evaluation": "eggroll.llm.finetuning.evaluation",
    "eggroll.llm.generation": "eggroll.llm.answers.generation",
    "eggroll.llm.loading": "eggroll.llm.model.loading",
    "eggroll.llm.memory": "eggroll.llm.answers.memory",
    "eggroll.llm.prompts": "eggroll.llm.answers.prompts",
    "eggroll.llm.questions": "eggroll.llm.finetuning.questions",
    "eggroll.llm.scoring": "eggroll.llm.rewards.scoring",
    "eggroll.llm.settings": "eggroll.llm.finetuning.settings",
    "eggroll.llm.step": "eggroll.llm.finetuning.step",
    "eggroll.strategy.collectives": "bench.tools.collectives",
    "eggroll.strategy.costs": "bench.tools.update_costs",
    "eggroll.strategy.gradient": "eggroll.strategy.value_and_grad",
    "eggroll.strategy.keys": "eggroll.strategy.noise.keys",
    "eggroll.strategy.rules": "eggroll.strategy.plan.rules",
    "eggroll.strategy.shaping": "eggroll.strategy.update.shaping",
    "eggroll.strategy.sharding": "eggroll.strategy.population",
    "eggroll.training.arrays": "eggroll.training.folder.arrays",
    "eggroll.training.folder.lock": "eggroll.training.folder.files",
    "eggroll.training.journal": "eggroll.training.ledger.journal",
    "eggroll.training.ledger_base": "eggroll.training.ledger.base",
    "eggroll.training.ledger_format": "eggroll.training.ledger.format",
    "eggroll.training.lock": "eggroll.training.folder.files",
    "eggroll.training.rebuilding": "eggroll.training.ledger.rebuilding",
    "eggroll.training.result": "eggroll.training.stopping",
    "eggroll.training.settings": "eggroll.training.folder.settings",
}

# Of modules that are packages now: names that were in them.
NAMES = {
    "eggroll.llm.finetuning": {"finetune": "eggroll.llm.finetuning.job"},
    "eggroll.strategy.plan": dict.fromkeys(("LeafPlan", "Plan", "make_plan"), "eggroll.strategy.plan.leaves"),
    "eggroll.training.checkpoints": dict.fromkeys(
        ("Checkpoint", "Checkpoints"), "eggroll.training.checkpoints.manager"
    ),
    "eggroll.training.folder": dict.fromkeys(("claim", "clear"), "eggroll.training.folder.layout"),
    "eggroll.training.ledger": dict.fromkeys(("LedgerError", "Reader", "summarize"), "eggroll.training.ledger.reader"),
}


class Finder(importlib.abc.MetaPathFinder):
    """Asked last, where no other finder has the module: names the new one."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> None:
        """Raises `ModuleNotFoundError` for a module that moved; other names are none of its business."""
        if fullname in MOVED:
            raise ModuleNotFoundError(
                f"{fullname} has moved to {MOVED[fullname]}: import it from there.", name=fullname
            )


def install() -> None:
    """Puts the finder last, once."""
    if not any(isinstance(finder, Finder) for finder in sys.meta_path):
        sys.meta_path.append(Finder())


def names_of(module: str) -> Callable[[str], Any]:
    """`__getattr__` of a module whose names lie elsewhere."""

    def __getattr__(name: str) -> Any:
        if name in NAMES[module]:
            raise ImportError(f"{module}.{name} has moved to {NAMES[module][name]}: import it from there.")
        raise AttributeError(f"module {module!r} has no attribute {name!r}")

    return __getattr__
