"""Answers in parts against answers at once, groups, random numbers, and running out of memory."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eggroll
from eggroll.llm.answers.decoding import Answers, Decoding, generator
from eggroll.llm.answers.generation import explained, generate, generate_plain, population_fit
from eggroll.llm.answers.memory import in_words
from eggroll.llm.answers.prompts import Prompts
from eggroll.training.errors import RunError
from tests.llm import truth

DRAWN = replace(truth.ENDING, temperature=1.0)
SMALL = 36_000  # bytes: two members, two of three prompts


def same(a: Answers, b: Answers) -> None:
    assert np.array_equal(a.tokens, b.tokens) and np.array_equal(a.length, b.length)


@pytest.mark.slow
def test_parts_of_prompts_and_of_members_change_nothing():
    graphdef, params = truth.model()
    members, fun, prompts = truth.ask(params), generator(graphdef, truth.ENDING), truth.prompts()
    chosen = population_fit(members, fun, prompts, budget=SMALL)
    assert (chosen.members, chosen.prompts) == (2, 2), chosen
    truth.check(generate(members, fun, prompts, budget=SMALL))


@pytest.mark.slow
def test_members_draw_alike_however_the_prompts_are_divided():
    graphdef, params = truth.model()
    members, fun, prompts = truth.ask(params, sigma=1e-4), generator(graphdef, DRAWN), truth.prompts()
    answers = generate(members, fun, prompts, key=jax.random.key(3), budget=SMALL)
    alone = generate_plain(params, fun, prompts, key=jax.random.key(3))
    assert (answers.tokens == alone.tokens).mean() > 0.9, "the same luck, weights almost the same"
    same(generate_plain(params, fun, prompts, key=jax.random.key(3), budget=17_000), alone)


@pytest.mark.slow
def test_members_draw_each_for_itself_where_asked():
    graphdef, params = truth.model()
    members, fun, prompts = truth.ask(params, sigma=1e-4), generator(graphdef, DRAWN), truth.prompts()
    at_once = generate(members, fun, prompts, key=jax.random.key(3), common=False)
    assert len({str(t) for t in at_once.tokens.tolist()}) == truth.POPULATION
    same(generate(members, fun, prompts, key=jax.random.key(3), common=False, budget=SMALL), at_once)


@pytest.mark.slow
def test_members_of_a_group_answer_their_groups_prompts():
    graphdef, params = truth.model()
    members, fun, prompts = truth.ask(params, groups=2), generator(graphdef, truth.ENDING), truth.prompts()
    own = Prompts(np.stack([prompts.tokens, prompts.tokens[::-1]]), np.stack([prompts.start, prompts.start[::-1]]))
    answers = generate(members, fun, own)
    half = truth.POPULATION // 2
    turned = Answers(answers.tokens.at[half:].set(answers.tokens[half:, ::-1]), None)
    lengths = answers.length.at[half:].set(answers.length[half:, ::-1])
    truth.check(turned._replace(length=lengths))


@pytest.mark.slow
def test_full_rank_members_answer_one_by_one():
    graphdef, params = truth.model()
    es = eggroll.FullRankES(population=2, sigma=0.1)
    members, fun = es.ask(es.init(params, jax.random.key(0))), generator(graphdef, truth.ENDING)
    answers = generate(members, fun, truth.prompts())
    for i in range(2):
        alone = generate_plain(members.materialize(i), fun, truth.prompts())
        same(Answers(answers.tokens[i], answers.length[i]), alone)
    assert population_fit(members, fun, truth.prompts()).members == 1


def test_a_chunk_that_does_not_fit_is_refused_before_anything_runs():
    graphdef, params = truth.model()
    fun = generator(graphdef, truth.ENDING)
    with pytest.raises(RunError, match=r"8 members with one prompt each need .* chunk=\d would fit"):
        generate(truth.ask(params, chunk=8), fun, truth.prompts(), budget=SMALL)
    with pytest.raises(RunError, match="2 members with one prompt each need"):
        generate(truth.ask(params), fun, truth.prompts(), budget=1_000)
    with pytest.raises(RunError, match="1 member with one prompt each need"):
        generate_plain(params, fun, truth.prompts(), budget=1_000)


def test_drawing_needs_a_key():
    graphdef, params = truth.model()
    with pytest.raises(ValueError, match=r"got no key at temperature=1\.0"):
        generate(truth.ask(params), generator(graphdef, DRAWN), truth.prompts())


def test_running_out_of_memory_is_told_with_what_to_do():
    message = r"memory ran out while 4 members wrote: take fewer\. XLA said: .*RESOURCE_EXHAUSTED"
    with pytest.raises(RunError, match=message), explained("4 members wrote", "take fewer"):
        jnp.zeros(1 << 46, jnp.float32).block_until_ready()
    with pytest.raises(jax.errors.JaxRuntimeError, match="else"), explained("4 members wrote", "take fewer"):
        raise jax.errors.JaxRuntimeError("something else")


def test_what_runs_out_all_the_same_is_told_what_half_would_be(monkeypatch):
    graphdef, params = truth.model()
    fun = generator(graphdef, Decoding(4))
    members = truth.ask(params)

    def exhausted(*_, **__):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    monkeypatch.setattr(type(members), "apply", exhausted)
    chosen = population_fit(members, fun, truth.prompts())
    half = rf"allow {in_words(chosen.bytes / 2)} .*, or {chosen.members // 2} members at once \(--chunk, chunk=\)"
    with pytest.raises(RunError, match=half):
        generate(members, fun, truth.prompts())


def test_full_rank_needs_room_for_a_perturbed_copy():
    graphdef, params = truth.model()
    fun = generator(graphdef, Decoding(4))
    es = eggroll.FullRankES(population=2)
    members = es.ask(es.init(params, jax.random.key(0)))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    chosen = population_fit(members, fun, truth.prompts())
    assert (chosen.members, chosen.bytes > size) == (1, True)
    with pytest.raises(RunError, match=rf"1 member with one prompt each need .* a member {in_words(size)} besides"):
        generate(members, fun, truth.prompts(), budget=size)
