"""Each adapter against its library's own step."""

from __future__ import annotations

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eggroll.rl import Box, Discrete, HostEnvironment, make
from eggroll.rl.environments import check_environment
from eggroll.training.options import SettingsError

KEY = jax.random.key(1)


@pytest.fixture(autouse=True)
def as_the_libraries_want():
    with warnings.catch_warnings(), jax.numpy_dtype_promotion("standard"):
        warnings.simplefilter("ignore")
        yield


def library(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name, exc_type=ImportError)


def walked(world, actions):
    """`(observation, reward, terminated, truncated)` step by step."""
    check_environment(world)
    state, seen = jax.jit(world.reset)(KEY)
    step, rows = jax.jit(world.step), [(seen, 0.0, False, False)]
    for i, action in enumerate(actions):
        state, *made = step(state, action, jax.random.fold_in(KEY, i))
        rows.append(tuple(made))
    return rows


def same(one, other):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7), one, other)


def test_gymnax():
    gymnax = library("gymnax")
    world = make("gymnax:CartPole-v1", max_steps_in_episode=6)
    assert (world.actions, world.limit) == (Discrete(2), 6)
    own, params = gymnax.make("CartPole-v1")
    params = params.replace(max_steps_in_episode=6)
    seen, state = own.reset(KEY, params)
    rows = walked(world, [1, 0, 1, 1, 0, 1])
    same(rows[0][0], seen)
    for i, action in enumerate([1, 0, 1, 1, 0, 1]):
        key = jax.random.fold_in(KEY, i)
        seen, state, reward, *_ = own.step_env(key, state, jnp.int32(action), params)
        same(rows[i + 1][:2], (seen, reward))
    assert [bool(row[3]) or bool(row[2]) for row in rows] == [False] * 6 + [True]
    with pytest.raises(SettingsError, match=r"near it are gymnax:CartPole-v1"):
        make("gymnax:Cartpol-v1")
    with pytest.raises(SettingsError, match="refuses"):
        make("gymnax:CartPole-v1", wheels=3)


def test_brax():
    envs = library("brax.envs")
    world = make("brax:inverted_pendulum", backend="spring", episode_length=3)
    own = envs.get_environment("inverted_pendulum", backend="spring")
    state, actions = own.reset(KEY), [np.float32([0.5]), np.float32([-1]), np.float32([0.1])]
    rows = walked(world, actions)
    same(rows[0][0], state.obs)
    for action, row in zip(actions, rows[1:], strict=True):
        state = own.step(state, action)
        np.testing.assert_allclose(row[0], state.obs, rtol=1e-3, atol=1e-4)
        assert float(row[1]) == pytest.approx(float(state.reward))
    assert [bool(row[3]) for row in rows] == [False, False, False, True]


def test_navix():
    navix = library("navix")
    world = make("navix:Navix-Empty-5x5-v0", max_steps=4)
    own = navix.make("Navix-Empty-5x5-v0", max_steps=4)
    step = own.reset(KEY)
    rows = walked(world, [2, 2, 1, 2])
    same(rows[0][0], step.observation)
    for action, row in zip([2, 2, 1, 2], rows[1:], strict=True):
        step = own.step(step, jnp.int32(action))
        same(row, (step.observation, step.reward, step.is_termination(), step.is_truncation()))
    assert rows[-1][3]


def test_jumanji():
    jumanji = library("jumanji")
    for name, actions in (("Snake-v1", [0, 1, 2]), ("Minesweeper-v0", [3, 17, 99])):
        world = make(f"jumanji:{name}")
        own = jumanji.make(name)
        state, step = own.reset(KEY)
        rows = walked(world, actions)
        assert "action_mask" not in rows[0][0]
        assert world.mask(world.reset(KEY)[0]).shape == (world.actions.choices,)
        for action, row in zip(actions, rows[1:], strict=True):
            given = jnp.array(divmod(action, 10)) if name.startswith("Mine") else jnp.int32(action)
            state, step = own.step(state, given)
            shown = {key: getattr(step.observation, key) for key in row[0]}
            same(row[:3], (shown, step.reward, step.last()))


def test_gymnasium():
    gymnasium = library("gymnasium")
    world = make("gymnasium:Pendulum-v1")
    assert isinstance(world, HostEnvironment)
    assert isinstance(world.actions, Box)
    assert (world.limit, world.observation.shape) == (200, (3,))
    one, own = world.make(), gymnasium.make("Pendulum-v1")
    np.testing.assert_array_equal(one.reset(seed=3)[0], own.reset(seed=3)[0])
    np.testing.assert_array_equal(one.step(np.float32([1]))[0], own.step(np.float32([1]))[0])
    with pytest.raises(SettingsError, match="near it are gymnasium:CartPole"):
        make("gymnasium:CartPoll-v1")
