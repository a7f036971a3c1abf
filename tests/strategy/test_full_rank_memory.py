"""What exists at once: the model, one perturbed copy or the new model, and blocks of noise."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest

import eggroll
from eggroll.strategy import full_rank_members
from eggroll.strategy.full_rank_generation import FullRankGeneration
from eggroll.strategy.full_rank_leaves import moved, perturbed
from eggroll.strategy.full_rank_noise import block_size

SIZE = 1 << 20
BLOCKS = 3  # a block's sums, words, and numbers


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="blocks are larger than these parameters elsewhere")
def test_compiled_calls_need_blocks_beside_their_result() -> None:
    """However large the parameter and the population."""
    param = jax.ShapeDtypeStruct((SIZE,), jnp.float32)
    keys, word = jax.ShapeDtypeStruct((30, 2), jnp.uint32), jax.ShapeDtypeStruct((2,), jnp.uint32)
    block = 4 * block_size(SIZE)
    assert 4 * block <= 4 * SIZE
    made: Any = perturbed.lower(param, param, keys, 3, 1, 0.1, distribution="normal").compile().memory_analysis()
    assert made.alias_size_in_bytes == 4 * SIZE  # the copy before is overwritten
    assert made.temp_size_in_bytes < BLOCKS * block
    weights = jax.ShapeDtypeStruct((30,), jnp.float32)
    made = moved.lower(param, keys, word, weights, 0.1, distribution="normal").compile().memory_analysis()
    assert made.output_size_in_bytes < 4 * SIZE + 1024
    assert made.temp_size_in_bytes < BLOCKS * block


def test_one_copy_lives_while_members_are_evaluated(monkeypatch: pytest.MonkeyPatch) -> None:
    """And none afterwards; a model of many parameters, by all live arrays."""
    leaves = 16
    params = {f"w{n}": jnp.zeros((64, 64)) for n in range(leaves)}
    model = sum(x.nbytes for x in params.values())
    es = eggroll.FullRankES(population=5)
    state = es.init(params, jax.random.key(0))
    before, seen = _live(), []

    class Watched(FullRankGeneration):
        def member(self, params: Any, i: Any, buffers: list[Any]) -> Any:
            made = super().member(params, i, buffers)
            seen.append(_live() - before)
            return made

    monkeypatch.setattr(full_rank_members, "FullRankGeneration", Watched)
    outputs = es.ask(state).apply(lambda params: params["w0"][0].sum())
    assert len(seen) == 5
    assert max(seen) < 1.1 * model
    assert _live() - before < 0.1 * model
    new, _ = es.tell(state, es.ask(state), outputs)
    del outputs
    assert _live() - before < 1.1 * model
    assert new.params.keys() == params.keys()


def _live() -> int:
    return sum(x.nbytes for x in jax.live_arrays())
