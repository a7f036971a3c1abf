"""Import paths of version 0.1.0 that lie elsewhere now: each is an error that names the new one. For one version."""

from __future__ import annotations

import importlib.abc
import sys
from collections.abc import Callable
from typing import Any

MOVED = {
    "eggroll.commands.asking": "eggroll.training.options",
    "eggroll.engine.fallback": "eggroll.engine.interpreter",
    "eggroll.engine.rules.calls": "eggroll.engine.rules.control_flow",
    "eggroll.engine.rules.contraction": "eggroll.engine.rules.products",
    "eggroll.engine.rules.joining": "eggroll.engine.rules.indexing",
    "eggroll.engine.rules.structural": "eggroll.engine.rules.linear",
    "eggroll.engine.usage": "eggroll.engine.factored",
    "eggroll.kernels.gpu_turn": "eggroll.kernels.hopper",
    "eggroll.kernels.members": "eggroll.ops.members",
    "eggroll.kernels.noise": "eggroll.ops.noise",
    "eggroll.kernels.normal": "eggroll.ops.normal",
    "eggroll.kernels.operations": "eggroll.ops.operations",
    "eggroll.kernels.reference": "eggroll.ops.truth",
    "eggroll.kernels.registry": "eggroll.ops.registry",
    "eggroll.kernels.seeded": "eggroll.ops.seeded",
    "eggroll.kernels.support": "eggroll.ops.seeded",
    "eggroll.kernels.threefry": "eggroll.ops.noise",
    "eggroll.kernels.xla_parts": "eggroll.ops.xla_parts",
    "eggroll.llm.answering": "eggroll.llm.finetuning.answering",
    "eggroll.llm.config": "eggroll.llm.model.config",
    "eggroll.llm.decoder": "eggroll.llm.model.decoder",
    "eggroll.llm.decoding": "eggroll.llm.answers.decoding",
    "eggroll.llm.evaluation": "eggroll.llm.finetuning.evaluation",
    "eggroll.llm.generation": "eggroll.llm.answers.generation",
    "eggroll.llm.gguf_file": "eggroll.llm.model.gguf_file",
    "eggroll.llm.gguf_tokens": "eggroll.llm.model.gguf_tokens",
    "eggroll.llm.loading": "eggroll.llm.model.loading",
    "eggroll.llm.memory": "eggroll.llm.answers.memory",
    "eggroll.llm.model_folders": "eggroll.llm.finetuning.model_folders",
    "eggroll.llm.prompts": "eggroll.llm.answers.prompts",
    "eggroll.llm.questions": "eggroll.llm.finetuning.questions",
    "eggroll.llm.quiet": "eggroll.llm.model.files",
    "eggroll.llm.rotary": "eggroll.llm.model.parts.rotary",
    "eggroll.llm.run_facts": "eggroll.llm.finetuning.run_facts",
    "eggroll.llm.samples": "eggroll.llm.finetuning.samples",
    "eggroll.llm.sampling": "eggroll.llm.answers.sampling",
    "eggroll.llm.scoring": "eggroll.llm.rewards.scoring",
    "eggroll.llm.scoring_call": "eggroll.llm.rewards.scoring",
    "eggroll.llm.scoring_pool": "eggroll.llm.rewards.processes",
    "eggroll.llm.scoring_processes": "eggroll.llm.rewards.processes",
    "eggroll.llm.scoring_worker": "eggroll.llm.rewards.worker",
    "eggroll.llm.settings": "eggroll.llm.finetuning.settings",
    "eggroll.llm.step": "eggroll.llm.finetuning.step",
    "eggroll.llm.tasks.expressions": "eggroll.llm.tasks.countdown",
    "eggroll.llm.tasks.questions": "eggroll.llm.tasks.conciseness",
    "eggroll.llm.tokens": "eggroll.llm.model.tokens",
    "eggroll.llm.weights_hf": "eggroll.llm.model.weights_hf",
    "eggroll.strategy.arrangement": "eggroll.strategy.evaluate.chunking",
    "eggroll.strategy.chunking": "eggroll.strategy.evaluate.chunking",
    "eggroll.strategy.collectives": "bench.tools.collectives",
    "eggroll.strategy.compiled": "eggroll.strategy.evaluate.compiled",
    "eggroll.strategy.compiler_costs": "bench.tools.update_costs",
    "eggroll.strategy.costs": "bench.tools.update_costs",
    "eggroll.strategy.drawing": "eggroll.strategy.noise.streams",
    "eggroll.strategy.dry_run": "eggroll.strategy.evaluate.planning",
    "eggroll.strategy.estimator": "eggroll.strategy.update.low_rank",
    "eggroll.strategy.evaluation": "eggroll.strategy.evaluate.loops",
    "eggroll.strategy.fitness": "eggroll.strategy.update.fitness",
    "eggroll.strategy.frozen": "eggroll.strategy.plan.parameters",
    "eggroll.strategy.full_rank_leaves": "eggroll.strategy.update.dense",
    "eggroll.strategy.full_rank_members": "eggroll.strategy.members",
    "eggroll.strategy.full_rank_noise": "eggroll.strategy.noise.dense",
    "eggroll.strategy.full_rank_plan": "eggroll.strategy.full_rank_generation",
    "eggroll.strategy.full_rank_rate": "eggroll.strategy.update.optimizer",
    "eggroll.strategy.full_rank_rounding": "eggroll.strategy.update.dense",
    "eggroll.strategy.gradient": "eggroll.strategy.value_and_grad",
    "eggroll.strategy.initial": "eggroll.strategy.update.optimizer",
    "eggroll.strategy.inputs": "eggroll.strategy.evaluate.tracing",
    "eggroll.strategy.integers": "eggroll.engine.checks",
    "eggroll.strategy.keys": "eggroll.strategy.noise.keys",
    "eggroll.strategy.layout": "bench.tools.update_costs",
    "eggroll.strategy.optimizer": "eggroll.strategy.update.optimizer",
    "eggroll.strategy.perturbation": "eggroll.strategy.noise.sampler",
    "eggroll.strategy.placement": "eggroll.strategy.state",
    "eggroll.strategy.precision": "eggroll.strategy.plan.parameters",
    "eggroll.strategy.problem": "eggroll.strategy.evaluate.tracing",
    "eggroll.strategy.rules": "eggroll.strategy.plan.rules",
    "eggroll.strategy.shaping": "eggroll.strategy.update.shaping",
    "eggroll.strategy.sharding": "eggroll.strategy.population",
    "eggroll.strategy.sigma": "eggroll.strategy.update.optimizer",
    "eggroll.strategy.statistics": "eggroll.strategy.update.fitness",
    "eggroll.strategy.stored": "eggroll.strategy.noise.sampler",
    "eggroll.strategy.streams": "eggroll.strategy.noise.streams",
    "eggroll.strategy.summing": "eggroll.strategy.update.low_rank",
    "eggroll.strategy.threefry": "eggroll.strategy.noise.keys",
    "eggroll.strategy.working_set": "eggroll.strategy.evaluate.chunking",
    "eggroll.training.arrays": "eggroll.training.folder.arrays",
    "eggroll.training.checkpoints_arrays": "eggroll.training.checkpoints.arrays",
    "eggroll.training.checkpoints_folder": "eggroll.training.checkpoints.folder",
    "eggroll.training.checkpoints_leaves": "eggroll.training.folder.arrays",
    "eggroll.training.checkpoints_small": "eggroll.training.checkpoints.arrays",
    "eggroll.training.described": "eggroll.training.folder.described",
    "eggroll.training.files": "eggroll.training.folder.files",
    "eggroll.training.folder.lock": "eggroll.training.folder.files",
    "eggroll.training.integrity": "eggroll.training.folder.integrity",
    "eggroll.training.journal": "eggroll.training.ledger.journal",
    "eggroll.training.ledger_base": "eggroll.training.ledger.base",
    "eggroll.training.ledger_format": "eggroll.training.ledger.format",
    "eggroll.training.ledger_mesh": "eggroll.training.ledger.mesh",
    "eggroll.training.ledger_settings": "eggroll.training.ledger.settings",
    "eggroll.training.lock": "eggroll.training.folder.files",
    "eggroll.training.measuring": "eggroll.training.stopping",
    "eggroll.training.processes_deciding": "eggroll.training.processes.deciding",
    "eggroll.training.processes_meeting": "eggroll.training.processes.joining",
    "eggroll.training.processes_scoring": "eggroll.training.processes.scoring",
    "eggroll.training.processes_talk": "eggroll.training.processes.talk",
    "eggroll.training.processes_words": "eggroll.training.processes.talk",
    "eggroll.training.rebuilding": "eggroll.training.ledger.rebuilding",
    "eggroll.training.rebuilding_full_rank": "eggroll.training.ledger.rebuilding",
    "eggroll.training.replay_command": "eggroll.training.ledger.replay_files",
    "eggroll.training.result": "eggroll.training.stopping",
    "eggroll.training.settings": "eggroll.training.folder.settings",
    "eggroll.training.tensorboard": "eggroll.training.progress",
    "eggroll.training.versions": "eggroll.extras",
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
