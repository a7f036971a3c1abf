"""A small run, the same in one process and in several.

`python -m tests.training.process_job SPEC`, a JSON object, in each of them.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import eggroll
from eggroll.strategy.generation import Generation
from eggroll.training import processes
from eggroll.training.stopping import StopRequest
from tests.training.process_launch import keep_no_programs, keep_programs_of_each, why

POPULATION, GENERATIONS = 16, 8
X = np.linspace(-1, 1, 20, dtype=np.float32).reshape(5, 4)


def predict(params: Any, x: Any) -> Any:
    return jnp.tanh(x @ params["w"] + params["b"])


def fitness(params: Any, x: Any) -> Any:
    return -jnp.mean((predict(params, x) - 0.5) ** 2)


@cache
def strategy(mesh: Any = None) -> eggroll.ES:
    options = {"rank": 1, "optimizer": optax.adam(0.05), "mesh": mesh, "update": "members"}  # each has it all
    return eggroll.ES(population=POPULATION, sigma=0.1, rules=[("w", eggroll.LowRankRule(rank=1))], **options)


def fresh(es: eggroll.ES) -> eggroll.State:
    params = {"w": jnp.linspace(-0.5, 0.5, 12, dtype=jnp.float32).reshape(4, 3), "b": jnp.zeros(3)}
    return es.init(params, jax.random.key(7))


def save(folder: Path, state: eggroll.State) -> None:
    """By process 0; every leaf as a whole."""
    state = jax.tree.map(lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x, state)
    if processes.is_main():
        np.savez(folder / "part.npz", *map(np.asarray, jax.tree.leaves(state)))
        os.replace(folder / "part.npz", folder / "state.npz")


def load(folder: Path, like: eggroll.State) -> eggroll.State:
    """By any number of processes."""
    leaves, tree = jax.tree.flatten(like)
    with np.load(folder / "state.npz", allow_pickle=False) as file:
        saved = [file[f"arr_{i}"] for i in range(len(leaves))]
    keys = [jnp.issubdtype(x.dtype, jax.dtypes.prng_key) for x in leaves]
    return tree.unflatten([jax.random.wrap_key_data(x) if k else x for x, k in zip(saved, keys, strict=True)])


def noise(es: eggroll.ES, state: eggroll.State) -> dict[str, Any]:
    """The words of this process's pairs in the state's generation, and its first pair's parameters."""
    members = es.ask(state)
    members.apply(predict, X)
    words = jax.jit(lambda state: Generation(es.settings, members.plan, es._key(state), es._sigma(state)).words())(
        state
    )
    shards = {s.index[0].indices(POPULATION // 2)[0]: np.asarray(s.data).tolist() for s in words.addressable_shards}
    first = jax.tree.map(lambda x: np.asarray(x).tolist(), [members.materialize(0), members.materialize(1)])
    return {"words": shards, "members": first}


def one(es: eggroll.ES, state: eggroll.State, spec: dict[str, Any], log: dict[str, Any]) -> Any:
    """A generation: the odd ones in a compiled step, the even ones with rewards from the host."""
    generation = int(state.generation)
    if generation % 2:
        return es.step(state, fitness, X)
    scored: list[int] = []

    def reward(output: Any, member: int) -> float:
        scored.append(member)
        if member in spec.get("raise_for", {}).get(str(generation), ()):
            raise KeyError(f"no answer in generation {generation}")
        return -float(np.mean((output - 0.5) ** 2))

    members = es.ask(state)
    scores = processes.score(members.apply(predict, X), reward, numbered=True)
    log["scored"][generation], log["failed"][generation] = scored, [scores.failed, scores.error]
    return es.tell(state, members, scores.fitness)


def run(spec: dict[str, Any]) -> dict[str, Any]:
    """Generations until the last, or until one process is asked to stop."""
    folder, me = Path(spec["folder"]), spec.get("id", 0)
    alone = spec.get("processes", 1) == 1
    es = strategy(None if alone else jax.make_mesh((jax.device_count(),), ("population",)))  # compiled once
    state = fresh(es)
    log: dict[str, Any] = {
        "scored": {},
        "failed": {},
        "means": {},
        "params": {},
        "noise": noise(es, state) if spec.get("noise") else None,
    }
    if (folder / "state.npz").exists():
        state = load(folder, state)
    processes.same("population 16", "settings")
    with StopRequest() as stop:
        for generation in range(int(state.generation), spec.get("generations", GENERATIONS)):
            signals = spec.get("signals", {}).get(str(generation), [None, None])
            with processes.watching(generation):
                if signals[0] == me:
                    os.kill(os.getpid(), getattr(signal, signals[1]))
                if spec.get("error") == [me, generation]:
                    raise ZeroDivisionError("a bug in one process")
                if spec.get("exit") == [me, generation]:
                    sys.exit(3)
                state, metrics = one(es, state, spec, log)
                log["means"][generation] = float(metrics["fitness_mean"])
                log["params"][generation] = jax.tree.map(lambda x: np.asarray(x).tolist(), state.params)
                ends = processes.agree(stop.asked)
            save(folder, state)
            if generation == 2:  # both kinds are compiled
                keep_no_programs(spec)
            if ends:
                break
    log["generation"] = int(state.generation)
    return log


def shared_out() -> list[int]:
    """The members of this process among outputs that every process holds twice: halves lie across all processes."""
    across = np.array(jax.devices()).reshape(jax.process_count(), -1).T
    where = jax.NamedSharding(jax.sharding.Mesh(across, ("population", "model")), jax.P("population"))
    rows = np.arange(POPULATION * 3.0, dtype=np.float32).reshape(POPULATION, 3)
    numbers, host = processes.local_members(jax.make_array_from_callback(rows.shape, where, lambda index: rows[index]))
    np.testing.assert_array_equal(host, rows[numbers])
    return numbers.tolist()


def main(spec: dict[str, Any]) -> None:
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    keep_programs_of_each()
    options = {name: spec[name] for name in ("local_devices", "timeout", "lost_after") if name in spec}
    processes.start(spec["coordinator"], spec["processes"], spec["id"], **options)
    log = run(spec)
    log["shared_out"] = shared_out()
    log["everyone"] = processes.score(np.arange(5.0), lambda output: output).fitness.tolist()
    log["differ"] = why(lambda: processes.same(f"process {spec['id'] // 2}", "the data"))
    log["all_raise"] = why(lambda: processes.score(np.arange(5.0), lambda output: [][0]))
    (Path(spec["folder"]) / f"{spec['id']}.json").write_text(json.dumps(log), encoding="utf-8")
    processes.stop()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
