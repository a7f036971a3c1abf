"""Rollouts against episodes that are played one step at a time, with the dense parameters of each member."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import eggroll
from eggroll.rl import GRU, MLP, HostRollouts, Policy, Rollouts, observed
from eggroll.rl.normalise import Statistics, no_statistics, no_sums, normalised
from eggroll.training.metrics import counted
from eggroll.training.options import SettingsError
from tests.rl.worlds import Both, Forbidden, Line, Target, on_host

KEY = jax.random.key(3)


class Begun(GRU):
    """A recurrent unit whose first state is learned."""

    def __init__(self, *sizes, width, rngs):
        super().__init__(*sizes, width=width, rngs=rngs)
        self.first = nnx.Param(jnp.linspace(-1, 1, width))

    def initial_carry(self):
        return self.first[...]


def made(world, *, recurrent=False, **options):
    seen = observed(world)
    inputs = sum(x.size for x in jax.tree.leaves(seen))
    kind = Begun if recurrent else MLP
    module = kind(inputs, world.actions.outputs, width=16, rngs=nnx.Rngs(0))
    policy = Policy(module, world.actions, seen)
    return policy, (HostRollouts if hasattr(world, "make") else Rollouts)(world, policy, **options)


def strategy(**options):
    return eggroll.ES(population=8, sigma=0.3, optimizer=optax.sgd(0.1), small_layers="low_rank", **options)


def played(world, policy):
    """A function that plays an episode, step by step in Python: its return, and all observations."""

    @jax.jit
    def begin(key):
        first, key = jax.random.split(key)
        return world.reset(first), key

    @jax.jit
    def turn(params, hidden, seen, state, key, step):
        mask = world.mask(state) if hasattr(world, "mask") else None
        action, hidden = policy.act(params, hidden, seen, mask)
        return hidden, *world.step(state, action, jax.random.split(jax.random.fold_in(key, step))[1])

    def play(params, carry, key, cap):
        (state, seen), key = begin(key)
        total, rows, hidden = 0.0, [], policy.start(params)
        count, mean, square = (jax.tree.map(np.asarray, x) for x in carry.statistics)
        std = jax.tree.map(lambda s: np.sqrt(s / count) if count else np.ones_like(s), square)
        std = jax.tree.map(lambda s: np.where(s > 1e-4, s, 1), std)
        for step in range(cap):
            seen = jax.tree.map(np.asarray, seen)
            rows.append(np.concatenate([np.ravel(x) for x in jax.tree.leaves(seen)]))
            x = jax.tree.map(lambda v, m, s: np.clip((v - m) / s, -10, 10), seen, mean, std) if count else seen
            x = jax.tree.map(np.float32, x)
            hidden, state, seen, reward, terminated, truncated = turn(params, hidden, x, state, key, step)
            total += float(reward)
            if terminated or truncated:
                break
        return total, rows

    return play


@pytest.mark.first(2)
@pytest.mark.parametrize(
    ("world", "options", "more"),
    [
        (Line(), {"seeds": "own", "episodes": 2}, {}),
        (Target(), {"seeds": "shared", "episodes": 3}, {}),
        (Both(), {"seeds": "pair", "cap": 4}, {"rank": 2}),
        (Line(), {"seeds": "pair", "recurrent": True}, {}),
    ],
    ids=["discrete", "bounds", "several choices", "recurrent"],
)
def test_every_member_plays_as_its_dense_parameters_do(world, options, more):
    policy, rollouts = made(world, **options)
    es, play = strategy(**more), played(world, policy)
    state, carry = es.init(policy.params, KEY), rollouts.begin()
    everything = []
    for generation in range(2):
        keys, axis = rollouts.keys(es, state)
        members, steps, rewards = es.ask(state), 0, []
        if generation == 0:
            members.plan_for(rollouts._fitness, carry.statistics, jnp.int32(9), keys, in_axes=(None, None, axis))
        after, next_carry, metrics = rollouts(es, state, carry, ())
        for i, params in enumerate(members):
            own = keys if axis is None else keys[i]
            games = [play(params, carry, key, rollouts.limit) for key in own]
            rewards.append(np.mean([total for total, _ in games]))
            everything += [row for _, rows in games for row in rows]
            steps += sum(len(rows) for _, rows in games)
        np.testing.assert_allclose(metrics["fitness"], rewards, rtol=1e-4)
        rows = np.array(everything)
        assert metrics["live_steps"] == len(rows) == counted(next_carry.steps)
        assert metrics["episode_steps"] == pytest.approx(steps / len(members) / rollouts.episodes)
        count, mean, square = next_carry.statistics
        flat = [np.concatenate([np.ravel(x) for x in jax.tree.leaves(each)]) for each in (mean, square)]
        assert count == len(rows)
        np.testing.assert_allclose(flat[0], rows.mean(0), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(flat[1], ((rows - rows.mean(0)) ** 2).sum(0), rtol=1e-3, atol=1e-2)
        state, carry = after, next_carry


def test_seeds_say_who_plays_the_same():
    policy, rollouts = made(Line(), episodes=3)
    es = strategy()
    state = es.init(policy.params, KEY)
    rows = {}
    for rollouts.seeds in ("shared", "pair", "own"):
        keys, axis = rollouts.keys(es, state)
        rows[rollouts.seeds] = np.asarray(jax.random.key_data(keys))[..., -1].reshape(-1, 3)
        assert axis == (None if rollouts.seeds == "shared" else 0)
    assert rows["shared"].shape == (1, 3)
    assert (rows["pair"][::2] == rows["pair"][1::2]).all()
    assert len(np.unique(rows["pair"])) == 12
    assert len(np.unique(rows["own"])) == 24


def test_what_an_environment_says_after_the_end_does_not_matter():
    fitness = []
    for world in (Line(), Line(after=True)):
        policy, rollouts = made(world, seeds="own", episodes=4)
        es = strategy()
        _, _, metrics = rollouts(es, es.init(policy.params, KEY), rollouts.begin(), ())
        assert metrics["nonfinite"] == 0
        assert metrics["episode_steps"] < Line.limit  # some have ended before
        fitness.append(np.asarray(metrics["fitness"]))
    np.testing.assert_array_equal(*fitness)


def test_an_environment_that_returns_nan_is_told(caplog):
    policy, rollouts = made(Line(broken=True))
    es = strategy()
    options = {"generations": 2, "carry": rollouts.begin()}
    with caplog.at_level(logging.WARNING, "eggroll"):
        result = eggroll.training.fit(es, es.init(policy.params, KEY), rollouts, **options)
    assert result.generation == 0
    assert "finite" in result.ended


def test_a_cap_that_adapts_is_twice_the_mean_length():
    class Long(Line):
        limit = 40

    policy, rollouts = made(Long(), cap="adaptive", seeds="own")
    es = strategy()
    state, carry, metrics = rollouts(es, es.init(policy.params, KEY), rollouts.begin(), ())
    assert metrics["cap"] == 40
    expected = min(40, max(16, round(2 * metrics["episode_steps"])))
    _, _, metrics = rollouts(es, state, carry, ())
    assert metrics["cap"] == expected
    assert metrics["episode_steps"] <= expected


def test_masks_leave_what_is_allowed():
    policy, rollouts = made(Forbidden(), seeds="own")
    es = strategy()
    _, carry, metrics = rollouts(es, es.init(policy.params, KEY), rollouts.begin(), ())
    assert metrics["fitness_mean"] == Line.BEST
    assert (rollouts.greedy(policy.params, carry, KEY, 4) == Line.BEST).all()


def test_on_the_host_every_member_plays_as_its_dense_parameters_do():
    policy, host = made(on_host(), recurrent=True, seeds="own", episodes=2)
    es = strategy()
    state, carry = es.init(policy.params, KEY), host.begin()
    keys, _ = host.keys(es, state)
    after, carried, metrics = host(es, state, carry, ())
    rewards, rows, act = np.zeros((8, 2)), [], jax.jit(policy.act)
    for i, params in enumerate(es.ask(state)):
        for j in range(2):
            world = on_host().make()
            seen, _ = world.reset(seed=int(jax.random.key_data(keys[i, j])[-1]) % 2**31)
            hidden = policy.start(params)
            for _ in range(8):
                rows.append(seen)
                action, hidden = act(params, hidden, seen)
                seen, reward, over, _, _ = world.step(int(action))
                rewards[i, j] += reward
                if over:
                    break
    np.testing.assert_allclose(metrics["fitness"], rewards.mean(1))
    assert metrics["live_steps"] == len(rows) == carried.statistics.count
    np.testing.assert_allclose(carried.statistics.mean, np.mean(rows, 0), rtol=1e-5)
    assert host.greedy(after.params, carried, KEY, 3).shape == (3,)


@pytest.mark.slow  # `test_run.py` learns by default
def test_it_learns_the_best_there_is_on_the_host_and_in_jax():
    for world in (Line(), on_host()):
        policy, rollouts = made(world)
        es = eggroll.ES(population=32, sigma=0.2, optimizer=optax.adam(0.1))

        def solved(state, carry, rollouts=rollouts):
            return (rollouts.greedy(state.params, carry, KEY, 6) == Line.BEST).all()

        options = {"generations": 15, "carry": rollouts.begin(), "until": solved}
        result = eggroll.training.fit(es, es.init(policy.params, KEY), rollouts, **options)
        assert (rollouts.greedy(result.state.params, result.carry, KEY, 6) == Line.BEST).all()


def test_without_normalisation_there_are_no_statistics():
    policy, rollouts = made(Target(), normalise=False)
    es = strategy()
    _, carry, metrics = rollouts(es, es.init(policy.params, KEY), rollouts.begin(), ())
    assert carry.statistics == ()
    assert metrics["live_steps"] == 8 * 3


def test_statistics_stay_where_nothing_was_seen():
    like = jax.ShapeDtypeStruct((2,), jnp.float32)
    assert float(no_statistics(like).count) == 0


def test_far_observations_are_ten_standard_deviations_away():
    statistics = Statistics(np.float32(4), np.float32([1, 1, 1]), np.float32([16, 16, 0]))  # deviations of 2, 2, none
    np.testing.assert_allclose(normalised(statistics, np.float32([5, -99, 3])), [2, -10, 2], rtol=1e-6)


def test_steps_of_members_without_a_fitness_do_not_count():
    rollouts = made(Line())[1]
    carry = rollouts.begin()
    sums = no_sums(carry.statistics)._replace(count=jnp.float32(4))  # in the mean of those that have one
    metrics = {"nonfinite": 2, "aux": (jnp.float32(4), sums)}
    es = SimpleNamespace(population=8, step=lambda state, *given, **options: (state, dict(metrics)))
    _, after, told = rollouts(es, SimpleNamespace(key=KEY, generation=0), carry, ())
    assert told["live_steps"] == counted(after.steps) == after.statistics.count == 24


class Endless(Line):
    limit = None


class Lone(Line):
    actions = 2


class Changing(Line):
    def step(self, state, action, key):
        state, seen, *rest = super().step(state, action, key)
        return (state, {**seen, "more": jnp.zeros(())}, *rest)


class Many(Line):
    def step(self, state, action, key):
        state, seen, reward, *rest = super().step(state, action, key)
        return (state, seen, reward[None], *rest)


@pytest.mark.parametrize(
    ("world", "told"),
    [
        (object(), "without reset, step, actions"),
        (Endless(), "tells no limit"),
        (Lone(), "there is no head"),
        (Changing(), "another observation than its reset"),
        (Many(), "one number for one episode"),
    ],
)
def test_an_environment_that_is_none_is_refused(world, told):
    policy, _ = made(Line())
    with pytest.raises((TypeError, SettingsError), match=told):
        Rollouts(world, policy)
