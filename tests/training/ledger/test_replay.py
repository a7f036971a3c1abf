"""A replay gives the live run's parameters and optimizer state, bit for bit, whatever the run was."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import eggroll
from eggroll.strategy import generation as generation_module
from eggroll.training.errors import RunError
from eggroll.training.ledger.journal import Journal
from eggroll.training.ledger.reader import Generation, Reader
from eggroll.training.ledger.rebuilding import Replay, replay
from eggroll.training.optimizers import chain, named, schedule
from tests.training.ledger_runs import KEY, X, Y, assert_same_state, mlp, mlp_fitness, run, strategy

pytestmark = pytest.mark.optimised  # bits, as users get them

COSINE = schedule("cosine_decay_schedule", init_value=0.02, decay_steps=5, alpha=0.1)
ADAM = named("adam", learning_rate=COSINE, b2=0.99)


def stacked() -> dict:
    """Three layers that a scan walks, an embedding, a norm's scale."""
    rng = np.random.default_rng(3)
    shapes = {"layers": (3, 6, 6), "scale": (3, 6), "out": (6, 3)}
    return {
        name: jax.device_put(np.asarray(rng.normal(size=shape) * 0.4, np.float32)) for name, shape in shapes.items()
    }


def stacked_fitness(p, x, y):
    x, _ = jax.lax.scan(lambda h, layer: (jnp.tanh(h @ layer[0]) * layer[1], None), x, (p["layers"], p["scale"]))
    return -jnp.mean((x @ p["out"] - y) ** 2)


def sometimes_nan(p, x, y):
    """In half of the pairs, one of two."""
    up = p["layers"][0]["bias"][:2] > mlp()["layers"][0]["bias"][:2]
    return jnp.where(up.all(), jnp.nan, mlp_fitness(p, x, y))


def also(name, *, slow=True, **options):
    """A case; those that only vary another one are slow: each compiles a step and an update."""
    return pytest.param(options, id=name, marks=[pytest.mark.slow] if slow else [])


RULES = [("layers/0/kernel", "frozen"), ("layers/1/bias", eggroll.DenseRule(sigma_scale=0.5))]
CLIPPED = chain(named("clip_by_global_norm", max_norm=0.5), named("adamw", learning_rate=COSINE, weight_decay=0.1))
SLOWER = optax.cosine_decay_schedule(0.1, 7, alpha=0.1)
CASES = [  # each value of each setting once, with the others spread over as few runs as can be
    also(
        "rules, clipping, adamw, normal, rank 2",
        slow=False,
        rules=RULES,
        optimizer=CLIPPED,
        distribution="normal",
        rank=2,
    ),
    also("sigma schedule, no pairs", slow=False, sigma=SLOWER, antithetic=False, population=7, shaping="centered_rank"),
    also("groups, reused noise, chunks, adam", groups=2, shaping="group", noise_reuse=3, chunk=2, optimizer=ADAM),
    also(
        "momentum, sigma in steps, own shaping, chunks",
        optimizer=named("sgd", learning_rate=COSINE, momentum=0.9, nesterov=True),
        sigma=optax.piecewise_constant_schedule(0.1, {2: 0.3, 4: 0.7}),
        shaping=lambda fitness: jnp.tanh(fitness - fitness.mean()),
        **{"population": 12, "chunk": 2},
    ),
    also("sigma schedule of numbers", sigma=optax.constant_schedule(0.07)),
    also("sigma schedule of an array", sigma=lambda generation: jnp.float32(0.07), optimizer=ADAM),
]


@pytest.mark.parametrize("options", CASES)
def test_every_generation_is_bit_equal_to_the_live_one(options, tmp_path):
    states = run(tmp_path / "ledger.bin", 6, es=strategy(**options))
    seen = [states[0]]
    made = Replay(mlp(), tmp_path / "ledger.bin")
    last = made.run(on_generation=seen.append)
    assert last is seen[-1] and made.generations == 6 and made.inexact == 0
    for got, want in zip(seen, states, strict=True):
        assert_same_state(got, want)
    assert jax.tree.structure(last.params) == jax.tree.structure(states[-1].params)


NETWORKS = [
    also("bfloat16", base=mlp(jnp.bfloat16)),
    also("scan, rank 2, normal", base=stacked(), fitness=stacked_fitness, rank=2, distribution="normal"),
    also("NaN members", slow=False, base=mlp(), fitness=sometimes_nan, population=16),
    also("float16", base=mlp(jnp.float16), distribution="normal"),
]


@pytest.mark.parametrize("options", NETWORKS)
def test_networks(options, tmp_path):
    base, fitness = options["base"], options.get("fitness", mlp_fitness)
    options = {name: value for name, value in options.items() if name not in ("base", "fitness")}
    path = tmp_path / "ledger.bin"
    states = run(path, 5, es=strategy(optimizer=ADAM, **options), base=base, fitness=fitness)
    assert_same_state(replay(base, path), states[-1])
    if fitness is sometimes_nan:
        dropped = [e for e in Reader(path) if isinstance(e, Generation) and np.isnan(e.fitness).any()]
        assert dropped and all((e.weights[np.isnan(e.fitness)] == 0).all() for e in dropped)


TOLD = [
    also("normal, sigma schedule, no pairs", distribution="normal", sigma=SLOWER, antithetic=False),
    also("rademacher", distribution="rademacher"),
]


@pytest.mark.parametrize("options", TOLD)
def test_fitness_scored_on_the_host(options, tmp_path):
    path, base = tmp_path / "ledger.bin", mlp()
    es = strategy(optimizer=ADAM, population=16, **options)
    state = es.init(base, KEY)
    with Journal(path, es, base, key=KEY) as journal:
        for _ in range(4):
            members = es.ask(state)
            scores = [float(s) for s in members.apply(mlp_fitness, X, Y)]
            state, metrics = es.tell(state, members, scores)
            journal.append(metrics)
    assert_same_state(replay(base, path), state)


@pytest.mark.slow
def test_told_without_a_function_and_stepped_in_turn(tmp_path):
    """Without a function the plan goes by shapes, and another plan is another settings record."""
    path, base, es = tmp_path / "ledger.bin", stacked(), strategy()
    state = es.init(base, KEY)
    with Journal(path, es, base, key=KEY) as journal:
        for i in range(4):
            if i == 0:
                members = es.ask(state)
                scores = [float(stacked_fitness(members.materialize(m), X, Y)) for m in range(len(members))]
                state, metrics = es.tell(state, members, scores)
            else:
                state, metrics = es.step(state, stacked_fitness, X, Y)
            journal.append(metrics)
    assert_same_state(replay(base, path), state)


@pytest.mark.slow
def test_any_generation_and_a_fresh_compilation(tmp_path):
    path = tmp_path / "ledger.bin"
    states = run(path, 4)
    jax.clear_caches()
    for generation in (0, 3):
        assert_same_state(replay(mlp(), path, generation=generation), states[generation])


@pytest.mark.slow
def test_a_flat_base_keeps_the_order_of_the_run(tmp_path):
    """Names sort otherwise than the leaves lie: of 11 layers, the tenth comes before the second."""
    rng = np.random.default_rng(4)
    base = {"layers": [jnp.asarray(rng.normal(size=(6, 6)) * 0.4, jnp.float32) for _ in range(11)]}

    def fitness(p, x, y):
        for layer in p["layers"]:
            x = jnp.tanh(x @ layer)
        return -jnp.mean((x[:, :3] - y) ** 2)

    path = tmp_path / "ledger.bin"
    clipped = chain(named("clip_by_global_norm", max_norm=0.1), ADAM)
    states = run(path, 3, es=strategy(optimizer=clipped), base=base, fitness=fitness)
    flat = {f"layers/{i}": np.asarray(layer) for i, layer in enumerate(base["layers"])}
    state = replay(dict(sorted(flat.items())), path)
    assert list(state.params) == [f"layers/{i}" for i in range(11)]
    assert_same_state(state, states[-1])


def test_one_compiled_update_serves_all_generations(tmp_path, monkeypatch):
    path = tmp_path / "ledger.bin"
    run(path, 6, es=strategy(sigma=optax.linear_schedule(0.1, 0.05, 6)))
    traced = []
    original = generation_module.moved_if
    monkeypatch.setattr(generation_module, "moved_if", lambda *args: traced.append(1) or original(*args))
    replay(mlp(), path)
    assert len(traced) == 1


@pytest.mark.slow
def test_settings_that_change_in_the_middle(tmp_path):
    path, base = tmp_path / "ledger.bin", mlp()
    first = run(path, 3)
    changed = {"population": 12, "sigma": 0.02, "distribution": "normal", "noise_reuse": 2, "rank": 2}
    es = strategy(optimizer=named("adam", learning_rate=0.002), **changed)
    state, states = first[2], first[:3]  # resumed from generation 2: the third is made again
    with Journal(path, es, base, key=KEY, after=2, changed=True) as journal:
        for _ in range(3):
            state, metrics = es.step(state, mlp_fitness, X, Y)
            journal.append(metrics)
            states.append(state)
    seen = [states[0]]
    replay(base, path, on_generation=seen.append)
    for got, want in zip(seen, states, strict=True):
        assert_same_state(got, want)


@pytest.mark.slow
def test_a_population_over_several_devices_is_replayed_on_as_many(tmp_path):
    if jax.device_count() < 2:
        mesh = jax.make_mesh((1,), ("population",))
    else:
        mesh = jax.make_mesh((2,), ("population",), devices=jax.devices()[:2])
    path = tmp_path / "ledger.bin"
    states = run(path, 3, es=strategy(mesh=mesh))
    assert_same_state(replay(mlp(), path, mesh=mesh), states[-1])


def test_a_step_under_jit_without_a_finite_member_leaves_no_record(tmp_path):
    path, base, es = tmp_path / "ledger.bin", mlp(), strategy()
    step = jax.jit(lambda state, x: es.step(state, mlp_fitness, x, Y))
    state = es.init(base, KEY)
    with Journal(path, es, base, key=KEY) as journal:
        for x in (X, X * jnp.nan, X):
            state, metrics = step(state, x)
            journal.append(metrics)
        assert journal.generation == int(state.generation) == 2
    assert_same_state(replay(base, path), state)


WIDE = """
import sys
import jax, jax.numpy as jnp, optax
from tests.training.ledger_runs import X, Y, assert_same_state, mlp, run, strategy
from eggroll.training.ledger.reader import Generation, Reader
from eggroll.training.optimizers import named
from eggroll.training.ledger.rebuilding import Replay
for i, sigma in enumerate((0.1, optax.exponential_decay(jnp.float64(0.1), 3, 0.5))):
    path = f"{sys.argv[1]}/{i}.bin"
    base, es = mlp(jnp.float64), strategy(sigma=sigma, optimizer=named("adam", learning_rate=0.01))
    states = run(path, 3, es=es, base=base, args=(X.astype(jnp.float64), Y.astype(jnp.float64)))
    made = Replay(base, path)
    assert_same_state(made.run(), states[-1])
    assert made.inexact == 0
    entry = list(Reader(path))[1]
    assert entry.weights.dtype == entry.fitness.dtype == entry.loss.dtype == "float64", entry
"""


@pytest.mark.slow
def test_64_bits(tmp_path):
    """In a process of its own: the mode decides what everything is compiled to."""
    environment = os.environ | {"JAX_ENABLE_X64": "1"}
    command = [sys.executable, "-c", WIDE, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[3], env=environment)
    assert done.returncode == 0, done.stderr
    with pytest.raises(RunError, match="jax_enable_x64"):
        replay(mlp(), tmp_path / "0.bin")
