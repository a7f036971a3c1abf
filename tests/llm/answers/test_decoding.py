"""Answers of a population against a loop without a cache on every member's dense weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from eggroll.engine import jax_compat
from eggroll.llm.answers import decoding
from eggroll.llm.answers.decoding import Decoding, generator, split
from tests.llm import tiny, truth


def test_every_member_writes_what_a_loop_without_a_cache_writes():
    """With more pads than are needed."""
    graphdef, params = truth.model()
    answers = truth.ask(params).apply(generator(graphdef, truth.ENDING), *truth.prompts(multiple=8))
    truth.check(answers)
    assert len({str(t) for t in truth.texts()}) > truth.POPULATION / 2, "members should write different texts"


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gemma3", "qwen2-window"])
def test_members_of_families_with_windows_write_what_each_writes_alone(family):
    """`tests/llm/model` has all others' caches, and members of other families."""
    graphdef, params = split(tiny.language_model(family).model)
    members = truth.ask(params, population=4)
    answers = members.apply(generator(graphdef, truth.ENDING), *truth.prompts(multiple=8))
    written = set()
    for i in range(4):
        dense = members.materialize(i)
        for j, row in enumerate(truth.ROWS):
            tokens, length = truth.ended(truth.greedy(graphdef, dense, row))
            assert (answers.tokens[i, j].tolist(), int(answers.length[i, j])) == (tokens, length), (i, j)
            written.add(tuple(tokens))
    assert len(written) > 6, "members should write different texts"


@pytest.mark.slow
def test_the_loop_ends_with_the_longest_answer_of_its_chunk():
    """Its turns are counted by each row: one number in a chunk, whose members decide together."""
    graphdef, params = truth.model()
    fun = generator(graphdef, truth.ENDING)
    row = truth.ask(params, chunk=2).apply(lambda params, *rows: fun.begin(params, 0, *rows).row, *truth.prompts())
    truth.check(row.answers)
    longest = np.asarray(row.answers.length).reshape(-1, 2 * len(truth.ROWS)).max(1)
    assert row.count.tolist() == np.repeat(longest, 2).tolist()
    assert len(set(longest.tolist())) > 1


def condition() -> Any:
    """What the members' loop decides by, after checking that its turns draw no noise."""
    graphdef, params = truth.model()
    members, fun = truth.ask(params, population=4), generator(graphdef, truth.ENDING)
    jaxpr = jax.make_jaxpr(lambda: members.apply(fun, *map(jnp.asarray, truth.prompts())))()
    (loop,) = (e for e in equations(jaxpr) if e.primitive.name == "while")
    turn = {e.primitive.name for e in equations(loop.params["body_jaxpr"])}
    assert "dot_general" in turn and not {n for n in turn if "random" in n or "shift" in n}
    return jax_compat.open_jaxpr(loop.params["cond_jaxpr"])[0].outvars[0].aval


def equations(jaxpr: Any) -> Any:
    for eqn in jax_compat.open_jaxpr(jaxpr)[0].eqns:
        yield eqn
        for inner in jax_compat.inner_jaxprs(eqn):
            yield from equations(inner)


@pytest.mark.slow
def test_members_decide_together_when_to_end_and_no_noise_is_drawn_in_the_loop(monkeypatch):
    """JAX selects between the old and the new cache of every member where members decide one by one."""
    assert condition().shape == ()
    monkeypatch.setattr(decoding, "_of_all_members", lambda live: live)
    decoding._generator.cache_clear()
    assert condition().shape == (2, 2), "else this test cannot fail"
    decoding._generator.cache_clear()


def test_one_function_for_the_same_model_and_decoding():
    graphdef, params = truth.model()
    fun = generator(graphdef, truth.ENDING)
    assert generator(nnx.merge(graphdef, params), replace(truth.ENDING)) is fun
    assert generator(graphdef, replace(truth.ENDING, pad=1)) is not fun


@pytest.mark.slow
def test_members_draw_alike_from_one_key_and_each_for_itself_from_its_own():
    graphdef, params = truth.model()
    fun, rows = generator(graphdef, Decoding(truth.MAX_TOKENS, temperature=1.0)), truth.prompts()
    members = truth.ask(params, sigma=1e-4)
    keys = jax.random.split(jax.random.key(3), len(members)).at[:4].set(jax.random.key(4))
    answers = members.apply(fun, *rows, keys, in_axes=(None, None, 0))
    assert (answers.tokens[:4] == answers.tokens[0]).mean() > 0.9, "the same luck, weights almost the same"
    assert len({str(t) for t in answers.tokens[3:].tolist()}) == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": 0}, "max_tokens=0; at least 1"),
        ({"temperature": -1.0}, "temperature=-1.0; 0"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"top_k": 0}, "top_k=0"),
        ({"top_p": 0.0}, "top_p=0.0"),
        ({"top_p": 1.5}, "top_p=1.5"),
    ],
)
def test_settings_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Decoding(**{"max_tokens": 3, **options})


def test_drawing_needs_a_key():
    graphdef, params = truth.model()
    with pytest.raises(ValueError, match=r"got no key at temperature=1\.0; a key is required"):
        generator(graphdef, Decoding(3, temperature=1.0))(params, *truth.prompts())


def test_a_model_with_other_state_is_refused():
    class Stateful(nnx.Module):
        def __init__(self) -> None:
            self.weight, self.seen = nnx.Param(jnp.ones(2)), nnx.BatchStat(jnp.ones(2))

    with pytest.raises(ValueError, match="state beside its parameters"):
        split(Stateful())
