"""State that a model changes while it is evaluated: batch statistics, RNG streams, and its fate on failure."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import eggroll.nnx
from eggroll.strategy.noise.keys import generation_key
from tests.flax.truth import ROUNDING, ask, assert_close, functional, normal
from tests.quick import quickest

X = normal(0, 8, 4)
SETTINGS = {"population": 6, "sigma": 0.1, "fallback": "error"}
RUN = jax.random.key(7)  # `ask` starts its run from it
KEY = generation_key(RUN, 0)


def float64_mean(trees: list[Any]) -> Any:
    return jax.tree.map(lambda *xs: np.mean(np.asarray(xs, np.float64), 0).astype(np.float32), *trees)


class Normalised(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.layer = nnx.Linear(4, 3, rngs=rngs)
        self.norm = nnx.BatchNorm(3, momentum=0.5, rngs=rngs)

    def __call__(self, x):
        return nnx.tanh(self.norm(self.layer(x)))


def mean_square(model, x):
    return jnp.mean((model(x) - 0.3) ** 2)


def test_batch_statistics_become_the_mean_of_the_members_own():
    model = Normalised(nnx.Rngs(0))
    fun, params, rest = functional(model, lambda model, x: (mean_square(model, x), nnx.state(model, nnx.BatchStat)))
    members = ask(params)
    members.apply(fun, rest, X)  # the plan follows the function
    each = [jax.jit(fun)(members.materialize(i), rest, X) for i in range(6)]
    value, _ = eggroll.nnx.value_and_grad(mean_square, **SETTINGS)(model, X, key=KEY)
    np.testing.assert_allclose(value, np.mean([loss for loss, _ in each]), rtol=ROUNDING)
    assert_close(nnx.state(model, nnx.BatchStat), float64_mean([stats for _, stats in each]))
    spread = np.std([stats["norm"]["mean"][...] for _, stats in each], axis=0)
    assert spread.min() > 1e-3, "members should disagree about the mean"


def test_linen_batch_statistics_come_back_as_auxiliary_output():
    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x, training):
            x = nn.Dense(3)(x)
            return nn.BatchNorm(use_running_average=not training, momentum=0.5)(x)

    layer = Layer()
    variables = layer.init(jax.random.key(0), X, training=False)

    def loss_fn(params, stats, x, training):
        out, new = layer.apply({"params": params, "batch_stats": stats}, x, training=training, mutable=["batch_stats"])
        return jnp.mean((out - 0.3) ** 4), new["batch_stats"]

    args = variables["params"], variables["batch_stats"], X
    members = ask(args[0])
    members.apply(loss_fn, *args[1:], True)
    alone = jax.jit(loss_fn, static_argnums=3)
    each = [alone(members.materialize(i), *args[1:], True) for i in range(6)]
    estimate = eggroll.value_and_grad(loss_fn, has_aux=True, **SETTINGS)
    (value, stats), grads = estimate(*args, training=True, key=KEY)
    np.testing.assert_allclose(value, np.mean([loss for loss, _ in each]), rtol=ROUNDING)
    assert_close(stats, float64_mean([s for _, s in each]))
    assert jax.tree.structure(grads) == jax.tree.structure(args[0])


class Dropped(nnx.Module):
    """Returns its dropout mask beside its output: dropout of ones, 0 or 2 at a rate of one half."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.layer = nnx.Linear(4, 64, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        mask = self.dropout(jnp.ones((x.shape[0], 64)))
        return self.layer(x) * mask, mask


def masked_loss(model, x):
    out, mask = model(x)
    return jnp.mean(out**2), mask


def counts(model) -> int:
    return int(model.dropout.rngs.count[...])


def mean_mask(model, **options) -> np.ndarray:
    """The members' average mask, in units of kept members of 6."""
    estimate = eggroll.nnx.value_and_grad(masked_loss, has_aux=True, **SETTINGS, **options)
    (_, mask), _ = estimate(model, X, key=KEY)
    return np.asarray(mask) * 3


def test_members_share_dropout_masks_which_change_from_call_to_call():
    model = Dropped(nnx.Rngs(0))
    first, second = mean_mask(model), mean_mask(model)
    assert set(np.unique(first)) == {0.0, 6.0}
    assert counts(model) == 2
    assert 0.3 < np.mean(first == second) < 0.7  # 512 coins


def test_the_shared_mask_is_the_one_the_model_itself_would_draw():
    model, same = Dropped(nnx.Rngs(0)), Dropped(nnx.Rngs(0))
    np.testing.assert_array_equal(mean_mask(model), same(X)[1] * 3)


def test_pairs_have_masks_of_their_own_on_request():
    model = Dropped(nnx.Rngs(0))
    kept = np.rint(mean_mask(model, share_rngs=False))
    numbers, how_often = np.unique(kept, return_counts=True)
    # Both members of a pair keep a unit or both drop it: even numbers only, as three fair coins give them.
    assert numbers.tolist() == [0, 2, 4, 6]
    np.testing.assert_allclose(how_often / kept.size, [1 / 8, 3 / 8, 3 / 8, 1 / 8], atol=0.08)  # 5 deviations
    assert counts(model) == 1


def test_without_pairs_every_member_has_a_mask_of_its_own():
    kept = np.rint(mean_mask(Dropped(nnx.Rngs(0)), share_rngs=False, antithetic=False))
    assert set(np.unique(kept)) == {0, 1, 2, 3, 4, 5, 6}


def test_masks_of_pairs_depend_on_the_call_key_and_the_models_own_key_stays():
    model = Dropped(nnx.Rngs(0))
    before = jax.random.key_data(model.dropout.rngs.key[...])
    mean_mask(model, share_rngs=False)
    np.testing.assert_array_equal(before, jax.random.key_data(model.dropout.rngs.key[...]))


def test_a_stream_of_random_keys_as_an_argument_advances_once():
    class Layer(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.layer = nnx.Linear(4, 3, rngs=rngs)
            self.dropout = nnx.Dropout(0.5)

        def __call__(self, x, rngs):
            return self.dropout(self.layer(x), rngs=rngs)

    model, rngs = Layer(nnx.Rngs(0)), nnx.Rngs(dropout=1)
    loss = lambda model, x, rngs: jnp.mean(model(x, rngs) ** 2)  # noqa: E731
    estimate = eggroll.nnx.value_and_grad(loss, **SETTINGS)
    values = [estimate(model, X, rngs, key=KEY)[0] for _ in range(3)]
    assert int(rngs.dropout.count[...]) == 3
    assert len(set(map(float, values))) == 3


def test_evaluation_mode_leaves_no_trace():
    model = Normalised(nnx.Rngs(0))
    model.eval()
    before = jax.tree.map(jnp.copy, nnx.state(model))
    eggroll.nnx.grad(mean_square, **SETTINGS)(model, X, key=KEY)
    jax.tree.map(np.testing.assert_array_equal, before, nnx.state(model))


def test_a_generation_without_a_finite_loss_raises_and_changes_nothing():
    model = Normalised(nnx.Rngs(0))
    before = jax.tree.map(jnp.copy, nnx.state(model))
    estimate = eggroll.nnx.value_and_grad(lambda m, x, bad: mean_square(m, x) * bad, **SETTINGS)
    with pytest.raises(FloatingPointError, match="no finite loss among 6 members"):
        estimate(model, X, jnp.float32("nan"), key=KEY)
    jax.tree.map(np.testing.assert_array_equal, before, nnx.state(model))
    value, _ = estimate(model, X, jnp.float32(1.0), key=KEY)
    assert jnp.isfinite(value)
    assert bool((before["norm"]["mean"][...] != model.norm.mean[...]).all())


def test_under_jit_a_generation_without_a_finite_loss_changes_nothing_either():
    model = Dropping(nnx.Rngs(0))

    def loss(m, x, bad):
        value = mean_square(m, x)
        m.seen = nnx.Intermediate(value)  # state that was not there before
        return value * bad

    before = jax.tree.map(jnp.copy, nnx.state(model))
    step = nnx.jit(lambda m, bad, key: eggroll.nnx.value_and_grad(loss, **SETTINGS)(m, X, bad, key=key))
    for bad in (jnp.float32("nan"), jnp.float32("inf")):
        value, grads = step(model, bad, KEY)
        assert jnp.isnan(value) and not any(jnp.any(g) for g in jax.tree.leaves(grads))
        after = nnx.state(model, nnx.Not(nnx.Intermediate))
        jax.tree.map(np.testing.assert_array_equal, data(before), data(after))
    value, _ = step(model, jnp.float32(1.0), KEY)
    assert jnp.isfinite(value) and int(model.dropout.rngs.count[...]) == 1
    assert bool((before["norm"]["mean"][...] != model.norm.mean[...]).all())


class Dropping(Normalised):
    def __init__(self, rngs: nnx.Rngs) -> None:
        super().__init__(rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.dropout(super().__call__(x))


def data(state):
    """Keys as their data."""
    is_key = lambda x: jnp.issubdtype(x.dtype, jax.dtypes.prng_key)  # noqa: E731
    return jax.tree.map(lambda x: jax.random.key_data(x) if is_key(x) else x, state)


PLACES = {
    "by position": lambda f, m, rngs, seen: f(m, rngs, seen),
    "by name": lambda f, m, rngs, seen: f(m, rngs=rngs, seen=seen),
    "in a dict": lambda f, m, rngs, seen: f(m, {"rngs": rngs, "more": [seen, None]}),
    "twice": lambda f, m, rngs, seen: f(m, rngs, seen=seen, again=(rngs, m)),
}


@pytest.mark.filterwarnings("ignore::eggroll.FixedKeyWarning")  # no noise to speak of
@pytest.mark.parametrize(
    ("place", "jit"),
    quickest(
        [("by position", False), ("by name", True), ("in a dict", False), ("twice", True)],
        ("by position", False), ("twice", True),
    ),
)  # fmt: skip
def test_objects_among_the_arguments_keep_their_state_wherever_they_are(place, jit):
    """As `nnx.value_and_grad` does for what is passed by position; the noise is too small to be seen."""

    def loss(m, first=None, second=None, *, rngs=None, seen=None, again=None):
        if isinstance(first, dict):
            rngs, (seen, _) = first["rngs"], first["more"]
        rngs, seen = rngs or first, second if seen is None else seen
        seen[...] = seen[...] + 1.0
        value = m(X).sum() * rngs.normal() + seen[...]
        return value if again is None else value + again[0].normal() + 0 * again[1](X).sum()

    def three(f):
        model, rngs, seen = nnx.Linear(4, 3, rngs=nnx.Rngs(0)), nnx.Rngs(1), nnx.Variable(jnp.zeros(()))
        values = [float(PLACES[place](f, model, rngs, seen)) for _ in range(3)]
        return values, int(rngs.default.count[...]), float(seen[...])

    options = {"population": 6, "sigma": 1e-6}
    estimate = eggroll.nnx.value_and_grad(loss, **options)
    mine = lambda *args, **kwargs: estimate(*args, key=KEY, **kwargs)[0]  # noqa: E731
    values, count, seen = three(nnx.jit(mine) if jit else mine)
    expected, *state = three(loss)
    np.testing.assert_allclose(values, expected, rtol=1e-4)
    assert [count, seen] == state and seen == 3


def test_counts_are_exact_where_members_agree_and_refused_where_they_differ():
    class Counting(nnx.Module):
        def __init__(self) -> None:
            self.layer = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
            self.calls, self.positive = nnx.Variable(jnp.int32(2**30 + 1)), nnx.Variable(jnp.int32(0))

        def __call__(self, x, counts):
            out = self.layer(x)
            self.calls[...] = self.calls[...] + 1  # float32 does not hold it
            if counts:
                self.positive[...] = self.positive[...] + (out > 0).sum(dtype=jnp.int32)
            return out

    model = Counting()
    estimate = eggroll.nnx.value_and_grad(lambda model, x, counts: jnp.mean(model(x, counts) ** 2), **SETTINGS)
    estimate(model, X, False, key=KEY)
    assert model.calls[...].dtype == jnp.int32 and int(model.calls[...]) == 2**30 + 2
    with pytest.raises(TypeError, match=r"got '0/positive' of dtype int32 in the state .* in which members differ"):
        estimate(model, X, True, key=KEY)
    assert int(model.calls[...]) == 2**30 + 2, "the model is as it was"


@pytest.mark.parametrize("jit", [False, True])
def test_what_is_not_trained_keeps_its_bits(jit):
    """A mean over members of what none of them changes would differ from it in the last bit."""
    model = nnx.LoRALinear(6, 5, lora_rank=2, rngs=nnx.Rngs(0))
    frozen = nnx.split(model, nnx.LoRAParam, ...)[2]
    before = jax.tree.map(np.array, frozen)

    def loss_fn(model, x):
        return jnp.mean(model(x) ** 2)

    call = eggroll.nnx.value_and_grad(loss_fn, population=1000, sigma=0.1, wrt=nnx.LoRAParam)

    def step(model, x, key):
        return call(model, x, key=key)[0]

    (nnx.jit(step) if jit else step)(model, jnp.ones((3, 6)), jax.random.key(1))
    after = nnx.split(model, nnx.LoRAParam, ...)[2]
    assert jax.tree.structure(after) == jax.tree.structure(frozen)
    for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(before), strict=True):
        assert np.asarray(a).tobytes() == b.tobytes()
