"""Small networks of every form, and a step of each: what the tests of kernels in the strategy share."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

import eggroll
from eggroll.engine import jax_compat
from eggroll.kernels import Choice

KEY = jax.random.key(0, impl="threefry2x32")
ROWS = jnp.asarray(np.random.default_rng(0).normal(size=(6, 20)), jnp.float32)  # one for each member


def params():
    """Two dense layers and a bias."""
    rng = np.random.default_rng(1)
    shapes = {"first": (20, 33), "bias": (33,), "second": (33, 7)}
    return {name: jax.device_put(rng.normal(size=shape).astype(np.float32)) for name, shape in shapes.items()}


def network(p, x):
    return jax.nn.tanh(x @ p["first"] + p["bias"]) @ p["second"]


def scored(fun):
    return lambda p, x: -jnp.mean(fun(p, x) ** 2)


def in_a_scan(p, x):
    """Both layers three times over."""

    def body(x, _):
        return x + (network(p, x) @ jnp.ones((7, 20))) / 100, None

    return lax.scan(body, x, None, length=3)[0]


def layers(p, x):
    """A loop over stacked layers."""

    def body(x, layer):
        return x + network(layer, x) @ jnp.ones((7, 20)) / 10, None

    return lax.scan(body, x, p)[0]


def heads(p, x):
    """The same layers with outputs of 3 heads, whose axes the second one sums over."""
    hidden = jnp.einsum("k,khd->hd", x, p["first"]) + p["bias"]
    return jnp.einsum("hd,hdn->n", jnp.tanh(hidden), p["second"])


def in_half_precision(p, x):
    """Float32 parameters, cast as mixed precision does."""
    half = jax.tree.map(lambda a: a.astype(jnp.bfloat16), p)
    return network(half, x.astype(jnp.bfloat16)).astype(jnp.float32)


def start_of(fun):
    """The parameters of a function; those of `layers` three times, one on top of the other."""
    if fun is heads:
        shapes = {"first": (20, 3, 11), "bias": (3, 11), "second": (3, 11, 7)}
        return {name: value.reshape(shapes[name]) for name, value in params().items()}
    return jax.tree.map(lambda a: jnp.stack([a, a / 2, a / 3]), params()) if fun is layers else params()


FUNCTIONS = {
    "plain": network,
    "jit of remat": jax.jit(jax.checkpoint(network)),
    "scan": in_a_scan,
    "layers": layers,
    "heads": heads,
    "mixed precision": in_half_precision,
    "vmap over data": lambda p, x: jax.vmap(network, in_axes=(None, 0))(p, jnp.stack([x, 2 * x, 3 * x])),
    "several rows": lambda p, x: network(p, jnp.stack([x, -x])),
}


def strategy(**options):
    return eggroll.ES(population=6, sigma=0.1, optimizer=optax.sgd(0.1), shaping="none", **options)


def step(fun, in_axes, **options):
    """((parameters, metrics) after one step, (operation, implementation, parameter) of all seeded products in it)."""
    es, rows = strategy(**options), ROWS if in_axes == 0 else ROWS[0]
    start = es.init(start_of(fun), KEY)

    def stepped(state):
        state, metrics = es.step(state, scored(fun), rows, in_axes=in_axes)
        return state.params, metrics

    traced = jax.jit(stepped).trace(start)
    found = {Choice.in_scope(names) for names in jax_compat.name_stacks(traced.jaxpr)}
    return traced.lower().compile()(start), {choice for choice in found if choice and choice.name}


def asked(fun):
    """(outputs of all members, member 3), each by a program of its own."""
    es = strategy()
    members = es.ask(es.init(start_of(fun), KEY))
    return members.apply(fun, ROWS, in_axes=0), members.materialize(3)
