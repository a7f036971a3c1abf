"""The networks that are measured compute what they say, and their rows are laid out as they say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bench.tools import networks, transformer

SMALL = {"depth": 3, "width": 32}


@pytest.fixture(scope="module")
def params():
    return transformer.init(jax.random.key(0), **SMALL)


def tokens(*shape, seed=1):
    return jax.random.randint(jax.random.key(seed), shape, 0, transformer.VOCABULARY)


@pytest.mark.slow
def test_decoding_with_a_cache_chooses_what_the_whole_forward_pass_finds_likeliest(params):
    prompt = tokens(5)
    written = jax.jit(transformer.decode, static_argnames="tokens")(params, prompt, tokens=9)
    logits = transformer.forward(params, jnp.concatenate([prompt, written])[None])[0]
    np.testing.assert_array_equal(written, logits[4:-1].argmax(-1))
    assert len(set(written.tolist())) > 2, "a text of one token alone would hide a cache that is never read"


@pytest.mark.slow
def test_the_scan_over_layers_equals_a_loop_over_them(params):
    text = tokens(2, 7)
    positions = jnp.arange(7)
    x = params["embed"][text]
    for i in range(SMALL["depth"]):
        block = jax.tree.map(lambda a, i=i: a[i], params["blocks"])
        projected = transformer.project(block, x, positions)
        x = transformer.finish(block, x, transformer.attend(*projected, positions[:, None] >= positions))
    expected = transformer.norm(x, params["norm"]) @ params["head"]
    np.testing.assert_allclose(transformer.forward(params, text), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_no_position_sees_what_follows_it_and_order_matters(params):
    text = tokens(1, 8)
    before = transformer.forward(params, text)
    after = transformer.forward(params, text.at[0, 5].add(1))
    np.testing.assert_allclose(before[0, :5], after[0, :5], rtol=1e-5, atol=1e-6)
    assert not np.allclose(before[0, 5:], after[0, 5:])
    swapped = transformer.forward(params, text[:, jnp.array([1, 0, 2, 3, 4, 5, 6, 7])])
    assert not np.allclose(before[0, 7], swapped[0, 7], atol=1e-4)


def test_rotation_depends_on_the_distance_alone():
    x, y = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 8))

    def product(i, j):
        return jnp.sum(transformer.rotate(x, jnp.array([i])) * transformer.rotate(y, jnp.array([j])))

    np.testing.assert_allclose(product(3, 5), product(13, 15), rtol=1e-5)
    assert not np.allclose(product(3, 5), product(3, 6))


def test_sizes_are_those_of_the_issue():
    shapes = {x.shape for x in jax.tree.leaves(networks.digits().params)}
    assert shapes == {(64, 256), (256,), (256, 256), (256, 10), (10,)}
    assert networks.digits().inputs[0].shape == (128, 8, 8)
    blocks = jax.eval_shape(lambda: networks.transformer().params)["blocks"]
    assert blocks["query"].shape == (12, 256, 4, 64)
    assert blocks["up"].shape == (12, 256, 1024)


@pytest.mark.slow
@pytest.mark.parametrize("name", networks.NETWORKS)
def test_every_network_has_a_float32_fitness_of_its_rows(name):
    dtype = "bfloat16"  # where a promotion that nobody asked for shows
    sizes = {"depth": 2, "width": 16, "tokens": 3} if name in ("transformer", "decode") else {}
    net = networks.NETWORKS[name](rows=4, dtype=dtype, **sizes)
    assert {x.dtype for x in jax.tree.leaves(net.params)} == {jnp.dtype(dtype)}
    each = jax.jit(jax.vmap(net.fitness, in_axes=(None, *[0] * len(net.copies(2)))))(net.params, *net.copies(2))
    assert each.dtype == jnp.float32
    assert np.isfinite(each).all()


@pytest.mark.slow
def test_members_share_rows_or_have_their_own():
    shared, own = networks.digits(rows=3), networks.decode(rows=3, depth=1, width=16)
    assert [x.shape for x in shared.rows(4)] == [(3, 8, 8), (3,)]
    assert [x.shape for x in shared.copies(4)] == [(4, 3, 8, 8), (4, 3)]
    assert [x.shape for x in shared.copies(4, targets=False)] == [(4, 3, 8, 8)]
    assert (shared.in_axes, own.in_axes) == (None, 0)
    prompts = own.rows(5)[0]
    assert prompts.shape == (5, networks.PROMPT)
    np.testing.assert_array_equal(prompts[3:], own.inputs[0][:2])
    assert len({tuple(p) for p in prompts[:3].tolist()}) == 3


def test_log_likelihood_is_that_of_the_labels():
    logits = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    labels = np.array([0, 3, 1, 2, 2])
    chosen = np.exp(logits)[np.arange(5), labels] / np.exp(logits).sum(1)
    np.testing.assert_allclose(networks.log_likelihood(logits, labels), np.log(chosen).mean(), rtol=1e-5)
