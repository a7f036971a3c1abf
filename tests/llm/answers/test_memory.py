"""What generation is said to need against what XLA's programs take, and what is made of it."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import eggroll
from eggroll.llm.answers import memory
from eggroll.llm.answers.decoding import Decoding, generator, split
from eggroll.llm.answers.memory import Need, answer_need, available, fit, in_words
from eggroll.llm.model.config import DecoderConfig, Experts
from eggroll.llm.model.decoder import Decoder
from eggroll.training.errors import RunError

pytestmark = pytest.mark.optimised  # what a program takes is in the cache with it

CONFIG = DecoderConfig(vocabulary=2048, width=128, layers=6, heads=4, key_value_heads=2, hidden=384, head_width=32)
MEMBERS, PROMPTS, TIME, DECODING = 8, 8, 32, Decoding(17)


EXPERTS = replace(CONFIG, hidden=96, experts=Experts(count=6, chosen=2))


def shapes(config: DecoderConfig = CONFIG) -> tuple:
    graphdef, params = split(nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0))))
    rows = MEMBERS, PROMPTS
    return generator(graphdef, DECODING), params, jnp.zeros((*rows, TIME), jnp.int32), jnp.zeros(rows, jnp.int32)


@pytest.mark.slow
def test_the_estimate_of_a_population_is_near_what_its_program_takes():
    fun, params, tokens, start = shapes()
    es = eggroll.ES(population=MEMBERS, sigma=0.01, chunk=MEMBERS, fallback="error")
    plans = []

    def run(params, key):
        members = es.ask(eggroll.State(params, (), (), key, jnp.int32(0)))
        out = members.apply(fun, tokens, start, in_axes=0)
        plans.append(members.plan)
        return out

    compiled = jax.jit(run).lower(params, jax.random.key(0)).compile()
    noise = plans[0].numbers * 4 // 2
    need = answer_need(CONFIG, DECODING, TIME, noise=noise)
    assert need.total(MEMBERS, PROMPTS) == pytest.approx(compiled.memory_analysis().temp_size_in_bytes, rel=0.2)
    assert need.cache * MEMBERS * PROMPTS == 2 * 6 * 64 * 2 * 32 * (TIME + 16) * 4


@pytest.mark.slow
@pytest.mark.parametrize(("config", "near"), [(CONFIG, 0.2), (EXPERTS, 0.4)], ids=["one MLP", "experts"])
def test_the_estimate_of_one_model_is_near_what_its_program_takes(config, near):
    fun, params, tokens, start = shapes(config)
    compiled = fun.compiled.lower(params, tokens.reshape(-1, TIME), start.reshape(-1)).compile()
    need = answer_need(config, DECODING, TIME)
    assert need.total(1, MEMBERS * PROMPTS) == pytest.approx(compiled.memory_analysis().temp_size_in_bytes, rel=near)


def test_a_container_bounds_what_is_free(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    free = available()  # no such files: no bound
    (tmp_path / "memory.max").write_text("5000000\n")
    (tmp_path / "memory.current").write_text("1000000\n")
    assert available() == memory.HOST_SHARE * 4_000_000 < free
    (tmp_path / "memory.max").write_text("max\n")
    assert available() > 4_000_000


def test_pairs_are_counted_whole():
    assert fit(NEED, members=8, prompts=1, budget=1e6, chunk=3) == fit(NEED, members=8, prompts=1, budget=1e6, chunk=4)
    with pytest.raises(RunError, match="2 members with one prompt each need 400 B"):
        fit(NEED, members=8, prompts=1, budget=300, chunk=1)


NEED = Need(cache=60, logits=40, activations=30, noise=100)  # 100 an answer


@pytest.mark.parametrize(
    ("budget", "members", "prompts"),
    [
        (10_000, 8, 10),  # all: 8·(100 + 10·100) = 8,800
        (8_799, 4, 10),
        (2_200, 2, 10),
        (2_199, 2, 5),  # nine would fit: two equal parts
        (799, 2, 2),  # four parts of 3, 3, 2, 2
        (400, 2, 1),
    ],
)
def test_as_much_is_done_at_once_as_fits(budget, members, prompts):
    found = fit(NEED, members=8, prompts=10, budget=budget)
    assert (found.members, found.prompts) == (members, prompts)
    assert found.bytes == NEED.total(members, prompts) <= budget


def test_single_members_and_few_of_them_fit_too():
    assert fit(NEED, members=1, prompts=10, budget=599, unit=1).prompts == 4
    assert fit(NEED, members=5, prompts=1, budget=700, unit=1).members == 3


def test_a_chunk_that_is_given_decides_how_many_prompts_fit():
    found = fit(NEED, members=8, prompts=10, budget=4_000, chunk=8)
    assert (found.members, found.prompts) == (8, 4)
    with pytest.raises(
        RunError, match=r"8 members with one prompt each need 1\.6 kB .*; 1 kB may be used\. chunk=4 would"
    ):
        fit(NEED, members=8, prompts=10, budget=1_000, chunk=8)


def test_what_does_not_fit_at_all_is_refused_with_what_it_takes():
    message = (
        r"2 members with one prompt each need 400 B \(an answer takes .* a member 100 B besides\).*399 B may be used"
    )
    with pytest.raises(RunError, match=message) as caught:
        fit(NEED, members=8, prompts=10, budget=399)
    assert "chunk" not in str(caught.value)


def test_more_answers_at_once_than_fill_a_product_are_no_use_on_a_cpu():
    assert fit(Need(1, 1, 1), members=4096, prompts=2, budget=1e12).members == 512


def test_some_of_the_machines_memory_may_be_used():
    assert 1e8 < available() < 1e13
    assert [in_words(x) for x in (0, 999, 1e6, 2.5e12)] == ["0 B", "999 B", "1 MB", "2.5 TB"]
