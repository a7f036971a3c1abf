"""Language models: decoders in Flax, generation for a whole population, tasks, fine-tuning by evolution."""

from __future__ import annotations

import importlib
from typing import Any

# Names and the files that they come from, which are loaded when they are asked for.
_FILES: dict[str, str] = {
    "Problem": "tasks",
    "Rewards": "scoring",
    "Scorers": "scoring",
    "Task": "tasks",
    "custom_task": "tasks",
    "task_named": "tasks",
    "Answered": "step",
    "Answers": "decoding",
    "Decoder": "decoder",
    "DecoderConfig": "config",
    "Decoding": "decoding",
    "EvaluateSettings": "settings",
    "Evaluator": "evaluation",
    "FinetuneSettings": "settings",
    "LanguageModel": "loading",
    "evaluate": "evaluation",
    "finetune": "finetuning",
    "generate": "generation",
    "generate_plain": "generation",
    "generator": "decoding",
    "load": "loading",
    "save": "loading",
    "settings_for": "settings",
    "split": "decoding",
}
__all__ = sorted(_FILES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _FILES:
        return getattr(importlib.import_module(f"eggroll.llm.{_FILES[name]}"), name)
    raise AttributeError(f"module 'eggroll.llm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
