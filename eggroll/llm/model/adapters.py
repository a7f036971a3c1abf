"""Low-rank adapters as PEFT writes them: added to the weights of their base model as these are read.

References:
    E. Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", arXiv 2106.09685.
    D. Kalajdzievski, "A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA", arXiv 2312.03732.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  (registers bfloat16 with NumPy, for safetensors)
import numpy as np

from eggroll.engine.checks import is_huge
from eggroll.llm.model.files import check_file, read_json
from eggroll.training.errors import RunError

__all__ = ["Adapter", "read_adapter"]

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX, KINDS = "base_model.model.", ("lora_A", "lora_B")
# Settings that are read, and those that say how an adapter was trained, not what it computes.
READ = {"peft_type", "lora_alpha", "use_rslora", "alpha_pattern", "base_model_name_or_path", "r", "rank_pattern"}
TRAINED = {"task_type", "inference_mode", "auto_mapping", "revision", "peft_version", "target_modules", "lora_dropout"}
TRAINED |= {"exclude_modules", "layers_to_transform", "layers_pattern", "megatron_core", "runtime_config"}
TRAINED |= {"ensure_weight_tying", "qalora_group_size", "eva_config"}
# The base model was changed at the start, too: adapters of these are differences from another one.
CHANGED_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
PLAIN = re.compile(r"\^?(\w|\\?[.-])+")
MERGE = "Merge it into its base with PEFT (merge_and_unload) and save that."


@dataclass(frozen=True)
class Adapter:
    """Differences from a base model's weights.

    Attributes:
        folder: where it was read from.
        base: name or path of the base model; None if it does not say.
        factors: of each changed weight, by its name in the base, `(A [rank, inputs], B [outputs, rank])`.
        scales: what each product `B·A` is multiplied by.
    """

    folder: Path
    base: str | None
    factors: Mapping[str, tuple[np.ndarray, np.ndarray]]
    scales: Mapping[str, float]

    def check(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Raises `RunError` for factors of what a base has not, or has in another shape."""
        for name, (right, left) in self.factors.items():
            got, wanted = (left.shape[0], right.shape[1]), shapes.get(name)
            if got != wanted:
                has = "has no such weight" if wanted is None else f"has it in {list(wanted)}"
                raise RunError(
                    f"{self.folder / WEIGHTS}: the adapter of {name} changes a matrix {list(got)}; the base model "
                    f"{has}. Does it belong to this base?"
                )

    def added(self, name: str, weight: np.ndarray) -> np.ndarray:
        """A weight `[outputs, inputs]` of the base with its difference, in float32 where there is one."""
        if name not in self.factors:
            return weight
        right, left = (factor.astype(np.float32) for factor in self.factors[name])
        return weight.astype(np.float32) + np.float32(self.scales[name]) * (left @ right)


def read_adapter(folder: Path) -> Adapter | None:
    """The adapter in a folder; None if it has none.

    Raises:
        RunError: one that is not plain LoRA, settings that change what it computes and are not known, or tensors that
            do not fit together.
    """
    settings = read_json(folder / CONFIG)
    if settings is None:
        if (folder / WEIGHTS).exists():
            raise RunError(f"{folder} has {WEIGHTS} and no {CONFIG}; copy that, too, or remove the adapter.")
        return None
    _check(folder / CONFIG, settings)
    factors = _factors(folder)
    scales = {name: _scale(settings, name, len(right)) for name, (right, _) in factors.items()}
    return Adapter(folder, settings.get("base_model_name_or_path") or None, factors, scales)


def _check(file: Path, settings: Mapping[str, Any]) -> None:
    if settings.get("peft_type") != "LORA":
        raise RunError(f"{file} has peft_type={settings.get('peft_type')!r:.80}; 'LORA' is required. {MERGE}")
    off = (None, False, "none", [], {})
    unknown = {name: x for name, x in settings.items() if name not in READ | TRAINED | {"init_lora_weights"}}
    asked = [f"{name}={str(value)[:40]}" for name, value in unknown.items() if value not in off]
    began = settings.get("init_lora_weights")
    if isinstance(began, str) and began.startswith(CHANGED_BASE):
        asked.append(f"init_lora_weights={began}")
    if asked:
        raise RunError(f"{file} has {', '.join(asked)}, which changes what the model computes. {MERGE}")
    base, patterns = settings.get("base_model_name_or_path"), settings.get("alpha_pattern") or {}
    numbers = [settings.get("lora_alpha", 8), *(patterns.values() if isinstance(patterns, dict) else [None])]
    if not all(type(x) in (int, float) and not is_huge(x) and math.isfinite(x) for x in numbers):
        raise RunError(f"{file} has lora_alpha or alpha_pattern that are no numbers; fetch or copy it again.")
    if strange := [pattern for pattern in patterns if not PLAIN.fullmatch(pattern)]:
        # A pattern of a file from anywhere could take for ever to match.
        raise RunError(f"{file} has the alpha_pattern {strange[0][:80]!r}; names of modules are required. {MERGE}")
    if not isinstance(base, str | None) or not isinstance(settings.get("use_rslora", False), bool | None):
        raise RunError(f"{file} has a base model or use_rslora of another kind; fetch or copy it again.")


def _scale(settings: Mapping[str, Any], name: str, rank: int) -> float:
    """α/r, or α/√r of rank-stabilised ones; what a pattern names has an α of its own."""
    alpha, module = settings.get("lora_alpha", 8), name.removesuffix(".weight")
    for pattern, own in (settings.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            alpha = own
            break
    return float(alpha) / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def _factors(folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    from safetensors import SafetensorError, safe_open

    file = folder / WEIGHTS
    if not file.is_file():
        raise RunError(f"{folder} has no {WEIGHTS}, but {CONFIG}; save the adapter as safetensors.")
    check_file(file)
    parts: dict[str, dict[str, np.ndarray]] = {}
    try:
        with safe_open(file, "np") as opened:
            for key in opened.keys():  # noqa: SIM118  (not a mapping)
                module, kind = _place(file, key)
                parts.setdefault(module, {})[kind] = opened.get_tensor(key)
    except (SafetensorError, OSError, TypeError, AttributeError) as error:
        raise RunError(f"{file} cannot be read ({error}); fetch or copy it again.") from error
    for module, found in parts.items():
        shapes = {kind: part.shape for kind, part in found.items()}
        right, left = (shapes.get(kind, ()) for kind in KINDS)
        if len(right) != 2 or len(left) != 2 or right[0] != left[1] or not right[0]:
            raise RunError(f"{file}: {module} has {shapes}; lora_A (rank, inputs), lora_B (outputs, rank) required.")
    return {f"{module}.weight": (found["lora_A"], found["lora_B"]) for module, found in parts.items()}


def _place(file: Path, key: str) -> tuple[str, str]:
    """(module of the base model, `lora_A` or `lora_B`) of a tensor's name."""
    module, _, kind = key.removesuffix(".weight").rpartition(".")
    if not key.startswith(PREFIX) or not key.endswith(".weight") or kind not in KINDS:
        raise RunError(f"{file} has the tensor {key[:100]}, which is no factor of a matrix. {MERGE}")
    return module.removeprefix(PREFIX), kind
