"""Three generations of several problems on meshes of simulated devices, and what crosses them.

Run as a script with a file name it writes what `runs` made: arrays by name, and facts as JSON beside them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

import eggroll
from bench.tools.collectives import collectives, crossing
from eggroll.strategy.population import AXIS

KEY = jax.random.key(7, impl="threefry2x32")
POPULATION, SIGMA, STEPS = 32, 0.05, 3
COMPILED: list[str] = []  # names of compilations since it was cleared
MESHES = {
    "2": (2, 1),
    "4": (4, 1),
    "8": (8, 1),
    "2x4": (2, 4),
    "4x2": (4, 2),
}


class Problem(NamedTuple):
    """Parameters, a fitness, its arguments, and how the parameters are split where the mesh has a second axis."""

    params: Any
    fitness: Callable[..., Any]
    args: tuple
    sharding: Any
    options: Any = None
    has_aux: bool = False


def numbers(seed: int, *shape: int, dtype: Any = np.float32, scale: float = 1.0) -> np.ndarray:
    return (scale * np.random.default_rng(seed).normal(size=shape)).astype(dtype)


def mlp_fitness(p: Any, x: Any, y: Any) -> Any:
    """The negative mean squared error of two dense layers."""
    hidden = jnp.tanh(x @ p["first"]["kernel"] + p["first"]["bias"])
    out = hidden @ p["second"]["kernel"] + p["second"]["bias"]
    return -jnp.mean((out - y).astype(jnp.float32) ** 2)


def mlp(dtype: Any = np.float32, **options: Any) -> Problem:
    sizes = {"first": (8, 64), "second": (64, 8)}
    params = {
        name: {"kernel": numbers(i, *shape, scale=0.3).astype(dtype), "bias": np.zeros(shape[1], dtype)}
        for i, (name, shape) in enumerate(sizes.items())
    }
    args = numbers(5, 6, 8).astype(dtype), numbers(6, 6, 8).astype(dtype)
    rules = [("first/kernel", P(None, "model")), ("first/bias", P("model")), ("second/kernel", P("model"))]
    return Problem(params, mlp_fitness, args, rules, options)


def mixed() -> Problem:
    """Normal noise without pairs, dense or of rank 2; further output, numbers and an index, averaged over members."""

    def fitness(p: Any, x: Any, y: Any) -> Any:
        return mlp_fitness(p, x, y), {"mean": p["second"]["bias"], "largest": jnp.argmax(p["first"]["bias"])}

    made = mlp(rules=[("first/.*", "dense")], distribution="normal", antithetic=False, rank=2)
    return made._replace(fitness=fitness, has_aux=True)


def transformer_fitness(p: Any, tokens: Any, following: Any) -> Any:
    """Mean log likelihood of a decoder whose layers a scan walks."""

    def layer(x: Any, w: Any) -> tuple[Any, None]:
        y = x * jax.lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-6) * w["norm"]
        q, k, v = (jnp.einsum("btd,dhe->bthe", y, w[name]) for name in ("q", "k", "v"))
        scores = jnp.einsum("bthe,bshe->bhts", q, k) / 4
        mask = jnp.tril(jnp.ones(scores.shape[-2:], bool))
        weights = jax.nn.softmax(jnp.where(mask, scores, -1e9), -1)
        x = x + jnp.einsum("bhts,bshe,hed->btd", weights, v, w["out"])
        return x + jax.nn.relu(x @ w["up"]) @ w["down"], None

    x, _ = jax.lax.scan(layer, p["embedding"][tokens], p["layers"])
    logits = x @ p["head"]
    return -optax.softmax_cross_entropy_with_integer_labels(logits, following).mean()


def transformer() -> Problem:
    depth, width, heads, inner, words = 2, 16, 4, 32, 24
    shapes = {
        "q": (width, heads, width // heads),
        "k": (width, heads, width // heads),
        "v": (width, heads, width // heads),
        "out": (heads, width // heads, width),
        "up": (width, inner),
        "down": (inner, width),
    }
    layers = {n: numbers(i, depth, *s, scale=0.2) for i, (n, s) in enumerate(shapes.items())}
    params = {
        "embedding": numbers(11, words, width),
        "layers": {**layers, "norm": np.ones((depth, width), np.float32)},
        "head": numbers(12, width, words, scale=0.2),
    }
    heads_split = P(None, None, "model")
    rules = [
        ("layers/[qkv]", heads_split),
        ("layers/out", P(None, "model")),
        ("layers/up", P(None, None, "model")),
        ("layers/down", P(None, "model", None)),
        ("embedding", P("model")),
        ("head", P(None, "model")),
    ]
    text = np.random.default_rng(3).integers(0, words, (2, 7)).astype(np.int32)
    return Problem(params, transformer_fitness, (text[:, :-1], text[:, 1:]), rules)


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "mlp": mlp,
    "transformer": transformer,
    "mixed": mixed,
    "bfloat16": lambda: mlp(jnp.bfloat16),
    "frozen": lambda: mlp(jnp.bfloat16, rules=[("second/.*", "frozen")], optimizer=optax.adafactor(1e-2)),
}


def strategy(problem: Problem, mesh: Mesh | None, update: str = "auto", **more: Any) -> eggroll.ES:
    options: dict[str, Any] = {"optimizer": optax.adam(1e-2), "chunk": 8, **(problem.options or {}), **more}
    sharding = problem.sharding if mesh is not None and mesh.shape["model"] > 1 else None
    options |= {"mesh": mesh, "sharding": sharding, "update": update, "fallback": "allow"}
    return eggroll.ES(population=POPULATION, sigma=SIGMA, **options)


def run(problem: Problem, mesh: Mesh | None, update: str = "auto") -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Three generations: (arrays by name, facts)."""
    es = strategy(problem, mesh, update)
    state = first = es.init(problem.params, KEY)
    # Compiled once, for its result and for what crosses the mesh in it.
    forward = jax.jit(lambda s, *args: es.ask(s).apply(problem.fitness, *args)).lower(state, *problem.args).compile()
    out: Any = {"apply": forward(state, *problem.args)}
    members = es.ask(state)
    out["materialize"] = [members.materialize(i) for i in (0, 3)]
    told, _ = es.tell(state, members, numbers(9, POPULATION))
    out["told"] = told.params, told.master
    for step in range(STEPS):
        state, metrics = es.step(state, problem.fitness, *problem.args, has_aux=problem.has_aux)
        COMPILED.clear() if step == 0 else None
    out |= {"params": state.params, "master": state.master, "opt_state": state.opt_state}
    out |= {"fitness": metrics["fitness"], "norms": [metrics["gradient_norm"], metrics["update_norm"]]}
    out |= {"aux": metrics["aux"]} if problem.has_aux else {}
    facts: dict[str, Any] = {"update": es.update, "compiled": len(COMPILED)}
    if mesh is not None:
        facts |= facts_of(es, problem, mesh, first, state, metrics)
        facts["forward"] = crossings(forward, mesh)
    return flat(out), facts


def gradients(mesh: Mesh | None) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Of plain parameters, whose sharding is a pytree, and of a Flax module, by rules."""
    problem = mlp()
    tree = {"first": {"kernel": P(None, "model"), "bias": None}, "second": {"kernel": P("model"), "bias": P()}}
    options: dict[str, Any] = {"population": POPULATION, "sigma": SIGMA, "mesh": mesh}
    plain = eggroll.value_and_grad(lambda p, *args: -mlp_fitness(p, *args), sharding=tree if mesh else None, **options)(
        problem.params, *problem.args, key=KEY
    )
    model = nnx.Linear(8, 8, rngs=nnx.Rngs(0))
    rules = [("kernel", P("model"))] if mesh else None
    step = eggroll.nnx.value_and_grad(lambda m, x: (m(x) ** 2).mean(), sharding=rules, **options)
    out = {"plain": plain, "nnx": jax.tree.leaves(step(model, problem.args[0], key=KEY))}
    return flat(out), {jax.tree_util.keystr(k): str(x.sharding.spec) for k, x in leaves_of(out)} if mesh else {}


def leaves_of(tree: Any) -> Any:
    return jax.tree_util.tree_leaves_with_path(tree)


def facts_of(es: Any, problem: Problem, mesh: Mesh, first: Any, state: Any, metrics: Any) -> dict[str, Any]:
    pairs = list(zip(jax.tree.leaves(first), jax.tree.leaves(state), strict=True))
    step = jax.jit(lambda s, *args: es.step(s, problem.fitness, *args, has_aux=problem.has_aux))
    kept = leaves_of((state.params, state.master, state.opt_state))
    return {
        "moved": [str(b.sharding) for a, b in pairs if not a.sharding.is_equivalent_to(b.sharding, a.ndim)],
        "whole": all(x.sharding.is_fully_replicated for x in jax.tree.leaves(metrics)),
        "specs": {jax.tree_util.keystr(k): str(x.sharding.spec) for k, x in kept},
        "step": crossings(step.lower(state, *problem.args).compile(), mesh),
    }


def crossings(compiled: Any, mesh: Mesh) -> list[dict[str, Any]]:
    """The collectives of a compiled function that cross the population."""
    found = crossing(collectives(compiled), mesh, AXIS)
    return [{"kind": c.kind, "bytes": c.bytes, "times": c.times, "name": c.name} for c in found]


def flat(tree: Any) -> dict[str, np.ndarray]:
    wide = lambda x: x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x  # noqa: E731
    return {jax.tree_util.keystr(k): np.asarray(wide(x)) for k, x in leaves_of(tree)}


def mesh_of(name: str) -> Mesh:
    shape = MESHES[name]
    return Mesh(np.array(jax.devices()[: shape[0] * shape[1]]).reshape(shape), ("population", "model"))


def note_compilation(event: str, seconds: float, **_: Any) -> None:
    if "backend_compile" in event:
        COMPILED.append(event)


def main(file: str, *wanted: str) -> None:
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    jax.monitoring.register_event_duration_secs_listener(note_compilation)
    arrays, facts = {}, {}
    for case in wanted:
        problem, mesh, update = case.split(",")
        where = None if mesh == "none" else mesh_of(mesh)
        found, told = gradients(where) if problem == "gradients" else run(PROBLEMS[problem](), where, update)
        arrays |= {f"{case}|{name}": a for name, a in found.items()}
        facts[case] = told
    np.savez(file, facts=json.dumps(facts), **arrays)


if __name__ == "__main__":
    main(*sys.argv[1:])
