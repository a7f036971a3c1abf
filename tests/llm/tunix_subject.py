"""Tunix's decoders, unmodified, as ordinary Flax functions under the engine; for an interpreter that has google-tunix.

Prints one line of JSON: versions, where eggroll was found, and a report for each model (arguments name some of them).
A dense fallback is an error.
"""

from __future__ import annotations

import json
import platform
import sys
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from tunix.models.llama3.model import Llama3
from tunix.models.llama3.model import ModelConfig as Llama3Config
from tunix.models.qwen2.model import ModelConfig as Qwen2Config
from tunix.models.qwen2.model import Qwen2
from tunix.models.qwen3.model import ModelConfig as Qwen3Config
from tunix.models.qwen3.model import Qwen3

import eggroll

BATCH, TIME, POPULATION = 2, 6, 4
SIZES: dict[str, Any] = {
    "num_layers": 2,
    "vocab_size": 50,
    "embed_dim": 32,
    "hidden_dim": 48,
    "num_heads": 4,
    "head_dim": 8,
    "num_kv_heads": 2,
    "rope_theta": 10_000,
    "norm_eps": 1e-5,
}
# Tied and untied outputs, biases, norms of queries and keys, experts.
MODELS: dict[str, Any] = {
    "llama3": lambda rngs: Llama3(Llama3Config(**SIZES), rngs=rngs),
    "qwen2": lambda rngs: Qwen2(Qwen2Config(**SIZES, use_tied_embedding=True), rngs=rngs),
    "qwen3": lambda rngs: Qwen3(Qwen3Config(**SIZES, use_tied_embedding=True), rngs=rngs),
    "qwen3-experts": lambda rngs: Qwen3(Qwen3Config(**SIZES, num_experts=3, num_experts_per_tok=2), rngs=rngs),
}
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, SIZES["vocab_size"], (BATCH, TIME)), jnp.int32)


def made(name: str) -> tuple[Any, Any]:
    """A model's graph and random parameters: Tunix's zeros (perceptrons, biases) and ones (norms) hide faults."""
    graph, params = nnx.split(MODELS[name](nnx.Rngs(0)), nnx.Param)
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noisy = [leaf + 0.2 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    return graph, jax.tree.unflatten(tree, noisy)


def cache() -> dict[str, Any]:
    """Tunix's own layout of an empty cache."""
    shape = (BATCH, TIME, SIZES["num_kv_heads"], SIZES["head_dim"])
    layer = {"k": jnp.zeros(shape), "v": jnp.zeros(shape), "end_index": jnp.zeros(BATCH, jnp.int32)}
    return {f"layer_{i}": layer for i in range(SIZES["num_layers"])}


def forward(graph: Any) -> Any:
    """`fun(params)` → logits `[batch, time, vocabulary]` at once, and with a cache: a prompt, then one token more."""

    def fun(params: Any) -> tuple[jax.Array, jax.Array]:
        model = nnx.merge(graph, params)
        places = jnp.broadcast_to(jnp.arange(TIME), (BATCH, TIME))
        seen = jnp.broadcast_to(jnp.tril(jnp.ones((TIME, TIME), bool)), (BATCH, TIME, TIME))
        whole, _ = model(TOKENS, places, None, seen)
        first, kept = model(TOKENS[:, :-1], places[:, :-1], cache(), seen[:, :-1])
        last, _ = model(TOKENS[:, -1:], places[:, -1:], kept, seen[:, -1:])
        return whole, jnp.concatenate([first, last], axis=1)

    return fun


def apart(found: Any, wanted: Any) -> float:
    """Largest difference of any logit."""
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True)
    return max(float(np.max(np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)))) for a, b in pairs)


def cross_entropy(logits: Any) -> Any:
    """Of each token by the logits before it."""
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], TOKENS[:, 1:]))


def report(name: str) -> dict[str, Any]:
    """What the engine made of one model, compared with the model itself on each member's dense parameters."""
    graph, params = made(name)
    fun = forward(graph)
    es = eggroll.ES(population=POPULATION, rank=1, sigma=0.05, optimizer=optax.sgd(0.01), fallback="error")
    state = es.init(params, jax.random.key(2))
    members = es.ask(state)
    found = jax.device_get(members.apply(fun))
    alone = jax.jit(fun)
    dense = [jax.device_get(alone(members.materialize(i))) for i in range(POPULATION)]
    kinds = {leaf.path: leaf.kind for leaf in members.plan.leaves}
    after, metrics = es.step(state, lambda params: -cross_entropy(fun(params)[0]))
    own = np.array([-cross_entropy(whole) for whole, _ in dense])
    old, new = (jax.tree.leaves(jax.device_get(of.params)) for of in (state, after))
    return {
        "logits": [apart([x[i] for x in found], dense[i]) for i in range(POPULATION)],
        "between": min(apart(dense[i], dense[j]) for i in range(POPULATION) for j in range(i)),
        "cache": max(apart(whole, cached) for whole, cached in dense),
        "matrices": sum(x.ndim > 1 for x in old),
        "low_rank": sum(kind == "low_rank" for kind in kinds.values()),
        "fitness": float(np.max(np.abs(np.asarray(metrics["fitness"]) - own))),
        "spread": float(np.ptp(own)),
        "parameters": len(old),
        "moved": sum(bool((a != b).any()) for a, b in zip(old, new, strict=True)),
    }


def main() -> None:
    packages = ("google-tunix", "jax", "flax")
    versions = {"python": platform.python_version()} | {name: version(name) for name in packages}
    models = {name: report(name) for name in sys.argv[1:] or MODELS}
    print(json.dumps({"versions": versions, "eggroll": eggroll.__file__, "models": models}))


if __name__ == "__main__":
    main()
