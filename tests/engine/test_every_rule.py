"""Every rule of the engine, on weights of any shape, ownership and rank."""

from __future__ import annotations

from unittest import mock

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from jax.extend.core.primitives import closed_call_p

from eggroll.engine.rules import RULES
from tests.engine.truth import check, check_never_dense, compressible, integers, low_rank, weights


def closed_call(fun):
    def call(*args):
        params = {"call_jaxpr": jax.make_jaxpr(fun)(*args)}
        return closed_call_p.bind(*args, **closed_call_p.get_bind_params(params))[0]

    return call


@jax.custom_vjp
def own_backward(w):
    return -w


own_backward.defvjp(lambda w: (-w, None), lambda _, g: (5 * g,))


@jax.custom_jvp
def own_forward(w):
    return -w


own_forward.defjvp(lambda w, t: (-w[0], 5 * t[0]))


def convolved(w):
    return lax.conv_general_dilated(
        jnp.ones((1, 5, w.shape[1])), w, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
    )


def ragged(w):
    return lax.ragged_dot(jnp.ones((4, w.shape[1])), w, jnp.arange(w.shape[0]))


def total(w):
    return jnp.tensordot(w, jnp.ones(w.shape), w.ndim)


def device():
    return jax.sharding.SingleDeviceSharding(jax.devices()[0])


# One function per rule, that makes the primitive out of a weight; shapes are drawn, so none is named here.
USES = {
    "transpose": lambda w: w[None].T,
    "squeeze": lambda w: lax.squeeze(w[:1], (0,)),
    "broadcast_in_dim": lambda w: jnp.broadcast_to(w, (2, *w.shape)),
    "rev": lambda w: jnp.flip(w),
    "reshape": lambda w: w.reshape(1, *w.shape[:1], 1, *w.shape[1:]),
    "slice": lambda w: lax.slice_in_dim(w, 0, 1),
    "split": lambda w: lax.split(w, [1, w.shape[0] - 1])[1],
    "unstack": lambda w: jnp.unstack(w)[-1],
    "dynamic_slice": lambda w: lax.dynamic_slice_in_dim(w, jnp.argmax(jnp.arange(3)), 1),
    "gather": lambda w: jnp.take(w, jnp.array([0, 0]), 0),
    "concatenate": lambda w: jnp.concatenate([w, w, jnp.ones(w.shape)]),
    "pad": lambda w: jnp.pad(w, 1, constant_values=2.0),
    "tile": lambda w: jnp.tile(w, range(2, 2 + w.ndim)),
    "select_n": lambda w: jnp.where(jnp.arange(w.shape[0]).reshape(-1, *[1] * (w.ndim - 1)) > 0, w, 2.0),
    "dynamic_update_slice": lambda w: lax.dynamic_update_slice(jnp.ones(w.shape), w[:1], [0] * w.ndim),
    "scatter": lambda w: w.at[jnp.array([0, 0])].set(2.0),
    "scatter-add": lambda w: w.at[0].add(w[-1]),
    "cumsum": lambda w: jnp.cumsum(w, 0),
    "fft": lambda w: jnp.fft.fft(w).real,
    "complex": lambda w: lax.complex(w, 2 * w).imag,
    "real": lambda w: w.astype(jnp.complex64).real,
    "imag": lambda w: (w.astype(jnp.complex64) * 1j).imag,
    "conj": lambda w: jnp.conj(w.astype(jnp.complex64)).real,
    "ragged_dot_general": ragged,
    "stack": lambda w: jnp.stack([w, jnp.ones(w.shape), w], -1),
    "add": lambda w: w + w,
    "add_any": lambda w: jax.linear_transpose(lambda v: v + v, w)(w)[0],
    "sub": lambda w: 1.0 - w,
    "mul": lambda w: 2.0 * w,
    "div": lambda w: w / 2.0,
    "neg": lambda w: -w,
    "reduce_sum": lambda w: w[:, None].sum(1),
    "square": lambda w: jnp.square(w).sum(),
    "integer_pow": lambda w: lax.integer_pow(w, 2).sum(),
    "copy": lambda w: jnp.copy(w),
    "stop_gradient": lambda w: lax.stop_gradient(w),
    "convert_element_type": lambda w: w.astype(jnp.bfloat16).astype(jnp.float32),
    "optimization_barrier": lambda w: lax.optimization_barrier(w),
    "sharding_constraint": lambda w: lax.with_sharding_constraint(w, device()),
    "dot_general": lambda w: jnp.tensordot(w, jnp.ones((w.shape[-1], 2)), 1),
    "conv_general_dilated": convolved,
    "jit": jax.jit(lambda w: -w),
    "call": closed_call(lambda w: -w),
    "remat2": jax.checkpoint(lambda w: -w),
    "custom_jvp_call": own_forward,
    "custom_vjp_call": own_backward,
    "scan": lambda w: lax.scan(lambda c, row: (c + total(row), None), jnp.float32(0), w)[0],
    "while": lambda w: lax.while_loop(lambda c: c < 100, lambda c: c + jnp.abs(total(w)) + 50, jnp.float32(0)),
    "cond": lambda w: lax.cond(jnp.arange(2)[1] == 1, lambda w: -w, lambda w: w, w),
}
# Names of one primitive in other versions of JAX; `closed_call_p.name` is the one in use.
OTHER_NAMES = {
    "call": {"closed_call", "eval_jaxpr", "core_call"},
    "jit": {"pjit"},
    "remat2": {"remat", "checkpoint"},
    "custom_vjp_call": {"custom_vjp_call_jaxpr"},
    "copy": {"copy_p"},
}
# What comes out of these may be as large as the weight, but is no weight.
SUMMING = {"dot_general", "conv_general_dilated", "gather", "ragged_dot_general", "reduce_sum"}
# What lies along an axis of no factor makes one own it; a map along an axis of both, or places, have no factored form.
KINDS = {name: "lrb" for name in ("gather", "select_n", "dynamic_update_slice", "scatter", "scatter-add", "pad")}
KINDS |= {name: "lr" for name in ("cumsum", "fft")}
OF_THREE_AXES = {"conv_general_dilated", "ragged_dot_general"}


def test_every_rule_is_listed():
    assert set(RULES) == set(USES).union(*OTHER_NAMES.values())


@st.composite
def kernels(draw):
    """Of a convolution, whose rule keeps the output features apart from the rest."""
    shape = draw(st.lists(st.integers(1, 3), min_size=3, max_size=3))
    sides = draw(st.permutations([(0, 1), (2,)]))
    return low_rank(draw(st.integers(0, 99)), shape, *sides, draw(st.integers(1, 4)))


@pytest.mark.parametrize("name", USES)
@settings(max_examples=settings().max_examples // 3)
@given(data=st.data())
def test_a_rule_is_right_and_is_the_one_applied(name, data):
    """The product that follows sees a wrong value, owner or sign; no fallback is allowed."""
    w = data.draw(kernels() if name in OF_THREE_AXES else weights(max_ndim=3, kinds=KINDS.get(name, "lrbn")))
    primitive = closed_call_p.name if name == "call" else name
    applied = []

    def rule(*args, rule=RULES[primitive]):
        outs = rule(*args)
        applied.append(primitive)
        return outs

    x = integers(7, jax.eval_shape(USES[name], w.base).shape)
    fun = lambda w, x: jnp.tensordot(USES[name](w), x, x.ndim)  # noqa: E731
    with mock.patch.dict(RULES, {primitive: rule}):
        check(fun, w, x, tolerance=1e-6 if name == "fft" else 0.0)
    assert applied
    if compressible(w) and x.size == w.base.size and name not in SUMMING:
        check_never_dense(fun, w, x)
