"""Mixture-of-experts blocks as people write them: einsum over an expert axis, vmap over modules, gathered experts."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.flax.truth import by_path, check_members, check_model, functional, normal, sides

TOKENS, WIDTH, HIDDEN, EXPERTS = 5, 4, 6, 3
X = normal(0, 2, TOKENS, WIDTH)


class Experts(nnx.Module):
    """Two-layer experts, all applied to all tokens and mixed by the router's softmax."""

    chosen = EXPERTS

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.router = nnx.Linear(WIDTH, EXPERTS, use_bias=False, rngs=rngs)
        self.up = nnx.Param(normal(1, EXPERTS, WIDTH, HIDDEN))
        self.down = nnx.Param(normal(2, EXPERTS, HIDDEN, WIDTH))

    def route(self, x):
        """The chosen experts' weights, and their numbers."""
        weights, which = jax.lax.top_k(nnx.softmax(self.router(x)), self.chosen)
        return weights / weights.sum(-1, keepdims=True), which

    def gates(self, x):
        weights, which = self.route(x)
        return (jax.nn.one_hot(which, EXPERTS) * weights[..., None]).sum(-2)

    def __call__(self, x):
        hidden = nnx.gelu(jnp.einsum("btd,edf->btef", x, self.up[...]))
        each = jnp.einsum("btef,efd->bted", hidden, self.down[...])
        return jnp.einsum("bted,bte->btd", each, self.gates(x))


class TopK(Experts):
    chosen = 2


class Dispatched(TopK):
    """Tokens are sent to slots of their experts, and come back."""

    def __call__(self, x):
        gates = self.gates(x)
        sent = jnp.einsum("btd,bte->ebtd", x, (gates > 0).astype(x.dtype))
        hidden = nnx.gelu(jnp.einsum("ebtd,edf->ebtf", sent, self.up[...]))
        back = jnp.einsum("ebtf,efd->ebtd", hidden, self.down[...])
        return jnp.einsum("ebtd,bte->btd", back, gates)


class Gathered(TopK):
    """Every token looks its experts' weights up."""

    def __call__(self, x):
        weights, which = self.route(x)
        hidden = nnx.gelu(jnp.einsum("btd,btkdf->btkf", x, self.up[...][which]))
        each = jnp.einsum("btkf,btkfd->btkd", hidden, self.down[...][which])
        return jnp.einsum("btkd,btk->btd", each, weights)


STACKED = ((1,), (2,), (0,))


@pytest.mark.first(1)
@pytest.mark.parametrize(
    ("block", "up", "down"),
    [
        # The first product pairs no axis with the experts, so they count as outputs of one wide matrix.
        (Experts, ((1,), (0, 2), ()), STACKED),
        (TopK, ((1,), (0, 2), ()), STACKED),
        (Dispatched, STACKED, STACKED),
        (Gathered, STACKED, STACKED),
    ],
)
def test_einsum_blocks(block, up, down):
    plan = by_path(check_model(block(nnx.Rngs(0)), X))
    assert sides(plan["up"]) == up
    assert sides(plan["down"]) == down
    assert sides(plan["router/kernel"]) == ((0,), (1,), ())


@pytest.mark.slow
def test_three_operands_in_one_einsum():
    """Their order, and so the axes that a factor owns, is the einsum's to choose; the result is right in any."""

    class Fused(TopK):
        def __call__(self, x):
            hidden = nnx.gelu(jnp.einsum("btd,edf->btef", x, self.up[...]))
            return jnp.einsum("btef,efd,bte->btd", hidden, self.down[...], self.gates(x))

    assert by_path(check_model(Fused(nnx.Rngs(0)), X))["down"].kind == "low_rank"


def test_members_route_tokens_on_their_own():
    fun, params, rest = functional(TopK(nnx.Rngs(0)), lambda model, x: model.route(x))
    # Not Rademacher: noise of one sign for all experts leaves a softmax as it is.
    members = check_members(fun, params, rest, X, sigma=0.5, distribution="normal")
    _, which = members.apply(fun, rest, X)
    assert not np.array_equal(which[0], which[1])


class Expert(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.up = nnx.Linear(WIDTH, HIDDEN, rngs=rngs)
        self.down = nnx.Linear(HIDDEN, WIDTH, use_bias=False, rngs=rngs)

    def __call__(self, x):
        return self.down(nnx.relu(self.up(x)))


class Vmapped(nnx.Module):
    """Experts are modules, stacked by `nnx.vmap` and applied by it."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.router = nnx.Linear(WIDTH, EXPERTS, use_bias=False, rngs=rngs)
        make = nnx.vmap(Expert, in_axes=0, out_axes=0)
        self.experts = nnx.split_rngs(splits=EXPERTS)(make)(rngs)

    def __call__(self, x):
        each = nnx.vmap(lambda expert, x: expert(x), in_axes=(0, None), out_axes=0)(self.experts, x)
        return jnp.einsum("bte,ebtd->btd", nnx.softmax(self.router(x)), each)


@pytest.mark.slow
def test_vmapped_modules():
    plan = by_path(check_model(Vmapped(nnx.Rngs(0)), X))
    assert sides(plan["experts/down/kernel"]) == STACKED
    assert plan["experts/up/bias"].kind == "dense"
