"""One generation in exact arithmetic, evaluated in chunks of any size and on any number of devices.

Run as a script with a file name and a number of simulated devices, it writes the results of that many devices.

Every number is a small integer times a power of two, so that all sums are exact in float32: what differs in one bit was
computed from other noise or put in another place, not merely rounded in another order.
"""

from __future__ import annotations

import sys
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

import eggroll

POPULATION, GROUPS, SIGMA, RANK = 48, 4, 0.25, 4
LARGE = 3000  # between the losses of the members
KEY = jax.random.key(7, impl="threefry2x32")


def integers(seed: int, shape: tuple[int, ...]) -> jax.Array:
    return jax.device_put(np.random.default_rng(seed).integers(-3, 4, shape).astype(np.float32))


PARAMS = {"kernel": integers(0, (6, 5)), "bias": integers(1, (5,))}
SHARED, PER_GROUP, PER_MEMBER = integers(2, (6,)), integers(3, (GROUPS, 3, 6)), integers(4, (5, POPULATION))
IN_AXES = (None, 0, 1)


def loss(p: Any, shared: Any, rows: Any, offset: Any) -> Any:
    """A sum of squares; every member has its own offset, every group its own rows."""
    return jnp.sum(((rows + shared) @ p["kernel"] + p["bias"] - offset) ** 2)


def loss_and_aux(p: Any, *args: Any) -> Any:
    """Auxiliary output of every kind: in which members differ, and what they share."""
    value = loss(p, *args)
    count = (8 * jnp.abs(p["kernel"]).sum()).astype(jnp.int32)
    aux = {"bias": p["bias"], "count": count, "large": value > LARGE, "key": jax.random.fold_in(KEY, 3)}
    return value, aux


def losses(p: Any, shared: Any, rows: Any, offset: Any) -> Any:
    """One for each row, which are credited one by one."""
    return jnp.sum(((rows + shared) @ p["kernel"] + p["bias"] - offset) ** 2, axis=-1)


def fitness_and_aux(p: Any, *args: Any) -> Any:
    """For `ES.step`."""
    value, aux = loss_and_aux(p, *args)
    return -value, aux


def members_and_losses(p: Any, *args: Any) -> Any:
    """What a member sees, and what it is worth."""
    return p, loss(p, *args)


def settings(chunk: Any, mesh: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """(where members are evaluated, that and all other settings)."""
    where = {"chunk": chunk, "mesh": mesh, "groups": GROUPS, "fallback": "allow"}
    return where, {"population": POPULATION, "sigma": SIGMA, "rank": RANK, "shaping": "sign", **where}


def generation(chunk: Any, mesh: Any = None) -> dict[str, np.ndarray]:
    """What members see and are worth, and the step after them, by name."""
    args = (SHARED, PER_GROUP, PER_MEMBER)
    es = eggroll.ES(optimizer=optax.sgd(2.0**-12), **settings(chunk, mesh)[1])
    state = es.init(PARAMS, KEY)
    out: dict[str, Any] = {"apply": es.ask(state).apply(members_and_losses, *args, in_axes=IN_AXES)}
    new, metrics = es.step(state, fitness_and_aux, *args, in_axes=IN_AXES, has_aux=True)
    return flat(out | {"step": new.params, "step aux": metrics["aux"], "fitness mean": metrics["fitness_mean"]})


def outputs(chunk: Any, mesh: Any = None) -> dict[str, np.ndarray]:
    """Everything that one generation computes, by name."""
    where, options = settings(chunk, mesh)
    args = (SHARED, PER_GROUP, PER_MEMBER)
    estimate = eggroll.value_and_grad(loss_and_aux, has_aux=True, in_axes=IN_AXES, **options)
    (value, aux), grads = estimate(PARAMS, *args, key=KEY)
    out: dict[str, Any] = {"value": value, "aux": aux, "grads": grads}

    for name, axes, given in (("own rows", IN_AXES, args), ("shared", None, (SHARED, PER_GROUP[0], PER_MEMBER[:, 0]))):
        estimate = eggroll.value_and_grad(losses, noise="activations", in_axes=axes, **options)
        out[name] = estimate(PARAMS, *given, key=KEY)

    zeros = jax.tree.map(jnp.zeros_like, PARAMS)  # σ·E alone: one product, rounded once
    normal = eggroll.ES(population=POPULATION, sigma=0.3, distribution="normal", antithetic=False, **where)
    out["normal"] = normal.ask(normal.init(zeros, KEY)).apply(members_and_losses, *args, in_axes=IN_AXES)[0]
    return generation(chunk, mesh) | flat(out)


def flat(tree: Any) -> dict[str, np.ndarray]:
    """Leaves by path, keys as their data."""
    named = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        named[jax.tree_util.keystr(path)] = np.asarray(jax.random.key_data(leaf) if key else leaf)
    return named


def main(file: str, devices: str) -> None:
    """Writes the outputs of `devices` devices."""
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    assert jax.device_count() == int(devices)
    explicit = jax.make_mesh((jax.device_count(),), ("population",))
    automatic = Mesh(np.array(jax.devices()).reshape(2, -1), ("data", "population"))
    layouts = ("auto", explicit), (4, automatic)
    np.savez(file, **{f"{chunk}{name}": a for chunk, mesh in layouts for name, a in outputs(chunk, mesh).items()})


if __name__ == "__main__":
    warnings.simplefilter("ignore", eggroll.RecompilationWarning)  # of one function on several meshes
    main(*sys.argv[1:])
