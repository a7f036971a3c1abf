"""Drawn tokens against the distribution that they claim, computed by NumPy in float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eggroll.llm.answers.decoding import Decoding, row_keys
from eggroll.llm.answers.sampling import allowed, choose, nucleus

LOGITS = np.array([2.0, -1.0, 0.5, 1.5, -3.0, 0.0, 1.0], np.float32)
DRAWS = 20_000


def truth(logits: np.ndarray, *, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None):
    """Probabilities, by sorting."""
    logits = logits.astype(np.float64) / temperature
    order = np.argsort(-logits, kind="stable")
    shares = np.exp(logits - logits.max())
    if top_k is not None:
        shares[order[top_k:]] = 0
    shares /= shares.sum()
    if top_p is not None:
        before = np.cumsum(shares[order]) - shares[order]  # mass of the likelier ones
        shares[order[before >= top_p]] = 0
    return shares / shares.sum()


CASES = [
    {"temperature": 0.7},
    {"temperature": 2.0, "top_k": 3},
    {"top_p": 0.6},
    {"top_k": 4, "top_p": 0.85, "temperature": 1.5},
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_frequencies_are_those_of_the_softmax(case):
    options = {"temperature": 1.0, "top_k": None, "top_p": None, **case}
    keys = jax.random.split(jax.random.key(0), DRAWS)
    tokens = jax.jit(lambda x, k: choose(x, k, **options))(jnp.tile(LOGITS, (DRAWS, 1)), keys)
    got = np.bincount(tokens, minlength=len(LOGITS)) / DRAWS
    want = truth(LOGITS, **case)
    assert (got[want == 0] == 0).all()
    # Hoeffding's bound for each of the tokens, together wrong once in ten thousand times.
    limit = np.sqrt(np.log(2 * len(LOGITS) * 1e4) / (2 * DRAWS))
    np.testing.assert_allclose(got, want, rtol=0, atol=limit)


@pytest.mark.parametrize(("top_k", "top_p"), [(None, 0.05), (None, 0.9), (200, 0.99), (5, 0.5), (1, 1.0), (999, 1.0)])
def test_allowed_tokens_are_those_that_sorting_finds(top_k, top_p):
    logits = np.random.default_rng(1).normal(0, 3, (16, 300)).astype(np.float32)
    got = np.isfinite(allowed(jnp.asarray(logits), top_k=top_k, top_p=top_p))
    want = np.array([truth(row, top_k=top_k, top_p=top_p) > 0 for row in logits])
    assert (got == want).all()


def test_ties_with_the_last_allowed_token_stay():
    logits = jnp.array([[1.0, 0.0, 0.0, -1.0]])
    assert np.isfinite(allowed(logits, top_k=2, top_p=None)).tolist() == [[True, True, True, False]]
    assert np.isfinite(allowed(logits, top_k=None, top_p=0.6)).tolist() == [[True, True, True, False]]


@pytest.mark.parametrize("shares", [[[1.0, 0.0, 0.0]], [[1 + 1e-7, 0.0, 0.0]], [[0.5, 0.5, 0.0]], [[1e-30, 1.0, 0.0]]])
@pytest.mark.parametrize("mass", [1e-6, 0.5, 0.999999])
def test_the_nucleus_holds_its_mass_and_no_more(shares, mass):
    shares = jnp.array(shares, jnp.float32)
    least = nucleus(shares, mass)
    inside = shares >= least
    assert float(shares[inside].sum()) >= mass and least.item() > 0
    assert float(shares[shares > least].sum()) < mass


def test_greedy_takes_the_likeliest_and_needs_no_key():
    assert choose(jnp.asarray(LOGITS)[None], None, temperature=0.0, top_k=None, top_p=None).tolist() == [0]


@pytest.mark.parametrize("impl", ["rbg", "unsafe_rbg"])
@pytest.mark.parametrize("given", ["one key", "a key for each row"])
def test_a_row_draws_the_same_whatever_else_is_in_its_batch(impl, given):
    key = jax.random.key(0, impl=impl)
    keys = row_keys(key if given == "one key" else jax.random.split(key, 6), Decoding(4, temperature=1.0), 6)
    logits, options = jnp.zeros((6, 50)), {"temperature": 1.0, "top_k": None, "top_p": None}
    together = choose(logits, keys, **options)
    np.testing.assert_array_equal(together[3:], choose(logits[3:], keys[3:], **options))
    assert len(set(together.tolist())) > 1
