"""The plan of full-rank ES: dense noise for every parameter that no rule holds still."""

from __future__ import annotations

import math
from typing import Any

import jax

from eggroll.engine.annotations import PyTree
from eggroll.engine.paths import leaf_paths
from eggroll.strategy.plan.leaves import LeafPlan, Plan, check_params, check_something_moves
from eggroll.strategy.plan.rules import FrozenRule, LowRankRule, Rule, Rules


def full_rank_plan(params: PyTree, rules: Rules) -> Plan:
    """Decides which parameters have noise.

    Args:
        params: pytree of arrays or shapes.
        rules: `(pattern, rule)` pairs, of which none is low-rank.

    Raises:
        TypeError: a leaf that is not floating point and not frozen.
        ValueError: a low-rank rule, a rule that matches nothing, no parameter left to perturb, or two paths with the
            same hash.
    """
    chosen = check_params(params, rules)
    paths, leaves = leaf_paths(params), jax.tree.leaves(params)
    plans = [_leaf_plan(path, leaf, chosen.get(path)) for path, leaf in zip(paths, leaves, strict=True)]
    check_something_moves(plans)
    return Plan(tuple(plans))


def _leaf_plan(path: str, leaf: Any, rule: Rule | None) -> LeafPlan:
    if isinstance(rule, LowRankRule):
        raise ValueError(
            f"got a low-rank rule for '{path}'; full-rank ES gives dense noise, or none by the rule \"frozen\". Use "
            "eggroll.ES for low-rank noise."
        )
    shape, dtype = tuple(leaf.shape), str(leaf.dtype)
    if isinstance(rule, FrozenRule):
        return LeafPlan(path, shape, dtype, "frozen")
    kind = "dense" if math.prod(shape) else "unused"
    return LeafPlan(path, shape, dtype, kind, sigma_scale=1.0 if rule is None else rule.sigma_scale)
