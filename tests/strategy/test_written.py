"""Noise on activations of what members write turn by turn: the gradient is made at each member's own turns."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.scipy.stats import norm

import eggroll

TURNS, WIDTH, TOKENS, STOP = 2, 2, 2, 1
SIGMA = 0.7
RNG = np.random.default_rng(3)
PARAMS = {"a": 0.5 * RNG.normal(size=(TOKENS, WIDTH)).astype("f"), "b": RNG.normal(size=(WIDTH, TOKENS)).astype("f")}
REWARDS = RNG.normal(size=(TOKENS, TOKENS)).astype("f")  # of the tokens chosen at the two turns


def layers(params: Any, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Hidden values `[..., WIDTH]` and logits `[..., TOKENS]`: what is made of both layers' outputs."""
    hidden = jnp.tanh(jnp.eye(TOKENS)[tokens] @ params["a"])
    return hidden, (hidden @ params["b"]) * 1.0


class Chain:
    """Chooses a token from the last one by a network of two layers, greedily, until the stop token if there is one."""

    def __init__(self, stop: int = -1) -> None:
        self.stop = stop

    def __call__(self, params: Any, start: jax.Array) -> dict[str, jax.Array]:
        def turn(carry: Any) -> Any:
            t, token, kept = carry
            hidden, logits = layers(params, token[None, None])
            token = jnp.argmax(logits[0, 0]).astype(jnp.int32)
            made = {"tokens": token, "hidden": hidden[0, 0], "logits": logits[0, 0], "length": t + 1}
            kept = {k: v.at[t].set(made[k]) if v.ndim else made[k] for k, v in kept.items()}
            return t + 1, token, kept

        kept = {"tokens": jnp.zeros(TURNS, jnp.int32), "hidden": jnp.zeros((TURNS, WIDTH))}
        kept |= {"logits": jnp.zeros((TURNS, TOKENS)), "length": jnp.int32(0)}
        going = lambda carry: (carry[0] < TURNS) & ((carry[0] == 0) | (carry[1] != self.stop))  # noqa: E731
        return jax.lax.while_loop(going, turn, (jnp.int32(0), start, kept))[2]

    def wrote(self, outputs: Any) -> jax.Array:
        return jnp.arange(TURNS) < outputs["length"][:, None]

    def again(self, params: Any, outputs: Any, start: jax.Array) -> jax.Array:
        starts = jnp.full((len(outputs["length"]), 1), start)
        return layers(params, jnp.concatenate([starts, outputs["tokens"][:, :-1]], 1))[1]


def strategy(population: int, **options: Any) -> eggroll.ES:
    options = {"shaping": "none", "optimizer": optax.sgd(1.0), "sigma": SIGMA} | options
    return eggroll.ES(population=population, noise="activations", **options)


def moved(es: eggroll.ES, fun: Any) -> tuple[Any, dict[str, np.ndarray], dict[str, Any]]:
    """(the estimate, what members wrote, the metrics) of one generation."""
    state = es.init(PARAMS, jax.random.key(5))
    members = es.ask(state)
    wrote = jax.device_get(members.apply(fun, jnp.int32(0)))
    new, metrics = es.tell(state, members, REWARDS[wrote["tokens"][:, 0], wrote["tokens"][:, 1]])
    return jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), PARAMS, new.params), wrote, metrics


@pytest.mark.parametrize(
    "options",
    [{"distribution": "normal", "antithetic": False}, {"relative": True, "chunk": 4}],
    ids=["normal, alone", "signs, relative"],
)
def test_the_estimate_is_made_of_each_members_own_noise_at_its_own_inputs(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eggroll.strategy.update.written.AT_ONCE", 4 * TURNS)  # so that they are read in parts
    got, wrote, metrics = moved(strategy(24, **options), Chain(STOP))
    weights, want = np.asarray(metrics["weights"]), {k: np.zeros_like(v) for k, v in PARAMS.items()}
    assert len({*wrote["length"].tolist()}) > 1, "answers should be of several lengths"
    for i, w in enumerate(weights):
        token = 0
        for t in range(wrote["length"][i]):
            x = np.eye(TOKENS)[token]
            hidden = wrote["hidden"][i, t]
            for name, inputs, seen in (("a", x, np.arctanh(hidden)), ("b", hidden, wrote["logits"][i, t])):
                clean = inputs @ PARAMS[name]
                size = np.sqrt(np.mean(clean**2)) if options.get("relative") else 1
                noise = (seen - clean) / (SIGMA * size)
                if options.get("distribution") != "normal":
                    np.testing.assert_allclose(np.abs(noise), 1, rtol=1e-4)
                want[name] -= w * np.outer(inputs, noise) / (len(weights) * SIGMA * size)
            token = wrote["tokens"][i, t]
    for name in PARAMS:
        np.testing.assert_allclose(got[name], want[name], rtol=1e-4, atol=1e-6)


def test_its_expectation_is_that_of_all_noise_there_is() -> None:
    """Enumerated in float64: all signs of both layers at both turns. The bound is 5 standard deviations."""
    each = []
    for signs in itertools.product((1.0, -1.0), repeat=TURNS * (WIDTH + TOKENS)):
        noise = np.reshape(signs, (TURNS, WIDTH + TOKENS))
        tokens, sums = [0], {k: np.zeros(v.shape) for k, v in PARAMS.items()}
        for t in range(TURNS):
            x = np.eye(TOKENS)[tokens[-1]]
            hidden = np.tanh(x @ PARAMS["a"].astype(float) + SIGMA * noise[t, :WIDTH])
            tokens.append(int(np.argmax(hidden @ PARAMS["b"].astype(float) + SIGMA * noise[t, WIDTH:])))
            sums["a"] += np.outer(x, noise[t, :WIDTH])
            sums["b"] += np.outer(hidden, noise[t, WIDTH:])
        reward = REWARDS[tokens[1], tokens[2]]
        each.append({k: -reward * v / SIGMA for k, v in sums.items()})
    population = 1 << 13
    got, _, _ = moved(strategy(population), Chain())
    for name in PARAMS:
        every = np.stack([e[name] for e in each])
        pairs = (every + every[::-1]) / 2  # the last of all signs are the first's opposites
        bound = 5 * pairs.std(0) / np.sqrt(population / 2) + 1e-3
        assert np.abs(bound).max() < 0.4 * np.abs(every.mean(0)).max(), "the bound should tell something"
        assert (np.abs(got[name] - every.mean(0)) < bound).all()


def test_with_normal_noise_it_is_the_gradient_of_the_expected_reward() -> None:
    """Greedy decoding with normal noise on two logits chooses by a probit, so the expected reward has a closed form."""
    population = 1 << 15

    def expected(b: jax.Array) -> jax.Array:
        logits = layers({"a": PARAMS["a"], "b": b}, jnp.arange(TOKENS))[1]
        second = norm.cdf((logits[:, 1] - logits[:, 0]) / (SIGMA * np.sqrt(2)))
        chosen = jnp.stack([1 - second, second], 1)  # [last token, next one]
        return jnp.einsum("i,ij,ij->", chosen[0], chosen, REWARDS)

    es = strategy(population, distribution="normal", antithetic=False, rules=[("a", "frozen")])
    got, _, _ = moved(es, Chain())
    want = -np.asarray(jax.grad(expected)(PARAMS["b"]))
    # A turn's part is a reward times an input below 1 times noise over sigma; those of other turns are uncorrelated.
    bound = 5 * np.sqrt(TURNS / population) * np.abs(REWARDS - REWARDS.mean()).max() / SIGMA
    assert bound < 0.5 * np.abs(want).max(), "the bound should tell something"
    assert (np.abs(got["b"] - want) < bound).all() and not got["a"].any()


class Other(Chain):
    """Reads with one layer alone."""

    def again(self, params: Any, outputs: Any, start: jax.Array) -> jax.Array:
        return jnp.eye(TOKENS)[outputs["tokens"]] @ params["a"]


def test_what_it_cannot_do_is_refused() -> None:
    with pytest.raises(ValueError, match="`again` has other layers"):
        moved(strategy(4), Other())
    with pytest.raises(ValueError, match=r"weight noise on b beside noise on activations.*frozen"):
        moved(strategy(4, rules=[("b", "weights")]), Chain())
    mesh = jax.make_mesh((1,), ("population",))
    with pytest.raises(ValueError, match="got a mesh for a function that writes"):
        moved(strategy(4, mesh=mesh), Chain())
    with pytest.raises(ValueError, match=r"relative=True.*weights"):
        eggroll.ES(population=4, relative=True)
    es = strategy(4)
    members = es.ask(state := es.init(PARAMS, jax.random.key(0)))
    with pytest.raises(TypeError, match=r"got arguments by name of .*pass them by position"):
        members.apply(Chain(), start=jnp.int32(0))
    members.apply(Chain(), jnp.int32(0))
    with pytest.raises(ValueError, match="one number for what each member wrote"):
        es.tell(state, members, np.zeros((4, TURNS)))
