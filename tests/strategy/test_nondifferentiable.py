"""What has no derivative, under noise on outputs: routes, tables, integers, callbacks, derivatives of one's own."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import io_callback

import eggroll
from tests.strategy.noisy_models import KEY, enumerated

B, M, EXPERTS, SIGMA = 2, 3, 2, 0.8
X = np.random.default_rng(0).normal(size=(B, M))
PARAMS = {
    "gate": np.random.default_rng(1).normal(size=(M, EXPERTS)) / 3,
    "w": np.random.default_rng(2).normal(size=(EXPERTS, M, 1)) / 3,
}
TABLE = np.array([0.3, -2.0, 1.0, 0.5])


def on_host(h: Any) -> np.ndarray:
    return np.floor(np.abs(np.asarray(h)))


def behind_callback(h: jax.Array) -> jax.Array:
    return jax.pure_callback(on_host, jax.ShapeDtypeStruct(h.shape, h.dtype), h, vmap_method="expand_dims")


@jax.custom_vjp
def hard(h: jax.Array) -> jax.Array:
    return jnp.floor(jnp.abs(h))


def none(*_: Any) -> Any:
    raise AssertionError("nobody asks for a derivative")


hard.defvjp(none, none)


def by_number(h: jax.Array) -> jax.Array:
    return jnp.asarray(TABLE)[jnp.clip(h * 2 + 2, 0, 3).astype(jnp.int8)]


def gathered(p: Any, x: jax.Array, act: Callable) -> jax.Array:
    chosen = jnp.argmax(lax.stop_gradient(x @ p["gate"]), 1)
    return act(jnp.einsum("bm,bmn->bn", x, p["w"][chosen]))[:, 0] + chosen.astype(x.dtype)


def switched(p: Any, x: jax.Array, act: Callable) -> jax.Array:
    def row(r: jax.Array) -> tuple[jax.Array, jax.Array]:
        chosen = jnp.argmax(r @ p["gate"])
        branches = [lambda r, w=w: r @ w for w in p["w"]]
        return lax.switch(chosen, branches, r), chosen

    h, chosen = jax.vmap(row)(x)
    return act(h)[:, 0] + chosen.astype(x.dtype)


def straight(h: jax.Array) -> jax.Array:
    return h + lax.stop_gradient(jnp.floor(jnp.abs(h)) - h)


CASES: dict[str, tuple] = {
    "gathered, callback": (gathered, behind_callback, on_host),
    "gathered, callback row by row": (gathered, lambda h: lax.map(behind_callback, h), on_host),
    "gathered, own derivative": (gathered, hard, on_host),
    "switched, straight through": (switched, straight, on_host),
    "switched, integers and a table": (
        switched,
        by_number,
        lambda h: TABLE[np.clip(h * 2 + 2, 0, 3).astype(int)],
    ),
}


def truth(act: Callable, sites: list[tuple[int, ...]]) -> tuple[list[np.ndarray], np.ndarray]:
    """Σ of noise times its row's loss over all patterns, in NumPy; and which expert each row has without noise."""
    counts = [int(np.prod(s)) for s in sites]
    totals, patterns = [np.zeros(s) for s in sites], 0
    for bits in itertools.product([1.0, -1.0], repeat=sum(counts)):
        parts = np.split(np.array(bits), np.cumsum(counts)[:-1])
        gate, *experts = (part.reshape(s) for part, s in zip(parts, sites, strict=True))
        chosen = np.argmax(X @ PARAMS["gate"] + SIGMA * gate, 1)
        noise = np.stack([experts[c if len(experts) > 1 else 0][b] for b, c in enumerate(chosen)])
        h = np.stack([X[b] @ PARAMS["w"][c] for b, c in enumerate(chosen)]) + SIGMA * noise
        losses = act(h)[:, 0] + chosen
        totals = [t + losses[:, None] * e for t, e in zip(totals, (gate, *experts), strict=True)]
        patterns += 1
    return [t / patterns / SIGMA / B for t in totals], np.argmax(X @ PARAMS["gate"], 1)


@pytest.mark.parametrize("case", CASES)
def test_all_patterns_together_give_what_numpy_gives(case, monkeypatch):
    """Float64, every pattern of ±1 once: the noise of a row times its own loss, at the inputs without noise."""
    function, act, of_numpy = CASES[case]
    sites = [(B, EXPERTS), *[(B, 1)] * (EXPERTS if function is switched else 1)]
    with jax.enable_x64(True):
        args = jax.tree.map(jnp.asarray, PARAMS), jnp.asarray(X)
        losses = lambda p, x: function(p, x, act)  # noqa: E731
        found = eggroll.explain(losses, *args, noise="activations")
        assert [site.shape for site in found.plan.sites] == sites  # of products, not of each row's weights
        population = enumerated(monkeypatch, sites)
        grads = eggroll.grad(losses, population=population, sigma=SIGMA, noise="activations")(*args, key=KEY)
    (gate, *experts), chosen = truth(of_numpy, sites)
    w = np.zeros_like(PARAMS["w"])
    for b, c in enumerate(chosen):
        w[c] += np.outer(X[b], experts[c if function is switched else 0][b])
    np.testing.assert_allclose(grads["gate"], X.T @ gate, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(grads["w"], w, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("noise", ["weights", "activations"])
def test_callbacks_that_cannot_be_batched_are_refused_by_line(noise):
    def computed(p: Any) -> jax.Array:
        return jax.pure_callback(on_host, jax.ShapeDtypeStruct((), p.dtype), p.sum())

    def told(p: Any, ordered: bool) -> jax.Array:
        h = p * jnp.arange(3.0)
        io_callback(seen.append, None, h, ordered=ordered)
        return h.sum()

    seen: list[Any] = []
    gradient = lambda f: eggroll.grad(f, population=4, sigma=0.1, noise=noise)(jnp.ones(3), key=KEY)  # noqa: E731
    with pytest.raises(ValueError, match=r"test_nondifferentiable.py:\d+ \(.*computed\); members .* \"sequential\""):
        gradient(computed)
    with pytest.raises(ValueError, match=r"test_nondifferentiable.py:\d+ \(.*told\); .* ordered=False is required"):
        gradient(lambda p: told(p, True))
    shared = jax.ShapeDtypeStruct((), jnp.float32)  # of what nothing of the members reaches there is one call
    found = gradient(lambda p: told(p, False) + p.sum() * jax.pure_callback(on_host, shared, jnp.float32(2)))
    assert np.all(np.asarray(found) != 0)
    jax.effects_barrier()
    assert len(seen) >= 4


@pytest.mark.slow
def test_the_recipe_in_the_docs_learns():
    page = Path(__file__).parents[2] / "docs" / "activations.md"
    block = page.read_text("utf-8").split("## Networks without a derivative")[1].split("```python\n")[1].split("```")[0]
    told: dict[str, Any] = {}
    exec(block, told)
    first, last = (told["fitness"](p, told["x"], told["y"]).mean() for p in (told["params"], told["state"].params))
    assert first == -1 and last > -0.5
