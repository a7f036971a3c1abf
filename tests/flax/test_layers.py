"""Unmodified NNX layers beyond the dense one: einsum, general axes, LoRA, normalisations, learnt activations."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from flax.core import freeze

from tests.flax.truth import by_path, check_members, check_model, normal, sides

X = normal(0, 2, 6, 4)


@pytest.mark.first(1)
@pytest.mark.parametrize(
    ("layer", "shape", "axes"),
    [
        (lambda r: nnx.Einsum("btd,dhk->bthk", (4, 3, 5), (3, 5), rngs=r), (2, 6, 4), ((0,), (1, 2), ())),
        (lambda r: nnx.Einsum("bthk,hkd->btd", (3, 5, 4), None, rngs=r), (2, 6, 3, 5), ((0, 1), (2,), ())),
        (lambda r: nnx.LinearGeneral((3, 4), (5, 2), axis=(1, -1), rngs=r), (2, 3, 6, 4), ((0, 1), (2, 3), ())),
        (lambda r: nnx.LinearGeneral(4, 5, batch_axis={0: 3}, rngs=r), (3, 6, 4), ((1,), (2,), (0,))),
    ],
    ids=["einsum to heads", "einsum from heads", "two axes in and out", "a kernel for every row of the batch"],
)
def test_general_products(layer, shape, axes):
    plan = by_path(check_model(layer(nnx.Rngs(0)), normal(1, *shape)))
    assert sides(plan["kernel"]) == axes


def test_two_inputs_meet_in_one_tensor():
    class Bilinear(nnx.Module):
        def __init__(self) -> None:
            self.weight = nnx.Param(normal(3, 4, 5, 6))

        def __call__(self, x, y):
            return jnp.einsum("bi,ijk,bj->bk", x, self.weight[...], y)

    check_model(Bilinear(), normal(0, 2, 4), normal(1, 2, 5))


def test_only_lora_parameters_are_perturbed_by_their_filter():
    model = nnx.LoRA(4, 2, 5, base_module=nnx.Linear(4, 5, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(1))
    model.lora_b[...] = normal(1, 2, 5)  # zero at the start, where a perturbation of lora_a would not show
    plan = by_path(check_model(model, X, wrt=nnx.LoRAParam))
    assert sorted(plan) == ["lora_a", "lora_b"]
    assert all(sides(leaf) == ((0,), (1,), ()) for leaf in plan.values())


def test_lora_parameters_and_base_together():
    # nnx.LoRAParam is a kind of nnx.Param, so the default filter takes both.
    plan = by_path(check_model(nnx.LoRALinear(4, 5, lora_rank=2, rngs=nnx.Rngs(0)), X))
    assert plan["kernel"].kind == plan["lora/lora_a"].kind == plan["lora/lora_b"].kind == "low_rank"


@pytest.mark.first(1)
@pytest.mark.parametrize(
    "norm",
    [nnx.RMSNorm, lambda n, rngs: nnx.GroupNorm(n, num_groups=2, rngs=rngs), nnx.InstanceNorm],
    ids=["RMSNorm", "GroupNorm", "InstanceNorm"],
)
def test_normalisations_between_layers(norm):
    rngs = nnx.Rngs(0)
    layers = [nnx.Linear(4, 8, rngs=rngs), norm(8, rngs=rngs), nnx.tanh, nnx.Linear(8, 3, rngs=rngs)]
    plan = by_path(check_model(nnx.Sequential(*layers), X))
    assert plan["layers/1/scale"].kind == "dense"
    assert plan["layers/3/kernel"].kind == "low_rank"


def test_a_learnt_activation_gets_dense_noise():
    model = nnx.Sequential(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), nnx.PReLU())
    assert by_path(check_model(model, X))["layers/1/negative_slope"].kind == "dense"


def test_spectral_norm_needs_no_dense_weight():
    # Power iteration is two products, and the division is by one number.
    model = nnx.SpectralNorm(nnx.Linear(4, 8, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(1))
    members = check_model(model, X, call=lambda m, x: m(x, update_stats=True))
    assert by_path(members)["layer_instance/kernel"].kind == "low_rank"


def test_weight_norm_needs_no_dense_weight():
    model = nnx.WeightNorm(nnx.Linear(4, 8, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(0))
    check_model(model, X)
    check_model(model, X, rules=[("layer_instance/kernel", "dense")])


def test_weight_norm_in_linen():
    model = nn.WeightNorm(nn.Dense(4))
    params = model.init(jax.random.key(0), X)
    check_members(model.apply, params, X)


def test_linen_parameters_in_boxes_and_in_a_frozen_dict():
    boxed = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model"))
    model = nn.Dense(3, kernel_init=boxed)
    params = freeze(model.init(jax.random.key(0), X))
    plan = by_path(check_members(model.apply, params, X))
    assert sides(plan["params/kernel"]) == ((0,), (1,), ())
