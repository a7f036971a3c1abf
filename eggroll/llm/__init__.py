"""Language models: decoders in Flax, generation for a whole population, tasks, fine-tuning by evolution."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eggroll.lazy import lazy

if TYPE_CHECKING:
    from eggroll.llm.answers.decoding import Answers, Decoding, generator, split
    from eggroll.llm.answers.generation import generate, generate_plain
    from eggroll.llm.finetuning.evaluation import Evaluator, evaluate
    from eggroll.llm.finetuning.job import finetune
    from eggroll.llm.finetuning.settings import EvaluateSettings, FinetuneSettings, settings_for
    from eggroll.llm.finetuning.step import Answered
    from eggroll.llm.model.config import DecoderConfig
    from eggroll.llm.model.decoder import Decoder
    from eggroll.llm.model.loading import LanguageModel, load, save
    from eggroll.llm.rewards.scoring import Rewards, Scorers
    from eggroll.llm.tasks import Problem, Task, custom_task, task_named

__all__ = [
    "Answered",
    "Answers",
    "Decoder",
    "DecoderConfig",
    "Decoding",
    "EvaluateSettings",
    "Evaluator",
    "FinetuneSettings",
    "LanguageModel",
    "Problem",
    "Rewards",
    "Scorers",
    "Task",
    "custom_task",
    "evaluate",
    "finetune",
    "generate",
    "generate_plain",
    "generator",
    "load",
    "save",
    "settings_for",
    "split",
    "task_named",
]

# Names and the files that they come from, which are loaded when they are asked for.
_FILES = {
    "Answered": "eggroll.llm.finetuning.step",
    "Answers": "eggroll.llm.answers.decoding",
    "Decoder": "eggroll.llm.model.decoder",
    "DecoderConfig": "eggroll.llm.model.config",
    "Decoding": "eggroll.llm.answers.decoding",
    "EvaluateSettings": "eggroll.llm.finetuning.settings",
    "Evaluator": "eggroll.llm.finetuning.evaluation",
    "FinetuneSettings": "eggroll.llm.finetuning.settings",
    "LanguageModel": "eggroll.llm.model.loading",
    "Problem": "eggroll.llm.tasks",
    "Rewards": "eggroll.llm.rewards.scoring",
    "Scorers": "eggroll.llm.rewards.scoring",
    "Task": "eggroll.llm.tasks",
    "custom_task": "eggroll.llm.tasks",
    "evaluate": "eggroll.llm.finetuning.evaluation",
    "finetune": "eggroll.llm.finetuning.job",
    "generate": "eggroll.llm.answers.generation",
    "generate_plain": "eggroll.llm.answers.generation",
    "generator": "eggroll.llm.answers.decoding",
    "load": "eggroll.llm.model.loading",
    "save": "eggroll.llm.model.loading",
    "settings_for": "eggroll.llm.finetuning.settings",
    "split": "eggroll.llm.answers.decoding",
    "task_named": "eggroll.llm.tasks",
}

if not TYPE_CHECKING:  # a checker would take any name for one of the package
    __getattr__, __dir__ = lazy(__name__, _FILES)
