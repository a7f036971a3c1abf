"""Unmodified convolution layers of NNX and Linen, transposed, grouped and dilated ones included."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import eggroll
from tests.flax.truth import by_path, check_members, check_model, normal, sides

IMAGE = normal(0, 2, 5, 5, 6)
SIGNAL = normal(1, 2, 7, 3)
VOLUME = normal(2, 1, 4, 4, 3, 2)
RGB = normal(3, 2, 4, 4, 3)

LAYERS = {
    "strides and dilation": (lambda r: nnx.Conv(6, 4, (3, 2), strides=(2, 1), kernel_dilation=2, rngs=r), IMAGE),
    "grouped": (lambda r: nnx.Conv(6, 9, 3, feature_group_count=3, use_bias=False, rngs=r), normal(4, 2, 7, 6)),
    "depthwise": (lambda r: nnx.Conv(6, 12, (3, 3), feature_group_count=6, rngs=r), IMAGE),
    "causal": (lambda r: nnx.Conv(3, 4, 3, kernel_dilation=2, padding="CAUSAL", rngs=r), SIGNAL),
    "circular volume": (lambda r: nnx.Conv(2, 3, (2, 2, 2), strides=2, padding="CIRCULAR", rngs=r), VOLUME),
    "transposed": (lambda r: nnx.ConvTranspose(3, 4, (3, 3), strides=(2, 2), rngs=r), RGB),
    "transposed circular": (lambda r: nnx.ConvTranspose(3, 4, (3, 2), 2, padding="CIRCULAR", rngs=r), RGB),
}


@pytest.mark.first(2)
@pytest.mark.parametrize("name", LAYERS)
def test_a_kernel_parts_its_window_and_inputs_from_its_features(name):
    make, x = LAYERS[name]
    plan = by_path(check_model(make(nnx.Rngs(0)), x))
    last = len(plan["kernel"].shape) - 1
    assert sides(plan["kernel"]) == (tuple(range(last)), (last,), ())
    assert "bias" not in plan or plan["bias"].kind == "dense"


def test_a_transposed_kernel_parts_on_the_other_axis():
    model = nnx.ConvTranspose(3, 4, 3, strides=2, transpose_kernel=True, rngs=nnx.Rngs(0))
    plan = by_path(check_model(model, SIGNAL))
    assert plan["kernel"].shape == (3, 4, 3)  # window, features, inputs
    assert sides(plan["kernel"]) == ((0, 2), (1,), ())


def test_a_masked_kernel_gets_dense_noise():
    # The mask meets the kernel before the convolution does, element by element.
    mask = jnp.ones((3, 3, 4)).at[2].set(0.0)
    with pytest.warns(eggroll.DenseFallbackWarning, match="'kernel' .* for `mul`.*a number for every element"):
        plan = by_path(check_model(nnx.Conv(3, 4, 3, mask=mask, rngs=nnx.Rngs(0)), SIGNAL, fallback="warn"))
    assert plan["kernel"].kind == "dense"


@pytest.mark.first(1)
@pytest.mark.parametrize(
    ("layer", "axes"),
    [
        (nn.Conv(4, (3,), feature_group_count=1, strides=2), ((0, 1), (2,), ())),
        (nn.ConvTranspose(4, (3,), strides=(2,)), ((0, 1), (2,), ())),
        (nn.ConvLocal(4, (3,)), ((1,), (2,), (0,))),  # a kernel of its own at every position: a stack of them
    ],
    ids=["conv", "transposed", "local"],
)
def test_linen(layer, axes):
    params = layer.init(jax.random.key(0), SIGNAL)
    plan = by_path(check_members(layer.apply, params, SIGNAL))
    assert sides(plan["params/kernel"]) == axes


class Network(nnx.Module):
    """Convolution, batch statistics, a residual branch and a head."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.stem = nnx.Conv(6, 4, (3, 3), use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.branch = nnx.Conv(4, 4, (3, 3), rngs=rngs)
        self.head = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.stem(x)))
        x = nnx.max_pool(x + self.branch(x), (2, 2), strides=(2, 2))
        return self.head(x.mean((1, 2)))


@pytest.mark.slow
def test_batch_statistics_are_those_of_each_member():
    def call(model, x):
        return model(x), nnx.state(model, nnx.BatchStat)

    members = check_model(Network(nnx.Rngs(0)), IMAGE, call=call)
    assert all("mean" not in leaf.path and "var" not in leaf.path for leaf in members.plan.leaves)


@pytest.mark.slow
def test_running_statistics_are_shared_by_all_members():
    model = Network(nnx.Rngs(0))
    model.norm.mean[...], model.norm.var[...] = normal(4, 4), jnp.arange(1.0, 5.0)
    model.eval()
    check_model(model, IMAGE)
