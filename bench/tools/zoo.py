"""Models as others write them, in which a weight meets something before its input, or no plain layer at all.

Each in its own words, of any width, beside the plain layer that costs what it would cost if nothing came between.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module, util
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

diffrax: Any = import_module("diffrax") if util.find_spec("diffrax") else None  # of the tests alone
Params = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One architecture.

    Attributes:
        init: `(key, width)` → parameters.
        apply: `(parameters, x [rows, width])` → outputs.
        plain: the same without what lies between weight and input, on the same parameters.
        factored: whether nothing of it should be made dense.
    """

    init: Callable[[jax.Array, int], Params]
    apply: Callable[[Params, jax.Array], jax.Array]
    plain: Callable[[Params, jax.Array], jax.Array]
    factored: bool = True


def normals(key: jax.Array, **shapes: tuple[int, ...]) -> Params:
    """Matrices of variance one over their inputs."""
    keys = jax.random.split(key, len(shapes))
    return {
        name: jax.random.normal(k, shape) / max(1, shape[-2] if len(shape) > 1 else 1) ** 0.5
        for k, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


def _square(key: jax.Array, n: int) -> Params:
    return normals(key, w=(n, n), g=(n,))


def _plain_layer(p: Params, x: jax.Array) -> jax.Array:
    return (x @ p["w"]) * p["g"]


def weight_norm_equinox(p: Params, x: jax.Array) -> jax.Array:
    """`[out, in]`, one row after the other over its norm, and one vector at a time."""
    w = p["w"] / jnp.linalg.norm(p["w"], axis=1, keepdims=True)
    return jax.vmap(lambda row: (p["g"][:, None] * w) @ row)(x)


def weight_norm_nnx(p: Params, x: jax.Array) -> jax.Array:
    """`[in, out]`: the reciprocal root of the sum of squares, and a scale."""
    total = jnp.sum(jnp.square(p["w"]), axis=0, keepdims=True)
    return x @ (p["w"] * lax.rsqrt(total + 1e-12) * p["g"])


def weight_norm_linen(p: Params, x: jax.Array) -> jax.Array:
    """A matrix over its norm, flattened for it and back."""
    flat = p["w"].reshape(-1, p["w"].shape[-1])
    flat = flat / (jnp.sqrt((flat * flat).sum(0)) + 1e-12)
    return x @ (flat.reshape(p["w"].shape) * p["g"])


def _images(x: jax.Array) -> jax.Array:
    return jnp.broadcast_to(x[:, None, None], (x.shape[0], 4, 4, x.shape[1])) * jnp.arange(1.0, 5)[:, None, None]


def _convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _kernel(key: jax.Array, n: int) -> Params:
    return normals(key, kernel=(3, 3, n, n))


def standardised_convolution(p: Params, x: jax.Array) -> jax.Array:
    """As in vision transformers' stems: every filter without its mean, over its deviation."""
    kernel = p["kernel"]
    kernel = kernel - kernel.mean((0, 1, 2), keepdims=True)
    deviation = jnp.sqrt(jnp.mean(kernel * kernel, (0, 1, 2), keepdims=True) + 1e-5)
    return _convolve(_images(x), kernel / deviation)


def merged_lora(p: Params, x: jax.Array) -> jax.Array:
    """The adapter is multiplied out before it meets the input."""
    return x @ (p["w"] + 2.0 * p["a"] @ p["b"])


def unmerged_lora(p: Params, x: jax.Array) -> jax.Array:
    """The same, multiplied with the input first."""
    return x @ p["w"] + 2.0 * (x @ p["a"]) @ p["b"]


def complex_scan(p: Params, x: jax.Array) -> jax.Array:
    """A diagonal state space over the rows, discretised, as S5 has it: two real matrices are a complex one."""
    eigen = lax.complex(-jnp.exp(p["decay"]), p["turn"])
    kept = jnp.exp(eigen * 0.1)
    enter = ((kept - 1) / eigen)[:, None] * lax.complex(p["b"][0], p["b"][1])
    entered = x.astype(enter.dtype) @ enter.T

    def join(left: Any, right: Any) -> Any:
        return left[0] * right[0], right[0] * left[1] + right[1]

    _, states = lax.associative_scan(join, (jnp.broadcast_to(kept, entered.shape), entered))
    return (states @ lax.complex(p["c"][0], p["c"][1]).T).real


def _real_scan(p: Params, x: jax.Array) -> jax.Array:
    b, c, kept = p["b"], p["c"], jnp.exp(-0.1 * jnp.exp(p["decay"])) + p["turn"] * 0
    parts = jnp.stack([x @ b[0].T, x @ b[1].T])

    def join(left: Any, right: Any) -> Any:
        return left[0] * right[0], right[0] * left[1] + right[1]

    _, states = lax.associative_scan(join, (jnp.broadcast_to(kept, parts.shape), parts), axis=1)
    return states[0] @ c[0].T - states[1] @ c[1].T


def _state_space(key: jax.Array, n: int) -> Params:
    return normals(key, b=(2, n, n), c=(2, n, n), decay=(n,), turn=(n,))


def _experts(key: jax.Array, n: int) -> Params:
    return normals(key, router=(n, 4), w=(4, n, n))


def routed_experts(p: Params, x: jax.Array) -> jax.Array:
    """Each row goes to the expert that its router likes best; rows are sorted by expert."""
    expert = jnp.argmax(x @ p["router"], -1)
    order = jnp.argsort(expert)
    out = lax.ragged_dot(x[order], p["w"], jnp.bincount(expert, length=4))
    return out[jnp.argsort(order)]


def _all_experts(p: Params, x: jax.Array) -> jax.Array:
    chosen = jax.nn.one_hot(jnp.argmax(x @ p["router"], -1), 4)
    return jnp.einsum("te,td,edf->tf", chosen, x, p["w"])


def _attention(key: jax.Array, n: int) -> Params:
    return normals(key, q=(n, n), k=(n, n), v=(n, n), bias=(8, 4))


def relative_positions(p: Params, x: jax.Array) -> jax.Array:
    """Attention whose logits get a learned number for each head and bucket of distance."""
    rows = jnp.arange(x.shape[0])
    bucket = jnp.clip(rows[:, None] - rows[None] + 4, 0, 7)
    return _attend(p, x, jnp.moveaxis(p["bias"][bucket], -1, 0))


def _no_positions(p: Params, x: jax.Array) -> jax.Array:
    return _attend(p, x, p["bias"].sum(0)[:, None, None])


def _attend(p: Params, x: jax.Array, bias: jax.Array) -> jax.Array:
    q, k, v = ((x @ p[name]).reshape(x.shape[0], 4, -1) for name in "qkv")
    logits = jnp.einsum("qhd,khd->hqk", q, k) / q.shape[-1] ** 0.5 + bias
    return jnp.einsum("hqk,khd->qhd", jax.nn.softmax(logits), v).reshape(x.shape)


def _implicit(key: jax.Array, n: int) -> Params:
    return {"w": 0.3 * normals(key, w=(n, n))["w"], **normals(key, u=(n, n))}


def fixed_point(p: Params, x: jax.Array) -> jax.Array:
    """A deep-equilibrium layer: the state at which another turn changes nothing."""
    entered = x @ p["u"]

    def moved(carry: Any) -> Any:
        return (carry[2] < 12) & (jnp.abs(carry[0] - carry[1]).max() > 1e-4)

    def turn(carry: Any) -> Any:
        return jnp.tanh(carry[0] @ p["w"] + entered), carry[0], carry[2] + 1

    return lax.while_loop(moved, turn, (jnp.tanh(entered), jnp.zeros_like(x), 0))[0]


def _turns(p: Params, x: jax.Array) -> jax.Array:
    entered = x @ p["u"]
    return lax.fori_loop(0, 10, lambda i, z: jnp.tanh(z @ p["w"] + entered), jnp.tanh(entered))


def _field(p: Params, y: jax.Array) -> jax.Array:
    return jnp.tanh(y @ p["u"]) @ p["w"]


def neural_ode(p: Params, x: jax.Array) -> jax.Array:
    """Sixteen steps of diffrax's Heun method."""
    term = diffrax.ODETerm(lambda t, y, args: _field(p, y))
    steps = diffrax.StepTo(ts=jnp.linspace(0.0, 1.0, 17))
    out = diffrax.diffeqsolve(term, diffrax.Heun(), 0.0, 1.0, None, x, stepsize_controller=steps, max_steps=16).ys
    return out[-1]


def _heun(p: Params, x: jax.Array) -> jax.Array:
    def step(y: jax.Array, _: Any) -> Any:
        first = _field(p, y)
        return y + (first + _field(p, y + first / 16)) / 32, None

    return lax.scan(step, x, None, length=16)[0]


def _hyper(key: jax.Array, n: int) -> Params:
    return normals(key, code=(1, 4), make=(4, n * n), w=(n, n))


def hypernetwork(p: Params, x: jax.Array) -> jax.Array:
    """A small code makes the weight."""
    return x @ (p["w"] + (jnp.tanh(p["code"]) @ p["make"]).reshape(p["w"].shape))


def _no_code(p: Params, x: jax.Array) -> jax.Array:
    return x @ p["w"] + 0 * (p["code"].sum() + p["make"][0, 0])


def tied_convolutions(p: Params, x: jax.Array) -> jax.Array:
    """An autoencoder that decodes with its encoder's kernel, transposed."""
    hidden = jnp.tanh(_convolve(_images(x), p["kernel"]))
    return lax.conv_transpose(
        hidden, p["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), transpose_kernel=True
    )


def _two_convolutions(p: Params, x: jax.Array) -> jax.Array:
    return _convolve(jnp.tanh(_convolve(_images(x), p["kernel"])), p["kernel"])


def _lora(key: jax.Array, n: int) -> Params:
    return normals(key, w=(n, n), a=(n, 4), b=(4, n))


ZOO = {
    "weight norm, as in Equinox": Case(_square, weight_norm_equinox, _plain_layer),
    "weight norm, as in NNX": Case(_square, weight_norm_nnx, _plain_layer),
    "weight norm, as in Linen": Case(_square, weight_norm_linen, _plain_layer),
    "standardised convolution": Case(
        _kernel, standardised_convolution, lambda p, x: _convolve(_images(x), p["kernel"])
    ),
    "merged LoRA": Case(_lora, merged_lora, unmerged_lora),
    "complex scan": Case(_state_space, complex_scan, _real_scan),
    "routed experts": Case(_experts, routed_experts, _all_experts),
    "relative positions": Case(_attention, relative_positions, _no_positions),
    "fixed point": Case(_implicit, fixed_point, _turns),
    "neural ODE": Case(_implicit, neural_ode, _heun),
    "hypernetwork": Case(_hyper, hypernetwork, _no_code, factored=False),  # each member makes a weight of its own
    "tied transposed convolution": Case(_kernel, tied_convolutions, _two_convolutions),
}
