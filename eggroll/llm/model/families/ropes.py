"""Rotary positions from a configuration, of all layers or of each type of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from eggroll.llm.model.families.accepted import refuse_what_rotary_positions_lack
from eggroll.llm.model.families.table import Family
from eggroll.llm.model.features import Rope, check_positive
from eggroll.training.errors import RunError

__all__ = ["ropes_of"]

LAYER_TYPES = {"full_attention", "sliding_attention"}
SHARED = ("type", "rope_type", "rope_theta", "partial_rotary_factor")
# What is read of each kind, beside what all have.
KINDS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor", "original_max_position_embeddings"),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": (
        *("factor", "beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim", "truncate"),
        *("original_max_position_embeddings", "max_position_embeddings"),
    ),
    "longrope": ("factor", "short_factor", "long_factor", "attention_factor", "original_max_position_embeddings"),
}


def ropes_of(full: Mapping[str, Any], family: Family) -> dict[str, Any]:
    """The decoder's `rope` and `sliding_rope`.

    Raises:
        RunError: a kind that is unknown, or a setting that is not read, by name.
    """
    given = full.get("rope_parameters") or {}
    types = {name: value for name, value in given.items() if isinstance(value, Mapping)}
    if not types:
        return {"rope": _rope(given, full, family)}
    # transformers itself puts these two beside the types of layers where the model has not all of them.
    beside = {"rope_type": "default", "rope_theta": None}
    rest = {name: value for name, value in given.items() if name not in beside or value != beside[name]}
    refuse_what_rotary_positions_lack(rest, full["model_type"], LAYER_TYPES)
    ropes = {name: _rope(value, full, family) for name, value in types.items()}
    return {"rope": ropes.get("full_attention", Rope()), "sliding_rope": ropes.get("sliding_attention")}


def _rope(given: Mapping[str, Any], full: Mapping[str, Any], family: Family) -> Rope:
    kind, model = given.get("rope_type") or given.get("type") or "default", full["model_type"]
    if kind not in KINDS:
        raise RunError(
            f"got rotary positions of the type {kind!r}; known are {', '.join(KINDS)}. Choose another model."
        )
    lost = {name: given[name] for name in ("type", "factor") if given.get(name) not in (None, "default", 1)}
    if kind == "default" and lost:  # an older spelling that transformers does not read for this model, or no type
        raise RunError(
            f"got {lost} in a description of rotary positions whose rope_type is 'default', which reads none; "
            "name what is meant as rope_type (linear, llama3), or take it out."
        )
    known = {*SHARED, *KINDS[kind], *family.rotary}
    refuse_what_rotary_positions_lack({k: v for k, v in given.items() if v is not None or k in known}, model, known)
    share = given.get("partial_rotary_factor")
    if share not in (None, 1, 1.0) and "partial_rotary_factor" not in family.reads:
        raise RunError(f"got partial_rotary_factor={share}; the decoder rotates whole heads of a {model}, so 1.0.")
    theta = _number(given, "rope_theta") if given.get("rope_theta") is not None else Rope.theta
    common = {"share": 1.0 if share is None else share, "neighbours": bool(family.fixed.get("neighbours"))}
    return Rope(theta, kind, **common, **_of_kind(kind, given, full))


def _of_kind(kind: str, given: Mapping[str, Any], full: Mapping[str, Any]) -> dict[str, Any]:
    """What a kind of rotary positions says beside the base."""
    if kind == "linear":
        return {"factor": _number(given, "factor")}
    if kind == "dynamic":
        return {"factor": _number(given, "factor"), "original": full["max_position_embeddings"]}
    if kind == "llama3":
        low, high = _number(given, "low_freq_factor"), _number(given, "high_freq_factor")
        original = int(_number(given, "original_max_position_embeddings"))
        return {"factor": _number(given, "factor"), "low": low, "high": high, "original": original}
    if kind == "yarn":
        return _of_yarn(given, full)
    return _of_longrope(given, full) if kind == "longrope" else {}


def _of_yarn(given: Mapping[str, Any], full: Mapping[str, Any]) -> dict[str, Any]:
    factor, original = _stretch(given, full)
    few, all_dimensions = given.get("mscale"), given.get("mscale_all_dim")

    def grown(times: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * times * math.log(factor) + 1

    magnitude = given.get("attention_factor")
    if magnitude is None:
        magnitude = grown(few) / grown(all_dimensions) if few and all_dimensions else grown(1)
    low, high = (given.get(name) or default for name, default in (("beta_slow", 1.0), ("beta_fast", 32.0)))
    whole, growth = given.get("truncate"), given.get("llama_4_scaling_beta")
    return {
        **{"factor": factor, "original": original, "low": low, "high": high, "magnitude": magnitude},
        **{"whole": True if whole is None else bool(whole), "growth": growth or 0.0},
    }


def _of_longrope(given: Mapping[str, Any], full: Mapping[str, Any]) -> dict[str, Any]:
    factor, original = _stretch(given, full)
    magnitude = given.get("attention_factor")
    if magnitude is None:
        magnitude = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    lists = {name: tuple(float(one) for one in given[f"{name}_factor"]) for name in ("short", "long")}
    heads, share = full["num_attention_heads"], given.get("partial_rotary_factor")
    head_width = full.get("head_dim") or full["hidden_size"] // heads
    wanted = int(head_width * (1.0 if share is None else share)) // 2
    for name, values in lists.items():
        if len(values) != wanted or not all(value > 0 for value in values):
            raise RunError(
                f"got {len(values)} numbers in {name}_factor of rotary positions; {wanted}, above 0, are required."
            )
    return {"factor": factor, "original": original, "magnitude": magnitude, **lists}


def _stretch(given: Mapping[str, Any], full: Mapping[str, Any]) -> tuple[float, int]:
    """By how much longer texts may be than those of the first training, and how long these were."""
    original = given.get("original_max_position_embeddings") or full["max_position_embeddings"]
    check_positive("original_max_position_embeddings in the description of rotary positions", original)
    if given.get("factor") is None:
        return full["max_position_embeddings"] / original, int(original)
    return _number(given, "factor"), int(original)


def _number(given: Mapping[str, Any], name: str) -> float:
    """A number of rotary positions."""
    check_positive(f"{name} in the description of rotary positions", given.get(name))
    return float(given[name])
