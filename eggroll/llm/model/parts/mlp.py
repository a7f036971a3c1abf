"""The MLP of a layer, or a mixture of experts in its place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from jax import lax

from eggroll.llm.model.features import DecoderConfig

__all__ = ["linear", "mlp"]

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_pytorch_tanh": jax.nn.gelu,
    "relu": jax.nn.relu,
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),
}


def linear(block: Mapping[str, Any], name: str, x: jax.Array) -> jax.Array:
    """`x [..., inputs]` times a matrix of the layer, with its adapter and its bias if it has them."""
    y = x @ block[name]
    if f"{name}_lora_a" in block:
        y = y + (x @ block[f"{name}_lora_a"]) @ block[f"{name}_lora_b"]
    return y + block[f"{name}_bias"] if f"{name}_bias" in block else y


def mlp(config: DecoderConfig, block: Mapping[str, Any], x: jax.Array) -> jax.Array:
    """What the MLP, or the experts, of a layer make of `x [batch, time, width]`."""
    if config.experts is not None:
        return _experts(config, block, x)
    return _inner(config, lambda name, y: linear(block, name, y), x)


def _inner(config: DecoderConfig, times: Callable[[str, jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """An MLP whose products are `times(name, x)`."""
    activation = ACTIVATIONS[config.activation]
    if not config.gated:
        return times("down", activation(times("up", x)))
    gate, up = times("gate", x), times("up", x)
    if config.gate_limit is None:
        return times("down", activation(gate) * up)
    gate, up = jnp.minimum(gate, config.gate_limit), jnp.clip(up, -config.gate_limit, config.gate_limit)
    return times("down", gate * jax.nn.sigmoid(config.gate_slope * gate) * (up + 1))


def _experts(config: DecoderConfig, block: Mapping[str, Any], x: jax.Array) -> jax.Array:
    """Each token is read by the experts that the router chooses, and by the shared one.

    Tokens are sorted by expert, so that a product by groups reads each expert's weights once.

    References:
        Shazeer et al., "Outrageously Large Neural Networks: The Sparsely-Gated Mixture-of-Experts Layer", arXiv
        1701.06538. Dai et al., "DeepSeekMoE", arXiv 2401.06066, for the shared one.
    """
    experts = config.experts
    assert experts is not None
    tokens = rearrange(x, "batch time width -> (batch time) width")
    shares, chosen = _route(config, block, tokens)
    order = jnp.argsort(chosen.reshape(-1), stable=True)
    group = chosen.reshape(-1)[order]
    sizes = jnp.bincount(group, length=experts.count).astype(jnp.int32)

    def times(name: str, rows: jax.Array) -> jax.Array:
        y = lax.ragged_dot(rows, block[name], sizes, preferred_element_type=jnp.float32).astype(rows.dtype)
        return y + block[f"{name}_bias"][group] if f"{name}_bias" in block else y

    found = _inner(config, times, tokens[order // experts.chosen])
    found = found[jnp.argsort(order)].reshape(len(tokens), experts.chosen, -1)
    y = jnp.einsum("nkd,nk->nd", found, shares.astype(found.dtype))
    if experts.shared:
        own = _inner(config, lambda name, z: linear(block, f"shared_{name}", z), tokens)
        y = y + (own * jax.nn.sigmoid(linear(block, "shared_router", tokens)) if experts.shared_gate else own)
    return y.reshape(x.shape)


def _route(config: DecoderConfig, block: Mapping[str, Any], tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Shares of the chosen experts, and their numbers, each `[tokens, chosen]`."""
    experts = config.experts
    assert experts is not None
    scores = linear(block, "router", tokens).astype(jnp.float32)
    if experts.among_chosen:
        scores, chosen = lax.top_k(scores, experts.chosen)
        return jax.nn.softmax(scores, axis=-1), chosen
    shares, chosen = lax.top_k(jax.nn.softmax(scores, axis=-1), experts.chosen)
    return shares / shares.sum(axis=-1, keepdims=True) if experts.normed else shares, chosen
