"""Convolutions: a perturbed kernel filters to `rank` channels, then mixes the channels into the output features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from eggroll.engine.annotations import JaxprEqn
from eggroll.engine.interpreter import Interpreter, Unsupported
from eggroll.engine.perturbed import Array, Factor, Perturbed, Term, accumulator_dtype
from eggroll.engine.rules.products import aligned, refuse_narrow


def conv_general_dilated(ctx: Interpreter, eqn: JaxprEqn, args: Sequence[Any]) -> list[Any]:
    """A convolution is linear in its kernel: `conv(x, K + l⊗r) = conv(x, K) + conv(x, l)·r`.

    Holds for any strides, padding and dilation of input (transposed convolution) or kernel. With feature groups, `l`
    filters every group and `r` mixes each group's own channels.
    """
    x, kernel = args
    if isinstance(x, Perturbed):
        raise Unsupported("a perturbed value as the image of a convolution")
    if eqn.params["batch_group_count"] != 1:
        raise Unsupported("a convolution with batch groups")
    out_axis, *inner = eqn.params["dimension_numbers"].rhs_spec
    if ctx.product(eqn, kernel, inner, ()):
        return [ctx.base(eqn, args)]
    refuse_narrow(eqn)
    own = () if kernel.scale is None else kernel.scale.factors
    if any(set(f.axes) - {out_axis} for f in own):
        raise Unsupported("a kernel whose inputs every member scales by numbers of its own")
    split = [_split(t.without_scale(), out_axis) for t in kernel.terms]
    base = ctx.base(eqn, args)
    wide = accumulator_dtype(base.dtype)
    total = base.astype(wide)
    for filters, mix in split:
        total = total + _Correction(eqn, kernel.shape, filters, mix).apply(x, wide)
    feature = eqn.params["dimension_numbers"].out_spec[1]
    for f in own:
        total = total * aligned(f.array, [feature] * len(f.axes), range(total.ndim))[..., 0].astype(wide)
    return [total.astype(base.dtype)]


def _split(term: Term, out_axis: int) -> tuple[Factor, Factor | None]:
    """The factor on the input side, and the one on the output features."""
    mix = [f for f in term.factors if f.axes == (out_axis,)]
    filters = [f for f in term.factors if out_axis not in f.axes]
    if len(filters) != 1 or len(mix) + 1 != len(term.factors):
        raise Unsupported("a kernel whose factors do not part input side and output features")
    return filters[0], mix[0] if mix else None


@dataclass(frozen=True)
class _Correction:
    eqn: JaxprEqn
    kernel_shape: Sequence[int]
    filters: Factor
    mix: Factor | None

    def apply(self, x: Array, dtype: DTypeLike) -> Array:
        params = self.eqn.params
        thin = lax.conv_general_dilated_p.bind(
            x, self._thin_kernel(x.dtype), **{**params, "preferred_element_type": dtype}
        )
        feature = params["dimension_numbers"].out_spec[1]
        return self._mix(jnp.moveaxis(thin, feature, -1), feature)

    def _thin_kernel(self, dtype: DTypeLike) -> Array:
        """The input-side factor as a kernel with `groups · rank` output channels."""
        out_axis, *inner = self.eqn.params["dimension_numbers"].rhs_spec
        f = self.filters
        for axis in sorted(set(inner) - set(f.axes)):
            f = f.expand(axis, self.kernel_shape[axis])
        kernel = jnp.moveaxis(f.array, -1, out_axis)
        repeats = [1] * kernel.ndim
        repeats[out_axis] = self.eqn.params["feature_group_count"]
        return jnp.tile(kernel, repeats).astype(dtype)

    def _mix(self, thin: Array, feature: int) -> Array:
        """`[..., groups·rank] → [..., out]`, then the feature axis goes back to its place."""
        groups = self.eqn.params["feature_group_count"]
        rank = thin.shape[-1] // groups
        out = self.kernel_shape[self.eqn.params["dimension_numbers"].rhs_spec[0]]
        mix = jnp.ones((out, rank), thin.dtype) if self.mix is None else self.mix.array.astype(thin.dtype)
        thin = thin.reshape(*thin.shape[:-1], groups, 1, rank)
        mix = mix.reshape(groups, out // groups, rank)
        total = thin[..., 0] * mix[..., 0]
        for k in range(1, rank):
            total = total + thin[..., k] * mix[..., k]
        return jnp.moveaxis(total.reshape(*thin.shape[:-3], out), -1, feature)


RULES = {"conv_general_dilated": conv_general_dilated}
