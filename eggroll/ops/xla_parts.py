"""`rank_update` for XLA on GPUs with tensor cores: as one product of bfloat16 numbers.

XLA multiplies float32 at highest precision without tensor cores: on an H200 at 67 TFLOP/s, where bfloat16 makes 989.
Three bfloat16 numbers hold a float32 one, so that three products do for integers such as ±1, six for any float32 noise.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from eggroll.ops.noise import DISTRIBUTIONS
from eggroll.ops.registry import register
from eggroll.ops.seeded import Factor, Seeded, as_array

PARTS = 3


@register("rank_update", "xla_parts", platforms=("gpu",))
def rank_update_parts(
    weights: jax.Array, left: Factor, right: Factor, *, accumulator: jax.Array | None = None
) -> jax.Array:
    """`accumulator + Σ_u weights[u]·A_u·B_uᵀ`, `[m, n]` float32, as accurate as float32 sums are."""
    _check_supported(weights, left, right, accumulator)
    # As in the other kernels, one rounding of each weight's product with noise of half precision.
    half = isinstance(left, Seeded) and jnp.dtype(left.dtype) == jnp.bfloat16
    integers = isinstance(right, Seeded) and DISTRIBUTIONS[right.distribution].integers
    exact = jnp.dtype(right.dtype) == jnp.bfloat16 or integers
    weighted = weights.astype(jnp.float32)[:, None, None] * as_array(left).astype(jnp.float32)
    a, b = _parts(weighted, 1 if half else PARTS), _parts(as_array(right).astype(jnp.float32), 1 if exact else PARTS)
    # 2⁻⁸ for each step of i and of j: beyond the third of them nothing is left of float32.
    pairs = [(i, j) for i in range(len(a)) for j in range(len(b)) if i + j < len(a)]
    members_and_rank = (((0, 2), (0, 2)), ((), ()))
    update = lax.dot_general(
        jnp.concatenate([a[i] for i, _ in pairs]),
        jnp.concatenate([b[j] for _, j in pairs]),
        members_and_rank,
        preferred_element_type=jnp.float32,
    )
    return update if accumulator is None else accumulator.astype(jnp.float32) + update


def _check_supported(weights: jax.Array, left: Factor, right: Factor, accumulator: jax.Array | None) -> None:
    """Raises NotImplementedError for what bfloat16 cannot hold, and where nothing multiplies it fast."""
    kinds = {jnp.dtype(x.dtype) for x in (weights, left, right, accumulator) if x is not None}
    if not kinds <= {jnp.dtype(jnp.float32), jnp.dtype(jnp.bfloat16)}:
        raise NotImplementedError(f"numbers of {', '.join(sorted(map(str, kinds)))}: float32 and bfloat16")
    capability = getattr(jax.local_devices()[0], "compute_capability", "8.0")
    if not capability.replace(".", "").isdigit() or float(capability) < 8:
        raise NotImplementedError(f"a GPU of compute capability {capability}: bfloat16 is fast from 8.0 on")


def _parts(x: jax.Array, count: int) -> list[jax.Array]:
    """float32 → bfloat16 numbers whose sum it is, up to 2⁻⁸ for each of `count`."""
    parts = []
    for _ in range(count):
        parts.append(lax.reduce_precision(x, 8, 7))  # no cast, which XLA may leave out
        x = x - parts[-1]
    return [part.astype(jnp.bfloat16) for part in parts]
