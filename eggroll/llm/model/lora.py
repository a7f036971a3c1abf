"""LoRA adapters that are evolved beside a frozen base: begun, taken up from a PEFT folder, and written as one.

References:
    E. Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", arXiv 2106.09685.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from eggroll.llm.model.adapters import CONFIG, PREFIX, WEIGHTS, Adapter
from eggroll.llm.model.families.table import FAMILIES
from eggroll.llm.model.families.tensors import Stored, stored
from eggroll.llm.model.features import DecoderConfig, Lora
from eggroll.llm.model.files import write_json
from eggroll.llm.model.parts.shapes import adapter_shapes
from eggroll.llm.model.weights_hf import write_tensors
from eggroll.training.errors import RunError

__all__ = ["FROZEN", "Adapting", "adapted", "write_adapter"]

FROZEN = r"(?!.*_lora_[ab]$).*"  # a rule's pattern: what is no adapter's
ATTENTION, MLP = ("query", "key", "value", "out"), ("gate", "up", "down")
# What PEFT's LoraConfig has beside ranks and scales: nothing that computes.
PLAIN: dict[str, Any] = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "bias": "none", "lora_dropout": 0.0}
PLAIN |= {"inference_mode": True, "init_lora_weights": True, "modules_to_save": None, "use_dora": False}
PLAIN |= {"layers_to_transform": None, "layers_pattern": None, "revision": None, "use_rslora": False}
PLAIN |= {"fan_in_fan_out": False}


@dataclass(frozen=True)
class Adapting:
    """Which adapters a model is given.

    Attributes:
        rank: of each.
        alpha: their scale times the rank. Default None: twice the rank.
        targets: modules by the names that a checkpoint has for them, such as `("q_proj", "v_proj")`. Default none: all
            linear layers of attention and MLP, without those of experts that a router chooses.
        seed: decides how they begin.
    """

    rank: int
    alpha: float | None = None
    targets: tuple[str, ...] = ()
    seed: int = 0


def adapted(
    config: DecoderConfig, weights: Mapping[str, Any], wanted: Adapting, adapter: Adapter | None
) -> tuple[DecoderConfig, dict[str, Any]]:
    """The configuration and the weights of a decoder with adapters beside its matrices.

    They begin as PEFT's do: `A` is uniform within ±1/√inputs, and `B` is zero, so that nothing is changed yet; or they
    are those of a PEFT folder.

    Args:
        config: of the base.
        weights: of the base.
        wanted: which adapters.
        adapter: those that are taken up. None: they begin.

    Raises:
        RunError: a module that the model has not, or an adapter that has other ranks, or not the same in all layers.
    """
    modules = _modules(config)
    dtype = weights["embed"].dtype
    if adapter is None:
        names = _asked(modules, wanted.targets)
        alpha = 2 * wanted.rank if wanted.alpha is None else wanted.alpha
        targets = tuple(weight for name in names for weight in modules[name][0].weights)
        config = replace(config, lora=Lora(wanted.rank, alpha / wanted.rank, targets))
        found = {name: _begun(config, name, shape, wanted.seed) for name, shape in adapter_shapes(config).items()}
    else:
        adapter.check({one.name: one.shape for one in stored(config)})
        lora, found = _taken_up(modules, adapter, wanted)
        config = replace(config, lora=lora)
    layers = {name: jnp.asarray(array, dtype) for name, array in found.items()}
    return config, {**weights, "layers": {**weights["layers"], **layers}}


def write_adapter(folder: Path, config: DecoderConfig, weights: Mapping[str, Any], base: str) -> None:
    """Writes `adapter_config.json` and `adapter_model.safetensors`, which PEFT, transformers and `load` read.

    Where a tensor of the checkpoint holds several of the decoder's weights, so many adapters are one of so many times
    the rank: their `A` side by side, their `B` in blocks.

    Raises:
        OSError: the disk does not take them.
    """
    lora = config.lora
    assert lora is not None
    alpha = lora.scale * lora.rank
    chosen = {name: ones for name, ones in _modules(config).items() if ones[0].weights[0] in lora.targets}
    several = {name: len(ones[0].weights) for name, ones in chosen.items() if len(ones[0].weights) > 1}
    settings: dict[str, Any] = {**PLAIN, "base_model_name_or_path": base, "r": lora.rank, "lora_alpha": _whole(alpha)}
    settings["target_modules"] = sorted(chosen)
    settings["rank_pattern"] = {name: count * lora.rank for name, count in several.items()}
    settings["alpha_pattern"] = {name: _whole(count * alpha) for name, count in several.items()}
    tensors: dict[str, np.ndarray] = {}
    layers = {name: np.asarray(weights["layers"][name]) for name in adapter_shapes(config)}
    for one in (one for ones in chosen.values() for one in ones):
        (layer,), module = one.index, PREFIX + one.name.removesuffix(".weight")
        right = [layers[f"{weight}_lora_a"][layer] for weight in one.weights]
        left = [layers[f"{weight}_lora_b"][layer] for weight in one.weights]
        tensors[f"{module}.lora_A.weight"] = np.concatenate(right, axis=1).T
        tensors[f"{module}.lora_B.weight"] = one.tensor(_in_blocks(left))
    write_json(folder / CONFIG, settings)
    write_tensors(folder / WEIGHTS, tensors)


def _in_blocks(parts: list[np.ndarray]) -> list[np.ndarray]:
    """Matrices `[rank, outputs]` with as many more rows of zeros before and behind as the others have."""
    rank = len(parts[0])
    rows = [((i * rank, (len(parts) - 1 - i) * rank), (0, 0)) for i in range(len(parts))]
    return [np.pad(part, around) for part, around in zip(parts, rows, strict=True)]


def _whole(number: float) -> float:
    return int(number) if number == int(number) else number


def _modules(config: DecoderConfig) -> dict[str, list[Stored]]:
    """The linear layers of attention and MLP, by their name within a layer: the tensor of each layer.

    Raises:
        RunError: a family whose checkpoints have them turned, which PEFT asks a flag for.
    """
    inner = MLP if config.experts is None else tuple(f"shared_{name}" for name in MLP)
    found: dict[str, list[Stored]] = {}
    for one in stored(config):
        if len(one.index) == 1 and set(one.weights) <= {*ATTENTION, *inner}:
            if not one.place.turned:
                raise RunError(
                    f"got adapters for a model of the family {config.family!r}, whose checkpoints have matrices as "
                    "[inputs, outputs]; they are not written for it. Leave --lora out, or take another model."
                )
            start = f"{FAMILIES[config.family].layers}.{one.index[0]}."
            found.setdefault(one.name.removeprefix(start).removesuffix(".weight"), []).append(one)
    return found


def _asked(modules: Mapping[str, Any], targets: tuple[str, ...]) -> list[str]:
    """The modules that targets name as PEFT reads them: by their names' ends; all for none."""
    for target in targets:
        if not any(f".{name}".endswith(f".{target}") for name in modules):
            raise RunError(f"got the target module {target!r}; the model has {', '.join(modules)}.")
    return [name for name in modules if not targets or any(f".{name}".endswith(f".{t}") for t in targets)]


def _begun(config: DecoderConfig, name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """A factor `[layers, …]` before any training, in NumPy: of the same bits everywhere."""
    whole = (config.layers, *shape)
    if name.endswith("_lora_b"):
        return np.zeros(whole, np.float32)
    most = shape[0] ** -0.5  # of torch's kaiming_uniform_(a=√5): √(6 / (6 · inputs))
    return np.random.default_rng([seed, zlib.crc32(name.encode())]).uniform(-most, most, whole).astype(np.float32)


def _taken_up(
    modules: Mapping[str, list[Stored]], adapter: Adapter, wanted: Adapting
) -> tuple[Lora, dict[str, np.ndarray]]:
    """Factors of a PEFT folder as the decoder has them, `[layers, …]`."""
    has = {name: [one for one in ones if one.name in adapter.factors] for name, ones in modules.items()}
    has = {name: ones for name, ones in has.items() if ones}
    names = [one.name for ones in has.values() for one in ones]
    ranks, scales = {len(adapter.factors[name][0]) for name in names}, {adapter.scales[name] for name in names}
    alike = all(len(ones) == len(modules[name]) and len(ones[0].weights) == 1 for name, ones in has.items())
    if not alike or set(names) != set(adapter.factors) or len(ranks) != 1 or len(scales) != 1:
        raise RunError(
            f"{adapter.folder} has adapters that differ between layers, in rank or in scale, or of what is no matrix "
            "of its own; such ones are not evolved. Leave --lora out: then the model is, with the adapter merged."
        )
    if ranks != {wanted.rank} or wanted.alpha is not None or wanted.targets:
        raise RunError(
            f"got lora={wanted.rank} for {adapter.folder}, which has adapters of rank {min(ranks)}, with a scale and "
            f"modules of their own; they go on with --lora {min(ranks)} alone. Leave --lora out to merge them."
        )
    found = {}
    for ones in has.values():
        factors = [adapter.factors[one.name] for one in ones]
        found[f"{ones[0].weights[0]}_lora_a"] = np.stack([right.T for right, _ in factors])
        found[f"{ones[0].weights[0]}_lora_b"] = np.stack([left.T for _, left in factors])
    return Lora(min(ranks), min(scales), tuple(ones[0].weights[0] for ones in has.values())), found
