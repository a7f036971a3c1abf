"""Unmodified recurrent layers of NNX and Linen: the scan over time keeps the factors as loop constants."""

from __future__ import annotations

import flax.linen as nn
import jax
import pytest
from flax import nnx

from tests.flax.truth import check_members, check_model, normal
from tests.quick import quickest

INPUTS, HIDDEN = 5, 4
SEQUENCE = normal(0, 2, 6, INPUTS)  # batch, time, inputs


def check_plan(members, prefix: str = "cell") -> None:
    kernels = [leaf for leaf in members.plan.leaves if leaf.path.endswith("kernel")]
    assert kernels and all(leaf.path.startswith(prefix) for leaf in kernels)
    for leaf in members.plan.leaves:
        assert leaf.kind == ("low_rank" if leaf in kernels else "dense")
        # One perturbation for the whole sequence: time is no axis of the weights.
        assert leaf.stack_axes == ()


CELLS = [nnx.LSTMCell, nnx.OptimizedLSTMCell, nnx.GRUCell]


@pytest.mark.first(1)
@pytest.mark.parametrize("cell", quickest(CELLS, *CELLS[:2]), ids=lambda c: c.__name__)
def test_nnx(cell):
    check_plan(check_model(nnx.RNN(cell(INPUTS, HIDDEN, rngs=nnx.Rngs(0))), SEQUENCE))


@pytest.mark.slow
@pytest.mark.parametrize("cell", quickest([nn.LSTMCell, nn.GRUCell], nn.GRUCell), ids=lambda c: c.__name__)
def test_linen(cell):
    model = nn.RNN(cell(HIDDEN))
    params = model.init(jax.random.key(0), SEQUENCE)
    check_plan(check_members(model.apply, params, SEQUENCE), "params/cell")


@pytest.mark.slow
def test_both_directions_with_sequence_lengths():
    cells = [nnx.RNN(nnx.GRUCell(INPUTS, HIDDEN, rngs=nnx.Rngs(i))) for i in range(2)]
    lengths = jax.numpy.asarray([6, 3])
    check_model(nnx.Bidirectional(*cells), SEQUENCE, lengths, call=lambda m, x, n: m(x, seq_lengths=n))


@pytest.mark.slow
def test_a_cell_in_a_python_loop_and_its_last_state():
    def call(cell, xs):
        carry = cell.initialize_carry(xs.shape[1:], nnx.Rngs(0))
        for x in xs:
            carry, _ = cell(carry, x)
        return carry

    check_model(nnx.GRUCell(INPUTS, HIDDEN, rngs=nnx.Rngs(0)), SEQUENCE[0][:3], call=call)
