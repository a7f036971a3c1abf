"""A small run, the same in one process and in several: `python process_job.py SPEC`, a JSON object, in each of them."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import eggroll
from eggroll.training import processes
from eggroll.training.stopping import StopRequest

POPULATION, GENERATIONS = 16, 8
X = np.linspace(-1, 1, 20, dtype=np.float32).reshape(5, 4)


def predict(params: Any, x: Any) -> Any:
    return jnp.tanh(x @ params["w"] + params["b"])


def fitness(params: Any, x: Any) -> Any:
    return -jnp.mean((predict(params, x) - 0.5) ** 2)


def strategy(mesh: Any = None) -> eggroll.ES:
    options = {"rank": 1, "optimizer": optax.adam(0.05), "mesh": mesh}
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
    words = jax.jit(lambda state: es._generation(members.plan, state).words())(state)
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
        if spec.get("raise_all") or member in spec.get("raise_for", {}).get(str(generation), ()):
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
    es = strategy(None if alone else jax.make_mesh((jax.device_count(),), ("population",)))
    state = fresh(es)
    log: dict[str, Any] = {"scored": {}, "failed": {}, "means": {}, "noise": noise(es, state)}
    if (folder / "state.npz").exists():
        state = load(folder, state)
    processes.same(f"settings of {spec.get('settings', 'all')}", "settings")
    with StopRequest() as stop:
        for generation in range(int(state.generation), spec.get("generations", GENERATIONS)):
            signals = spec.get("signals", {}).get(str(generation), [None, None])
            with processes.watching(generation):
                if signals[0] == me:
                    os.kill(os.getpid(), getattr(signal, signals[1]))
                if spec.get("error") == [me, generation]:
                    raise ZeroDivisionError("a bug in one process")
                state, metrics = one(es, state, spec, log)
                log["means"][generation] = float(metrics["fitness_mean"])
                ends = processes.agree(stop.asked)
            save(folder, state)
            if ends:
                break
    log["params"] = jax.tree.map(lambda x: np.asarray(x).tolist(), state.params)
    log["generation"] = int(state.generation)
    return log


def main(spec: dict[str, Any]) -> None:
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    options = {name: spec[name] for name in ("local_devices", "timeout", "lost_after") if name in spec}
    processes.start(spec["coordinator"], spec["processes"], spec["id"], **options)
    log = run(spec)
    (Path(spec["folder"]) / f"{spec['id']}.json").write_text(json.dumps(log), encoding="utf-8")
    processes.stop()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
