"""What exists at once: the model, one perturbed copy or the new model, and blocks of noise."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest

import eggroll
from eggroll.strategy import full_rank_generation
from eggroll.strategy.full_rank_generation import FullRankGeneration
from eggroll.strategy.noise.dense import block_size, perturbed
from eggroll.strategy.update.dense import moved
from tests.quick import quickest

pytestmark = pytest.mark.measured

SIZE = 1 << 23
BLOCKS = 14  # a block's sums, words, numbers, and steps to them; the parameter has 32


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="blocks are larger than these parameters elsewhere")
@pytest.mark.parametrize("dtype", quickest([jnp.float32, jnp.bfloat16], jnp.bfloat16))
def test_compiled_calls_need_blocks_beside_their_result(dtype: Any) -> None:
    """However large the parameter and the population, and whatever its dtype."""
    param = jax.ShapeDtypeStruct((SIZE,), dtype)
    keys, word = jax.ShapeDtypeStruct((30, 2), jnp.uint32), jax.ShapeDtypeStruct((2,), jnp.uint32)
    block, model = 4 * block_size(SIZE), SIZE * param.dtype.itemsize
    # XLA copies a half-precision parameter once to see it as integers: one parameter, not one of all.
    most = BLOCKS * block + (model if dtype == jnp.bfloat16 else 0)
    made: Any = perturbed.lower(param, param, keys, 3, 1, 0.1, distribution="normal").compile().memory_analysis()
    assert made.alias_size_in_bytes == model  # the copy before is overwritten
    assert made.temp_size_in_bytes < most
    weights = jax.ShapeDtypeStruct((30,), jnp.float32)
    made = moved.lower(param, keys, word, weights, 0.1, distribution="normal").compile().memory_analysis()
    assert made.output_size_in_bytes < model + 1024
    assert made.temp_size_in_bytes < most


@pytest.mark.slow
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

    monkeypatch.setattr(full_rank_generation, "FullRankGeneration", Watched)
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
