"""Where a platform has kernels, the engine hands them keys instead of factors, and everything comes out the same.

The reference stands in for a kernel of this platform; once it is the TPU's kernels, in the interpreter.
"""

from __future__ import annotations

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import eggroll
from eggroll.engine import jax_compat
from eggroll.kernels import Choice, registry, support
from eggroll.kernels.reference import lowrank_dot_reference, rank_update_reference
from eggroll.kernels.tpu_lowrank_dot import lowrank_dot_tpu
from eggroll.kernels.tpu_rank_update import rank_update_tpu
from tests.kernels.seeds import on_gpu, on_tpu
from tests.strategy.common import assert_close

KEY = jax.random.key(0, impl="threefry2x32")
ROWS = jnp.asarray(np.random.default_rng(0).normal(size=(6, 20)), jnp.float32)  # one for each member
TPU = {"lowrank_dot": lowrank_dot_tpu, "rank_update": rank_update_tpu}
REFERENCE = {"lowrank_dot": lowrank_dot_reference, "rank_update": rank_update_reference}


def register(monkeypatch, functions):
    for operation, function in functions.items():
        known = {**registry._OPERATIONS[operation], "kernel": registry.Implementation("kernel", function, ("cpu",))}
        monkeypatch.setitem(registry._OPERATIONS, operation, known)


@pytest.fixture
def kernels(monkeypatch):
    """Both operations have a kernel on this platform."""
    register(monkeypatch, REFERENCE)


@pytest.fixture
def tpu_kernels(monkeypatch):
    """The kernels of TPUs, interpreted."""
    register(monkeypatch, {name: partial(function, interpret=True) for name, function in TPU.items()})


def params():
    """Two dense layers and a bias."""
    rng = np.random.default_rng(1)
    shapes = {"first": (20, 33), "bias": (33,), "second": (33, 7)}
    return {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}


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
    "jit": jax.jit(network),
    "remat": jax.checkpoint(network),
    "scan": in_a_scan,
    "layers": layers,
    "heads": heads,
    "mixed precision": in_half_precision,
    "vmap over data": lambda p, x: jax.vmap(network, in_axes=(None, 0))(p, jnp.stack([x, 2 * x, 3 * x])),
    "several rows": lambda p, x: network(p, jnp.stack([x, -x])),
}


def step(fun, in_axes, **options):
    """(state after one step, its metrics, outputs of all members, member 3)."""
    es = eggroll.ES(population=6, sigma=0.1, optimizer=optax.sgd(0.1), shaping="none", **options)
    start = es.init(start_of(fun), KEY)
    fitness = scored(fun)
    state, metrics = es.step(start, fitness, ROWS if in_axes == 0 else ROWS[0], in_axes=in_axes)
    members = es.ask(start)
    outputs = members.apply(fun, ROWS if in_axes == 0 else ROWS[0], in_axes=in_axes)
    return state.params, metrics, outputs, members.materialize(3)


def choices(fun, in_axes):
    """(operation, implementation, parameter) of all seeded products in the program of a step."""
    es = eggroll.ES(population=6, sigma=0.1, optimizer=optax.sgd(0.1), shaping="none")
    rows = ROWS if in_axes == 0 else ROWS[0]
    jaxpr = jax.make_jaxpr(lambda s: es.step(s, scored(fun), rows, in_axes=in_axes)[0].params)(
        es.init(start_of(fun), KEY)
    )
    found = {Choice.in_scope(names) for names in jax_compat.name_stacks(jaxpr)}
    return {choice for choice in found if choice and choice.name}


QUICK = ("plain", "layers", "heads", "mixed precision", "vmap over data")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FUNCTIONS]
)
def test_a_step_is_the_same_with_kernels(name, request):
    plain = step(FUNCTIONS[name], 0)
    assert not choices(FUNCTIONS[name], 0)
    request.getfixturevalue("kernels")
    fast = step(FUNCTIONS[name], 0)
    # Rounded to bfloat16, sums in another order differ in its last bit.
    assert_close(fast[:3], plain[:3], 2e-2 if name == "mixed precision" else 1e-5)
    assert_close(fast[3], plain[3], 1e-6)  # as sums may be fused
    assert choices(FUNCTIONS[name], 0) == {
        (operation, "kernel", parameter)
        for operation in ("lowrank_dot", "rank_update")
        for parameter in ("first", "second")
    }


@pytest.mark.parametrize("name", ["plain", pytest.param("layers", marks=pytest.mark.slow)])
def test_a_step_is_the_same_with_those_of_a_tpu(name, request):
    plain = step(FUNCTIONS[name], 0)
    request.getfixturevalue("tpu_kernels")
    assert_close(step(FUNCTIONS[name], 0)[:3], plain[:3], 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{"distribution": "normal"}, {"rank": 3}, {"antithetic": False}, {"chunk": 4}, {"rank": 3, "chunk": 2}],
    ids=str,
)
def test_every_setting(options, request):
    plain = step(network, 0, **options)
    request.getfixturevalue("kernels")
    fast = step(network, 0, **options)
    assert_close(fast[:3], plain[:3], 1e-5)
    assert_close(fast[3], plain[3], 1e-6)  # as sums may be fused


def test_the_first_layer_on_shared_rows_shares_its_product(request):
    """What all members share is multiplied once, without the kernel; later layers have rows of their own."""
    plain = step(network, None)
    request.getfixturevalue("kernels")
    assert_close(step(network, None)[:3], plain[:3], 1e-5)
    used = {(c.name, c.implementation) for c in choices(network, None) if c.operation == "lowrank_dot"}
    assert used == {("second", "kernel")}


@pytest.mark.slow
def test_on_a_mesh(request):
    mesh = jax.make_mesh((1,), ("population",))
    plain = step(network, 0, mesh=mesh)
    request.getfixturevalue("kernels")
    assert_close(step(network, 0, mesh=mesh)[:3], plain[:3], 1e-5)


def test_no_factor_is_in_memory(tpu_kernels):
    """Nothing of the size of a population's factor is in the program outside of its kernels: 3 pairs, 20x640."""
    es = eggroll.ES(population=6, sigma=0.1, optimizer=optax.sgd(0.1))
    start = es.init({"w": jnp.ones((20, 640))}, KEY)
    jaxpr = jax.make_jaxpr(lambda s: es.step(s, scored(lambda p, x: x @ p["w"]), ROWS, in_axes=0)[0].params)(start)
    sizes = {v.aval.size for v in _outside_of_kernels(jaxpr.jaxpr)}
    assert 6 * 640 in sizes  # the outputs
    assert not {3 * 640, 3 * 20} & sizes


def _outside_of_kernels(jaxpr):
    for eqn in jaxpr.eqns:
        yield from eqn.outvars
        if eqn.primitive.name != "pallas_call":
            for inner in jax_compat.inner_jaxprs(eqn):
                yield from _outside_of_kernels(jax_compat.open_jaxpr(inner)[0])


def test_a_weight_with_another_use_keeps_its_factors(kernels):
    """A table that is looked up and multiplied is no matrix for a kernel: it works as everywhere."""
    es = eggroll.ES(population=4, sigma=0.1, optimizer=optax.sgd(0.1))
    start = es.init({"table": jnp.ones((9, 5))}, KEY)

    def tied(p, ids):
        return p["table"][ids] @ p["table"].T

    jaxpr = jax.make_jaxpr(lambda s: es.step(s, scored(tied), jnp.arange(4))[0].params)(start)
    found = map(Choice.in_scope, jax_compat.name_stacks(jaxpr))
    assert not any(choice and choice.name for choice in found)


def test_explain_says_what_computes_each_parameter(request):
    def rows():
        found = (
            eggroll.explain(network, params(), ROWS[0]),
            eggroll.explain(network, params(), ROWS, in_axes=0, population=6),
        )
        assert "implementation" in str(found[0])
        return [{row.path: row.implementations for row in each.rows} for each in found]

    shared, own = rows()
    assert shared == own == {"bias": (), "first": ("reference",), "second": ("reference",)}
    request.getfixturevalue("kernels")
    shared, own = rows()
    assert shared == {"bias": (), "first": ("reference",), "second": ("kernel",)}  # the first on shared inputs
    assert own == {"bias": (), "first": ("kernel",), "second": ("kernel",)}


SQUARE = {"w": jnp.asarray(np.random.default_rng(2).normal(size=(20, 60)), jnp.float32)}


def fused(p, x):
    """One weight for three products, as attention has it."""
    q, k, v = jnp.split(x @ p["w"], 3)
    return q * k + v + sum(x @ part for part in jnp.split(p["w"], 3, axis=1))


def transposed(p, x):
    """An encoder whose decoder has the same weight."""
    return lax.fori_loop(0, 3, lambda _, x: x + p["w"] @ jnp.tanh(x @ p["w"]) / 100, x)


def precise(p, x):
    return lax.fori_loop(0, 3, lambda _, x: jnp.matmul(x, p["w"], precision="highest")[:20] / 10, x)


def high(p, x):
    return lax.fori_loop(0, 3, lambda _, x: jnp.matmul(x, p["w"], precision="high")[:20] / 10, x)


def either(p, x):
    """A branch that every member takes for itself."""
    return lax.cond(x[0] > 0, lambda x: x @ p["w"], lambda x: 2 * x @ p["w"], x)


def shared(p, x):
    """Inputs that all members share, one after the other."""
    return lax.scan(lambda h, shared: (h + shared @ p["w"], None), jnp.zeros(60), jnp.ones((3, 20)))[0] * x[0]


AWKWARD = {fused: False, transposed: False, precise: True, high: False, either: False, shared: False}


@pytest.mark.parametrize("fun", AWKWARD, ids=lambda fun: fun.__name__)
def test_what_a_kernel_cannot_serve_altogether_keeps_its_factors(fun, request):
    """Else they would be drawn anew at every use; so it is with a precision that the kernel does not know."""

    def run():
        es = eggroll.ES(population=6, sigma=0.1, optimizer=optax.sgd(0.1))
        start = es.init(SQUARE, KEY)
        jaxpr = jax.make_jaxpr(lambda s: es.step(s, scored(fun), ROWS, in_axes=0)[0].params)(start)
        found = [choice for names in jax_compat.name_stacks(jaxpr) if (choice := Choice.in_scope(names))]
        return es.step(start, scored(fun), ROWS, in_axes=0)[0].params, {c for c in found if c.name}

    plain, _ = run()
    request.getfixturevalue("tpu_kernels")
    fast, choices = run()
    assert_close(fast, plain, 1e-5)
    assert {c.implementation for c in choices} == ({"kernel"} if AWKWARD[fun] else set())


def test_what_no_kernel_can_do_keeps_its_factors(monkeypatch):
    """They are drawn once, not at every use of a key."""

    def picky(*args, **options):
        raise NotImplementedError("nothing suits me")

    register(monkeypatch, {"lowrank_dot": picky})
    assert not choices(network, 0)


@pytest.mark.parametrize(
    ("platform", "device", "call"),
    [("tpu", on_tpu("TPU v5 lite"), "tpu_custom_call"), ("cuda", on_gpu("NVIDIA H200"), "mosaic_gpu")],
    ids=["TPU", "H200"],
)
def test_a_step_lowers_with_its_kernels(platform, device, call, monkeypatch):
    """Thin product, product and update of both layers, in a loop over three of each."""
    monkeypatch.setattr(registry, "current_platform", lambda: "gpu" if platform == "cuda" else platform)
    monkeypatch.setattr(support, "current_platform", lambda: platform)
    es = eggroll.ES(population=6, sigma=0.1, optimizer=optax.sgd(0.1))
    start = es.init(jax.tree.map(lambda a: a.astype(jnp.bfloat16), start_of(layers)), KEY)
    rows = ROWS.astype(jnp.bfloat16)

    def body(x, layer):
        return x + network(layer, x) @ jnp.ones((7, 20), jnp.bfloat16) / 10, None

    def fitness(p, x):
        return -jnp.mean(lax.scan(body, x, p)[0] ** 2)

    with device:
        step = jax.jit(lambda s: es.step(s, fitness, rows, in_axes=0)[0].params)
        text = step.trace(start).lower(lowering_platforms=(platform,)).as_text()
    assert len(re.findall(rf"@{call}|call_target_name = \"{call}", text)) >= 6
