"""while, fori_loop and scan over weights of any ownership: as constants, as carries, and in conditions."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from eggroll.engine.interpreter import DenseFallbackError
from eggroll.engine.lowrank import is_low_rank
from tests.engine.truth import check, check_never_dense, compressible, integers, weights


def shrink(x):
    """Keeps values small integers, so that many steps stay exact."""
    return jnp.clip(x, -3, 3)


LOOPS = {
    "while": lambda n, step, c: lax.while_loop(lambda c: c[0] < n, lambda c: (c[0] + 1, *step(c[1:])), (0, *c))[1:],
    "fori": lambda n, step, c: lax.fori_loop(0, n, lambda i, c: step(c), tuple(c)),
    "scan": lambda n, step, c: lax.scan(lambda c, i: (step(c), None), tuple(c), None, length=2)[0],
}
PLACES = ["constant", "carried", "dense constant", "dense carried"]


@given(st.data())
def test_any_loop(data):
    """Any number of steps, one for all members or each its own; constants and carries in any order, dense or not."""
    n = data.draw(st.integers(3, 4))
    places = [data.draw(st.sampled_from(choices)) for choices in (PLACES[:2], PLACES)]
    params = [data.draw(weights(2, 2, st.just(n), path=f"w{i}")) for i in range(2)]
    params = [p.base if "dense" in place else p for p, place in zip(params, places, strict=True)]
    order = data.draw(st.permutations(range(3)))  # of the carries
    carried = [i for i, place in enumerate(places) if "constant" not in place]
    loop = LOOPS[data.draw(st.sampled_from(sorted(LOOPS)))]
    per_member = data.draw(st.booleans())
    steps = data.draw(st.lists(st.integers(0, 4), min_size=3, max_size=3) if per_member else st.integers(0, 4))

    def fun(params, n, x):
        def step(carry):
            now = {**dict(enumerate(params)), **dict(zip(keys, carry, strict=True))}
            new = shrink(now[2] @ now[0] - now[2] @ now[1].T)
            return tuple(new if k == 2 else now[k] for k in keys)

        keys = [k for k in order if k == 2 or k in carried]
        last = dict(zip(keys, loop(n, step, [[*params, x][k] for k in keys]), strict=True))
        return last[2] @ last.get(0, params[0])

    x = integers(3, (2, n), bound=2)
    check(fun, params, jnp.asarray(np.array(steps, np.int32)), x, per_member=[0] if per_member else [])
    if all(compressible(p) for p in params if is_low_rank(p)):
        check_never_dense(fun, params, jnp.int32(2), x, strict=True)


@settings(max_examples=8)
@given(weights(2, 2, st.just(4)), st.integers(0, 4), st.integers(-30, 60))
def test_any_condition(w, steps, bound):
    """A weight that is a constant, or a carry, of the condition; members stop at different steps."""

    def fun(w, n, x):
        more = lambda c: (c[0] < n) & ((c[1] @ w).sum() + (c[1] @ c[2]).sum() < bound)  # noqa: E731
        return lax.while_loop(more, lambda c: (c[0] + 1, shrink(c[1] @ w) + c[1], c[2]), (0, x, w))[1]

    x = integers(3, (2, 4), bound=2)
    check(fun, w, jnp.int32(steps), x)
    if compressible(w):
        check_never_dense(fun, w, jnp.int32(steps), x, strict=True)


@pytest.mark.slow
@settings(max_examples=8)
@given(weights(2, 2, st.just(3)), weights(2, 2, st.just(3), path="v"), st.data())
def test_carries_of_any_origin(w, v, data):
    """Each carry becomes itself, the other, or its own negative: all but the first are made dense, and right."""
    loop = LOOPS[data.draw(st.sampled_from(sorted(LOOPS)))]
    origins = [data.draw(st.integers(0, 1)) for _ in range(2)]
    signs = [data.draw(st.sampled_from([1, -1])) for _ in range(2)]

    def fun(p, n, x):
        def step(c):
            return tuple(c[i] if s == 1 else -c[i] for i, s in zip(origins, signs, strict=True))

        last = loop(n, step, p)
        return x @ last[0], x @ last[1]

    args = [w, v], jnp.int32(data.draw(st.integers(0, 3))), integers(3, (2, 3))
    check(fun, *args, fallback="allow")
    if (origins, signs) == ([0, 1], [1, 1]):
        check(fun, *args)
    else:
        with pytest.raises(DenseFallbackError, match="loop carry that the body changes"):
            check(fun, *args)
