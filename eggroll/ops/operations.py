"""The entry points: check the arguments, then hand them to an implementation; and that in plain `jax.numpy`.

The latter runs everywhere, and every kernel is tested against it.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from eggroll.ops.members import seeded_dot
from eggroll.ops.registry import REFERENCE, dispatch, register
from eggroll.ops.seeded import Factor, Seeded, as_array

# Up to this rank the outer product is written as multiplications, which XLA fuses into the addition to the
# base product; above it a matrix product wins (on a CPU of 2 cores: equal at rank 8, faster at 16).
LARGEST_FUSED_RANK = 4


@register("lowrank_dot", REFERENCE)
def lowrank_dot_reference(
    x: jax.Array,
    w: jax.Array,
    left: Factor,
    right: Factor,
    *,
    scale: jax.Array | None = None,
    precision: Any = None,
    preferred_element_type: DTypeLike | None = None,
) -> jax.Array:
    """Compute `x·w + scale·(x·left)·rightᵀ`; see `eggroll.kernels.lowrank_dot`."""
    if isinstance(left, Seeded) and isinstance(right, Seeded):
        options = {"precision": precision, "preferred_element_type": preferred_element_type}
        return _all_members(x, w, left, right, scale, **options)
    left, right = as_array(left), as_array(right)
    base = lax.dot_general(x, w, _last_with(x, 0), precision=precision, preferred_element_type=preferred_element_type)
    accumulator = _accumulator_dtype(base, x, left, right)
    thin = _thin_product(x, left, precision, accumulator)
    if scale is not None:
        thin = thin * scale.astype(accumulator)  # not on `right`: it is larger, and the members of a pair share it
    correction = _outer_product(thin, right.astype(accumulator))
    return (base.astype(accumulator) + correction).astype(base.dtype)  # one rounding, at the end


@register("rank_update", REFERENCE)
def rank_update_reference(
    weights: jax.Array,
    left: Factor,
    right: Factor,
    *,
    accumulator: jax.Array | None = None,
) -> jax.Array:
    """Compute `Σₚ weightsₚ·leftₚ·rightₚᵀ`; see `eggroll.kernels.rank_update`."""
    left, right = as_array(left), as_array(right)
    inputs = (weights, left, right) if accumulator is None else (weights, left, right, accumulator)
    dtype = _accumulator_dtype(*inputs)
    weighted = weights.astype(dtype)[:, None, None] * left.astype(dtype)
    members_and_rank = (((0, 2), (0, 2)), ((), ()))
    update = lax.dot_general(weighted, right.astype(dtype), members_and_rank, precision=lax.Precision.HIGHEST)
    return update if accumulator is None else accumulator.astype(dtype) + update


def _all_members(
    x: jax.Array, w: jax.Array, left: Seeded, right: Seeded, scale: jax.Array | None, **options: Any
) -> jax.Array:
    """`x [M, R, K]`, keys `[U, 2]`, `scale [M]` → `[M, R, N]`; members of a unit are neighbours."""
    units = left.key.shape[0]

    def member(left: jax.Array, right: jax.Array, x: jax.Array, scale: jax.Array) -> jax.Array:
        return lowrank_dot_reference(x, w, left, right, scale=scale, **options)

    scale = jnp.ones(x.shape[0], jnp.float32) if scale is None else scale
    own = x.reshape(units, -1, *x.shape[1:]), scale.reshape(units, -1)
    unit = jax.vmap(member, in_axes=(None, None, 0, 0))
    return jax.vmap(unit)(left.array(), right.array(), *own).reshape(*x.shape[:2], w.shape[1])


def _thin_product(x: jax.Array, left: jax.Array, precision: Any, dtype: jnp.dtype) -> jax.Array:
    """Return `x·left`, of shape `[..., r]`, accumulated in `dtype`."""
    if x.dtype != left.dtype:
        x, left = x.astype(dtype), left.astype(dtype)
    return lax.dot_general(
        x, left, _last_with(x, 0), precision=_without_algorithm(precision), preferred_element_type=dtype
    )


def _outer_product(thin: jax.Array, right: jax.Array) -> jax.Array:
    """Return `thin·rightᵀ`, of shape `[..., N]`, for `thin` of shape `[..., r]`."""
    rank = right.shape[1]
    if rank > LARGEST_FUSED_RANK:
        return lax.dot_general(thin, right, _last_with(thin, 1), precision=lax.Precision.HIGHEST)
    total = thin[..., 0, None] * right[:, 0]
    for j in range(1, rank):
        total = total + thin[..., j, None] * right[:, j]
    return total


def _last_with(x: jax.Array, axis: int) -> lax.DotDimensionNumbers:
    """Return the dimension numbers that contract the last axis of `x` with `axis` of the other operand."""
    return (((x.ndim - 1,), (axis,)), ((), ()))


def _accumulator_dtype(*arrays: jax.Array) -> jnp.dtype:
    """Return float64 if any array has it, else float32."""
    wide = any(a.dtype == jnp.float64 for a in arrays)
    return jnp.dtype(jnp.float64 if wide else jnp.float32)


def _without_algorithm(precision: Any) -> Any:
    """Return `precision`, or HIGHEST for an algorithm, which fits the dtypes of the base product only."""
    if isinstance(precision, str):
        algorithms = lax.DotAlgorithmPreset.__members__
        return lax.Precision.HIGHEST if precision.upper() in algorithms else precision
    is_algorithm = isinstance(precision, lax.DotAlgorithm | lax.DotAlgorithmPreset)
    return lax.Precision.HIGHEST if is_algorithm else precision


_Shape = tuple[int, ...]


def lowrank_dot(
    x: jax.Array,
    w: jax.Array,
    left: Factor,
    right: Factor,
    *,
    scale: jax.Array | None = None,
    precision: Any = None,
    preferred_element_type: DTypeLike | None = None,
    implementation: str | None = None,
) -> jax.Array:
    """Multiply by a perturbed weight without forming it: `y = x·w + scale·(x·left)·rightᵀ`.

    Written for one member. Under `jax.vmap` over members, with `left`, `right` and perhaps `x` batched and
    `w` not, all members share one product with `w`. The two members of an antithetic pair differ in `scale` alone.

    Args:
        x: inputs `[..., K]`.
        w: the shared weight `[K, N]`; its dtype may differ from that of `x` as `jax.lax.dot_general` allows.
        left: input-side factor `[K, r]`, or `Seeded`: the key that a kernel draws it from where it is needed.
        right: output-side factor `[N, r]`, in the same form as `left`.
        scale: a scalar such as `±σ/√r`, of shape `()`. Default None: 1.
        precision: of the product with `w`, as in `jax.lax.dot_general`. Default None.
        preferred_element_type: output dtype of the product with `w`, as there. Default None.
        implementation: a name from `implementations("lowrank_dot")`. Default None: the platform decides.

    Returns:
        `[..., N]`, in the dtype that `jax.lax.dot_general` gives for `x` and `w`; the correction is
        accumulated in float32 or wider.

    Raises:
        ValueError: shapes that do not fit together, or an unknown implementation.
        TypeError: an argument that is not floating point.
        NotImplementedError: the named implementation cannot do these shapes or dtypes.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from eggroll.kernels import lowrank_dot
        >>> x, w = jnp.ones((2, 3)), jnp.eye(3, 4)
        >>> left, right = jnp.ones((3, 1)), jnp.arange(4.0)[:, None]
        >>> y = lowrank_dot(x, w, left, right)
        >>> bool(jnp.allclose(y, x @ (w + left @ right.T)))
        True
        >>> members = jax.vmap(lowrank_dot, in_axes=(None, None, 0, None))
        >>> members(x, w, jnp.stack([left, -left]), right).shape
        (2, 2, 4)

    References:
        Sarkar et al., "Evolution Strategies at the Hyperscale", arXiv 2511.16652.
    """
    _check_seeds("lowrank_dot", left, right)
    _require_floating("lowrank_dot", x=x, w=w, left=left, right=right, scale=scale)
    _check_lowrank_dot(jnp.shape(x), jnp.shape(w), _shape(left), _shape(right))
    if scale is not None and jnp.shape(scale):
        raise ValueError(f"lowrank_dot got scale {list(jnp.shape(scale))}; it needs a scalar: use jax.vmap for more")
    x, w = jnp.asarray(x), jnp.asarray(w)
    scale = None if scale is None else jnp.asarray(scale)
    if isinstance(left, Seeded) and isinstance(right, Seeded):
        left, right = left.matrix(), right.matrix()
        options = {"precision": precision, "preferred": preferred_element_type, "implementation": implementation}
        return seeded_dot(x, w, left, right, scale, **options)
    options = {"scale": scale, "precision": precision, "preferred_element_type": preferred_element_type}
    return dispatch(
        "lowrank_dot", x, w, jnp.asarray(left), jnp.asarray(right), implementation=implementation, **options
    )


def rank_update(
    weights: jax.Array,
    left: Factor,
    right: Factor,
    *,
    accumulator: jax.Array | None = None,
    implementation: str | None = None,
) -> jax.Array:
    """Sum weighted low-rank perturbations: `accumulator + Σₚ weightsₚ·leftₚ·rightₚᵀ`.

    One matrix product `[m, P·r]·[P·r, n]`; no `m×n` matrix of a single member is ever formed.

    Args:
        weights: one number a member (or an antithetic pair) `[P]`.
        left: factors `[P, m, r]`, or `Seeded` with keys `[P, 2]`: a kernel then draws them where it needs them.
        right: factors `[P, n, r]`, in the same form as `left`.
        accumulator: `[m, n]` to add the sum to. Default None: zero.
        implementation: a name from `implementations("rank_update")`. Default None: the platform decides.

    Returns:
        `[m, n]` in float32 whatever the inputs' dtypes, or in float64 if any input is float64. From seeded factors of
        half precision kernels make products of bfloat16: each weight times its noise is rounded by up to 2⁻⁸ of it.

    Raises:
        ValueError: shapes that do not fit together, or an unknown implementation.
        TypeError: an argument that is not floating point.
        NotImplementedError: the named implementation cannot do these shapes or dtypes.

    Example:
        >>> import jax.numpy as jnp
        >>> from eggroll.kernels import rank_update
        >>> weights = jnp.array([2.0, -1.0])
        >>> left, right = jnp.ones((2, 3, 1)), jnp.ones((2, 4, 1))
        >>> rank_update(weights, left, right)[0]
        Array([1., 1., 1., 1.], dtype=float32)

    References:
        Sarkar et al., "Evolution Strategies at the Hyperscale", arXiv 2511.16652.
    """
    _check_seeds("rank_update", left, right)
    _require_floating("rank_update", weights=weights, left=left, right=right, accumulator=accumulator)
    _check_rank_update(jnp.shape(weights), _shape(left), _shape(right))
    if accumulator is not None:
        got, required = [*jnp.shape(accumulator)], [_shape(left)[1], _shape(right)[1]]
        if got != required:
            raise ValueError(
                f"rank_update got accumulator {got}; left and right need {required}: pass None, or zeros of that shape"
            )
        accumulator = jnp.asarray(accumulator)
    left, right = (f.matrix() if isinstance(f, Seeded) else jnp.asarray(f) for f in (left, right))
    options = {"accumulator": accumulator, "implementation": implementation}
    return dispatch("rank_update", jnp.asarray(weights), left, right, **options)


def _shape(factor: Factor) -> _Shape:
    return factor.matrix().shape if isinstance(factor, Seeded) else jnp.shape(factor)


def _check_seeds(operation: str, left: Factor, right: Factor) -> None:
    """Raises where one factor is a seed and the other is not, or they differ in kind."""
    seeds = {name: f for name, f in (("left", left), ("right", right)) if isinstance(f, Seeded)}
    for name, seed in seeds.items():
        seed.check(name)
    kinds = {(seed.distribution, jnp.dtype(seed.dtype)) for seed in seeds.values()}
    if len(seeds) == 1 or len(kinds) > 1:
        raise ValueError(
            f"{operation} got left {_described(left)} and right {_described(right)}; both must be arrays, or both "
            "Seeded of one distribution and dtype: call .array() on a Seeded to make it an array"
        )


def _described(factor: Factor) -> str:
    if isinstance(factor, Seeded):
        return f"Seeded ({factor.distribution}, {jnp.dtype(factor.dtype)})"
    return f"an array {list(jnp.shape(factor))}"


def _check_lowrank_dot(x: _Shape, w: _Shape, left: _Shape, right: _Shape) -> None:
    fits = len(x) >= 1 and len(w) == len(left) == len(right) == 2
    if not (fits and x[-1:] == w[:1] == left[:1] and w[1] == right[0] and left[1] == right[1] >= 1):
        raise ValueError(
            f"lowrank_dot got x {list(x)}, w {list(w)}, left {list(left)}, right {list(right)}; "
            "it needs x [..., K], w [K, N], left [K, r], right [N, r] with r >= 1: "
            "transpose or reshape the operands, and use jax.vmap for further axes of w, left or right"
        )


def _check_rank_update(weights: _Shape, left: _Shape, right: _Shape) -> None:
    fits = len(weights) == 1 and len(left) == len(right) == 3
    if not (fits and weights[0] == left[0] == right[0] and left[2] == right[2] >= 1):
        raise ValueError(
            f"rank_update got weights {list(weights)}, left {list(left)}, right {list(right)}; "
            "it needs weights [P], left [P, m, r], right [P, n, r] with r >= 1: "
            "put the members first, and use jax.vmap for further axes"
        )


def _require_floating(operation: str, **arrays: Factor | None) -> None:
    for name, array in arrays.items():
        if array is None:
            continue
        dtype = jnp.dtype(array.dtype) if isinstance(array, Seeded) else jnp.result_type(array)
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(
                f"{operation} got {name} of dtype {dtype}; it needs a floating-point array: "
                f"convert it, for example with {name}.astype(jax.numpy.float32)"
            )
