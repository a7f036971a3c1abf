"""The plan: for every parameter, whether and how it is perturbed. Sampling, estimator and explain read it alike."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp

from eggroll.engine.annotations import PyTree
from eggroll.engine.factored import Use
from eggroll.engine.paths import leaf_paths, path_hash
from eggroll.strategy.plan.parameters import PARTITION
from eggroll.strategy.plan.rules import (
    DenseRule,
    FrozenRule,
    LowRankRule,
    Rule,
    Rules,
    Small,
    WeightRule,
    check_rank,
    match_rules,
)
from eggroll.strategy.plan.sites import Site

Kind = Literal["low_rank", "dense", "activations", "frozen", "unused"]


@dataclass(frozen=True)
class LeafPlan:
    """How one parameter is perturbed.

    Attributes:
        path: names joined by `/`.
        shape: the parameter's shape.
        dtype: its dtype's name.
        kind: `"low_rank"`, `"dense"`, `"activations"` (its noise is on the outputs that it enters), `"frozen"` or
            `"unused"` (the function does not read it).
        rank: number of columns of each factor (0 unless low-rank).
        left_axes: axes the left factor owns; stack axes are in both.
        right_axes: axes the right factor owns.
        sigma_scale: factor on the strategy's sigma.
        matrix: the dtype in which it, or each layer of a stack that loops walk, is multiplied, if it is low-rank and
            only ever used as `x [..., K]·W [K, N]`, which kernels can do; K and N may be several axes each. Else None.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    kind: Kind
    rank: int = 0
    left_axes: tuple[int, ...] = ()
    right_axes: tuple[int, ...] = ()
    sigma_scale: float = 1.0
    matrix: str | None = None

    @property
    def is_complex(self) -> bool:
        """Whether it has noise on real and imaginary parts: dense noise, or a complex left and a real right factor."""
        return self.dtype.startswith("complex")

    @property
    def stack_axes(self) -> tuple[int, ...]:
        """Axes with factors of their own for every index: layers, experts."""
        return tuple(a for a in self.left_axes if a in self.right_axes)

    @property
    def left_shape(self) -> tuple[int, ...]:
        """Sizes of the left factor's axes."""
        return tuple(self.shape[a] for a in self.left_axes)

    @property
    def right_shape(self) -> tuple[int, ...]:
        """Sizes of the right factor's axes."""
        return tuple(self.shape[a] for a in self.right_axes)

    @property
    def numbers(self) -> int:
        """Random numbers drawn for one pair of members."""
        if self.kind == "low_rank":
            return self.rank * ((1 + self.is_complex) * math.prod(self.left_shape) + math.prod(self.right_shape))
        return (1 + self.is_complex) * math.prod(self.shape) if self.kind == "dense" else 0


@dataclass(frozen=True)
class Plan:
    """The leaf plans, in the order of `jax.tree.leaves(params)`, and the sites of the function, in its order."""

    leaves: tuple[LeafPlan, ...]
    sites: tuple[Site, ...] = ()

    @property
    def numbers(self) -> int:
        """Random numbers drawn for one pair of members as noise of all parameters; those of sites are apart."""
        return sum(leaf.numbers for leaf in self.leaves)

    @property
    def by_output(self) -> tuple[int, ...]:
        """Numbers of the parameters whose noise is on the outputs that they enter."""
        return tuple(i for i, leaf in enumerate(self.leaves) if leaf.kind == "activations")


def make_plan(
    params: PyTree,
    uses: Mapping[str, Sequence[Use]] | None,
    *,
    rank: int = 1,
    rules: Rules = (),
    small_layers: Small = "dense",
) -> Plan:
    """Decides the perturbation of every parameter.

    A rule by path decides first. Otherwise the parameter's first product or lookup says which axes each factor owns;
    a parameter that is only used elementwise, or whose factors would have a side of size one, gets dense noise, and so
    does one whose full rank is below `rank`, or whose factors would be no fewer numbers: rank·(m+n) ≥ m·n.

    Args:
        params: pytree of arrays or shapes.
        uses: what `discover` found, or None where no function is known: then matrices are split before their
            last axis, as Flax kernels are.
        rank: number of columns of each factor, at least 1.
        rules: `(pattern, rule)` pairs.
        small_layers: `"low_rank"` for factors where they are no fewer numbers, as all versions before had them.

    Returns:
        The plan.

    Raises:
        TypeError: a leaf that is neither floating point nor complex, and not frozen.
        ValueError: a rank below 1 or beyond every layer, a rule that matches nothing or asks for a rank beyond its
            layer, parameters that the function does not use, no parameter left to perturb, or two paths with the same
            hash.
    """
    check_rank(rank)
    chosen = check_params(params, rules)
    plans = [
        _leaf_plan(path, leaf, None if uses is None else uses[path], chosen.get(path), rank, small_layers)
        for path, leaf in zip(leaf_paths(params), jax.tree.leaves(params), strict=True)
    ]
    check_something_moves(plans)
    _check_rank_fits(plans, uses, chosen, rank)
    return Plan(tuple(plans))


def check_params(params: PyTree, rules: Rules = ()) -> dict[str, Rule]:
    """Checks what can be checked without a function, and matches the rules.

    Returns:
        path → rule, for the paths that a rule matches.

    Raises:
        TypeError: a leaf that is neither floating point nor complex, and not frozen.
        ValueError: no leaves, a rule that matches nothing, or two paths with the same hash.
    """
    paths = leaf_paths(params)
    if not paths:
        raise ValueError("got parameters without a single array; pass the model's parameters.")
    chosen = match_rules(rules, paths)
    _check_noise_differs([path for path in paths if not isinstance(chosen.get(path), FrozenRule)])
    for path, leaf in zip(paths, jax.tree.leaves(params), strict=True):
        if not jnp.issubdtype(leaf.dtype, jnp.inexact) and not isinstance(chosen.get(path), FrozenRule):
            raise TypeError(
                f"got parameter '{path}' of dtype {leaf.dtype}; only floating-point and complex ones can be perturbed. "
                f'Pass it to the function as an argument, or freeze it: rules=[("{path}", "frozen")]. {PARTITION}'
            )
    return chosen


def _check_noise_differs(paths: Sequence[str]) -> None:
    """Noise is a function of the path's hash: with the same one, two parameters would always move together."""
    seen: dict[int, str] = {}
    for path in paths:
        code = path_hash(path)
        if code in seen:
            same = (
                f"the same path '{path}'"
                if seen[code] == path
                else f"paths, '{seen[code]}' and '{path}', of the same hash"
            )
            raise ValueError(
                f"got two parameters with {same}: they would get the same noise. Rename one of them, or freeze one: "
                f'rules=[("{path}", "frozen")].'
            )
        seen[code] = path


def _leaf_plan(
    path: str, leaf: Any, uses: Sequence[Use] | None, rule: Rule | None, rank: int, small_layers: Small
) -> LeafPlan:
    shape, dtype = tuple(leaf.shape), str(leaf.dtype)
    if isinstance(rule, FrozenRule):
        return LeafPlan(path, shape, dtype, "frozen")
    if math.prod(shape) == 0 or (uses is not None and not uses):
        return LeafPlan(path, shape, dtype, "unused")
    rule = None if isinstance(rule, WeightRule) else rule
    scale = 1.0 if rule is None else rule.sigma_scale
    dense = LeafPlan(path, shape, dtype, "dense", sigma_scale=scale)
    if isinstance(rule, DenseRule):
        return dense
    left, right = _sides(path, shape, uses, rule)
    full = full_rank(shape, left, right)
    asked = rule.rank if isinstance(rule, LowRankRule) and rule.rank else rank
    if isinstance(rule, LowRankRule):
        _check_layer_rank(path, shape, asked, full)
    if (full <= 1 and not isinstance(rule, LowRankRule)) or asked > full:
        return dense
    dense_layer = bool(uses) and all(_is_dense_layer(use) and (left, right) == _sides_of(use) for use in uses)
    dtypes = {use.dtype for use in uses} if uses and dense_layer and not dense.is_complex else set()
    matrix = dtypes.pop() if len(dtypes) == 1 else None
    plan = LeafPlan(path, shape, dtype, "low_rank", asked, left, right, scale, matrix)
    saves = plan.numbers < dense.numbers or isinstance(rule, LowRankRule) or small_layers == "low_rank"
    return plan if saves else dense


def _is_dense_layer(use: Use) -> bool:
    """`x [..., K]·W [K, N]`, each of one axis or more, of a parameter or of every layer that loops walk."""
    axes = (*use.walked, *use.left, *use.right)
    in_order = axes == tuple(range(len(axes))) and use.stack == use.walked
    return in_order and use.primitive == "dot_general" and bool(use.left) and bool(use.right)


def _sides(
    path: str, shape: tuple[int, ...], uses: Sequence[Use] | None, rule: Rule | None
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    if isinstance(rule, LowRankRule) and rule.left_axes is not None and rule.right_axes is not None:
        axes = {*rule.left_axes, *rule.right_axes}
        repeated = any(len(set(side)) < len(side) for side in (rule.left_axes, rule.right_axes))
        if repeated or axes != set(range(len(shape))):
            raise ValueError(
                f"the rule for '{path}' gives left_axes={rule.left_axes} and right_axes={rule.right_axes}; together "
                f"they must name every axis of the shape {shape}, none twice on one side (an axis in both is a batch "
                "axis)."
            )
        return tuple(sorted(rule.left_axes)), tuple(sorted(rule.right_axes))
    by_shape = tuple(range(len(shape) - 1)), (len(shape) - 1,) if shape else ()
    if uses is None:
        return by_shape
    for use in uses:
        if use.kind != "elementwise" and use.right:
            return _sides_of(use)
    return by_shape if isinstance(rule, LowRankRule) else ((), tuple(range(len(shape))))


def _sides_of(use: Use) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return tuple(sorted(use.stack + use.left)), tuple(sorted(use.stack + use.right))


def full_rank(shape: Sequence[int], left: Sequence[int], right: Sequence[int]) -> int:
    """The smaller side of the matrix that the two factors span (stack axes apart)."""
    own = [math.prod(shape[a] for a in side if a not in other) for side, other in ((left, right), (right, left))]
    return min(own)


def _check_layer_rank(path: str, shape: tuple[int, ...], rank: int, full: int) -> None:
    if rank > full:
        raise ValueError(
            f"the rule for '{path}' asks for rank {rank}, but a perturbation of shape {shape} has full rank {full}: "
            f'use a rank of at most {full}, or the rule "dense", which is cheaper from there on.'
        )


def check_something_moves(plans: Sequence[LeafPlan]) -> None:
    """Raises ValueError where no parameter is perturbed."""
    if any(p.kind in ("low_rank", "dense", "activations") for p in plans):
        return
    if all(p.kind == "frozen" for p in plans):
        raise ValueError('every parameter is "frozen" by a rule: nothing is left to perturb. Loosen a pattern.')
    raise ValueError(
        f"the function does not use its parameters ({', '.join(p.path for p in plans[:5])}): its value would be the "
        "same for every member. Check that it reads its first argument; a reward that Python computes, of text say, is "
        "for es.tell after members.apply, or eggroll.training.Scored."
    )


def _check_rank_fits(
    plans: Sequence[LeafPlan], uses: Mapping[str, Sequence[Use]] | None, chosen: Mapping[str, Rule], rank: int
) -> None:
    """A rank beyond every layer is a mistake; beyond some layers it means dense noise for those."""
    ruled = {path for path, rule in chosen.items() if isinstance(rule, DenseRule) or getattr(rule, "rank", None)}
    free = [p for p in plans if p.path not in ruled and p.kind in ("low_rank", "dense")]
    if any(p.kind == "low_rank" for p in free):
        return
    full = {
        p.path: full_rank(p.shape, *_sides(p.path, p.shape, None if uses is None else uses[p.path], None)) for p in free
    }
    path = max(full, key=full.__getitem__, default=None)
    if path is not None and rank > full[path] > 1:
        raise ValueError(
            f"got rank={rank}, beyond every layer: the largest full rank is {full[path]} ('{path}'). Use a rank of at "
            f'most {full[path]}; 1 to 8 is sensible. For full-rank noise use rules=[(".*", "dense")].'
        )
