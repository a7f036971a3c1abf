"""Convolutions: a perturbed kernel filters to `rank` channels and mixes these into the outputs, or mixes first."""

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
    filters every group and `r` mixes each group's own channels. Where `r` lies along the inputs, as in a decoder
    that is tied to its encoder, it mixes them before `l` filters.
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
    corrections = [_Correction.of(eqn, kernel.shape, t.without_scale()) for t in kernel.terms]
    base = ctx.base(eqn, args)
    wide = accumulator_dtype(base.dtype)
    total = base.astype(wide)
    for correction in corrections:
        total = total + correction.apply(x, wide)
    feature = eqn.params["dimension_numbers"].out_spec[1]
    for f in own:
        total = total * aligned(f.array, [feature] * len(f.axes), range(total.ndim))[..., 0].astype(wide)
    return [total.astype(base.dtype)]


@dataclass(frozen=True)
class _Correction:
    """A term of a kernel: `filters` has its spatial axes, `mix` the channels on one side of it, if any factor does."""

    eqn: JaxprEqn
    kernel_shape: Sequence[int]
    filters: Factor
    mix: Factor | None

    @classmethod
    def of(cls, eqn: JaxprEqn, kernel_shape: Sequence[int], term: Term) -> _Correction:
        """Where factors part the output features, or the input features, from the rest."""
        for channels in eqn.params["dimension_numbers"].rhs_spec[:2]:
            mix = [f for f in term.factors if f.axes == (channels,)]
            filters = [f for f in term.factors if channels not in f.axes]
            if len(filters) == 1 and len(mix) + 1 == len(term.factors):
                return cls(eqn, kernel_shape, filters[0], mix[0] if mix else None)
        raise Unsupported("a kernel whose factors part neither output nor input features from the rest")

    def apply(self, x: Array, dtype: DTypeLike) -> Array:
        """The convolution with the term."""
        in_axis = self.eqn.params["dimension_numbers"].rhs_spec[1]
        if self.mix is not None and self.mix.axes == (in_axis,):
            return self._convolve(self._mixed_first(x, self.mix, dtype), self._filters(in_axis, dtype), dtype)
        thin = self._convolve(x, self._thin_kernel(x.dtype), dtype)
        feature = self.eqn.params["dimension_numbers"].out_spec[1]
        return self._mix(jnp.moveaxis(thin, feature, -1), feature)

    def _convolve(self, x: Array, kernel: Array, dtype: DTypeLike) -> Array:
        return lax.conv_general_dilated_p.bind(x, kernel, **{**self.eqn.params, "preferred_element_type": dtype})

    def _filters(self, rank_axis: int, dtype: DTypeLike) -> Array:
        """The input-side factor, constant along axes that no factor owns, with the rank where the mixed axis was."""
        f = self.filters
        for axis in sorted(set(range(len(self.kernel_shape))) - {rank_axis, *f.axes}):
            f = f.expand(axis, self.kernel_shape[axis])
        return jnp.moveaxis(f.array, -1, rank_axis).astype(dtype)

    def _mixed_first(self, x: Array, mix: Factor, dtype: DTypeLike) -> Array:
        """`[..., groups·in] → [..., groups·rank]`, the features in their place."""
        feature = self.eqn.params["dimension_numbers"].lhs_spec[1]
        x = jnp.moveaxis(x, feature, -1).astype(dtype)
        x = x.reshape(*x.shape[:-1], self.eqn.params["feature_group_count"], mix.array.shape[0])
        thin = jnp.matmul(x, mix.array.astype(dtype), precision=self.eqn.params["precision"])
        return jnp.moveaxis(thin.reshape(*thin.shape[:-2], -1), -1, feature)

    def _thin_kernel(self, dtype: DTypeLike) -> Array:
        """The input-side factor as a kernel with `groups · rank` output channels."""
        out_axis = self.eqn.params["dimension_numbers"].rhs_spec[0]
        repeats = [1] * len(self.kernel_shape)
        repeats[out_axis] = self.eqn.params["feature_group_count"]
        return jnp.tile(self._filters(out_axis, dtype), repeats)

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
