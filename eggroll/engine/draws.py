"""Random bits that depend on the batch: JAX's `rbg` and `unsafe_rbg` draw those of a whole `vmap` from its first key.

Members would see other bits than alone, two of a pair different ones, and all of them others in other chunks. So where
keys differ between members, each member's bits are drawn by themselves, in a loop. Keys that all share cost nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax

from eggroll.engine import jax_compat
from eggroll.engine.annotations import JaxprEqn

# By primitive: the dtypes of keys whose results are the same in a batch as alone.
_KEPT = {
    "random_bits": ("key<fry>",),
    "random_gamma": ("key<fry>",),
    "random_split": ("key<fry>", "key<rbg>"),
    "random_fold_in": ("key<fry>", "key<rbg>"),
    "rng_bit_generator": (),
}


def draws(eqn: Any) -> bool:
    """Whether the equation draws bits that depend on the batch."""
    kept = _KEPT.get(eqn.primitive.name)
    return kept is not None and str(eqn.invars[0].aval.dtype) not in kept


def draws_inside(eqn: JaxprEqn) -> bool:
    """Whether a jaxpr that the equation calls draws such bits."""
    inner = (jax_compat.open_jaxpr(jaxpr)[0] for jaxpr in jax_compat.inner_jaxprs(eqn))
    return any(draws(e) or draws_inside(e) for jaxpr in inner for e in jaxpr.eqns)


def bind_alone(eqn: JaxprEqn, args: Sequence[Any]) -> list[Any]:
    """Evaluates an equation; of a batch under `vmap`, one after the other."""
    return jax.custom_batching.sequential_vmap(lambda *own: jax_compat.bind(eqn, own))(*args)
