"""Where a platform has kernels, the engine hands them keys instead of factors, and everything comes out the same.

The reference stands in for a kernel of this platform; once it is the TPU's kernels, in the interpreter.
"""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import optax
import pytest
from jax import lax

import eggroll
from eggroll.engine import jax_compat
from eggroll.kernels import Choice
from eggroll.ops import registry, seeded
from tests.kernels.seeds import on_gpu, on_tpu
from tests.quick import quickest
from tests.strategy.common import assert_close
from tests.strategy.kernel_networks import (
    FUNCTIONS,
    KEY,
    ROWS,
    asked,
    layers,
    network,
    params,
    scored,
    start_of,
    step,
)


@pytest.mark.parametrize("name", quickest(FUNCTIONS, "plain"))
def test_a_step_is_the_same_with_kernels(name, request):
    plain, none = step(FUNCTIONS[name], 0)
    assert not none
    request.getfixturevalue("kernels")
    fast, choices = step(FUNCTIONS[name], 0)
    # Rounded to bfloat16, sums in another order differ in its last bit.
    assert_close(fast, plain, 2e-2 if name == "mixed precision" else 1e-5)
    assert choices == {
        (operation, "kernel", parameter)
        for operation in ("lowrank_dot", "rank_update")
        for parameter in ("first", "second")
    }


@pytest.mark.slow
def test_members_are_the_same_with_kernels(request):
    plain = asked(layers)
    request.getfixturevalue("kernels")
    fast = asked(layers)
    assert_close(fast[0], plain[0], 1e-5)
    assert_close(fast[1], plain[1], 1e-6)  # as sums may be fused


@pytest.mark.slow
def test_a_step_is_the_same_with_those_of_a_tpu(request):
    plain, _ = step(layers, 0)
    request.getfixturevalue("tpu_kernels")
    assert_close(step(layers, 0)[0], plain, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{"distribution": "normal", "rank": 3, "chunk": 2}, {"antithetic": False, "chunk": 4}], ids=str
)
def test_every_setting(options, request):
    plain, _ = step(network, 0, **options)
    request.getfixturevalue("kernels")
    assert_close(step(network, 0, **options)[0], plain, 1e-5)


@pytest.mark.slow
def test_the_first_layer_on_shared_rows_shares_its_product(request):
    """What all members share is multiplied once, without the kernel; later layers have rows of their own."""
    plain, _ = step(network, None)
    request.getfixturevalue("kernels")
    fast, choices = step(network, None)
    assert_close(fast, plain, 1e-5)
    assert {(c.name, c.implementation) for c in choices if c.operation == "lowrank_dot"} == {("second", "kernel")}


@pytest.mark.slow
def test_on_a_mesh(request):
    mesh = jax.make_mesh((1,), ("population",))
    plain, _ = step(network, 0, mesh=mesh)
    request.getfixturevalue("kernels")
    assert_close(step(network, 0, mesh=mesh)[0], plain, 1e-5)


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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("platform", "device", "call"),
    [("tpu", on_tpu("TPU v5 lite"), "tpu_custom_call"), ("cuda", on_gpu("NVIDIA H200"), "mosaic_gpu")],
    ids=["TPU", "H200"],
)
def test_a_step_lowers_with_its_kernels(platform, device, call, monkeypatch):
    """Thin product, product and update of a layer, in a loop over three of them."""
    monkeypatch.setattr(registry, "current_platform", lambda: "gpu" if platform == "cuda" else platform)
    monkeypatch.setattr(seeded, "current_platform", lambda: platform)
    es = eggroll.ES(population=6, sigma=0.1, optimizer=optax.sgd(0.1))
    start = es.init({"first": start_of(layers)["first"].astype(jnp.bfloat16)}, KEY)
    rows = ROWS.astype(jnp.bfloat16)

    def body(x, layer):
        return x + (x @ layer) @ jnp.ones((33, 20), jnp.bfloat16) / 10, None

    def fitness(p, x):
        return -jnp.mean(lax.scan(body, x, p["first"])[0] ** 2)

    with device:
        step = jax.jit(lambda s: es.step(s, fitness, rows, in_axes=0)[0].params)
        text = step.trace(start).lower(lowering_platforms=(platform,)).as_text()
    assert len(re.findall(rf"@{call}|call_target_name = \"{call}", text)) >= 3
