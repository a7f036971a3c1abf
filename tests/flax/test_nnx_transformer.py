"""An unmodified NNX transformer: scanned and rematerialised layers, multi-head attention, tied embedding."""

from __future__ import annotations

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import eggroll.nnx
from tests.flax.truth import by_path, check_members, check_model, functional, normal, sides

VOCABULARY, WIDTH, HEADS, LAYERS = 11, 8, 2, 3
IDS = jnp.asarray([[0, 3, 5, 1, 10], [7, 7, 2, 9, 4]])


class Block(nnx.Module):
    def __init__(self, *, rngs: nnx.Rngs) -> None:
        self.before_attention = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(HEADS, WIDTH, decode=False, rngs=rngs)
        self.before_mlp = nnx.LayerNorm(WIDTH, use_bias=False, rngs=rngs)
        self.up = nnx.Linear(WIDTH, 2 * WIDTH, rngs=rngs)
        self.down = nnx.Linear(2 * WIDTH, WIDTH, use_bias=False, rngs=rngs)

    def __call__(self, x, mask):
        x = x + self.attention(self.before_attention(x), mask=mask)
        return x + self.down(nnx.gelu(self.up(self.before_mlp(x))))


class Transformer(nnx.Module):
    def __init__(self, *, rngs: nnx.Rngs) -> None:
        self.embed = nnx.Embed(VOCABULARY, WIDTH, rngs=rngs)

        @nnx.split_rngs(splits=LAYERS)
        @nnx.vmap(in_axes=0, out_axes=0)
        def stack(rngs: nnx.Rngs) -> Block:
            return Block(rngs=rngs)

        self.blocks = stack(rngs)
        self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)

    def __call__(self, ids):
        mask = nnx.make_causal_mask(ids)

        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        @nnx.remat
        def layers(x, block):
            return block(x, mask)

        return self.embed.attend(self.norm(layers(self.embed(ids), self.blocks)))


@pytest.fixture(scope="module")
def checked() -> SimpleNamespace:
    """The transformer, after every member's logits were compared with those of its dense parameters."""
    fun, params, rest = functional(Transformer(rngs=nnx.Rngs(0)))
    return SimpleNamespace(fun=fun, params=params, rest=rest, members=check_members(fun, params, rest, IDS))


@pytest.mark.slow
def test_every_member_computes_what_its_dense_parameters_would(checked):
    assert len(checked.members) == 6


def test_attention_kernels_part_inputs_from_heads_with_factors_for_every_layer(checked):
    plan = by_path(checked.members)
    for name in ("query", "key", "value"):
        assert sides(plan[f"blocks/attention/{name}/kernel"]) == ((1,), (2, 3), (0,))
    assert sides(plan["blocks/attention/out/kernel"]) == ((1, 2), (3,), (0,))
    assert sides(plan["blocks/up/kernel"]) == sides(plan["blocks/down/kernel"]) == ((1,), (2,), (0,))


def test_the_tied_embedding_has_one_perturbation_for_lookup_and_product(checked):
    (embedding,) = (leaf for leaf in checked.members.plan.leaves if leaf.path.startswith("embed"))
    assert embedding.kind == "low_rank"
    assert sides(embedding) == ((0,), (1,), ())


def test_biases_and_scales_get_dense_noise(checked):
    for leaf in checked.members.plan.leaves:
        name = leaf.path.rsplit("/")[-1]
        assert leaf.kind == ("dense" if name in ("bias", "scale") else "low_rank"), leaf.path


@pytest.mark.slow  # as of Linen's transformer
def test_explain_shows_the_plan_that_the_members_follow(checked):
    shown = eggroll.nnx.explain(lambda model, ids: model(ids), Transformer(rngs=nnx.Rngs(0)), IDS, population=6)
    assert shown.plan == checked.members.plan
    assert shown.fallbacks == ()
    rows = {row.path: row for row in shown.rows}
    kinds = [use.kind for use in rows["embed/embedding"].uses if use.kind != "elementwise"]
    assert kinds == ["lookup", "product"]
    assert [use.kind for use in rows["blocks/up/kernel"].uses] == ["product"]
    assert [use.kind for use in rows["blocks/before_mlp/scale"].uses] == ["elementwise"]
    # Two factors of a 3-layer stack of 8 x 2 x 4 kernels.
    assert rows["blocks/attention/query/kernel"].numbers == LAYERS * (WIDTH + WIDTH)
    assert "embed/embedding" in str(shown)


def test_no_member_looks_ahead(checked):
    changed = IDS.at[:, -1].set((IDS[:, -1] + 1) % VOCABULARY)
    before = checked.members.apply(checked.fun, checked.rest, IDS)
    after = checked.members.apply(checked.fun, checked.rest, changed)
    np.testing.assert_array_equal(before[:, :, :-1], after[:, :, :-1])
    assert bool((before[:, :, -1] != after[:, :, -1]).any())


class Attention(nnx.Module):
    def __init__(self, **options) -> None:
        self.attention = nnx.MultiHeadAttention(HEADS, WIDTH, decode=False, rngs=nnx.Rngs(0), **options)

    def __call__(self, x, memory=None):
        return self.attention(x, memory)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "memory"),
    [
        pytest.param({"normalize_qk": True}, None, marks=pytest.mark.slow),
        ({"in_kv_features": 4, "use_bias": False}, normal(1, 2, 3, 4)),
    ],
    ids=["normalised queries and keys", "cross-attention"],
)
def test_other_attention(options, memory):
    x = normal(0, 2, 5, WIDTH)
    plan = by_path(check_model(Attention(**options), *((x,) if memory is None else (x, memory))))
    assert sides(plan["attention/query/kernel"]) == ((0,), (1, 2), ())
    assert sides(plan["attention/out/kernel"]) == ((0, 1), (2,), ())


def test_the_scanned_layers_differ_within_a_member(checked):
    kernel = checked.members.materialize(0)["blocks"]["up"]["kernel"][...]
    change = kernel - checked.params["blocks"]["up"]["kernel"][...]
    assert not jnp.allclose(change[0], change[1])
