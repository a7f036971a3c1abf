"""An unmodified Linen transformer (nn.scan, nn.remat, tied embedding), and its training with a plain TrainState."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import pytest
from flax.training.train_state import TrainState

import eggroll
from tests.flax.truth import by_path, check_members, sides

VOCABULARY, WIDTH, LAYERS = 7, 8, 2
IDS = jnp.asarray([[0, 3, 5, 1], [6, 6, 2, 4]])


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, mask):
        h = nn.LayerNorm(use_bias=False)(x)
        x = x + nn.MultiHeadDotProductAttention(2, use_bias=False, name="attention")(h, mask=mask)
        h = nn.gelu(nn.Dense(2 * WIDTH, name="up")(nn.LayerNorm(use_bias=False)(x)))
        return x + nn.Dense(WIDTH, use_bias=False, name="down")(h), None


class Transformer(nn.Module):
    @nn.compact
    def __call__(self, ids):
        embed = nn.Embed(VOCABULARY, WIDTH, name="embed")
        layers = nn.scan(
            nn.remat(Block, prevent_cse=False),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=LAYERS,
        )
        x, _ = layers(name="blocks")(embed(ids), nn.make_causal_mask(ids))
        return embed.attend(nn.LayerNorm(use_bias=False, name="norm")(x))


MODEL = Transformer()


@pytest.fixture(scope="module")
def params():
    return MODEL.init(jax.random.key(0), IDS)["params"]


def logits(params, ids):
    return MODEL.apply({"params": params}, ids)


@pytest.mark.slow
def test_every_member_computes_what_its_dense_parameters_would(params):
    plan = by_path(check_members(logits, params, IDS))
    for name in ("query", "key", "value"):
        assert sides(plan[f"blocks/attention/{name}/kernel"]) == ((1,), (2, 3), (0,))
    assert sides(plan["blocks/attention/out/kernel"]) == ((1, 2), (3,), (0,))
    assert sides(plan["blocks/up/kernel"]) == sides(plan["blocks/down/kernel"]) == ((1,), (2,), (0,))
    assert sides(plan["embed/embedding"]) == ((0,), (1,), ())
    dense = {path for path, leaf in plan.items() if leaf.kind == "dense"}
    assert dense == {path for path in plan if path.endswith(("bias", "scale"))}


def test_explain_finds_no_fallback(params):
    shown = eggroll.explain(logits, params, IDS)
    assert shown.fallbacks == ()
    rows = {row.path: row for row in shown.rows}
    assert {use.kind for use in rows["embed/embedding"].uses} >= {"lookup", "product"}
    assert rows["blocks/up/kernel"].stack_axes == (0,)


@pytest.mark.slow
def test_a_plain_train_state_learns_to_count(params):
    def loss_fn(params, ids, *, smoothing):
        labels = optax.smooth_labels(jax.nn.one_hot((ids + 1) % VOCABULARY, VOCABULARY), smoothing)
        return optax.softmax_cross_entropy(logits(params, ids), labels).mean()

    estimate = eggroll.value_and_grad(loss_fn, population=128, sigma=0.1, fallback="error")
    state = TrainState.create(apply_fn=MODEL.apply, params=params, tx=optax.adam(0.05))

    @jax.jit
    def step(state, key):
        loss, grads = estimate(state.params, IDS, smoothing=0.0, key=key)
        with jax.numpy_dtype_promotion("standard"):  # optax's Adam mixes its int32 count with floats
            return state.apply_gradients(grads=grads), loss

    before = loss_fn(state.params, IDS, smoothing=0.0)
    for key in jax.random.split(jax.random.key(1), 40):
        state, loss = step(state, key)
    assert state.step == 40
    # The members' mean is a loss of noisy weights: somewhat above that of the parameters themselves.
    after = loss_fn(state.params, IDS, smoothing=0.0)
    assert after < before / 4
    assert jnp.isfinite(loss) and loss < before
